"""Any triplet, by the full singular value decomposition."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..operator import Dense, Operator
from .found import FullSVD, Triplet, check_entries, fix_sign


@dataclass(frozen=True)
class SVD:
    """The full SVD: finds any triplet of a matrix, or of each of a batch, and leaves all singular vectors."""

    name: ClassVar[str] = "svd"
    largest_only: ClassVar[bool] = False
    leaves: ClassVar[type[FullSVD]] = FullSVD
    leaves_many: ClassVar[type[FullSVD]] = FullSVD

    def find(self, A: Operator, index: int, v0: Tensor | None) -> tuple[Triplet, FullSVD]:
        assert isinstance(A, Dense)
        check_entries(A.A)
        return svd(A.A, index, v0)

    def find_many(self, A: Operator, k: int, v0: Tensor | None) -> tuple[Triplet, FullSVD]:
        assert isinstance(A, Dense)
        check_entries(A.A)
        known = U, S, Vh = full_svd(A.A)
        return Triplet(S[..., :k].abs(), *fix_sign(U[..., :k].mT, Vh[..., :k, :].conj())), known


def svd(A: Tensor, index: int = 0, v0: Tensor | None = None) -> tuple[Triplet, FullSVD]:
    """The triplet ``(σᵢ, uᵢ, vᵢ)`` read off the full SVD, and that SVD.

    Cost: one thin SVD, O(m n min(m, n)) operations.
    """
    known = U, S, Vh = full_svd(A)
    u, v = fix_sign(U[..., :, index], Vh[..., index, :].conj(), v0)
    # LAPACK finds −0 too; and an autograd.Function must not return a view of another of its outputs
    return Triplet(S[..., index].abs(), u, v), known


def full_svd(A: Tensor) -> FullSVD:
    """All thin factors."""
    # on CUDA PyTorch's default is Jacobi's method: on an H100 its gradients were up to 36 times less exact than those
    # by gesvd (book/records/speed-cuda-2026-11-28.json)
    return FullSVD(*torch.linalg.svd(A, full_matrices=False, driver="gesvd" if A.is_cuda else None))
