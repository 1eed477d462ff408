"""Solve K[p; q] = c with matrix products only: the squared Smith iteration (chapter *Block inversion*)."""

import torch
from torch import Tensor

from ..products import mv, outer
from .schur import not_dominant, on_the_smaller_side


@on_the_smaller_side
def doubling(A: Tensor, sigma: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """q = Σₖ Mᵏ r/σ² with M = TᴴT, T = (A − Avvᴴ)/σ, summed by q ← (I + M^(2ᵏ)) q, k = 0, 1, 2, … (eq-doubling).

    Each step doubles the number of terms. The sum is complete when M^(2ᵏ) has fallen to rounding level, which takes
    log₂ of about 18 σ₁/(σ₁ − σ₂) steps in float64.
    """
    T = (A - outer(mv(A, v), v)) / sigma[..., None, None]
    M = T.mH @ T
    q = r / sigma.unsqueeze(-1) ** 2
    for _ in range(60):
        q = q + mv(M, q)
        M = M @ M
        size = torch.linalg.matrix_norm(M).max().item()  # the one number that leaves the device
        if not size < 1e3:  # M₀ is at most n in norm and contracts if σ is the largest; NaN ends here too
            break
        if size < torch.finfo(A.dtype).eps / 8:
            return q
    raise not_dominant("doubling", "the powers of TᴴT do not fall to zero")
