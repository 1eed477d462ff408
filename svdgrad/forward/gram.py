"""The dominant triplet, by the eigenvectors of a Gram matrix."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..operator import Dense, Operator
from ..products import extremes, mv, root_of_scale
from .found import GramVectors, Rows, Triplet, check_entries, fix_sign


@dataclass(frozen=True)
class Gram:
    """The eigenvectors of the Gram matrix of the smaller side: finds the dominant triplet of a matrix, or of each of a
    batch, and leaves all singular vectors of that side.
    """

    name: ClassVar[str] = "gram"
    largest_only: ClassVar[bool] = True
    leaves: ClassVar[type[GramVectors]] = GramVectors
    leaves_many: ClassVar[type[GramVectors]] = GramVectors

    def find(self, A: Operator, index: int, v0: Tensor | None) -> tuple[Triplet, GramVectors]:
        assert isinstance(A, Dense)
        return gram(A.A, v0)  # which sees in what it forms what is wrong with the entries

    def find_many(self, A: Operator, k: int, v0: Tensor | None) -> tuple[Rows, GramVectors]:
        assert isinstance(A, Dense)
        if A.shape[0] < A.shape[1]:
            (sigma, V, U), known = _many(A.A.mH, k)
        else:
            (sigma, U, V), known = _many(A.A, k)
        return Rows(sigma, *fix_sign(U, V)), known


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
    smallest, largest = _squares(G)
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
    return Triplet(sigma, u, v), GramVectors((-minus_S2).clamp_min_(0).sqrt_(), W)


def _squares(G: Tensor) -> tuple[float, float]:
    """The smallest and the largest ‖A‖² of a batch, in the sense of Frobenius, from G = −AᴴA.

    Squares leave the range of float32 for entries beyond 1e±19: look once, and only then change the unit.
    """
    squares = -G.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    return extremes(squares)


#: below this part of σ₁ a value has lost too much as the root of an eigenvalue: then the full SVD takes over
LEAST = 0.1


def _many(A: Tensor, k: int) -> tuple[Rows, GramVectors]:
    """The k dominant triplets of a tall matrix as rows, the signs left open."""
    root = None
    G = -(A.mH @ A)
    if G.numel():
        smallest, largest = _squares(G)
        if not (1e-30 < smallest and largest < 1e30):
            check_entries(A)
            root = root_of_scale(A)[..., None]
            A = A * root[..., None] * root[..., None]
            G = -(A.mH @ A)
    minus_S2, W = torch.linalg.eigh(G)
    S = (-minus_S2).clamp_min_(0).sqrt_()
    values = S.tolist() if S.ndim == 1 else None  # one look costs less than calls
    if values[k - 1] >= LEAST * values[0] if values else (S[..., k - 1] >= LEAST * S[..., 0]).all():
        # A W₁ = Q R, and the SVD of the small R puts right what squares have done to the kept vectors among themselves
        W1 = W[..., :k]
        Q, R = torch.linalg.qr(A @ W1)
        X, sigma, Zh = torch.linalg.svd(R)
        U, V = (Q @ X).mT, Zh.conj() @ W1.mT
    else:
        U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        sigma, U, V, W = S[..., :k].abs(), U[..., :k].mT, Vh[..., :k, :].conj(), Vh.mH
    if root is not None:
        sigma, S = sigma.abs() / root / root, S / root / root  # LAPACK finds −0 too
    return Rows(sigma, U, V), GramVectors(S, W)
