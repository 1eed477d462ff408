"""Solve K[p; q] = c as it stands, and with its one null vector left out (chapter *Straight at K*)."""

import torch
from torch import Tensor

from .. import matrices
from ..products import least_squares, mv


def direct(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """[p; q] = K⁺c by the eigenvalues of K, the one nearest to zero left out (eq-pseudoinverse)."""
    m = A.shape[-2]
    eigenvalues, X = torch.linalg.eigh(matrices.K(A, sigma))
    null = eigenvalues.abs() == eigenvalues.abs().amin(-1, keepdim=True)
    x = mv(X.mH, torch.cat([phi, psi], -1))
    x = mv(X, torch.where(null, 0, x / eigenvalues))
    return x[..., :m], x[..., m:]


def attempt(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares with K itself and the unprojected [φ; ψ]. K is singular, gels does not notice, and digits cancel.

    Kept: the equation, the driver, the projection of p and q after the solve. Put right: nothing.
    """
    m = A.shape[-2]
    x = least_squares(matrices.K(A, sigma), torch.cat([phi, psi], -1))
    return x[..., :m], x[..., m:]
