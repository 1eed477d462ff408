"""Golub and Kahan's bidiagonalisation, step by step, and the evidence to stop (chapter *Without an SVD*)."""

import math

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..certificate import RESOLUTION, allowed, check_missed, hidden, least_excess, noise_beside, probability
from ..products import Map, times_both
from .basis import Basis, eigenpairs, noise, over, steps_to_go
from .found import ConvergenceError, Ritz, Triplet, counts, not_adjoint, not_finite


def golub_kahan(
    matvec: Map,
    rmatvec: Map,
    v0: Tensor,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
    random: bool = False,
    resolution: float = RESOLUTION,
    best: bool = False,
) -> tuple[Triplet, Ritz]:
    """The dominant triplet of the operator with products ``matvec`` (A x) and ``rmatvec`` (Aᴴ y), both on flat vectors.

    A V = U B and Aᴴ U = V Bᵀ + β v eᵀ with B upper bidiagonal (eq-bidiagonal), one column more each step. Of that V
    alone is formed, with the tridiagonal T = BᵀB of AᴴA V = V T + αβ v eᵀ, α the last entry of B (eq-tridiagonal). The
    dominant eigenpair (θ², y) of the small T gives v = V y and u = A v/σ, with residual ‖Aᴴu − σv‖ = αβ abs(y_k)/θ
    (eq-ritz-residual). Stops where that is at most ``tol`` σ, by default ten times the unit roundoff, and the
    probability that a value above (1 + ``resolution``)σ was missed is at most ``missed`` (eq-missed). For that it
    starts from v0 and a little noise, or from v0 alone if that is ``random``; with ``missed`` None from v0 and next to
    no noise. V is kept orthonormal, since without that copies of σ appear. Cost: two products a step, and one; memory:
    the basis V. After ``maxiter`` steps it returns what it has if ``best``, and else raises ConvergenceError; and
    ValueError where a product is not finite, or not linear, as far as the first two show.
    """
    eps = torch.finfo(v0.dtype).eps
    tol = 10 * eps if tol is None else tol
    check_missed(missed)
    size, is_complex = v0.numel(), v0.is_complex()
    most = min(size, 1000 if maxiter is None else maxiter)
    if most < 1:
        raise ValueError(f"maxiter must be at least 1, found {maxiter}")
    # were v0 without any component along v, no number of steps would find it: a little noise has one
    start, amount = _start(v0, eps**0.5 if missed is None else noise_beside(max(tol, eps)), random)
    first = matvec(start)
    largest = first.abs().max().item()
    if not math.isfinite(largest):
        raise not_finite(1)
    if not 1e-6 < largest < 1e6 and largest != 0:  # fourth powers would leave the range of float32: change the unit
        root = 2.0 ** -(math.frexp(largest)[1] // 2)
        pair = times_both((matvec, rmatvec), root)
        (sigma, u, v), known = golub_kahan(*pair, v0, tol, maxiter, missed, random, resolution, best)
        known = known._replace(S=known.S / root / root, products=known.products + 1)
        return Triplet(sigma / root / root, u, v), known
    w = rmatvec(first)
    _check_adjoint(start, first, w, eps)
    V = Basis(start)
    history: list[tuple[int, float]] = []
    enough = math.inf if missed is None else allowed(missed, size, amount, is_complex)
    look = 1 if missed is None and not random else 5  # a v0 that is trusted may be all that is wanted
    for step in range(1, most + 1):
        if step > 1:
            w = rmatvec(matvec(V.last()))
        V.extend(w)
        # the small problem costs as much as some products: look where both conditions are expected to hold
        if step >= look or step == most:
            diagonal, off = V.tridiagonal()
            if not (diagonal + off).isfinite().all():
                raise not_finite(step)
            squares, Y = eigenpairs(diagonal, off)
            square = squares[-1].item()
            residual = abs(off[-1].item() * Y[-1, -1].item()) / square if square > 0 else 0.0
            share = 0.0
            if 0 < square and step < size:  # else A is zero, or the space exhausted, and nothing can be missed
                # rounding leaves in every vector about ε/√size of any other
                share = hidden(diagonal.tolist(), off.tolist(), square * (1 + resolution) ** 2) + eps / size**0.5
            stopped = step == most and best
            if step == size or (residual <= tol and share <= enough) or stopped:
                excess = 0.0 if step == size or square <= 0 else math.inf if missed is None else resolution
                if best and 0 < excess < math.inf:
                    room = max(enough - eps / size**0.5, eps**2)
                    excess = least_excess(diagonal.tolist(), off.tolist(), square, room, resolution)
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
                risk = probability(share, size, amount, is_complex)
                return Triplet(S[0].clone(), u, v), Ritz(S, W, *counts(step, 2 * step + 1, residual, risk, excess))
            look = step + steps_to_go(history, step, max(over(residual, tol), share / enough), 2)
    if residual <= tol:
        raise ConvergenceError(
            f"Lanczos bidiagonalisation reached the residual that was wanted, {tol:.1e} σ, in {most} steps, but a "
            f"singular value above {1 + resolution:g} σ may have been missed with a probability of "
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


def _check_adjoint(v: Tensor, Av: Tensor, AAv: Tensor, eps: float) -> None:
    """‖Av‖² = ⟨Aᴴ(Av), v⟩ for every linear A and its adjoint; the first products tell, at no further cost."""
    square, back = vector_norm(Av).item() ** 2, vecdot(AAv, v).item()
    if not abs(square - back) <= eps**0.5 * max(square, vector_norm(AAv).item()):
        raise not_adjoint(f"found (Av)ᵀ(Av) = {square:.3g} and (Aᵀ(Av))ᵀv = {back.real:.3g}")


def _check_unchanged(square: float, again: float, eps: float) -> None:
    """The iteration's θ² is ‖Av‖² for its v, whether it has converged or not, if A was one matrix all along."""
    if not abs(square - again) <= eps**0.5 * square:
        raise ValueError(
            f"the products must be those of one matrix, found ‖Av‖² = {again:.3g} in the end, where those before "
            f"make it {square:.3g}. Likely cause: a matvec that changes from call to call (a counter, dropout, "
            "a running mean)"
        )
