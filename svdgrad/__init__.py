"""svdgrad: the gradient of the dominant singular triplet (σ, u, v) of a matrix.

The names are imported when they are first asked for, so that ``svdgrad.jax`` works where there is no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adjoint, forward, matrices, nn, operator
    from .diagnosis import Diagnosis, diagnose
    from .forward import ConvergenceError, Triplet
    from .gap import NearTieWarning, TieError
    from .operators import RankTwo, operator_triplet, operator_triplets, rank_two_gradient
    from .phase import PhaseError
    from .triplet import singular_triplet, spectral_norm
    from .triplets import LowRank, Triplets, low_rank, rank_2k_gradient, singular_triplets

__all__ = [
    "ConvergenceError",
    "Diagnosis",
    "LowRank",
    "NearTieWarning",
    "PhaseError",
    "RankTwo",
    "TieError",
    "Triplet",
    "Triplets",
    "adjoint",
    "diagnose",
    "forward",
    "low_rank",
    "matrices",
    "nn",
    "operator",
    "operator_triplet",
    "operator_triplets",
    "rank_2k_gradient",
    "rank_two_gradient",
    "singular_triplet",
    "singular_triplets",
    "spectral_norm",
]
__version__ = "0.1.0"

_MODULES = {
    "diagnosis": ("Diagnosis", "diagnose"),
    "forward": ("ConvergenceError", "Triplet"),
    "operators": ("RankTwo", "operator_triplet", "operator_triplets", "rank_two_gradient"),
    "gap": ("NearTieWarning", "TieError"),
    "phase": ("PhaseError",),
    "triplet": ("singular_triplet", "spectral_norm"),
    "triplets": ("LowRank", "Triplets", "low_rank", "rank_2k_gradient", "singular_triplets"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _MODULES.items() if name in names), name)
    try:
        module = import_module(f".{home}", __name__)
    except ModuleNotFoundError as reason:
        if reason.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"svdgrad.{name} needs PyTorch, which is not installed: pip install 'svdgrad[torch]'; "
            "for JAX, pip install 'svdgrad[jax]' and import svdgrad.jax",
            name="torch",
        ) from None
    value = module if home == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
