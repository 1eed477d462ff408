"""Ways to find a singular triplet: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1; a method a file."""

from typing import Protocol

from torch import Tensor

from ..operator import Operator
from .bidiagonal import golub_kahan
from .block import RitzBlock
from .found import ConvergenceError, FullSVD, GramVectors, Ritz, Triplet, fix_sign
from .gram import Gram, gram
from .lanczos import Lanczos, lanczos
from .svd import SVD, svd

__all__ = [
    "FORWARDS",
    "SVD",
    "ConvergenceError",
    "FullSVD",
    "Gram",
    "GramVectors",
    "Lanczos",
    "Method",
    "Ritz",
    "RitzBlock",
    "Triplet",
    "fix_sign",
    "golub_kahan",
    "gram",
    "lanczos",
    "svd",
]


class Method(Protocol):
    """A way to find a triplet, as a value with its own options: a frozen dataclass. Pass it as ``forward=``."""

    @property
    def name(self) -> str:
        """what it is called in ``FORWARDS``"""

    @property
    def largest_only(self) -> bool:
        """whether it finds the largest singular value only"""

    @property
    def leaves(self) -> type[FullSVD] | type[GramVectors] | type[Ritz]:
        """what it leaves behind for an adjoint solver, a named tuple of tensors"""

    @property
    def leaves_many(self) -> type[FullSVD] | type[GramVectors] | type[RitzBlock]:
        """the same of ``find_many``"""

    def find_many(
        self, A: Operator, k: int, v0: Tensor | None
    ) -> tuple[Triplet, FullSVD] | tuple[Triplet, GramVectors] | tuple[Triplet, RitzBlock]: ...

    def find(
        self, A: Operator, index: int, v0: Tensor | None
    ) -> tuple[Triplet, FullSVD] | tuple[Triplet, GramVectors] | tuple[Triplet, Ritz]: ...


#: name -> method
FORWARDS: dict[str, type[SVD] | type[Gram] | type[Lanczos]] = {kind.name: kind for kind in (SVD, Gram, Lanczos)}
