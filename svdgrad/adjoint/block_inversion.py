"""Solve K[p; q] = c by inverting K blockwise: four systems with P and Q (chapter *Block inversion*)."""

from collections.abc import Callable

from torch import Tensor

from .. import matrices
from ..products import least_squares, mv, solve


def _four_systems(
    P: Tensor,
    Q: Tensor,
    A: Tensor,
    sigma: Tensor,
    phi: Tensor,
    psi: Tensor,
    solve: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """p = P⁻¹σφ + P⁻¹Aψ and q = Q⁻¹Aᴴφ + Q⁻¹σψ (eq-block-inversion)."""
    sigma = sigma.unsqueeze(-1)
    x, y = solve(P, sigma * phi), solve(P, mv(A, psi))
    w, z = solve(Q, mv(A.mH, phi)), solve(Q, sigma * psi)
    return x + y, w + z


def block_inversion(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """The four systems with P + σ²uuᴴ and Q + σ²vvᴴ in place of P and Q, by LU (eq-deflated-blocks)."""
    P, Q = matrices.deflated_P(A, sigma, u), matrices.deflated_P(A.mH, sigma, v)
    return _four_systems(P, Q, A, sigma, phi, psi, solve)


def attempt(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """The four systems with P and Q as they are. P is singular along u, Q along v, and digits cancel.

    Kept: the equations, four solves where one would do, the driver. Put right: nothing.
    """
    return _four_systems(matrices.P(A, sigma), matrices.Q(A, sigma), A, sigma, phi, psi, least_squares)
