"""The dominant triplet, by the eigenvectors of a Gram matrix."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..matrices import mv, root_of_scale
from ..operator import Dense, Operator
from .found import GramVectors, Triplet, check_entries, fix_sign


@dataclass(frozen=True)
class Gram:
    """The eigenvectors of the Gram matrix of the smaller side: finds the dominant triplet of a matrix, or of each of a
    batch, and leaves all singular vectors of that side.
    """

    name: ClassVar[str] = "gram"
    largest_only: ClassVar[bool] = True
    leaves: ClassVar[type[GramVectors]] = GramVectors

    def find(self, A: Operator, index: int, v0: Tensor | None) -> tuple[Triplet, GramVectors]:
        assert isinstance(A, Dense)
        return gram(A.A, v0)  # which sees in what it forms what is wrong with the entries


def gram(A: Tensor, v0: Tensor | None = None) -> tuple[Triplet, GramVectors]:
    """The dominant triplet from the eigenvectors of the Gram matrix of the smaller side: AᴴA W = W S² (eq-gram).

    A Gram matrix squares the condition number, so small singular values lose digits; the largest loses none.
    Cost: one product of A with itself and one symmetric eigendecomposition of size min(m, n).
    """
    if A.shape[-2] < A.shape[-1]:
        (sigma, v, u), known = _gram(A.mH)
    else:
        (sigma, u, v), known = _gram(A)
    return Triplet(sigma, *fix_sign(u, v, v0)), known


def _gram(A: Tensor) -> tuple[Triplet, GramVectors]:
    """``gram`` for a tall matrix, the sign left open."""
    G = -(A.mH @ A)  # eigh sorts upwards, so that of −G comes with the largest σ first
    if G.numel() == 0:
        return Triplet(A.real.new_empty(A.shape[:-2]), A[..., 0], A[..., 0, :]), GramVectors(A.real[..., 0, :], G)
    # squares leave the range of float32 for entries beyond 1e±19: look once, and only then change the unit
    longest = G.diagonal(dim1=-2, dim2=-1).real.amin(-1)
    largest, smallest = (-x.item() for x in longest.aminmax())
    if not (1e-30 < smallest and largest < 1e30):
        check_entries(A)
        root = root_of_scale(A)
        if (root != 1).any():
            (sigma, u, v), (S, W) = _gram(A * root[..., None, None] * root[..., None, None])
            return Triplet(sigma / root / root, u, v), GramVectors(S / root.unsqueeze(-1) / root.unsqueeze(-1), W)
    minus_S2, W = torch.linalg.eigh(G)
    v = W[..., 0]
    u = mv(A, v)
    sigma = vector_norm(u, dim=-1)
    if smallest == 0:  # A v = 0, for a zero matrix only, says nothing of u: any unit vector will do
        zero = sigma == 0
        u[..., 0] += zero
        u = u / (sigma + zero).unsqueeze(-1)
    else:
        u = u / sigma.unsqueeze(-1)
    return Triplet(sigma, u, v), GramVectors(minus_S2.neg_().clamp_min_(0).sqrt_(), W)
