"""The dominant triplet, by the eigenvectors of a Gram matrix."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..operator import Dense, Operator
from ..products import extremes, mv, root_of_scale
from .found import GramVectors, Triplet, check_entries, fix_sign


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

    def find_many(self, A: Operator, k: int, v0: Tensor | None) -> tuple[Triplet, GramVectors]:
        assert isinstance(A, Dense)
        if A.shape[0] < A.shape[1]:
            (sigma, V, U), known = _many(A.A.mH, k)
        else:
            (sigma, U, V), known = _many(A.A, k)
        return Triplet(sigma, *fix_sign(U, V)), known


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


def _eigenvectors(A: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, bool]:
    """(A, r, S, W, perhaps_zero) of a tall matrix, with AᴴA W = W S². Where squares of entries would leave the range of
    numbers, A comes back times r², r of shape (..., 1), with S and W of that; elsewhere r is None. ``perhaps_zero``
    says that the squares of some A are all zero.
    """
    root, G = None, -(A.mH @ A)  # eigh sorts upwards, so that of −G comes with the largest σ first
    smallest = largest = 1.0
    if G.numel():  # ‖A‖² in the sense of Frobenius, of a batch the extremes: entries may be beyond 1e±19 in float32
        smallest, largest = extremes(-G.diagonal(dim1=-2, dim2=-1).real.sum(-1))
    if not (1e-30 < smallest and largest < 1e30):
        check_entries(A)
        root = root_of_scale(A)[..., None]
        A = A * root[..., None] * root[..., None]
        G = -(A.mH @ A)
    try:
        minus_S2, W = torch.linalg.eigh(G)
    except torch.linalg.LinAlgError:  # LAPACK gives up on few matrices of many equal eigenvalues; the SVD does not
        _, S, Wh = torch.linalg.svd(A, full_matrices=False)
        return A, root, S, Wh.mH, smallest == 0
    return A, root, (-minus_S2).clamp_min_(0).sqrt_(), W, smallest == 0


def _gram(A: Tensor) -> tuple[Triplet, GramVectors]:
    """``gram`` for a tall matrix, the sign left open."""
    A, root, S, W, perhaps_zero = _eigenvectors(A)
    v = W[..., 0]
    u = mv(A, v)
    sigma = vector_norm(u, dim=-1)
    if perhaps_zero:  # A v = 0, for a zero matrix only, says nothing of u: any unit vector will do
        zero = sigma == 0
        u[..., 0] += zero
        u = u / (sigma + zero).unsqueeze(-1)
    else:
        u = u / sigma.unsqueeze(-1)
    if root is not None:
        sigma, S = sigma / root.squeeze(-1) / root.squeeze(-1), S / root / root
    return Triplet(sigma, u, v), GramVectors(S, W)


#: below this part of σ₁ a value has lost too much as the root of an eigenvalue: then the full SVD takes over
LEAST = 0.1


def _many(A: Tensor, k: int) -> tuple[Triplet, GramVectors]:
    """The k dominant triplets of a tall matrix as rows, the signs left open."""
    A, root, S, W, _ = _eigenvectors(A)
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
    return Triplet(sigma, U, V), GramVectors(S, W)
