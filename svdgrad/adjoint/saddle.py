"""Solve K[p; q] = c by bordering K on both sides, one square system (chapter *A border, and its units*)."""

import torch
from torch import Tensor

from .. import matrices
from ..products import solve


def saddle(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) from [K, W; Wᴴ, 0] [p; q; λ; μ] = [φ; ψ; 0; 0], border weight β = σ, by LU (eq-saddle-system)."""
    m = A.shape[-2]
    c = torch.cat([phi, psi, phi.new_zeros((*phi.shape[:-1], 2))], -1)
    x = solve(matrices.saddle(A, sigma, u, v, beta=sigma), c)
    return x[..., :m], x[..., m:-2]
