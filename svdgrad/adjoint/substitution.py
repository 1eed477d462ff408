"""Solve K[p; q] = c by pushing A through the inverse, backwards or forwards (chapter *Backward and forward
substitution*).
"""

import torch
from torch import Tensor

from .. import matrices
from ..products import least_squares, mv, solve
from .mixed import indefinite_least_squares, least_squares_on_stack


def backward_substitution(
    A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor
) -> tuple[Tensor, Tensor]:
    """p = φ/σ + Aμ/σ² + ν/σ and q = ψ/σ + Aᴴν/σ² + μ/σ, where Qμ = σAᴴφ and Pν = σAψ (eq-backward).

    The terms φ/σ and ψ/σ are what the attempt lost: the parts that A cannot reach.
    """
    sigma = sigma.unsqueeze(-1)
    Q, P = matrices.deflated_P(A.mH, sigma[..., 0], v), matrices.deflated_P(A, sigma[..., 0], u)
    mu, nu = solve(Q, sigma * mv(A.mH, phi)), solve(P, sigma * mv(A, psi))
    p = phi / sigma + mv(A, mu) / sigma**2 + nu / sigma
    q = psi / sigma + mv(A.mH, nu) / sigma**2 + mu / sigma
    return p, q


def forward_substitution(
    A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor
) -> tuple[Tensor, Tensor]:
    """Split σφ = Aμ + σr and σψ = Aᴴν + σs; then p and q by indefinite least squares with r and s on top (eq-forward).

    The remainders r and s are what the attempt lost. The split is damped, so that it is harmless where A is singular.
    """
    mu, nu = _damped(A, sigma, phi), _damped(A.mH, sigma, psi)
    r, s = phi - mv(A, mu) / sigma.unsqueeze(-1), psi - mv(A.mH, nu) / sigma.unsqueeze(-1)
    p = indefinite_least_squares(A, sigma, u, r, -(mu + psi))
    q = indefinite_least_squares(A.mH, sigma, v, s, -(nu + phi))
    return p, q


def _damped(A: Tensor, sigma: Tensor, phi: Tensor) -> Tensor:
    """The μ that minimises ‖Aμ − σφ‖² + ‖σμ‖², by QR of the stack [σI; A]; never larger than σφ/2σ."""
    n = A.shape[-1]
    Q, R = torch.linalg.qr(matrices.stack(A.mH, sigma))
    g = mv(Q[..., n:, :].mH, sigma.unsqueeze(-1) * phi)
    mu: Tensor = torch.linalg.solve_triangular(R, g.unsqueeze(-1), upper=True)
    return mu.squeeze(-1)


def backward_attempt(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """μ, w, ν, y by ordinary least squares on the stacks, x and z by Aᴴx = μ, Az = ν. Another equation, and a lost
    part.

    Kept: the stacks, and the solves with A alone. Put right: nothing in the answer. Left out: the notebook's cell of
    residuals, in which the two stacks are exchanged, so that it raises for m ≠ n. One right-hand side at a time.
    """
    s = sigma.unsqueeze(-1)
    mu, w = (least_squares_on_stack(A.mH, sigma, b) for b in (-s * phi, -phi))
    y, nu = (least_squares_on_stack(A, sigma, b) for b in (-psi, -s * psi))
    x, z = least_squares(A.mH, mu), least_squares(A, nu)
    return x + y, w + z


def forward_attempt(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Aμ = σφ and Aᴴν = σψ by least squares, then ordinary least squares on the stacks. Another equation, and a lost
    part; in exact arithmetic the same answer as ``backward_attempt`` (eq-two-attempts).

    Kept: the solves with A alone, and the stacks. Put right: nothing. One right-hand side at a time.
    """
    s = sigma.unsqueeze(-1)
    mu, nu = least_squares(A, s * phi), least_squares(A.mH, s * psi)
    p = least_squares_on_stack(A, sigma, -mu) + least_squares_on_stack(A, sigma, -psi)
    q = least_squares_on_stack(A.mH, sigma, -phi) + least_squares_on_stack(A.mH, sigma, -nu)
    return p, q
