"""Solve K[p; q] = c by one Schur complement, of size min(m, n) (chapter *Block inversion*)."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from .. import matrices
from ..products import mv


def on_the_smaller_side(
    formula: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Let a formula for q, which works with n×n matrices, serve wide matrices too: exchange A with Aᴴ, u with v, φ with
    ψ.

    The exchange turns K[p; q] = c into the same system with p and q exchanged.
    """

    @wraps(formula)
    def both_sides(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        m, n = A.shape[-2:]
        if m < n:
            q, p = both_sides(A.mH, sigma, v, u, psi, phi)
            return p, q
        q = formula(A, sigma, v, mv(A.mH, phi) + sigma.unsqueeze(-1) * psi)
        return (phi + mv(A, q)) / sigma.unsqueeze(-1), q

    return both_sides


def not_dominant(solver: str, what: str) -> ValueError:
    """The error of a solver that works for the largest singular value only."""
    return ValueError(
        f"{solver!r} needs σ to be the largest singular value, simple and away from the next: {what}. "
        "For another index use 'saddle', 'spectral' or 'minres'"
    )


@on_the_smaller_side
def schur(A: Tensor, sigma: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """q from (σ²I − AᴴA + σ²vvᴴ) q = Aᴴφ + σψ by Cholesky; then p = (φ + Aq)/σ (eq-schur)."""
    try:
        L = torch.linalg.cholesky(matrices.deflated_P(A.mH, sigma, v))
    except torch.linalg.LinAlgError:
        raise not_dominant("schur", "σ²I − AᴴA is not positive definite off v") from None
    return torch.cholesky_solve(r.unsqueeze(-1), L).squeeze(-1)
