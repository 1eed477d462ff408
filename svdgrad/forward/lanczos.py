"""The dominant triplet by products alone: Golub and Kahan's bidiagonalisation (chapter *Without an SVD*)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..certificate import RESOLUTION, allowed, check_missed, hidden, noise_beside, probability
from ..matrices import Map, products, root_of_scale, times_both
from ..operator import Dense, Operator
from .basis import Basis, noise, numbers
from .block import RitzBlock, block_lanczos
from .found import ConvergenceError, Ritz, Rows, Triplet, check_entries, fix_sign


@dataclass(frozen=True)
class Lanczos:
    """Golub and Kahan's bidiagonalisation: finds the dominant triplet of anything that can be multiplied with.

    ``tol``, ``maxiter`` and ``missed`` are those of ``singular_triplet``.

    >>> Lanczos(tol=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: tol must be finite and not negative, found -1.0: it is the residual to stop at, over σ
    """

    tol: float | None = None
    maxiter: int | None = None
    missed: float | None = 1e-3

    name: ClassVar[str] = "lanczos"
    largest_only: ClassVar[bool] = True
    leaves: ClassVar[type[Ritz]] = Ritz
    leaves_many: ClassVar[type[RitzBlock]] = RitzBlock

    def __post_init__(self) -> None:
        check_stopping(self.tol, self.maxiter)
        check_missed(self.missed)

    def find(self, A: Operator, index: int, v0: Tensor | None) -> tuple[Triplet, Ritz]:
        options = self.tol, self.maxiter, self.missed
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

    def find_many(self, A: Operator, k: int, v0: Tensor | None) -> tuple[Rows, RitzBlock]:
        if isinstance(A, Dense):
            check_entries(A.A)
            if A.A.ndim > 2:  # one by one; of what else is known as much is kept as all have
                found = [self.find_many(Dense(X, rows=True), k, v0) for X in A.A.reshape(-1, *A.shape)]
                return tuple(stacked(xs, A.A.shape[:-2]) for xs in zip(*found))
        sigma, U, V, known = block_lanczos(
            *A.products(), A.shape, A.vector, k, None if v0 is None else v0[None], self.tol, self.maxiter, self.missed
        )
        return Rows(sigma, U, V), known


def stacked(found: Sequence[Any], batch: Sequence[int]) -> Any:
    """One named tuple of tensors for a batch of them, each tensor cut to the shape that all have."""
    tensors = []
    for xs in zip(*found):
        shape = [min(sizes) for sizes in zip(*(x.shape for x in xs))]
        tensors.append(torch.stack([x[tuple(map(slice, shape))] for x in xs]).reshape(*batch, *shape))
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
) -> tuple[Triplet, Ritz]:
    """The dominant triplet by Golub and Kahan's bidiagonalisation: two products with A a step. A batch is a loop.

    Starts from ``v0`` with some noise, or from noise alone, which is seeded, so that the same A gives the same answer.
    A wide matrix is transposed. Takes up to min(m, n) steps unless told otherwise; then the space is exhausted, and the
    answer is there in any case.
    """
    maxiter = min(A.shape[-2:]) if maxiter is None else maxiter
    if A.ndim > 2:
        return _one_by_one(A, v0, tol, maxiter, missed)
    return lanczos_of(products(A), (A.shape[0], A.shape[1]), A[:1], v0, tol, maxiter, missed)


def lanczos_of(
    pair: tuple[Map, Map],
    shape: tuple[int, int],
    like: Tensor,
    v0: Tensor | None,
    tol: float | None,
    maxiter: int | None,
    missed: float | None,
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
        (sigma, v, u), ritz = golub_kahan(rmatvec, matvec, start, tol, maxiter, missed, random)
    else:
        (sigma, u, v), ritz = golub_kahan(matvec, rmatvec, start, tol, maxiter, missed, random)
    return Triplet(sigma, *fix_sign(u, v, v0)), ritz._replace(products=ritz.products + before)


def _one_by_one(
    A: Tensor, v0: Tensor | None, tol: float | None, maxiter: int | None, missed: float | None
) -> tuple[Triplet, Ritz]:
    """``lanczos`` for each matrix of a batch; of the Ritz pairs as many are kept as all of them have."""
    *batch, m, n = A.shape
    if 0 in batch:
        real = A.real.new_empty
        known = Ritz(real((*batch, 1)), A.new_empty((*batch, min(m, n), 1)), *(real(batch) for _ in range(4)))
        return Triplet(real(batch), A.new_empty((*batch, m)), A.new_empty((*batch, n))), known
    matrices = A.reshape(-1, m, n)
    starts = [None] * len(matrices) if v0 is None else list(v0.expand(*batch, n).reshape(-1, n))
    triplets, left = zip(*(lanczos(X, x, tol, maxiter, missed) for X, x in zip(matrices, starts)))
    k, l = (min(sizes) for sizes in zip(*((*ritz.S.shape, ritz.W.shape[1]) for ritz in left)))
    left = tuple(ritz._replace(S=ritz.S[:k], W=ritz.W[:, :l]) for ritz in left)
    together = [[torch.stack(xs).reshape(*batch, *xs[0].shape) for xs in zip(*tuples)] for tuples in (triplets, left)]
    return Triplet(*together[0]), Ritz(*together[1])


def golub_kahan(
    matvec: Callable[[Tensor], Tensor],
    rmatvec: Callable[[Tensor], Tensor],
    v0: Tensor,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
    random: bool = False,
) -> tuple[Triplet, Ritz]:
    """The dominant triplet of the operator with products ``matvec`` (A x) and ``rmatvec`` (Aᴴ y), both on flat vectors.

    A V = U B and Aᴴ U = V Bᵀ + β v eᵀ with B upper bidiagonal (eq-bidiagonal), one column more each step. Of that V
    alone is formed, with the tridiagonal T = BᵀB of AᴴA V = V T + αβ v eᵀ, α the last entry of B (eq-tridiagonal). The
    dominant eigenpair (θ², y) of the small T gives v = V y and u = A v/σ, with residual ‖Aᴴu − σv‖ = αβ abs(y_k)/θ
    (eq-ritz-residual). Stops where that is at most ``tol`` σ, by default ten times the unit roundoff, and the
    probability that a value above 1.001 σ was missed is at most ``missed`` (eq-missed). For that it starts from v0 and
    a little noise, or from v0 alone if that is ``random``; with ``missed`` None from v0 and next to no noise. V is kept
    orthonormal, since without that copies of σ appear. Cost: two products a step, and one; memory: the basis V.
    Raises ConvergenceError after ``maxiter`` steps, and ValueError where a product is not finite, or not linear, as far
    as the first two show.
    """
    eps = torch.finfo(v0.dtype).eps
    tol = 10 * eps if tol is None else tol
    check_missed(missed)
    size, is_complex = v0.numel(), v0.is_complex()
    most = min(size, 1000 if maxiter is None else maxiter)
    if most < 1:
        raise ValueError(f"maxiter must be at least 1, found {maxiter}")
    calls: list[None] = []
    matvec, rmatvec = _counted(matvec, calls), _counted(rmatvec, calls)
    # were v0 without any component along v, no number of steps would find it: a little noise has one
    start, amount = _start(v0, eps**0.5 if missed is None else noise_beside(max(tol, eps)), random)
    first = matvec(start)
    largest = first.abs().max().item()
    if not math.isfinite(largest):
        raise _not_finite(1)
    if not 1e-6 < largest < 1e6 and largest != 0:  # fourth powers would leave the range of float32: change the unit
        root = 2.0 ** -(math.frexp(largest)[1] // 2)
        pair = times_both((matvec, rmatvec), root)
        (sigma, u, v), known = golub_kahan(*pair, v0, tol, maxiter, missed, random)
        known = known._replace(S=known.S / root / root, products=known.products + 1)
        return Triplet(sigma / root / root, u, v), known
    w = rmatvec(first)
    _check_adjoint(start, first, w, eps)
    V = Basis(start)
    alphas: list[float | Tensor] = []
    betas: list[float | Tensor] = []
    history: list[tuple[int, float]] = []
    enough = math.inf if missed is None else allowed(missed, size, amount, is_complex)
    look = 5
    for step in range(1, most + 1):
        if step > 1:
            w = rmatvec(matvec(V.last()))
        alpha, beta = V.extend(w)
        alphas.append(alpha)
        betas.append(beta)
        # the small problem costs as much as some products: look where both conditions are expected to hold
        if step >= look or step == most:
            diagonal, off = numbers(alphas + betas).split(step)
            if not (diagonal + off).isfinite().all():
                raise _not_finite(step)
            squares, Y = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off[:-1], -1))
            square = squares[-1].item()
            residual = abs(off[-1].item() * Y[-1, -1].item()) / square if square > 0 else 0.0
            share = 0.0
            if 0 < square and step < size:  # else A is zero, or the space exhausted, and nothing can be missed
                # rounding leaves in every vector about ε/√size of any other
                share = hidden(diagonal.tolist(), off.tolist(), square * (1 + RESOLUTION) ** 2) + eps / size**0.5
            if step == size or (residual <= tol and share <= enough):
                squares, Y = squares.flip(-1).clamp_min(0), Y.flip(-1)
                if square <= 0:  # of V only the first row is not zero, and any eigenvector of T = 0 will do
                    Y = torch.eye(step, dtype=Y.dtype, device=Y.device)
                # a Ritz vector helps the adjoint by 1/(1 − θ²), θ in units of σ: below five it saves no step, unless it
                # is among the few that stand out of the rest of a spectrum that falls fast
                W = V.rows(step).mT @ Y[:, : max(8, int((squares > 0.8 * square).sum()))].to(v0)
                v = W[:, 0] / vector_norm(W[:, 0])
                u = matvec(v)
                length = vector_norm(u)
                _check_unchanged(square, length.item() ** 2, eps)
                # a zero matrix says nothing of u: any unit vector will do
                u = u / length if length > 0 else torch.eye(1, u.numel(), dtype=u.dtype, device=u.device)[0]
                S = squares.sqrt().to(v0.real)
                return Triplet(S[0].clone(), u, v), Ritz(
                    S, W, *_on_host(step, len(calls), residual, probability(share, size, amount, is_complex))
                )
            look = step + _steps_to_go(history, step, max(residual, tol * share / enough), tol)
    if residual <= tol:
        raise ConvergenceError(
            f"Lanczos bidiagonalisation reached the residual that was wanted, {tol:.1e} σ, in {most} steps, but a "
            f"singular value above 1.001 σ may have been missed with a probability of "
            f"{probability(share, size, amount, is_complex):.1e}, where missed={missed:g} was asked for. Likely cause: "
            "a loose tol. Raise maxiter or missed, or trust v0 with missed=None"
        )
    raise ConvergenceError(
        f"Lanczos bidiagonalisation reached a residual of {residual:.1e} σ in {most} steps, where {tol:.1e} σ was "
        "wanted. Likely causes: σ₂ is close to σ₁, or v0 is nearly orthogonal to v. Raise maxiter, loosen tol, or "
        "start from another v0"
    )


def _start(v0: Tensor, length: float, random: bool) -> tuple[Tensor, float]:
    """The vector of length one to start from, v0 and noise of this length, and the amount of noise in it."""
    largest = v0.abs().max()
    if not 0 < largest < torch.inf:
        raise ValueError("v0 must be finite and not zero: it is the vector to start from; random numbers will do")
    v0 = v0 / largest
    if random:
        return v0 / vector_norm(v0), 1.0
    start = v0 / vector_norm(v0) + length * noise(v0.numel(), v0)
    return start / vector_norm(start), length / vector_norm(start).item()


def _counted(product: Map, calls: list[None]) -> Map:
    """The same product, each call of which adds to ``calls``."""

    def counted(x: Tensor) -> Tensor:
        calls.append(None)
        return product(x)

    return counted


def _not_finite(steps: int) -> ValueError:
    return ValueError(
        f"the products must be finite, found NaN or Inf within {steps} step{'s' * (steps > 1)}: look into matvec, and "
        f"the adjoint, "
        "for an overflow or a division by zero"
    )


def _check_adjoint(v: Tensor, Av: Tensor, AAv: Tensor, eps: float) -> None:
    """‖Av‖² = ⟨Aᴴ(Av), v⟩ for every linear A and its adjoint; the first products tell, at no further cost."""
    square, back = vector_norm(Av).item() ** 2, vecdot(AAv, v).item()
    if not abs(square - back) <= eps**0.5 * max(square, vector_norm(AAv).item()):
        raise ValueError(
            f"the two products are not those of a matrix and its transpose: found (Av)ᵀ(Av) = {square:.3g} and "
            f"(Aᵀ(Av))ᵀv = {back.real:.3g}. Likely causes: a matvec that is not linear in x (a ReLU, a normalisation), "
            "that changes from call to call (dropout), or an rmatvec of another matrix"
        )


def _check_unchanged(square: float, again: float, eps: float) -> None:
    """The iteration's θ² is ‖Av‖² for its v, whether it has converged or not, if A was one matrix all along."""
    if not abs(square - again) <= eps**0.5 * square:
        raise ValueError(
            f"the products must be those of one matrix, found ‖Av‖² = {again:.3g} in the end, where those before "
            f"make it {square:.3g}. Likely cause: a matvec that changes from call to call (a counter, dropout, "
            "a running mean)"
        )


def _steps_to_go(history: list[tuple[int, float]], step: int, residual: float, tol: float) -> int:
    """From 2 to step/4 + 3: as many as the residual needs at the rate at which it fell since the last look."""
    most = step // 4 + 3
    history.append((step, residual))
    if len(history) < 2 or not 0 < residual < history[-2][1] or tol <= 0:
        return most
    rate = math.log(history[-2][1] / residual) / (step - history[-2][0])
    return max(2, min(most, math.ceil(math.log(residual / tol) / rate)))


def _on_host(steps: int, products: int, residual: float, missed: float) -> tuple[Tensor, ...]:
    return *torch.tensor([steps, products], device="cpu"), *torch.tensor(
        [residual, missed], dtype=torch.float64, device="cpu"
    )
