"""svdgrad: the gradient of the dominant singular triplet (σ, u, v) of a matrix."""

from . import adjoint, forward, matrices
from .forward import Triplet
from .triplet import NearTieWarning, TieError, singular_triplet, spectral_norm

__all__ = ["NearTieWarning", "TieError", "Triplet", "adjoint", "forward", "matrices", "singular_triplet", "spectral_norm"]
__version__ = "0.1.0"
