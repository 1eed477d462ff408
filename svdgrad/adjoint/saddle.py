"""Solve K[p; q] = c by bordering K on both sides, one square system (chapter *A border, and its units*)."""

import torch
from torch import Tensor
from torch.linalg import vecdot

from .. import matrices
from ..forward import Triplet
from ..matrices import mv, project


def saddle(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) from [K, W; Wᴴ, 0] [p; q; λ; μ] = [φ; ψ; 0; 0], border weight β = σ, by LU (eq-saddle-system)."""
    m = A.shape[-2]
    J = matrices.saddle(A, sigma, u, v, beta=sigma)
    c = torch.cat([phi, psi, phi.new_zeros((*phi.shape[:-1], 2))], -1)
    x = torch.linalg.solve(J, c.unsqueeze(-1)).squeeze(-1)
    return x[..., :m], x[..., m:-2]


def refined(A: Tensor, triplet: Triplet, phi: Tensor, psi: Tensor) -> tuple[Triplet, Tensor, Tensor]:
    """A polished triplet, and (p, q) for it: one LU factorisation of J serves both (eq-newton-system,
    eq-saddle-system).

    A Newton step J s = −F takes a triplet with error ε to one with error of order ε². The adjoint system of the
    polished triplet is solved with the old factors, and once more for what is left, so that p and q are as good.
    """
    scale = triplet.sigma[..., None]
    A = A / scale[..., None]
    sigma, u, v = torch.ones_like(triplet.sigma), triplet.u, triplet.v
    m = A.shape[-2]
    LU, pivots = torch.linalg.lu_factor(matrices.saddle(A, sigma, u, v))

    def solve(c: Tensor) -> Tensor:
        x: Tensor = torch.linalg.lu_solve(LU, pivots, c.unsqueeze(-1))
        return x.squeeze(-1)

    lengths = torch.stack([vecdot(u, u) - 1, vecdot(v, v) - 1], -1) / 2
    step = solve(torch.cat([mv(A, v) - u, mv(A.mH, u) - v, -lengths], -1))
    sigma = sigma + step[..., -2:].real.mean(-1)
    u, v = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (u + step[..., :m], v + step[..., m:-2]))
    size = torch.maximum(phi.abs().amax(-1, keepdim=True), psi.abs().amax(-1, keepdim=True))
    size = torch.where(size == 0, 1, size)
    c = torch.cat([phi / size, psi / size, phi.new_zeros((*phi.shape[:-1], 2))], -1)
    x = solve(c)
    x = x + solve(c - mv(matrices.saddle(A, sigma, u, v), x))
    p, q = (x * (size / scale))[..., :-2].split([m, A.shape[-1]], -1)
    return Triplet(sigma * triplet.sigma, u, v), project(u, p), project(v, q)
