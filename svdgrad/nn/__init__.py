"""The gain of a layer in training: the true one, kept at a bound, and a number that it does not exceed."""

from .norm import operator_norm, upper_bound
from .spectral import spectral_norm

__all__ = ["operator_norm", "spectral_norm", "upper_bound"]
