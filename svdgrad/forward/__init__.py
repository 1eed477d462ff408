"""Ways to find a singular triplet: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1; a method a file."""

from collections.abc import Callable

from .found import ConvergenceError, FullSVD, Gram, Ritz, Triplet, fix_sign
from .gram import gram
from .lanczos import golub_kahan, lanczos
from .svd import svd

__all__ = [
    "FORWARDS",
    "KNOWN",
    "ConvergenceError",
    "FullSVD",
    "Gram",
    "Ritz",
    "Triplet",
    "fix_sign",
    "golub_kahan",
    "gram",
    "lanczos",
    "svd",
]

#: name -> method(A, index, v0, tol, maxiter, missed) -> (Triplet, what an adjoint solver may reuse)
FORWARDS: dict[str, Callable[..., tuple[Triplet, FullSVD | Gram | Ritz]]] = {
    "svd": svd,
    "gram": gram,
    "lanczos": lanczos,
}

#: name -> what it leaves behind
KNOWN: dict[str, Callable[..., FullSVD | Gram | Ritz]] = {"svd": FullSVD, "gram": Gram, "lanczos": Ritz}
