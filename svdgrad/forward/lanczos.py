"""The dominant triplet by products alone: Golub and Kahan's bidiagonalisation (chapter *Without an SVD*)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..certificate import RESOLUTION, check_missed
from ..operator import Dense, Operator
from ..products import Map, products, root_of_scale
from ..transforms import stack_what_all_have
from .basis import noise
from .bidiagonal import golub_kahan
from .block import RitzBlock, block_lanczos
from .found import Ritz, Triplet, check_entries, fix_sign

Left = TypeVar("Left", Ritz, RitzBlock)
Find = Callable[[Tensor, Tensor | None], tuple[Triplet, Left]]


@dataclass(frozen=True)
class Lanczos:
    """Golub and Kahan's bidiagonalisation: finds the dominant triplet of anything that can be multiplied with.

    ``tol``, ``maxiter`` and ``missed`` are those of ``singular_triplet``; a value counts as missed that exceeds σ by
    more than the part ``resolution``. With ``best`` it returns what it has after maxiter steps, and raises nothing.

    >>> Lanczos(tol=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: tol must be finite and not negative, found -1.0: it is the residual to stop
    at, over σ
    """

    tol: float | None = None
    maxiter: int | None = None
    missed: float | None = 1e-3
    resolution: float = RESOLUTION
    best: bool = False

    name: ClassVar[str] = "lanczos"
    largest_only: ClassVar[bool] = True
    leaves: ClassVar[type[Ritz]] = Ritz
    leaves_many: ClassVar[type[RitzBlock]] = RitzBlock

    def __post_init__(self) -> None:
        check_stopping(self.tol, self.maxiter)
        check_missed(self.missed)

    def find(self, A: Operator, index: int, v0: Tensor | None) -> tuple[Triplet, Ritz]:
        if not isinstance(A, Dense):
            return self._by_products(A.products(), A.shape, A.vector, v0, self.maxiter)
        X, tiny = A.A, torch.finfo(A.A.dtype).tiny
        largest = check_entries(X)
        subnormal = largest < tiny if X.ndim == 2 else bool((X.abs().amax((-2, -1)) < tiny).any())
        if not subnormal:
            return self._of_matrices(X, v0)
        root = root_of_scale(X)[..., None]
        (sigma, u, v), known = self._of_matrices(X * root[..., None] * root[..., None], v0)
        return Triplet(sigma / root[..., 0] / root[..., 0], u, v), known._replace(S=known.S / root / root)

    def _of_matrices(self, A: Tensor, v0: Tensor | None) -> tuple[Triplet, Ritz]:
        maxiter = min(A.shape[-2:]) if self.maxiter is None else self.maxiter
        find: Find[Ritz] = lambda X, x: self._by_products(products(X), (X.shape[0], X.shape[1]), X[:1], x, maxiter)
        return find(A, v0) if A.ndim == 2 else for_each_matrix(find, A, v0, 1)

    def _by_products(
        self, pair: tuple[Map, Map], shape: tuple[int, int], like: Tensor, v0: Tensor | None, maxiter: int | None
    ) -> tuple[Triplet, Ritz]:
        """For an operator of this shape by its two products; ``like`` has the dtype and device of its vectors."""
        (matvec, rmatvec), (m, n) = pair, shape
        wide = m < n
        start = v0 if v0 is None else v0.to(like)
        if wide and start is not None and start.any():
            start = matvec(start)
            start = start if start.any() else None  # a v0 in the null space of A says nothing
        random = start is None
        if start is None:
            start = noise(min(m, n), like)
        options = self.tol, maxiter, self.missed, random, self.resolution, self.best
        if wide:
            (sigma, v, u), ritz = golub_kahan(rmatvec, matvec, start, *options)
            ritz = ritz._replace(products=ritz.products + (v0 is not None))
        else:
            (sigma, u, v), ritz = golub_kahan(matvec, rmatvec, start, *options)
        return Triplet(sigma, *fix_sign(u, v, v0)), ritz

    def find_many(self, A: Operator, k: int, v0: Tensor | None) -> tuple[Triplet, RitzBlock]:
        if isinstance(A, Dense):
            check_entries(A.A)
            if A.A.ndim > 2:
                return for_each_matrix(lambda X, x: self.find_many(Dense(X, rows=True), k, x), A.A, v0, 2)
        return block_lanczos(*A.products(), A.shape, A.vector, k, v0, self.tol, self.maxiter, self.missed)


def for_each_matrix(find: Find[Left], A: Tensor, v0: Tensor | None, own: int) -> tuple[Triplet, Left]:
    """What ``find`` makes of each matrix of a batch and its start, which has ``own`` dimensions, as one; each tensor
    cut to the shape that all have, so that of Ritz pairs as many are kept.
    """
    batch, size = A.shape[:-2], A.shape[:-2].numel()
    # of an empty batch another matrix, to learn the shapes of what is found
    matrices = A.reshape(-1, *A.shape[-2:]) if size else torch.eye(*A.shape[-2:]).to(A)[None]
    starts: Iterable[Tensor | None] = [None] * len(matrices)
    if v0 is not None and size:
        start = v0.shape[-own:]
        starts = v0.expand(*batch, *start).reshape(-1, *start)
    found = [find(X, x) for X, x in zip(matrices, starts)]
    triplet, left = (
        [stack_what_all_have(xs)[:size].unflatten(0, batch) for xs in zip(*named)] for named in zip(*found)
    )
    return Triplet(*triplet), type(found[0][1])(*left)


def check_stopping(tol: float | None, maxiter: int | None) -> None:
    """Raise an error for a tolerance or a number of steps that stops no iteration."""
    if tol is not None:
        if isinstance(tol, bool) or not isinstance(tol, int | float | np.number):
            raise TypeError(f"tol must be a number, found {tol!r}: it is the residual to stop at, in units of σ")
        if not 0 <= tol < math.inf:
            raise ValueError(f"tol must be finite and not negative, found {tol}: it is the residual to stop at, over σ")
    if maxiter is not None:
        if isinstance(maxiter, bool) or not isinstance(maxiter, int | np.integer):
            raise TypeError(f"maxiter must be an integer, found {maxiter!r}: it counts steps")
        if maxiter < 1:
            raise ValueError(
                f"maxiter must be at least 1, found {maxiter}: it counts steps; without it as many are taken as needed"
            )


def lanczos(
    A: Tensor,
    v0: Tensor | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
    resolution: float = RESOLUTION,
    best: bool = False,
) -> tuple[Triplet, Ritz]:
    """The dominant triplet by Golub and Kahan's bidiagonalisation: two products with A a step. A batch is a loop.

    Starts from ``v0`` with some noise, or from noise alone, which is seeded, so that the same A gives the same answer.
    A wide matrix is transposed. Takes up to min(m, n) steps unless told otherwise; then the space is exhausted, and the
    answer is there in any case. The options are those of ``Lanczos``.
    """
    return Lanczos(tol, maxiter, missed, resolution, best).find(Dense(A), 0, v0)
