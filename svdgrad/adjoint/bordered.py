"""Solve K[p; q] = c by bordering K with the two constraints, in minimum-norm form (chapter *A border, and its
units*).
"""

import torch
from torch import Tensor

from .. import matrices
from ..products import least_squares, mv


def bordered(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum-norm solution x = (p, q, λᵤ, λᵥ) of [K; Wᴴ]ᴴ x = [φ; ψ], border weight β = σ, by QR
    (eq-border-min-norm).
    """
    m = A.shape[-2]
    B = matrices.bordered(A, sigma, u, v, beta=sigma)
    # Bᴴx = c has the minimum-norm solution x = Q R⁻ᴴ c where B = QR
    Q, R = torch.linalg.qr(B)
    c = torch.cat([phi, psi], -1)
    y = torch.linalg.solve_triangular(R.mH, c.unsqueeze(-1), upper=False).squeeze(-1)
    x = mv(Q, y)
    return x[..., :m], x[..., m:-2]


def attempt(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a border of ones. Right where the entries of A are of size one: the weight has no units.

    Kept: the transposed system and its least-norm solution, the weight of one, the driver. Put right: nothing.
    """
    m = A.shape[-2]
    B = matrices.bordered(A, sigma, u, v, beta=1.0)
    x = least_squares(B.mH, torch.cat([phi, psi], -1))
    return x[..., :m], x[..., m:-2]
