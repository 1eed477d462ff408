"""Solve K[p; q] = c in the singular bases, when the whole SVD is known (chapter *The adjoint system*)."""

import torch
from torch import Tensor

from ..forward import FullSVD
from ..matrices import mv


def spectral(
    A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor, svd: FullSVD | None = None
) -> tuple[Tensor, Tensor]:
    """p = U (σa + Σb)/d + (I − UUᴴ)φ/σ and q = V (Σa + σb)/d + (I − VVᴴ)ψ/σ (eq-spectral).

    Here a = Uᴴφ, b = Vᴴψ, dᵢ = (σ − σᵢ)(σ + σᵢ), and the entries that belong to σ itself are zero.
    """
    U, S, Vh = torch.linalg.svd(A, full_matrices=False) if svd is None else svd
    sigma = sigma.unsqueeze(-1)
    # the column that is u itself: an overlap tells it even from a neighbour whose singular value is equal to rounding
    own = mv(U.mH, u).abs()
    own = own == own.max(-1, keepdim=True).values
    a, b = mv(U.mH, phi), mv(Vh, psi)
    d = torch.where(own, 1, (sigma - S) * (sigma + S))
    x, y = (torch.where(own, 0, c / d) for c in (sigma * a + S * b, S * a + sigma * b))
    p = mv(U, x - a / sigma) + phi / sigma
    q = mv(Vh.mH, y - b / sigma) + psi / sigma
    return p, q
