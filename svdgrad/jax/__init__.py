"""The same map A → (σ, u, v) for JAX: ``import svdgrad.jax as sj``.

    (params, dparams) ──▶ [dA v; dAᴴu] ──▶ K̂ [du; dv] = [dA v − dσ u; dAᴴu − dσ v] ──▶ (dσ, du, dv)

One rule says how the triplet moves with the matrix (rule.py). It is linear in dA, and K̂ is Hermitian, so JAX gets
reverse mode by transposing the rule; it is written through the triplet itself, so that higher derivatives come out by
themselves. The formulas are those of the rest of the package, the code is not: nothing here is imported from outside
this folder, and each of the two can witness for the other.
"""

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as reason:
    if reason.name != "jax":
        raise
    raise ModuleNotFoundError(
        "svdgrad.jax needs JAX, which is not installed: pip install 'svdgrad[jax]'; for PyTorch, import svdgrad",
        name="jax",
    ) from None

from . import nn
from .api import singular_triplet, spectral_norm
from .operators import operator_triplet, operator_triplets
from .triplet import LowRank, Triplet, Triplets
from .triplets import low_rank, singular_triplets

__all__ = [
    "LowRank",
    "Triplet",
    "Triplets",
    "low_rank",
    "nn",
    "operator_triplet",
    "operator_triplets",
    "singular_triplet",
    "singular_triplets",
    "spectral_norm",
]
