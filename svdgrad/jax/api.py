"""The public functions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .auto import as_matrix, as_start, choose, iteration
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
    A : array
        Shape (..., m, n), floating point, real or complex. float16 and bfloat16 are computed in float32.
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
        A is sparse or not floating point; index or maxiter is not an integer, tol or missed not a number; v0 is complex
        for a real A.
    ValueError
        A is not a matrix or has an empty side; index is out of range; an unknown name; an index other than 0 with
        "lanczos" or "cg"; an option that the methods named do not have, or out of its range; v0 of another shape.

    Notes
    -----
    What depends on values cannot raise under jit, so it gives NaN, in jit and out of it. NaN is the derivative of u and
    v where σ equals another singular value up to rounding, 8ε√(m+n) σ₁ (or zero, if m ≠ n or A is complex); that of σ
    is finite there. NaN is the triplet where A holds NaN or Inf, or its σ₁ is so small that entries fall below the
    normal numbers, which XLA takes for zero (1e-31 in float32, 1e-292 in float64); where v0 is zero or not finite; and
    where "lanczos" ran out of steps. NaN is a derivative where "cg" did. ``jax.debug_nans(True)`` finds the place.
    A σ beyond 65504 is Inf in float16.

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
    A = as_matrix(A)
    how = choose(A, index, forward, adjoint, tol, maxiter, missed)
    X = A.astype(jnp.promote_types(A.dtype, jnp.float32))
    sigma, u, v = _of_matrices(how, X, as_start(v0, X))
    return Triplet(sigma.astype(A.real.dtype), u.astype(A.dtype), v.astype(A.dtype))


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


def operator_triplet(
    matvec: Callable[[Any, Array], Array],
    params: Any,
    v0: Any,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> Triplet:
    """The dominant triplet (σ, u, v) of x ↦ matvec(params, x), differentiable in ``params`` as that of a matrix is.

    In the rule of ``singular_triplet`` dA v is the derivative of matvec(params, v) along dparams, and Aᴴ is the
    transpose of matvec, both by JAX. So, with p, q from the adjoint system, the cotangent of the parameters θ is the
    gradient with respect to θ of

        ⟨ξu + p, A(θ) v⟩ + ⟨u, A(θ) q⟩,   with u, v, p, q held fixed.

    Parameters
    ----------
    matvec : callable
        ``matvec(params, x)``, linear in x, of JAX operations; x of the shape and dtype of v0, the result of any shape.
    params : pytree of arrays
        What the result is differentiated by. So it is by traced values that ``matvec`` takes from elsewhere.
    v0 : array
        The vector to start from, of any shape; it also fixes the sign, or phase, v0ᴴv > 0.
    tol, maxiter, missed : float, int, float or None, optional
        As for "lanczos" and "cg" in ``singular_triplet``; maxiter is 1000 by default.

    Returns
    -------
    Triplet
        ``sigma ()``, ``u`` in the shape of matvec's result, ``v`` in the shape of v0.

    Raises
    ------
    TypeError
        v0 has fewer than 32 bits or is not floating point; the result of matvec is not one array, or has another dtype
        than v0.
    ValueError
        matvec is not linear: JAX cannot transpose it, or it does not send zero to zero. The latter gives a triplet of
        NaN under jit, as v0 = 0 does and an iteration that ran out of steps; an option is out of its range.

    Notes
    -----
    Cost: two products a step forward, two a step of conjugate gradients for each tangent or cotangent. Memory: a basis
    of 48 vectors; when it is full, the 16 best Ritz vectors go on. Source: the book (eq-operator-gradient).

    Examples
    --------
    >>> d = jnp.array([3.0, 1.0, 2.0])
    >>> def norm(d):
    ...     return operator_triplet(lambda d, x: d * x, d, jnp.ones(3)).sigma
    >>> print(abs(jax.grad(norm)(d).round(3)))
    [1. 0. 0.]
    """
    options = iteration(tol, maxiter, missed)
    v0 = lax.stop_gradient(jnp.asarray(v0))
    if not jnp.issubdtype(v0.dtype, jnp.inexact) or jnp.finfo(v0.dtype).bits < 32:
        raise TypeError(f"v0 must be floating point of 32 bits or more, found {v0.dtype}")
    if v0.size == 0:
        raise ValueError(f"v0 must have at least one entry, found shape {v0.shape}: an empty side has no triplet")
    shape, size, dtype = v0.shape, v0.size, v0.dtype
    zero = matvec(params, jnp.zeros_like(v0))
    if not isinstance(zero, (Array, np.ndarray)):
        raise TypeError(f"matvec must return one array, found {type(zero).__name__}")
    if zero.dtype != dtype:
        raise TypeError(
            f"matvec must return the dtype of v0, found {zero.dtype} for {dtype}: convert v0 or the parameters"
        )
    if zero.size == 0:
        raise ValueError(f"matvec must return at least one entry, found shape {zero.shape}")
    zero = lax.stop_gradient(jnp.asarray(zero))
    affine = (jnp.abs(zero) > 0).any()
    try:
        if affine:
            raise ValueError(
                "matvec must be linear in x, found matvec(params, 0) ≠ 0: likely cause: a bias; leave it out"
            )
    except jax.errors.TracerBoolConversionError:
        v0 = jnp.where(affine, jnp.nan, v0)
    # inside shard_map the iteration runs on each device by itself if the products differ there
    v0 = v0 + jnp.where(affine, 0 * zero.sum(), 0)
    # what matvec takes from elsewhere may be traced as well: a constant of its program, it is a parameter too
    params = jax.tree.map(jnp.asarray, params)
    program = jax.make_jaxpr(lambda params, x: jnp.ravel(matvec(params, x)))(params, v0)
    code, everything = program.jaxpr, (params, tuple(map(jnp.asarray, program.consts)))

    def product(everything: Any, x: Array) -> Array:
        params, constants = everything
        y: Array = jax.core.eval_jaxpr(code, constants, *jax.tree.leaves(params), x.reshape(shape))[0]
        return y

    def adjoint(everything: Any, y: Array) -> Array:
        # the example varies over the devices of a shard_map as y does, or else the transpose would sum over them
        example = jnp.zeros(size, dtype) + 0 * y.sum()
        (x,) = jax.linear_transpose(partial(product, everything), example)(y.conj())
        result: Array = jnp.conj(x)
        return result

    try:
        jax.eval_shape(adjoint, everything, jnp.ravel(zero))
    except Exception as reason:
        why = f"{type(reason).__name__} {reason}"
        raise ValueError(f"matvec must be linear in x, and JAX cannot transpose it: {why}") from reason
    how = How("lanczos", "cg", 0, *options)
    sigma, u, v = find_triplet((product, adjoint), how, everything, unit(jnp.ravel(v0)))[0]
    return Triplet(sigma, u.reshape(zero.shape), v.reshape(shape))


# y A, and not Aᵀ y, which compiled by XLA takes many times as long on CPUs: the book's chapter In JAX times the two
_DENSE: Products = (lambda A, x: mm(A, x), lambda A, y: mm(y.conj(), A).conj())


@partial(jax.jit, static_argnums=0)
def _of_matrices(how: How, A: Array, v0: Array | None) -> tuple[Array, Array, Array]:
    """The rule for each matrix of a batch."""

    def triplet(A: Array, v0: Array | None = None) -> Triplet:
        return find_triplet(_DENSE, how, A, None if v0 is None else unit(v0))[0]

    shapes = "(m,n)->(),(m),(n)" if v0 is None else "(m,n),(n)->(),(m),(n)"
    sigma, u, v = jnp.vectorize(triplet, signature=shapes)(*(A,) if v0 is None else (A, v0))
    return sigma, u, v
