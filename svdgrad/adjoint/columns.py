"""Solve P S − A Q = P_U Φ, Q S − AᴴP = P_V Ψ, P ⟂ U, Q ⟂ V, for k triplets at once (chapter *More than one*).

Vectors are rows, as in ``forward.block``: column i of the equation is row i here, with its own shift σᵢ.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..forward.block import RitzBlock
from ..gap import TieError, tie
from ..inside import off
from ..products import Map
from .krylov import CHECK_EVERY, dot


def columns_cg(
    mm: Map,
    rmm: Map,
    shape: tuple[int, int],
    sigma: Tensor,
    U: Tensor,
    V: Tensor,
    Phi: Tensor,
    Psi: Tensor,
    ritz: RitzBlock | None = None,
) -> tuple[Tensor, Tensor]:
    """(P, Q), shapes (..., k, m) and (..., k, n), by conjugate gradients on the smaller side, a system a row
    (eq-outside-schur):

    (σᵢ²I − AᴴA) qᵢ = AᴴP_Uφᵢ + σᵢP_Vψᵢ on V^⊥,  pᵢ = (P_Uφᵢ + Aqᵢ)/σᵢ,

    definite there for each i ≤ k, with a condition that the gap at the cut decides and none inside the set. They share
    the products and nothing else. What has converged stands still, and is left out as soon as that is half of the rows;
    rows of zeros cost nothing. Ritz vectors beyond the k found precondition each by its own shift. Raises a TieError
    where σ_k equals the next value.
    """
    m, n = shape
    batch, k = Phi.shape[:-2], Phi.shape[-2]
    Phi, Psi, s = Phi.reshape(-1, m), Psi.reshape(-1, n), sigma.repeat(batch.numel()).unsqueeze(-1)
    if m < n:
        Q, P = _on_the_smaller_side(rmm, mm, s, V, U, Psi, Phi, ritz)
    else:
        P, Q = _on_the_smaller_side(mm, rmm, s, U, V, Phi, Psi, ritz)
    return P.view(*batch, k, m), Q.view(*batch, k, n)


def _on_the_smaller_side(
    mm: Map, rmm: Map, s: Tensor, U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor, ritz: RitzBlock | None
) -> tuple[Tensor, Tensor]:
    size = vector_norm(torch.cat([Phi, Psi], -1), torch.inf, -1, keepdim=True)
    finite = size.isfinite()  # a loss that overflowed gives NaN here, and no TieError
    P, Q = (torch.zeros_like(x).masked_fill(~finite, torch.nan) for x in (Phi, Psi))
    given = ((size > 0) & finite).squeeze(1).nonzero().squeeze(1)
    if len(given) == 0:
        return P, Q
    size = size[given].clamp_min(torch.finfo(size.dtype).tiny)
    s, Phi, Psi = s[given], off(U, Phi[given] / size), off(V, Psi[given] / size)
    if V.shape[0] == V.shape[1]:  # nothing but zero is orthogonal to V, what the right-hand side holds is rounding
        P[given] = Phi / s * size
        return P, Q
    X, AX = _cg(mm, rmm, s, U, V, Phi, Psi, ritz)
    P[given], Q[given] = (Phi + AX) / s * size, off(V, X) / s * size
    return P, Q


def _cg(
    mm: Map, rmm: Map, s: Tensor, U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor, ritz: RitzBlock | None
) -> tuple[Tensor, Tensor]:
    """X and P_U AX/σ of (I − AᴴP_U A/σ²)x = Aᴴφ/σ + ψ off V, row by row, by Hestenes and Stiefel's iteration.

    In exact arithmetic P_U does nothing. But what rounding leaves of U would be made (σ₁/σₖ)² times as large in a step.

    A row stops where its residual, in the norm of its preconditioner, has fallen to 4ε. On a CPU that is looked at in
    every step, on a GPU, which a look makes wait, every ``CHECK_EVERY``.
    """
    every, eps, tiny = 1 if Phi.is_cpu else CHECK_EVERY, torch.finfo(s.dtype).eps, torch.finfo(s.dtype).tiny
    R = B = off(V, off(V, rmm(Phi) / s + Psi))  # twice: what is left of a low rank is rounding, which may lie along V
    all_X, all_AX, all_s = torch.zeros_like(B), torch.zeros_like(Phi), s
    X, AX, rows, lowest = all_X.clone(), all_AX.clone(), torch.arange(len(B), device=B.device), torch.zeros_like(s)
    D = _precondition(R, s, len(V), ritz)
    rz = dot(R, D)
    stop = (4 * eps) ** 2 * rz
    for step in range(max(1000, 20 * B.shape[1])):
        going = (rz > stop) & (lowest == 0)
        if step % every == 0:
            count = int(going.sum())
            if count == 0:
                break
            if 2 * count <= len(rows) and bool((lowest == 0).all()):  # leave out what has converged
                all_X[rows], all_AX[rows] = X, AX
                keep = going.squeeze(1).nonzero().squeeze(1)
                states = (s, stop, X, AX, R, D, rz, lowest, going, rows)
                s, stop, X, AX, R, D, rz, lowest, going, rows = (x[keep] for x in states)
        W = off(U, mm(D)) / s
        MD = torch.addcdiv(D, rmm(W), s, value=-1)
        alpha = torch.where(going, rz / dot(D, MD), 0)
        lowest = torch.minimum(lowest, alpha)
        X.addcmul_(alpha, D)
        AX.addcmul_(alpha, W)
        # of loose vectors, AᴴA makes something along V; where all else has shrunk, rounding of that would be most of r
        R = off(V, torch.addcmul(R, alpha, MD, value=-1))
        Z = _precondition(R, s, len(V), ritz)
        rz, previous = dot(R, Z), rz
        D = torch.addcmul(Z, D, rz / (previous + tiny))
    all_X[rows], all_AX[rows] = X, AX
    if not ((lowest == 0).all() and all_X.isfinite().all()):
        raise _tied("σ_k²I − AᴴA has negative curvature off the vectors found")
    # off V a relative gap at the cut above a tie bounds x by b over twice the gap; Ritz values may be blind to a copy
    gap = tie(Phi.shape[1], Psi.shape[1], B.dtype)
    longest = vector_norm(B, dim=1, keepdim=True) * all_s / (2 * gap * all_s.max())
    if not (vector_norm(all_X, dim=1, keepdim=True) <= longest).all():
        raise _tied(f"the solution is larger than a relative gap above {gap:.0e}, a tie up to rounding, allows")
    return all_X, all_AX


def _precondition(R: Tensor, s: Tensor, k: int, ritz: RitzBlock | None) -> Tensor:
    """r ↦ r + Σ (1/(1 − θₗ²/σᵢ²) − 1) wₗ(wₗᴴr) over the Ritz pairs beyond the k found (eq-outside-preconditioner)."""
    if ritz is None or len(ritz.W) == k:
        return R
    W, theta = ritz.W[k:], ritz.S[k : len(ritz.W)] / s
    weight = 1 / ((1 - theta) * (1 + theta)).clamp_min(torch.finfo(theta.dtype).eps) - 1
    return torch.addmm(R, (R @ W.mH) * weight, W)


def _tied(found: str) -> TieError:
    return TieError(
        f"the spaces of U and V have no derivative where σ_k equals the next singular value, or zero; found while the "
        f"adjoint systems were solved: {found}. Likely causes: a k that cuts through a multiple value, a rank below k, "
        "a symmetry. Take a k on either side of the tied values; a loss of σ alone has a gradient here"
    )
