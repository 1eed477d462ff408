"""Solve K[p; q] = c as two indefinite least-squares problems (chapter *The mixed attempt*)."""

import torch
from torch import Tensor

from .. import matrices
from ..products import least_squares, mv, solve
from .schur import not_dominant


def indefinite_least_squares(A: Tensor, sigma: Tensor, u: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """The stationary point y ⟂ u of ‖σy − top‖² − ‖Aᴴy − bottom‖², that is (σ²I − AAᴴ) y = σ top − A bottom (eq-ils).

    QR of the stack [σI; Aᴴ] = [Q₁; Q₂] R, then Cholesky of Q₁ᴴQ₁ − Q₂ᴴQ₂, whose null vector Ru is deflated.
    Source: Chandrasekaran, Gu, Sayed 1998; Bojanczyk, Higham, Patel 2003; the deflation is the book's (eq-ils-qr).
    """
    Q1, Q2, R, M = matrices.indefinite_factors(A, sigma, u)
    try:
        L = torch.linalg.cholesky(M)
    except torch.linalg.LinAlgError:
        raise not_dominant("mixed", "Q₁ᴴQ₁ − Q₂ᴴQ₂ is not positive semidefinite") from None
    g = (mv(Q1.mH, top) - mv(Q2.mH, bottom)).unsqueeze(-1)
    y: Tensor = torch.linalg.solve_triangular(R, torch.cholesky_solve(g, L), upper=True)
    return y.squeeze(-1)


def mixed(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """p and q by one indefinite least-squares problem each (eq-mixed)."""
    p = indefinite_least_squares(A, sigma, u, phi, -psi)
    q = indefinite_least_squares(A.mH, sigma, v, psi, -phi)
    return p, q


def attempt(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """P and Q by LU, and ordinary least squares with the stacks [Aᴴ; σ²I] and [A; σ²I]. Solves another equation.

    Kept: the sum of squares where a difference was meant, σ² in the stack where σ was meant, and an LU factorisation of
    singular matrices, which raises where one comes out singular exactly. Put right: nothing.
    """
    s = sigma.unsqueeze(-1)
    x = solve(matrices.P(A, sigma), s * phi)
    z = solve(matrices.Q(A, sigma), s * psi)
    y = least_squares_on_stack(A, sigma, -psi)
    w = least_squares_on_stack(A.mH, sigma, -phi)
    return x + y, w + z


def least_squares_on_stack(A: Tensor, sigma: Tensor, b: Tensor) -> Tensor:
    """The y that minimises ‖Aᴴy − b‖² + ‖σ²y‖², the notebook's stack."""
    b = torch.cat([b, b.new_zeros((*b.shape[:-1], A.shape[-2]))], -1)
    return least_squares(matrices.notebook_stack(A, sigma), b)
