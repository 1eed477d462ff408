"""Ways to find the triplet of one operator: the full SVD, the Gram matrix, Lanczos' iteration (lanczos.py)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .lanczos import lanczos
from .triplet import How, Known, Products, Triplet, divided, image, mm, or_one, svd


def find(products: Products, how: How, params: Any, v0: Array | None) -> tuple[Triplet, Known]:
    """(σ, u, v), its sign left open, and what is known besides; NaN where the entries are lost to the range."""
    if how.forward == "svd":
        U, S, Vh = svd(params)
        triplet, known = Triplet(S[how.which], U[:, how.which], Vh[how.which].conj()), Known(S, U, Vh)
    elif how.forward == "gram":
        triplet, known = _swapped(*_gram(params.conj().T)) if params.shape[0] < params.shape[1] else _gram(params)
    else:
        product, adjoint = (partial(of, params) for of in (products[0], products[-1]))
        start = v0 if v0 is not None else jax.ShapeDtypeStruct(params.shape[-1:], params.dtype)
        other = jax.eval_shape(product, start)
        if other.size < start.size:  # the smaller side has the shorter basis
            begin = other if v0 is None else product(v0)
            triplet, known = _swapped(*lanczos(adjoint, product, begin, how))
        else:
            triplet, known = lanczos(product, adjoint, start, how)
    return Triplet(*(jnp.where(is_lost(known.S[0], params), jnp.nan, x) for x in triplet)), known


def is_lost(largest: Array, params: Any) -> Array:
    """Whether σ₁ is so small that digits of the entries are lost: below the smallest normal number XLA takes numbers
    for zero.
    """
    limits = jnp.finfo(largest.dtype)
    lost = (largest < float(limits.tiny) / float(limits.eps)) & (largest > 0)
    entries = getattr(params, "data", params)
    if isinstance(entries, Array):
        lost |= (largest == 0) & _any(entries)
    return lost


def _any(A: Array) -> Array:
    """Whether an entry is not zero, by its bits, and not by what XLA takes it for."""
    bits = jnp.uint64 if jnp.finfo(A.dtype).bits == 64 else jnp.uint32
    parts = (A.real, A.imag) if A.dtype.kind == "c" else (A,)
    return jnp.stack([(lax.bitcast_convert_type(x, bits) << 1).any() for x in parts]).any()


def _swapped(triplet: Triplet, known: Known) -> tuple[Triplet, Known]:
    """From the triplet of Aᴴ to that of A."""
    return Triplet(triplet.sigma, triplet.v, triplet.u), known


def _gram(A: Array) -> tuple[Triplet, Known]:
    """(σ, u, v) of a tall matrix and all its right singular vectors, from AᴴA W = W S² (eq-gram)."""
    size = jnp.abs(A).max()  # or squares would leave the range of float32 for entries beyond 1e±19
    size = or_one(size)
    A = divided(A, size)
    minus_S2, W = jnp.linalg.eigh(-mm(A.conj().T, A), symmetrize_input=False)  # eigh sorts upwards
    sigma, u = image(mm(A, W[:, 0]))
    return Triplet(sigma * size, u, W[:, 0]), Known(jnp.sqrt(jnp.maximum(-minus_S2, 0)) * size, W=W)
