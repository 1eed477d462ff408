"""svdgrad: the gradient of the dominant singular triplet (σ, u, v) of a matrix."""

from . import adjoint, forward, matrices
from .diagnosis import Diagnosis, diagnose
from .forward import ConvergenceError, Triplet
from .gap import NearTieWarning, TieError
from .operators import RankTwo, operator_triplet, rank_two_gradient
from .steps import PhaseError
from .triplet import singular_triplet, spectral_norm

__all__ = [
    "ConvergenceError",
    "Diagnosis",
    "NearTieWarning",
    "PhaseError",
    "RankTwo",
    "TieError",
    "Triplet",
    "adjoint",
    "diagnose",
    "forward",
    "matrices",
    "operator_triplet",
    "rank_two_gradient",
    "singular_triplet",
    "spectral_norm",
]
__version__ = "0.1.0"
