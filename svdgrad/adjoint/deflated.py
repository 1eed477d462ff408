"""Solve K[p; q] = c by moving the null eigenvalue of K to σ (chapter *Straight at K*)."""

import torch
from torch import Tensor

from .. import matrices
from ..products import solve


def deflated(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) from (K + σwwᴴ) [p; q] = c with w = [u; v]/√2, by LU (eq-deflation)."""
    m = A.shape[-2]
    c = torch.cat([phi, psi], -1)
    x = solve(matrices.deflated(A, sigma, u, v), c)
    return x[..., :m], x[..., m:]
