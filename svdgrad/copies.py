"""The search for other vectors of σ, which Lanczos's iteration cannot see: a Krylov space holds one of them."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .certificate import RESOLUTION, hidden, probability
from .forward import ConvergenceError, Ritz
from .forward.basis import Basis, eigenpairs, noise
from .operator import Dense, Operator
from .products import Map, project, times_both

#: a value that equals σ, and that Lanczos's iteration cannot see, is overlooked with at most this probability
OVERLOOKED = 1e-2
#: of what the search for it leaves over, so many vectors precondition the adjoint, each of which saves half of a step
#: or more
KEPT, WORTH = 8, 0.3


def values_near(A: Operator, sigma: Tensor, known: Any, pair: tuple[Map, Map] | None = None) -> tuple[Tensor, Any]:
    """The singular values that are known, shape (..., k); after Lanczos with one more, from a search for copies of σ.
    And what is ``known``, with the vectors that the search came upon, but for a batch.

    Lanczos's iteration sees one vector of a multiple value, since its space holds one; see ``largest_unseen``. ``pair``
    is the products with A, if they are at hand.
    """
    if not isinstance(known, Ritz):
        return known.S, known
    if sigma.ndim > 0:  # a batch, which only a matrix can be
        batch, (m, n) = sigma.shape, A.shape
        matrices = A.leaves[0].expand(*batch, m, n).reshape(-1, m, n)
        parts = [x.reshape(-1, *x.shape[len(batch) :]) for x in (sigma, *known)]
        found = [values_near(Dense(X), s, Ritz(*left))[0] for X, s, *left in zip(matrices, *parts)]
        return torch.stack(found).reshape(*batch, -1) if found else known.S, known
    matvec, rmatvec = pair or A.products()
    m, n = A.shape
    value, more = largest_unseen(*((rmatvec, matvec) if m < n else (matvec, rmatvec)), sigma, known)
    return torch.cat([known.S, torch.full_like(known.S[:1], value)]), more


def largest_unseen(matvec: Map, rmatvec: Map, sigma: Tensor, ritz: Ritz) -> tuple[float, Ritz]:
    """The largest singular value that Lanczos's iteration finds from fresh noise off v, and Ritz vectors of it beside
    those of ``ritz``, to precondition with.

    With P the matrix of (eq-preconditioner), P⁻¹ᐟ²(I − AᴴA/σ²)P⁻¹ᐟ² has off v as many eigenvalues at or below zero as
    there are other values at or above σ; all but those are near one, so few steps find them. It stops where one at zero
    is overlooked with a probability of at most ``OVERLOOKED``; where one is found, not before a lower one is as
    improbable, and its distance from zero is known to a tenth. Raises ConvergenceError where a value is larger than σ.

    With eigenpairs (1 − λ, y) of that matrix, P⁻¹ + Σ λ/(1 − λ) xxᴴ, x = P⁻¹ᐟ²y, is nearer to the inverse than P⁻¹ is.
    Each x stands among the Ritz vectors with the θ that gives it this weight, λ/(1 − λ)‖x‖² = 1/(1 − θ²) − 1.
    """
    W, s, eps = ritz.W, sigma.item(), torch.finfo(ritz.S.dtype).eps
    size = len(W) - 1  # of the space off v
    if size < 1 or s == 0:
        return 0.0, ritz
    W_H, theta = W[:, 1:].mH, ritz.S[1 : W.shape[1]] / s
    weighted = W[:, 1:] * (((1 - theta) * (1 + theta)).clamp_min(eps).rsqrt() - 1)
    unit = s
    if not 1e-6 < s < 1e6:  # y below may be 1/√ε long, and σ near an end of the range: change the unit
        root = 2.0 ** -(math.frexp(s)[1] // 2)
        (matvec, rmatvec), unit = times_both((matvec, rmatvec), root), s * root * root
    half: Map = lambda x: torch.addmv(x, weighted, W_H @ x)  # P⁻¹ᐟ²

    def apply(x: Tensor) -> Tensor:  # the identity less the matrix above: eigenvalues near zero, and those wanted last
        y = half(x)
        return x - half(y - rmatvec(matvec(y) / unit) / unit)

    start = project(W[:, 0], project(W[:, 0], noise(len(W), W[:, 0], seed=1)))
    V = Basis(start / vector_norm(start), W[:, :1].mT, 1.0)

    def risk(value: float) -> float:  # that an eigenvalue at or above this one was overlooked
        share = hidden(diagonal.tolist(), off.tolist(), value) + eps / size**0.5
        return probability(share, size, 1.0, start.is_complex())

    for step in range(1, size + 1):
        V.extend(apply(V.last()))
        if start.is_cpu or step % 4 == 0 or step == size:
            diagonal, off = V.tridiagonal()
            if OVERLOOKED < risk(1.0) < 1 and step < size:  # which spares most of these eigenvalue problems
                continue
            values, Y = eigenpairs(diagonal, off)
            top, residual = values[-1].item(), abs(off[-1].item() * Y[-1, -1].item())
            larger = max(1.0, top + 2 * RESOLUTION)
            if risk(larger) <= OVERLOOKED and (larger == 1 or residual <= max(eps**0.5, 0.1 * abs(1 - top))):
                break
    count = max(1, min(KEPT, int((values > WORTH).sum())))
    X = V.rows()[1 : step + 1].mT @ Y[:, -count:].flip(-1).to(start)
    X = torch.addmm(X, weighted, W_H @ X)
    lengths = vector_norm(X, dim=0).clamp_min(eps)  # zero where A has sent all but v to zero
    length = lengths[0].item()
    value: float = max(0.0, 1 - (1 - top) / length**2) ** 0.5  # ‖Ax‖/σ‖x‖
    if value - 1 > 10 * (ritz.residual.item() + eps**0.5):
        raise ConvergenceError(
            f"σ = {s:.6g} is not the largest singular value: when the gap was measured, one was found that is larger "
            f"by at least {value - 1:.1e} of it. Likely causes: missed=None with a v0 near another singular vector, or "
            "two values that differ by less than 1e-3. Leave v0 out, or lower tol and missed"
        )
    lam = values[-count:].flip(0).clamp(0, 1 - eps).to(lengths)
    weight = lam / (1 - lam) * lengths**2
    S = torch.cat([ritz.S[: ritz.W.shape[1]], (weight / (1 + weight)).sqrt() * s])
    return value * s, ritz._replace(S=S, W=torch.cat([W, X / lengths], 1))
