"""The public functions of a matrix, dense or sparse."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .auto import as_numbers, as_start, choose, is_sparse
from .rule import find_triplet
from .triplet import How, Products, Triplet, mm, unit


def singular_triplet(
    A: Any,
    index: int = 0,
    forward: str = "auto",
    adjoint: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Any = None,
    missed: float | None = 1e-3,
) -> Triplet:
    """The singular triplet (σ, u, v) of A, differentiable: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1.

    Along a change dA of A it moves by dσ = Re(uᴴ dA v) and

        K̂ [du; dv] = [dA v − dσ u; dAᴴu − dσ v],   K̂ = [σI + s uuᴴ, −A; −Aᴴ, σI + s vvᴴ],   s = σ₁.

    The rule can be jitted, mapped, transposed and differentiated again: ``jit``, ``vmap``, ``jvp``, ``grad``,
    ``hessian``.

    Parameters
    ----------
    A : array, or BCOO
        Shape (..., m, n), floating point, real or complex. float16 and bfloat16 are computed in float32.
        One sparse matrix (m, n), as ``jax.experimental.sparse.BCOO``, is multiplied with by its entries, and has a
        gradient at them, with respect to ``A.data``; entries at one place are added, places outside the matrix are
        padding. It takes index 0, "lanczos" and "cg".
    index : int
        Which triplet, in descending order of σ; −1 is the smallest. Static under jit, as all that follows but v0.
    forward : str
        "svd" (the full SVD), "gram" (eigenvectors of AᴴA or AAᴴ, whichever is smaller; index 0), "lanczos" (products
        with A; index 0), or "auto": "svd" for another index than 0, else "gram" for a batch or a small min(m, n), else
        "lanczos".
    adjoint : str
        How systems with K̂ are solved: "spectral" (from all singular vectors), "cg" (products with A, index 0), or
        "auto": "cg" after "lanczos", else "spectral".
    tol, maxiter : float, int, optional
        For "lanczos": it stops where ‖Aᴴu − σv‖ ≤ tol σ (default: ten times the unit roundoff), and gives up after
        maxiter steps (default: 1000, or min(m, n) where that is more). So does "cg", which solves to the unit roundoff.
    v0 : array, optional
        Real for a real A, of shape (n,) or (..., n); fixes the sign, or phase: v0ᴴv > 0. Without it the entry of v that
        is largest in modulus is positive. "lanczos" also starts from it, plus a tenth of noise.
    missed : float or None
        "lanczos" stops only where the probability that its start hid a singular value larger by a thousandth is at
        most this, or as small as rounding lets it be known. None trusts v0: the residual alone decides, and a v0 near
        another singular vector may return that one.

    Returns
    -------
    Triplet
        Named tuple of ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``, with the dtype of A.

    Raises
    ------
    TypeError
        A is not floating point, or sparse in another format; index or maxiter is not an integer, tol or missed not a
        number; v0 is complex for a real A.
    ValueError
        A is not a matrix, or has an empty side; index is out of range; an unknown name; an index other than 0 with
        "lanczos" or "cg"; an option that the methods named do not have, or out of its range; v0 of another shape. A is
        sparse, and has batch or dense dimensions, or an index or a method was asked for that a sparse A cannot have.

    Notes
    -----
    What depends on values cannot raise under jit, so it gives NaN, in jit and out of it. NaN is the derivative of u and
    v where σ equals another singular value up to rounding, 16ε σ₁ or 3ε√(m+n) σ₁, whichever is more (or zero, if m ≠ n
    or A is complex); that of σ is finite there. At σ = 0 it is a subgradient, and so is that of a loss of σu or σv,
    since the cotangents are those of a loss of σ alone. NaN is the triplet where A holds NaN or Inf, or its σ₁ is so
    small that entries fall below the normal numbers, which XLA takes for zero (1e-31 in float32, 1e-292 in float64);
    where v0 is zero or not finite; and where "lanczos" ran out of steps. NaN is a derivative where "cg" did. A tie that
    only a search can see, after "lanczos", is overlooked in one of a hundred cases, unless the loss shows it.
    ``jax.debug_nans(True)`` finds the place. A σ beyond 65504 is Inf in float16.

    For complex A, JAX's gradient is the conjugate of PyTorch's. The derivative is that of the triplet in the phase
    described at v0.

    Cost: forward one symmetric eigendecomposition of size min(m, n) ("gram"), or two products with A a step
    ("lanczos"); for each tangent or cotangent four products with a vector ("spectral"), or two products with A a step
    ("cg"), and after "lanczos" eight to 32 such steps to see that σ has no second vector. Source: the book, chapter
    *In JAX* (eq-tangent-deflated).

    Examples
    --------
    >>> A = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> def loss(A):
    ...     sigma, u, v = singular_triplet(A)
    ...     return sigma + u[1]
    >>> print(jax.grad(loss)(A))
    [[1.    0.125]
     [0.375 0.   ]]
    """
    A, X = as_numbers(A)
    how = choose(X, index, forward, adjoint, tol, maxiter, missed)
    sigma, u, v = _triplets(how, X, as_start(v0, X))
    return Triplet(sigma.astype(jnp.finfo(A.dtype).dtype), u.astype(A.dtype), v.astype(A.dtype))


def spectral_norm(
    A: Any,
    forward: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Any = None,
    missed: float | None = 1e-3,
) -> Array:
    """The largest singular value σ = ‖A‖₂, differentiable: ∂σ/∂A = u vᴴ, with no gap needed for the first derivative.

    Its parameters, its errors and its cost are those of ``singular_triplet``; shapes (..., m, n) -> (...).
    Where σ₁ repeats, u vᴴ is one of many subgradients. Source: the book (eq-dsigma).

    >>> print(jnp.trace(jax.grad(spectral_norm)(jnp.eye(2))))
    1.0
    """
    return singular_triplet(A, 0, forward, "auto", tol, maxiter, v0, missed).sigma


# y A, and not Aᵀ y, which compiled by XLA takes many times as long on CPUs: the book times the two in its chapter
# In JAX, without an SVD
DENSE: Products = (lambda A, x: mm(A, x), lambda A, y: mm(y.conj(), A).conj())


def _add(shape: tuple[int, ...], places: Array, numbers: Array) -> Array:
    return jnp.zeros(shape, numbers.dtype).at[places].add(numbers)


def _take(x: Array, places: Array) -> Array:
    taken: Array = x.at[places].get(mode="fill", fill_value=0)
    return taken


# and not M @ x, of which JAX forms the derivative by M as a dense matrix under vmap
ENTRIES: Products = (
    lambda M, x: _add(M.shape[:1], M.indices[:, 0], M.data * _take(x, M.indices[:, 1])),
    lambda M, y: _add(M.shape[1:], M.indices[:, 1], M.data.conj() * _take(y, M.indices[:, 0])),
)


@partial(jax.jit, static_argnums=0)
def _triplets(how: How, A: Any, v0: Array | None) -> Any:
    def triplet(A: Any, v0: Array | None = None) -> Triplet:
        return find_triplet(products_with(A), how, A, None if v0 is None else unit(v0))[0]

    return for_each_matrix(triplet, "(n)", "(),(m),(n)", A, v0)


def products_with(A: Any) -> Products:
    """The products with a dense or a sparse matrix."""
    return ENTRIES if is_sparse(A) else DENSE


def for_each_matrix(function: Any, start: str, results: str, A: Any, v0: Array | None) -> Any:
    """function(A, v0) for each matrix of a batch and its start, of these shapes; a sparse A is one matrix."""
    if is_sparse(A):
        return function(A, v0)
    if v0 is None:
        return jnp.vectorize(function, signature=f"(m,n)->{results}")(A)
    return jnp.vectorize(function, signature=f"(m,n),{start}->{results}")(A, v0)
