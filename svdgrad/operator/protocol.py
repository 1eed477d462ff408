"""What an operator can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..products import Map


class Products(Protocol):
    """Products with a linear map and its adjoint."""

    def mv(self, x: Tensor) -> Tensor: ...

    def rmv(self, y: Tensor) -> Tensor: ...


class Operator(Products, Protocol):
    """The eight things that an operator can do: see the head of this file."""

    @property
    def leaves(self) -> tuple[Tensor, ...]: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def vector(self) -> Tensor: ...

    def at(self, leaves: Sequence[Tensor]) -> Operator: ...

    def products(self) -> tuple[Map, Map]: ...

    def pull(self, X: Sequence[Tensor], Y: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]: ...

    def push(self, dleaves: Sequence[Tensor | None]) -> Products: ...
