"""The same map A → (σ, u, v) for JAX: ``import svdgrad.jax as sj``.

    (params, dparams) ──▶ [dA v; dAᴴu] ──▶ K̂ [du; dv] = [dA v − dσ u; dAᴴu − dσ v] ──▶ (dσ, du, dv)

One rule says how the triplet moves with the matrix. It is linear in dA, and K̂ is Hermitian, so JAX gets reverse mode by
transposing the rule; it is written through the triplet itself, so that higher derivatives come out by themselves. The
formulas are those of triplet.py, the code is not: nothing here is imported from the rest of the package, and each of the
two can witness for the other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["Triplet", "operator_triplet", "singular_triplet", "spectral_norm"]

# (params, x) ↦ A(params) x, and (params, y) ↦ A(params)ᴴ y, on flat vectors
Products = tuple[Callable[[Any, Array], Array], Callable[[Any, Array], Array]]

FORWARDS = ("svd", "lanczos")
ADJOINTS = ("spectral", "cg")

_CYCLE = 32  # steps of the bidiagonalisation between two restarts
_mm = partial(jnp.matmul, precision="highest")  # or a GPU rounds the factors to ten bits
_dot = partial(jnp.vdot, precision="highest")


class Triplet(NamedTuple):
    """A singular triplet, A v = σ u and Aᴴ u = σ v with ‖u‖ = ‖v‖ = 1: ``sigma (...)``, ``u (..., m)``, ``v (..., n)``."""

    sigma: Array
    u: Array
    v: Array


class _How(NamedTuple):
    """What is decided before any number is seen, and so is static under jit."""

    forward: str
    adjoint: str
    i: int
    tol: float | None
    maxiter: int


class _Known(NamedTuple):
    """What the forward method leaves behind: singular or Ritz values, descending, and the bases if it has them all."""

    S: Array
    U: Array | None = None
    Vh: Array | None = None


def singular_triplet(
    A: Any,
    index: int = 0,
    forward: str = "auto",
    adjoint: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Any = None,
) -> Triplet:
    """The singular triplet (σ, u, v) of A, differentiable: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1.

    Along a change dA of A it moves by dσ = Re(uᴴ dA v) and

        K̂ [du; dv] = [dA v − dσ u; dAᴴu − dσ v],   K̂ = [σI + s uuᴴ, −A; −Aᴴ, σI + s vvᴴ],   s = σ₁.

    The rule can be jitted, mapped, transposed and differentiated again: ``jit``, ``vmap``, ``jvp``, ``grad``, ``hessian``.

    Parameters
    ----------
    A : array
        Shape (..., m, n), floating point, real or complex. float16 and bfloat16 are computed in float32.
    index : int
        Which triplet, in descending order of σ; −1 is the smallest. Static under jit, as all that follows but v0.
    forward : str
        "svd" (the full SVD), "lanczos" (products with A, index 0), or "auto", which is "svd".
    adjoint : str
        How systems with K̂ are solved: "spectral" (from the full SVD), "cg" (products with A, index 0), or "auto", which is
        "spectral" after "svd" and "cg" after "lanczos".
    tol, maxiter : float, int, optional
        For "lanczos": it stops where ‖Aᴴu − σv‖ ≤ tol σ (default: ten times the unit roundoff), and gives up after maxiter
        steps (default: 1000). So does "cg", which solves to the unit roundoff.
    v0 : array, optional
        Shape (n,) or (..., n), fixes the sign, or phase: v0ᴴv > 0. Without it the entry of v that is largest in modulus is
        positive. "lanczos" also starts from it.

    Returns
    -------
    Triplet
        Named tuple of ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``, with the dtype of A.

    Raises
    ------
    TypeError
        A is not floating point.
    ValueError
        A is not a matrix or has an empty side; index is out of range; an unknown name; an index other than 0 with
        "lanczos" or "cg".

    Notes
    -----
    What depends on values cannot raise under jit, so it gives NaN, in jit and out of it. NaN is the derivative of u and v
    where σ equals another singular value up to rounding (or zero, if m ≠ n or A is complex); that of σ is finite there.
    NaN is the triplet where A holds NaN or Inf, or "lanczos" ran out of steps, and a derivative where "cg" did.
    ``jax.debug_nans(True)`` finds the place.

    For complex A, JAX's gradient is the conjugate of PyTorch's. The derivative is that of the triplet in the phase
    described at v0.

    Cost: one thin SVD forward; four products with a vector for each tangent or cotangent ("spectral").
    Source: the book, chapter *In JAX* (eq-tangent-deflated).

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
    A = jnp.asarray(A)
    how = _choose(A, index, forward, adjoint, tol, maxiter)
    X = A.astype(jnp.promote_types(A.dtype, jnp.float32))
    if v0 is not None:
        v0 = lax.stop_gradient(jnp.asarray(v0)).astype(X.dtype)
        if v0.shape[-1:] != A.shape[-1:]:
            raise ValueError(f"v0 must have {A.shape[-1]} entries, one for each column of A, found shape {v0.shape}")
    sigma, u, v = _of_matrices(how, X, v0)
    return Triplet(sigma.astype(A.real.dtype), u.astype(A.dtype), v.astype(A.dtype))


def spectral_norm(A: Any) -> Array:
    """The largest singular value σ = ‖A‖₂, differentiable: ∂σ/∂A = u vᴴ, with no gap needed for the first derivative.

    Its errors and its cost are those of ``singular_triplet``; shapes (..., m, n) -> (...).
    Where σ₁ repeats, u vᴴ is one of many subgradients. Source: the book (eq-dsigma).

    >>> print(jnp.trace(jax.grad(spectral_norm)(jnp.eye(2))))
    1.0
    """
    return singular_triplet(A).sigma


def operator_triplet(
    matvec: Callable[[Any, Array], Array], params: Any, v0: Any, tol: float | None = None, maxiter: int | None = None
) -> Triplet:
    """The dominant triplet (σ, u, v) of x ↦ matvec(params, x), differentiable in ``params`` as that of a matrix is.

    In the rule of ``singular_triplet`` dA v is the derivative of matvec(params, v) along dparams, and Aᴴ is the transpose of
    matvec, both by JAX. So, with p, q from the adjoint system, the cotangent of the parameters θ is the gradient with respect to θ of

        ⟨ξu + p, A(θ) v⟩ + ⟨u, A(θ) q⟩,   with u, v, p, q held fixed.

    Parameters
    ----------
    matvec : callable
        ``matvec(params, x)``, linear in x, of JAX operations; x of the shape and dtype of v0, the result of any shape.
    params : pytree of arrays
        What the result is differentiated by. So it is by traced values that ``matvec`` takes from elsewhere.
    v0 : array
        The vector to start from, of any shape; it also fixes the sign, or phase, v0ᴴv > 0.
    tol, maxiter : float, int, optional
        As for "lanczos" and "cg" in ``singular_triplet``.

    Returns
    -------
    Triplet
        ``sigma ()``, ``u`` in the shape of matvec's result, ``v`` in the shape of v0.

    Raises
    ------
    TypeError
        v0 has fewer than 32 bits or is not floating point; the result of matvec has another dtype than v0.
    ValueError
        matvec is not linear: JAX cannot transpose it, or it does not send zero to zero. The latter gives a triplet of NaN
        under jit, as v0 = 0 does and an iteration that ran out of steps; maxiter is less than 1.

    Notes
    -----
    Cost: two products a step forward, two a step of conjugate gradients for each tangent or cotangent. Memory: the bases
    of 32 steps, then a restart. Source: the book (eq-operator-gradient).

    Examples
    --------
    >>> d = jnp.array([3.0, 1.0, 2.0])
    >>> def norm(d):
    ...     return operator_triplet(lambda d, x: d * x, d, jnp.ones(3)).sigma
    >>> print(abs(jax.grad(norm)(d).round(3)))
    [1. 0. 0.]
    """
    v0 = lax.stop_gradient(jnp.asarray(v0))
    if not jnp.issubdtype(v0.dtype, jnp.inexact) or jnp.finfo(v0.dtype).bits < 32:
        raise TypeError(f"v0 must be floating point of 32 bits or more, found {v0.dtype}")
    zero = matvec(params, jnp.zeros_like(v0))
    if zero.dtype != v0.dtype:
        raise TypeError(f"matvec must return the dtype of v0, found {zero.dtype} for {v0.dtype}: convert v0 or the parameters")
    affine = (lax.stop_gradient(zero) != 0).any()
    try:
        if affine:
            raise ValueError("matvec must be linear in x, found matvec(params, 0) ≠ 0: likely cause: a bias; leave it out")
    except jax.errors.TracerBoolConversionError:
        v0 = jnp.where(affine, jnp.nan, v0)
    # what matvec takes from elsewhere may be traced too: it becomes a parameter
    function, taken = jax.closure_convert(matvec, params, v0)

    def product(everything: Any, x: Array) -> Array:
        params, taken = everything
        return jnp.ravel(function(params, x.reshape(v0.shape), *taken))

    def adjoint(everything: Any, y: Array) -> Array:
        (x,) = jax.linear_transpose(partial(product, everything), jnp.ravel(v0))(y.conj())
        return jnp.conj(x)

    everything = (params, tuple(taken))
    try:
        jax.eval_shape(adjoint, everything, jnp.ravel(zero))
    except Exception as reason:
        why = f"{type(reason).__name__} {reason}"
        raise ValueError(f"matvec must be linear in x, and JAX cannot transpose it: {why}") from reason
    how = _How("lanczos", "cg", 0, tol, _most(maxiter))
    sigma, u, v = _triplet((product, adjoint), how, everything, jnp.ravel(v0))[0]
    return Triplet(sigma, u.reshape(zero.shape), v.reshape(v0.shape))


@partial(jax.jit, static_argnums=0)
def _of_matrices(how: _How, A: Array, v0: Array | None) -> tuple[Array, Array, Array]:
    """The rule below for each matrix of a batch."""

    def triplet(A: Array, v0: Array | None = None) -> Triplet:
        return _triplet(_DENSE, how, A, v0)[0]

    shapes = "(m,n)->(),(m),(n)" if v0 is None else "(m,n),(n)->(),(m),(n)"
    sigma, u, v = jnp.vectorize(triplet, signature=shapes)(*(A,) if v0 is None else (A, v0))
    return sigma, u, v


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _triplet(products: Products, how: _How, params: Any, v0: Array | None) -> tuple[Triplet, _Known]:
    """The triplet of one operator, in the sign or phase that v0 asks for, and what is known besides."""
    if how.forward == "svd":
        U, S, Vh = jnp.linalg.svd(params, full_matrices=False)
        sigma, u, v, known = S[how.i], U[:, how.i], Vh[how.i].conj(), _Known(S, U, Vh)
    else:
        start = v0 if v0 is not None else jax.random.normal(jax.random.key(0), params.shape[-1:], params.dtype)
        sigma, u, v, known = _golub_kahan(partial(products[0], params), partial(products[1], params), start, how)
    a = _anchor(v, v0)
    c = jnp.where(a == 0, 1, jnp.sign(a).conj())
    return Triplet(sigma, u * c, v * c), known


@_triplet.defjvp
def _tangent(products: Products, how: _How, primals: Any, tangents: Any) -> Any:
    """(dσ, du, dv), linear in the tangent of the parameters (eq-tangent-deflated)."""
    (params, v0), (dparams, _) = primals, tangents
    triplet, known = _triplet(products, how, params, v0)
    sigma, u, v = triplet
    product, adjoint = products
    _, dA_v = jax.jvp(lambda params: product(params, v), (params,), (dparams,))
    _, dA_u = jax.jvp(lambda params: adjoint(params, u), (params,), (dparams,))
    dsigma = _dot(u, dA_v).real
    weight = lax.stop_gradient(known.S[0])

    def K_hat(x: tuple[Array, Array]) -> tuple[Array, Array]:
        du, dv = x
        lam, mu = _dot(u, du), _dot(v, dv)
        if u.dtype.kind == "c":  # the phase of u relative to v moves with A: only the common one is held
            lam = mu = (lam + mu) / 2
        top = sigma * du - product(params, dv) + weight * lam * u
        return top, sigma * dv - adjoint(params, du) + weight * mu * v

    # a solver is not differentiated, K_hat is: solve is called again for the derivatives of a solution
    solve = partial(_solve, products, how, *lax.stop_gradient((params, triplet, known)))
    du, dv = lax.custom_linear_solve(
        K_hat,
        (dA_v - dsigma * u, dA_u - dsigma * v),
        lambda _, c: solve(c),
        lambda _, c: jax.tree.map(jnp.conj, solve(jax.tree.map(jnp.conj, c))),
    )
    if u.dtype.kind == "c":
        turn = 1j * _anchor(v, v0, dv).imag / _anchor(v, v0).real
        du, dv = du - turn * u, dv - turn * v
    return (triplet, known), (Triplet(dsigma, du, dv), jax.tree.map(jnp.zeros_like, known))


def _anchor(v: Array, v0: Array | None, x: Array | None = None) -> Array:
    """The number that the sign rule makes positive: v0ᴴv, or the largest entry of v; or the same of x in place of v."""
    x = v if x is None else x
    anchor: Array = x[jnp.argmax(jnp.abs(v))] if v0 is None else _dot(v0, x)
    return anchor


def _solve(
    products: Products, how: _How, params: Any, triplet: Triplet, known: _Known, c: tuple[Array, Array]
) -> tuple[Array, Array]:
    """K̂ [p; q] = c, for numbers only: zero for c = 0 whatever the gap, NaN for any other c at a tie."""
    sigma, u, v = triplet
    m, n, S = u.size, v.size, known.S
    size = jnp.maximum(jnp.abs(c[0]).max(), jnp.abs(c[1]).max())
    phi, psi = (x / jnp.where(size == 0, 1, size) for x in c)
    lam, mu = _dot(u, phi), _dot(v, psi)
    inner = _spectral if how.adjoint == "spectral" else _schur_cg
    p, q = inner(products, how, params, triplet, known, phi - lam * u, psi - mu * v)
    # on [u; v] K̂ multiplies by s, on [u; −v] by 2σ + s, or by 2σ if the relative phase is free
    complex_ = u.dtype.kind == "c"
    even, odd = (lam + mu) / 2 / S[0], (lam - mu) / 2 / (2 * sigma + (0 if complex_ else S[0]))
    p, q = p + (even + odd) * u, q + (even - odd) * v
    own = jnp.arange(S.size) == how.i % S.size
    gap = jnp.minimum(jnp.where(own, jnp.inf, jnp.abs(S - sigma)).min(), sigma if m != n or complex_ else S[0])
    tie = ~(gap > 8 * jnp.finfo(S.dtype).eps * (m + n) ** 0.5 * S[0])
    p, q = (jnp.where(size == 0, 0, jnp.where(tie, jnp.nan, x) * size) for x in (p, q))
    return p, q


def _spectral(
    _: Products, how: _How, params: Any, triplet: Triplet, known: _Known, phi: Array, psi: Array
) -> tuple[Array, Array]:
    """p = U(σa + Σb)/d + (I − UUᴴ)φ/σ and q = V(Σa + σb)/d + (I − VVᴴ)ψ/σ with a = Uᴴφ, b = Vᴴψ (eq-spectral)."""
    sigma, (S, U, Vh) = triplet.sigma, known
    assert U is not None and Vh is not None
    a, b = _mm(U.conj().T, phi), _mm(Vh, psi)
    own = jnp.arange(S.size) == how.i % S.size
    # 1/d in two factors: the product (σ − σᵢ)(σ + σᵢ) leaves the range of float32 for entries of 1e±20
    one, two = (jnp.where(own, 0, 1 / x) for x in (sigma - S, sigma + S))
    p = _mm(U, one * (two * sigma * a + two * S * b))
    q = _mm(Vh.conj().T, one * (two * S * a + two * sigma * b))
    if U.shape[0] > S.size:
        p = p + (phi - _mm(U, a)) / sigma
    if Vh.shape[1] > S.size:
        q = q + (psi - _mm(Vh.conj().T, b)) / sigma
    return p, q


def _schur_cg(
    products: Products, how: _How, params: Any, triplet: Triplet, _: _Known, phi: Array, psi: Array
) -> tuple[Array, Array]:
    """(σ²I − AᴴA) q = Aᴴφ + σψ on the complement of v, and p = (φ + Aq)/σ (eq-schur), all divided by σ twice."""
    sigma, u, v = triplet
    eps = float(jnp.finfo(sigma.dtype).eps)

    def product(x: Array) -> Array:
        return products[0](params, x) / sigma

    def adjoint(y: Array) -> Array:
        return products[1](params, y) / sigma

    def schur(q: Array) -> Array:
        return q - _off(v, adjoint(product(_off(v, q))))

    right = _off(v, adjoint(phi) + psi)
    q = jax.scipy.sparse.linalg.cg(schur, right, tol=eps, maxiter=how.maxiter)[0]
    # out of steps, or at a tie: no number is better than a wrong one
    left, size = jnp.linalg.norm(right - schur(q)), jnp.linalg.norm(right) + jnp.linalg.norm(q)
    good = left <= 100 * eps * v.size**0.5 * size
    q = jnp.where(good, _off(v, q), jnp.nan)
    return _off(u, phi + product(q)) / sigma, q / sigma


def _off(v: Array, x: Array) -> Array:
    """(I − vvᴴ) x."""
    rest: Array = x - _dot(v, x) * v
    return rest


def _golub_kahan(
    product: Callable[[Array], Array], adjoint: Callable[[Array], Array], v0: Array, how: _How
) -> tuple[Array, Array, Array, _Known]:
    """(σ, u, v) and the Ritz values, by bidiagonalisation with full orthogonalisation, restarted from the best v.

    A V = U B and Aᴴ U = V Bᵀ + β v eᵀ, so the dominant triplet (s, x, y) of B gives (s, U x, V y) with residual β abs(x_k).
    Where the basis is invariant the next vector is a random one, so that a special v0 hides nothing.
    """
    m, n, dtype = jax.eval_shape(product, v0).size, v0.size, v0.dtype
    k = min(n, _CYCLE, how.maxiter)
    eps = float(jnp.finfo(dtype).eps)
    tol = 10 * eps if how.tol is None else how.tol

    def step(j: Array, state: Any) -> Any:
        U, V, B, v, _ = state
        V = V.at[j].set(v)
        u, alpha = _new(U, product(v), jnp.zeros(m, dtype))
        U = U.at[j].set(u)
        v, beta = _new(V, adjoint(u), jax.random.normal(jax.random.fold_in(jax.random.key(1), j), (n,), dtype))
        B = B.at[j, j].set(alpha).at[j, j + 1].set(beta, mode="drop")
        return U, V, B, v, beta

    def cycle(state: Any) -> Any:
        count, _, _, v, _ = state
        zeros = (jnp.zeros((k, m), dtype), jnp.zeros((k, n), dtype), jnp.zeros((k, k), v.real.dtype))
        U, V, B, _, beta = lax.fori_loop(0, k, step, (*zeros, v, jnp.zeros((), v.real.dtype)))
        X, S, Yh = jnp.linalg.svd(B)
        return count + k, S, _unit(_mm(X[:, 0], U))[0], _unit(_mm(Yh[0], V))[0], beta * jnp.abs(X[-1, 0])

    def unfinished(state: Any) -> Array:
        count, S, _, _, residual = state
        more: Array = (residual > tol * S[0]) & (count < how.maxiter)
        return more

    v = _unit(v0)[0]
    S, inf = jnp.zeros(k, v.real.dtype), jnp.array(jnp.inf, v.real.dtype)
    _, S, u, v, residual = lax.while_loop(unfinished, cycle, (0, S, jnp.zeros(m, dtype), v, inf))
    u = jnp.where(S[0] == 0, jnp.zeros_like(u).at[0].set(1), u)  # A v = 0 says nothing of u: any unit vector will do
    good = (residual <= tol * S[0]) & v0.any()
    sigma, u, v = (jnp.where(good, x, jnp.nan) for x in (S[0], u, v))
    return sigma, u, v, _Known(S)


def _new(Q: Array, x: Array, otherwise: Array) -> tuple[Array, Array]:
    """x without its components along the rows of Q, as unit vector and length; where nothing is left, another one and 0."""

    def rest(x: Array) -> Array:
        for _ in range(2):  # once leaves a rest where x is almost in the span
            x = x - _mm(_mm(Q.conj(), x), Q)
        return x

    unit, size = _unit(x)
    new, length = _unit(rest(unit))
    spent = ~(length > 10 * jnp.finfo(size.dtype).eps)
    return jnp.where(spent & ~jnp.isnan(size), _unit(rest(otherwise))[0], new), jnp.where(spent, 0, length) * size


def _unit(x: Array) -> tuple[Array, Array]:
    """x/‖x‖ and ‖x‖, the squares formed of numbers up to one; 0 stays 0."""
    largest = jnp.abs(x).max()
    x = x / jnp.where(largest == 0, 1, largest)
    length = jnp.linalg.norm(x)
    return x / jnp.where(length == 0, 1, length), largest * length


_DENSE: Products = (lambda A, x: _mm(A, x), lambda A, y: _mm(A.conj().T, y))


def _choose(A: Array, index: int, forward: str, adjoint: str, tol: float | None, maxiter: int | None) -> _How:
    """What "auto" means, after a look at everything that is known without the entries."""
    if not jnp.issubdtype(A.dtype, jnp.inexact):
        raise TypeError(f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.astype(float)")
    if A.ndim < 2:
        raise ValueError(f"A must be a matrix (..., m, n), found shape {A.shape}: make a vector a matrix with A[:, None]")
    m, n = A.shape[-2:]
    if min(m, n) == 0:
        raise ValueError(f"A must have at least one row and one column, found shape {A.shape}: an empty side has no triplet")
    if not -min(m, n) <= index < min(m, n):
        raise ValueError(f"index must be from {-min(m, n)} to {min(m, n) - 1} for a matrix of shape {m}×{n}, found {index}")
    for what, name, names in (("forward", forward, FORWARDS), ("adjoint", adjoint, ADJOINTS)):
        if name not in ("auto", *names):
            raise ValueError(f"unknown {what} {name!r}: the names are 'auto', {', '.join(map(repr, names))}")
    forward = "svd" if forward == "auto" else forward
    adjoint = ("cg" if forward == "lanczos" else "spectral") if adjoint == "auto" else adjoint
    if forward == "lanczos" and adjoint == "spectral":
        raise ValueError("adjoint 'spectral' needs the full SVD, which forward 'lanczos' does not have: use adjoint 'cg'")
    if index % min(m, n) != 0 and (forward, adjoint) != ("svd", "spectral"):
        name = "forward 'lanczos'" if forward == "lanczos" else "adjoint 'cg'"
        others = "use forward 'svd' and adjoint 'spectral'"
        raise ValueError(f"{name} needs index 0, the largest singular value, found {index}: {others}")
    return _How(forward, adjoint, index, tol, _most(maxiter))


def _most(maxiter: int | None) -> int:
    if maxiter is not None and maxiter < 1:
        raise ValueError(f"maxiter must be at least 1, found {maxiter}")
    return 1000 if maxiter is None else maxiter
