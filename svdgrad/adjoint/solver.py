"""A way to solve the adjoint system, with what a caller has to know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Solver:
    """``solver(A, triplet, phi, psi) -> (p, q)``, as a value that carries its facts. Pass it as ``adjoint=``.

    >>> from svdgrad.adjoint import SOLVERS
    >>> SOLVERS["cg"].largest_only, SOLVERS["saddle"].largest_only
    (True, False)
    """

    solve: Callable[..., tuple[Tensor, Tensor]]
    """what is called, with ``known`` besides: what the forward method leaves behind, or None"""
    works_with: str | None = None
    """the matrix that it factorises or iterates with, a name in ``matrices.MATRICES``; None if all singular vectors"""
    largest_only: bool = False
    """whether that matrix is definite, as it has to be, at the largest singular value only"""
    by_products: bool = False
    """whether it only multiplies with A and Aᴴ, and forms no matrix"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.solve.__doc__)  # help() of a solver is that of its formula

    def __call__(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        return self.solve(*arguments, **named)
