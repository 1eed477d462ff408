"""Ways to find a singular triplet: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1."""

from typing import NamedTuple

import torch
from torch import Tensor


class Triplet(NamedTuple):
    """A singular triplet: A v = σ u and Aᴴ u = σ v with ‖u‖ = ‖v‖ = 1.

    For a batch of matrices ``(..., m, n)`` the shapes are ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``.
    """

    sigma: Tensor
    """σ, shape (...)"""
    u: Tensor
    """the left singular vector, shape (..., m)"""
    v: Tensor
    """the right singular vector, shape (..., n)"""


class FullSVD(NamedTuple):
    """The thin factors of A = U Σ Vᴴ: ``U (..., m, k)``, ``S (..., k)``, ``Vh (..., k, n)``, k = min(m, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd(A: Tensor, index: int = 0, v0: Tensor | None = None) -> tuple[Triplet, FullSVD]:
    """The triplet ``(σᵢ, uᵢ, vᵢ)`` read off the full SVD, and that SVD.

    Cost: one thin SVD, O(m n min(m, n)) operations.
    """
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    u, v = fix_sign(U[..., :, index], Vh[..., index, :].conj(), v0)
    return Triplet(S[..., index], u, v), FullSVD(U, S, Vh)


def fix_sign(u: Tensor, v: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of the pairs (u, v)·c with |c| = 1, the one whose largest entry of v is positive, or with v0ᴴv > 0 if v0 is given.

    Both vectors are multiplied by the same number, so A v = σ u stays true.
    Without ``v0`` the choice jumps where the two largest entries of v tie in modulus; with ``v0`` it jumps where v0 ⟂ v.
    """
    if v0 is None:
        anchor = v.gather(-1, v.abs().argmax(-1, keepdim=True))
    else:
        anchor = torch.linalg.vecdot(v, v0.to(v)).conj().unsqueeze(-1)
    c = torch.where(anchor == 0, 1, torch.sgn(anchor).conj())
    return u * c, v * c


#: name -> method(A, index, v0) -> (Triplet, what an adjoint solver may reuse)
FORWARDS = {"svd": svd}
