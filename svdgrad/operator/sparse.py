"""A matrix by its entries."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..products import Map
from ..transforms import unwrapped


@dataclass(frozen=True)
class Sparse:
    """A matrix (m, n) by its entries, A[rows[k], columns[k]] = values[k]; derivatives go to ``values``.

    ``rows``, ``columns`` (integers) and ``values`` (floating point) have shape (entries,). Entries at one place
    are added.

    >>> diagonal = torch.tensor([0, 1])
    >>> A = Sparse(diagonal, diagonal, (3, 2), torch.tensor([3.0, 1.0]))
    >>> A.rmv(torch.ones(3))
    tensor([3., 1.])
    """

    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]
    values: Tensor

    def __post_init__(self) -> None:
        for name, part in (("rows", self.rows), ("columns", self.columns), ("values", self.values)):
            if not isinstance(part, Tensor):
                raise TypeError(f"{name} must be a tensor, found {type(part).__name__}: take torch.as_tensor({name})")
        # the pattern goes from level to level of torch.func as it is, so it must belong to none
        object.__setattr__(self, "rows", unwrapped(self.rows))
        object.__setattr__(self, "columns", unwrapped(self.columns))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.values,)

    @property
    def vector(self) -> Tensor:
        return self.values

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def check(self) -> None:
        """Raise an error for places that the matrix does not have."""
        for name, places, size in (("rows", self.rows, self.shape[0]), ("columns", self.columns, self.shape[1])):
            if places.dtype not in (torch.int32, torch.int64) or places.shape != self.values.shape or places.ndim != 1:
                raise ValueError(
                    f"{name} must be integers, one for each of the {tuple(self.values.shape)} values, found "
                    f"{places.dtype} of shape {tuple(places.shape)}"
                )
            if places.numel() and not 0 <= places.min().item() <= places.max().item() < size:
                raise ValueError(
                    f"{name} must be from 0 to {size - 1} for a matrix of shape {self.shape[0]}×{self.shape[1]}, found "
                    f"{places.min().item()} to {places.max().item()}"
                )

    def at(self, leaves: Sequence[Tensor]) -> Sparse:
        (values,) = leaves
        return replace(self, values=values)

    def mv(self, x: Tensor) -> Tensor:
        return _scatter(self.rows, self.values * x.index_select(-1, self.columns), self.shape[0])

    def rmv(self, y: Tensor) -> Tensor:
        return _scatter(self.columns, self.values.conj() * y.index_select(-1, self.rows), self.shape[1])

    def products(self) -> tuple[Map, Map]:
        forth = _by_rows(self.rows, self.columns, self.values.detach(), self.shape)
        back = _by_rows(self.columns, self.rows, self.values.detach().conj(), self.shape[::-1])
        return _times(forth), _times(back)

    def pull(self, X: Sequence[Tensor], Y: Sequence[Tensor], wanted: Sequence[bool] = (True,)) -> tuple[Tensor, ...]:
        return (sum(x.index_select(-1, self.rows) * y.index_select(-1, self.columns).conj() for x, y in zip(X, Y)),)  # type: ignore[return-value]

    def push(self, dleaves: Sequence[Tensor | None]) -> Sparse:
        (dvalues,) = dleaves
        assert dvalues is not None
        return self.at((dvalues,))


def _times(A: Tensor) -> Map:
    """x ↦ A x, of one vector or of rows."""
    return lambda x: A @ x if x.ndim == 1 else (A @ x.mT).mT


def _scatter(index: Tensor, numbers: Tensor, size: int) -> Tensor:
    return numbers.new_zeros((*numbers.shape[:-1], size)).index_add(-1, index, numbers)


def _by_rows(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """In the layout that a product reads fastest: compressed rows."""
    order = torch.argsort(rows, stable=True)
    starts = torch.zeros(shape[0] + 1, dtype=rows.dtype, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=shape[0]), 0, out=starts[1:])
    values = values.resolve_conj()[order]
    with warnings.catch_warnings():  # PyTorch calls the layout new, once a process; here it is an inner matter
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns[order], values, shape, check_invariants=False)


def of_sparse_tensor(A: Tensor) -> Sparse:
    """The operator of a sparse tensor in COO or CSR layout; a derivative of ``values`` comes back in A's layout."""
    m, n = A.shape
    if A.layout == torch.sparse_coo:
        A = A.coalesce()
        rows, columns = A.indices()
    else:
        counts = A.crow_indices().diff()
        rows = torch.repeat_interleave(torch.arange(m, device=A.device), counts)
        columns = A.col_indices()
    values, twice = A.values(), A.is_leaf and A.layout == torch.sparse_coo
    return Sparse(rows, columns, (m, n), values if twice else _Once.apply(values))


class _Once(torch.autograd.Function):
    """The identity, differentiable once: PyTorch's sparse tensors forget, without a word, what a second time needs."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "PyTorch differentiates what makes a sparse tensor once, and a second derivative was asked for "
                "(create_graph=True, or a transform of torch.func): take the triplet of "
                "svdgrad.operator.Sparse(rows, columns, shape, values), and differentiate by values"
            )
        return cotangent
