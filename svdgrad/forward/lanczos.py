"""The dominant triplet by products alone: Golub and Kahan's bidiagonalisation (chapter *Without an SVD*)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
        options = self.tol, self.maxiter, self.missed, self.resolution, self.best
        if not isinstance(A, Dense):
            return lanczos_of(A.products(), A.shape, A.vector, v0, *options)
        X, tiny = A.A, torch.finfo(A.A.dtype).tiny
        largest = check_entries(X)
        subnormal = largest < tiny if X.ndim == 2 else bool((X.abs().amax((-2, -1)) < tiny).any())
        if not subnormal:
            return lanczos(X, v0, *options)
        root = root_of_scale(X)
        triplet, known = lanczos(X * root[..., None, None] * root[..., None, None], v0, *options)
        S = known.S / root[..., None] / root[..., None]
        return triplet._replace(sigma=triplet.sigma / root / root), known._replace(S=S)

    def find_many(self, A: Operator, k: int, v0: Tensor | None) -> tuple[Triplet, RitzBlock]:
        if isinstance(A, Dense):
            check_entries(A.A)
            if A.A.ndim > 2:  # one by one; of what else is known as much is kept as all have
                batch, matrices = A.A.shape[:-2], matrices_of(A.A)
                starts = (
                    [None] * len(matrices) if v0 is None or 0 in batch else [*v0.expand(*batch, -1, -1).flatten(0, -3)]
                )
                found = [self.find_many(Dense(X, rows=True), k, x) for X, x in zip(matrices, starts)]
                return tuple(stacked(xs, batch) for xs in zip(*found))
        sigma, U, V, known = block_lanczos(*A.products(), A.shape, A.vector, k, v0, self.tol, self.maxiter, self.missed)
        return Triplet(sigma, U, V), known


def matrices_of(A: Tensor) -> Tensor:
    """The matrices of a batch in one row; of an empty batch another matrix, to learn the shapes of what is found."""
    return torch.eye(*A.shape[-2:]).to(A)[None] if 0 in A.shape[:-2] else A.reshape(-1, *A.shape[-2:])


def stacked(found: Sequence[Any], batch: Sequence[int]) -> Any:
    """One named tuple of tensors for a batch of them, each tensor cut to the shape that all have."""
    tensors = []
    for xs in zip(*found):
        together = stack_what_all_have(xs)
        tensors.append(together[: math.prod(batch)].reshape(*batch, *together.shape[1:]))
    return type(found[0])(*tensors)


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
    answer is there in any case.
    """
    maxiter = min(A.shape[-2:]) if maxiter is None else maxiter
    if A.ndim > 2:
        return _one_by_one(A, v0, tol, maxiter, missed, resolution, best)
    return lanczos_of(products(A), (A.shape[0], A.shape[1]), A[:1], v0, tol, maxiter, missed, resolution, best)


def lanczos_of(
    pair: tuple[Map, Map],
    shape: tuple[int, int],
    like: Tensor,
    v0: Tensor | None,
    tol: float | None,
    maxiter: int | None,
    missed: float | None,
    resolution: float = RESOLUTION,
    best: bool = False,
) -> tuple[Triplet, Ritz]:
    """``lanczos`` for an operator of this shape by its two products; ``like`` has the dtype and device of its
    vectors.
    """
    (matvec, rmatvec), (m, n) = pair, shape
    wide = m < n
    start = v0 if v0 is None else v0.to(like)
    if wide and start is not None and start.any():
        start = matvec(start)
        start = start if start.any() else None  # a v0 in the null space of A says nothing
    random = start is None
    if start is None:
        start = noise(min(m, n), like)
    before = int(wide and v0 is not None)
    if wide:
        (sigma, v, u), ritz = golub_kahan(rmatvec, matvec, start, tol, maxiter, missed, random, resolution, best)
    else:
        (sigma, u, v), ritz = golub_kahan(matvec, rmatvec, start, tol, maxiter, missed, random, resolution, best)
    return Triplet(sigma, *fix_sign(u, v, v0)), ritz._replace(products=ritz.products + before)


def _one_by_one(
    A: Tensor,
    v0: Tensor | None,
    tol: float | None,
    maxiter: int | None,
    missed: float | None,
    resolution: float,
    best: bool,
) -> tuple[Triplet, Ritz]:
    """``lanczos`` for each matrix of a batch; of the Ritz pairs as many are kept as all of them have."""
    *batch, m, n = A.shape
    matrices = matrices_of(A)
    starts = [None] * len(matrices) if v0 is None or 0 in batch else list(v0.expand(*batch, n).reshape(-1, n))
    triplets, left = zip(*(lanczos(X, x, tol, maxiter, missed, resolution, best) for X, x in zip(matrices, starts)))
    return stacked(triplets, batch), stacked(left, batch)
