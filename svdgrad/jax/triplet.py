"""The triplet, what is known besides, and the few operations on vectors that all of ``svdgrad.jax`` is written in.

No two arrays of different dtypes are ever combined, so that ``jax.numpy_dtype_promotion("strict")`` has nothing to
object to.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

Product = Callable[[Array], Array]
# (params, x) ↦ A(params) x, (params, y) ↦ A(params)ᴴ y, on flat vectors; and the second once more if there is another
# way to form it, which iterations take, and which is not differentiated
Products = tuple[Callable[[Any, Array], Array], ...]


class Triplet(NamedTuple):
    """A singular triplet: A v = σ u and Aᴴ u = σ v with ‖u‖ = ‖v‖ = 1."""

    sigma: Array
    """σ, shape (...)"""
    u: Array
    """the left singular vector, shape (..., m)"""
    v: Array
    """the right singular vector, shape (..., n)"""


class Triplets(NamedTuple):
    """k singular triplets: A V = U diag(σ), AᴴU = V diag(σ), UᴴU = VᴴV = I."""

    sigma: Array
    """the k largest singular values, descending, shape (..., k)"""
    U: Array
    """the left singular vectors as columns, shape (..., m, k)"""
    V: Array
    """the right singular vectors as columns, shape (..., n, k)"""


class LowRank(NamedTuple):
    """The best approximation of rank k as three factors, A_k = U core Vᴴ."""

    U: Array
    """orthonormal columns, shape (..., m, k)"""
    core: Array
    """Hermitian, diag(σ) in value, shape (..., k, k); its derivatives have entries off the diagonal"""
    V: Array
    """orthonormal columns, shape (..., n, k)"""

    def dense(self) -> Array:
        """A_k = U core Vᴴ, of shape (..., m, n)."""
        product: Array = mm(mm(self.U, self.core), adjoint(self.V))
        return product


class How(NamedTuple):
    """What is decided before any number is seen, and so is static under jit."""

    forward: str
    adjoint: str
    which: int  # the index; a tuple has a method of that name
    tol: float | None
    maxiter: int
    missed: float | None
    resolution: float | None = None
    """if given, "lanczos" stops where it excludes a value above (1 + resolution)σ, or after maxiter steps with the best
    that it has; without restarts
    """


class Known(NamedTuple):
    """What the forward method leaves behind: singular or Ritz values, descending, and of their vectors what it has."""

    S: Array
    U: Array | None = None
    Vh: Array | None = None
    W: Array | None = None
    """as columns, of the smaller side: from "gram" all singular vectors, from "lanczos" the first Ritz vectors"""
    foreign: Array | None = None
    """for each of these Ritz vectors but the first, a bound on how much of any vector that belongs to σ is in it"""
    excess: Array | None = None
    """with a resolution: δ for which a value above (1 + δ)σ was missed with the probability asked for at most"""


mm = partial(jnp.matmul, precision="highest")  # or a GPU rounds the factors to ten bits
dot = partial(jnp.vdot, precision="highest")


def adjoint(X: Array) -> Array:
    """Xᴴ, of each matrix of a batch."""
    return jnp.swapaxes(X, -1, -2).conj()


def times(c: Array, x: Array) -> Array:
    """c x for a real c and an x that may be complex."""
    return c.astype(x.dtype) * x


def divided(x: Array, c: Array) -> Array:
    """x/c for a real c > 0 and an x that may be complex, in two steps where c is large: XLA multiplies by 1/c, and
    where c is near the largest number that is no normal one, and so zero to it.
    """
    part = jnp.where(c > 1, 1 / half(c), 1)
    return times(1 / (part * c), times(part, x))


def half(c: Array) -> Array:
    """A power of two that is about √c, to multiply by 1/c in two steps, of which the first rounds nothing."""
    return jnp.ldexp(jnp.ones_like(c), jnp.frexp(c)[1] // 2)


def power_of_two(c: Array) -> Array:
    """The largest that is at most c > 0: a unit in which nothing is rounded."""
    return jnp.ldexp(0.5 * jnp.ones_like(c), jnp.frexp(c)[1])


def or_one(c: Array) -> Array:
    """c, or 1 where it is zero, to divide by."""
    return jnp.where(c == 0, 1, c)


def norm(x: Array) -> Array:
    """‖x‖, as a number of real dtype."""
    length: Array = jnp.linalg.norm(x)
    return length


def unit(x: Array) -> Array:
    """x/‖x‖, the squares formed of numbers up to one; 0 stays 0."""
    x = divided(x, or_one(jnp.abs(x).max()))
    return divided(x, or_one(norm(x)))


def off(v: Array, x: Array) -> Array:
    """(I − vvᴴ) x."""
    rest: Array = x - dot(v, x) * v
    return rest


def svd(A: Array) -> tuple[Array, Array, Array]:
    """U, S and Vᴴ with min(m, n) triplets; NaN where A holds NaN or Inf, since LAPACK may not come back from Inf."""
    U, S, Vh = jnp.linalg.svd(jnp.where(jnp.isfinite(A).all(), A, jnp.nan), full_matrices=False)
    return U, jnp.abs(S), Vh  # LAPACK finds −0 too


def image(w: Array) -> tuple[Array, Array]:
    """σ and u from A v; A v = 0 says nothing of u: any unit vector will do."""
    sigma = norm(w)
    return sigma, jnp.where(sigma == 0, jnp.zeros_like(w).at[0].set(1), divided(w, or_one(sigma)))
