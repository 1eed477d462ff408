"""A matrix, or a batch of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..products import Map, mv, outer_sum, products, row_products
from .protocol import Operator


@dataclass(frozen=True)
class Dense:
    """A matrix (..., m, n): the one operator of which a batch is one operator."""

    A: Tensor
    rows: bool = False
    """whether vectors come as the rows of (..., k, n), k for each matrix, and not one for each"""

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.A,)

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.A.shape[-2:]
        return m, n

    @property
    def vector(self) -> Tensor:
        return self.A[..., 0]

    def at(self, leaves: Sequence[Tensor]) -> Dense:
        return Dense(leaves[0], self.rows)

    def mv(self, x: Tensor) -> Tensor:
        return x @ self.A.mT if self.rows else mv(self.A, x)

    def rmv(self, y: Tensor) -> Tensor:
        return y @ self.A.conj() if self.rows else mv(self.A.mH, y)

    def products(self) -> tuple[Map, Map]:
        return row_products(self.A) if self.rows else products(self.A)

    def pull(self, X: Sequence[Tensor], Y: Sequence[Tensor], wanted: Sequence[bool] = (True,)) -> tuple[Tensor, ...]:
        if self.rows:
            return (torch.cat(tuple(X), -2).mT @ torch.cat(tuple(Y), -2).conj(),)
        return (outer_sum(X, Y),)

    def push(self, dleaves: Sequence[Tensor | None]) -> Dense:
        (dA,) = dleaves
        assert dA is not None
        return Dense(dA, self.rows)


def dense(A: Operator) -> Tensor:
    """The matrix of an operator, column by column, differentiable in the leaves."""
    n = A.shape[1]
    return torch.stack([A.mv(x) for x in torch.eye(n, dtype=A.vector.dtype, device=A.vector.device)], -1)
