"""The same map A → (σ, u, v) for JAX: ``import svdgrad.jax as sj``.

    (params, dparams) ──▶ [dA v; dAᴴu] ──▶ K̂ [du; dv] = [dA v − dσ u; dAᴴu − dσ v] ──▶ (dσ, du, dv)

One rule says how the triplet moves with the matrix. It is linear in dA, and K̂ is Hermitian, so JAX gets reverse mode
by transposing the rule; it is written through the triplet itself, so that higher derivatives come out by themselves.
The formulas are those of triplet.py, the code is not: nothing here is imported from the rest of the package, and each
of the two can witness for the other.
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

FORWARDS = ("svd", "gram", "lanczos")
ADJOINTS = ("spectral", "cg")

# "auto" takes all eigenvectors of the Gram matrix up to this min(m, n), since that is faster there on CPUs:
# ``python -m benchmarks.run --only auto`` prints both
_GRAM_UP_TO = 80
_CYCLE, _KEPT = (
    48,
    16,
)  # rows of the basis of Lanczos' iteration, and Ritz vectors that it goes on with when that is full
_mm = partial(jnp.matmul, precision="highest")  # or a GPU rounds the factors to ten bits
_dot = partial(jnp.vdot, precision="highest")


class Triplet(NamedTuple):
    """A singular triplet, A v = σ u and Aᴴ u = σ v with ‖u‖ = ‖v‖ = 1: ``sigma (...)``, ``u (..., m)``, ``v (...,
    n)``.
    """

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
    """What the forward method leaves behind: singular or Ritz values, descending, and of their vectors what it has."""

    S: Array
    U: Array | None = None
    Vh: Array | None = None
    W: Array | None = None
    """as columns, of the smaller side: from "gram" all singular vectors, from "lanczos" the first Ritz vectors"""


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
        "auto":
        "cg" after "lanczos", else "spectral".
    tol, maxiter : float, int, optional
        For "lanczos": it stops where ‖Aᴴu − σv‖ ≤ tol σ (default: ten times the unit roundoff), and gives up after
        maxiter steps (default: 1000). So does "cg", which solves to the unit roundoff.
    v0 : array, optional
        Shape (n,) or (..., n), fixes the sign, or phase: v0ᴴv > 0. Without it the entry of v that is largest in modulus
        is positive. "lanczos" also starts from it.

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
    What depends on values cannot raise under jit, so it gives NaN, in jit and out of it. NaN is the derivative of u and
    v where σ equals another singular value up to rounding (or zero, if m ≠ n or A is complex); that of σ is finite
    there. NaN is the triplet where A holds NaN or Inf, or "lanczos" ran out of steps, and a derivative where "cg" did.
    ``jax.debug_nans(True)`` finds the place.

    For complex A, JAX's gradient is the conjugate of PyTorch's. The derivative is that of the triplet in the phase
    described at v0.

    Cost: forward one symmetric eigendecomposition of size min(m, n) ("gram"), or two products with A a step
    ("lanczos"); for each tangent or cotangent four products with a vector ("spectral"), or two products with A a step
    ("cg"). Source: the book, chapter *In JAX* (eq-tangent-deflated).

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
        matvec is not linear: JAX cannot transpose it, or it does not send zero to zero. The latter gives a triplet of
        NaN under jit, as v0 = 0 does and an iteration that ran out of steps; maxiter is less than 1.

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
    v0 = lax.stop_gradient(jnp.asarray(v0))
    if not jnp.issubdtype(v0.dtype, jnp.inexact) or jnp.finfo(v0.dtype).bits < 32:
        raise TypeError(f"v0 must be floating point of 32 bits or more, found {v0.dtype}")
    zero = matvec(params, jnp.zeros_like(v0))
    if zero.dtype != v0.dtype:
        raise TypeError(
            f"matvec must return the dtype of v0, found {zero.dtype} for {v0.dtype}: convert v0 or the parameters"
        )
    affine = (lax.stop_gradient(zero) != 0).any()
    try:
        if affine:
            raise ValueError(
                "matvec must be linear in x, found matvec(params, 0) ≠ 0: likely cause: a bias; leave it out"
            )
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
    elif how.forward == "gram" and params.shape[0] < params.shape[1]:
        sigma, v, u, known = _gram(params.conj().T)
    elif how.forward == "gram":
        sigma, u, v, known = _gram(params)
    else:
        start = v0 if v0 is not None else _noise(params.shape[-1], params.dtype)
        product, adjoint = (partial(x, params) for x in products)
        if jax.eval_shape(product, start).size < start.size:  # the smaller side has the shorter basis
            image = product(start)
            image = jnp.where(image.any() | ~start.any(), image, _noise(image.size, image.dtype))
            sigma, v, u, known = _lanczos(adjoint, product, image, how)
        else:
            sigma, u, v, known = _lanczos(product, adjoint, start, how)
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
    products: Products, how: _How, params: Any, triplet: Triplet, known: _Known, phi: Array, psi: Array
) -> tuple[Array, Array]:
    """p = U(σa + Σb)/d + (I − UUᴴ)φ/σ and q = V(Σa + σb)/d + (I − VVᴴ)ψ/σ with a = Uᴴφ, b = Vᴴψ (eq-spectral).

    With the vectors of one side only, (σ²I − AᴴA) q = Aᴴφ + σψ in their basis, and p = (φ + Aq)/σ (eq-spectral-gram).
    """
    sigma, (S, U, Vh, W) = triplet.sigma, known
    own = jnp.arange(S.size) == how.i % S.size
    # 1/d in two factors: the product (σ − σᵢ)(σ + σᵢ) leaves the range of float32 for entries of 1e±20
    one, two = (jnp.where(own, 0, 1 / x) for x in (sigma - S, sigma + S))
    if W is not None:
        product, adjoint = (partial(x, params) for x in products)
        if phi.size < psi.size:
            q, p = _in_one_basis(adjoint, product, sigma, W, one * (two * sigma), psi, phi)
            return p, q
        return _in_one_basis(product, adjoint, sigma, W, one * (two * sigma), phi, psi)
    assert U is not None and Vh is not None
    a, b = _mm(phi, U.conj()), _mm(Vh, psi)
    p = _mm(U, one * (two * sigma * a + two * S * b))
    q = _mm(one * (two * S * a + two * sigma * b), Vh.conj())
    if U.shape[0] > S.size:
        p = p + (phi - _mm(U, a)) / sigma
    if Vh.shape[1] > S.size:
        q = q + (psi - _mm(b, Vh.conj())) / sigma
    return p, q


def _in_one_basis(
    product: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    sigma: Array,
    W: Array,
    weight: Array,
    phi: Array,
    psi: Array,
) -> tuple[Array, Array]:
    q = _mm(W, weight * _mm(adjoint(phi) / sigma + psi, W.conj()))
    return (phi + product(q)) / sigma, q


def _schur_cg(
    products: Products, how: _How, params: Any, triplet: Triplet, known: _Known, phi: Array, psi: Array
) -> tuple[Array, Array]:
    """(σ²I − AᴴA) q = Aᴴφ + σψ off v on the smaller side, and p = (φ + Aq)/σ (eq-schur), all divided by σ twice.

    The Ritz vectors of "lanczos" precondition it (eq-preconditioner).
    """
    sigma, u, v = triplet
    product, adjoint = (partial(x, params) for x in products)
    wide = u.size < v.size
    if wide:
        product, adjoint, u, v, phi, psi = adjoint, product, v, u, psi, phi
    eps = float(jnp.finfo(sigma.dtype).eps)

    def schur(q: Array) -> Array:
        return q - _off(v, adjoint(product(_off(v, q)) / sigma) / sigma)

    precondition = None
    if how.forward == "lanczos":
        assert known.W is not None
        W, theta = known.W[:, 1:], known.S[1 : known.W.shape[1]] / sigma
        weight = 1 / jnp.maximum((1 - theta) * (1 + theta), eps) - 1
        precondition = lambda r: r + _mm(W, weight * _mm(r, W.conj()))
    right = _off(v, adjoint(phi) / sigma + psi)
    q = jax.scipy.sparse.linalg.cg(schur, right, tol=eps, maxiter=how.maxiter, M=precondition)[0]
    # out of steps, or at a tie: no number is better than a wrong one
    left, size = jnp.linalg.norm(right - schur(q)), jnp.linalg.norm(right) + jnp.linalg.norm(q)
    good = left <= 100 * eps * v.size**0.5 * size
    # a factor of 1/2gap at most: more than a tie allows shows one that the Ritz values, which see no copies, did not
    good &= jnp.linalg.norm(q) * 16 * eps * (u.size + v.size) ** 0.5 < jnp.linalg.norm(right) + (size == 0)
    q = jnp.where(good, _off(v, q), jnp.nan)
    p = _off(u, phi + product(q) / sigma)
    return (q / sigma, p / sigma) if wide else (p / sigma, q / sigma)


def _off(v: Array, x: Array) -> Array:
    """(I − vvᴴ) x."""
    rest: Array = x - _dot(v, x) * v
    return rest


def _gram(A: Array) -> tuple[Array, Array, Array, _Known]:
    """(σ, u, v) of a tall matrix and all its right singular vectors, from AᴴA W = W S² (eq-gram)."""
    unit = jnp.abs(A).max()  # or squares would leave the range of float32 for entries beyond 1e±19
    unit = jnp.where(unit == 0, 1, unit)
    A = A / unit
    minus_S2, W = jnp.linalg.eigh(-_mm(A.conj().T, A), symmetrize_input=False)  # eigh sorts upwards
    sigma, u = _image(_mm(A, W[:, 0]))
    return sigma * unit, u, W[:, 0], _Known(jnp.sqrt(jnp.maximum(-minus_S2, 0)) * unit, W=W)


def _lanczos(
    product: Callable[[Array], Array], adjoint: Callable[[Array], Array], v0: Array, how: _How
) -> tuple[Array, Array, Array, _Known]:
    """(σ, u, v) and Ritz pairs by Lanczos' iteration on AᴴA with full orthogonalisation and thick restarts (Wu and
    Simon 2000).

    Here the basis is the rows of V, so AᴴA Vᵀ = Vᵀ T + β v eᵀ (eq-tridiagonal). The dominant eigenpair (σ², y) of T
    gives Vᵀy for v, with residual ‖Aᴴu − σv‖ = β abs(y_k)/σ. When the basis is full, its best Ritz vectors take its
    place, each with a component β y_k along the next vector, and the iteration goes on from there (eq-thick-restart).
    """
    n, dtype = v0.size, v0.dtype
    k = min(n, _CYCLE, how.maxiter)
    kept = max(1, min(_KEPT, k // 2))
    eps = float(jnp.finfo(dtype).eps)
    tol = 10 * eps if how.tol is None else how.tol
    good = v0.any()
    # were v0 without any component along v, no number of steps would find it: a little noise has one
    v0 = _unit(_unit(v0) + eps**0.5 * _noise(n, dtype))
    size = jnp.abs(product(v0)).max()  # or fourth powers would leave the range of float32
    size = jnp.where(size == 0, 1, size)

    def step(j: Array, state: Any) -> Any:
        V, T, _ = state
        w = adjoint(product(V[j]) / size) / size
        along = _mm(V.conj(), w)
        T = T.at[j, j].set(along[j].real)
        rest = w - _mm(along, V)
        rest = rest - _mm(_mm(V.conj(), rest), V)  # once leaves something where w is almost in the span
        beta = jnp.linalg.norm(rest)
        # where the basis spans all that A sees, rounding is left: then zeros go on, and find nothing
        beta = jnp.where(beta < 10 * eps * jnp.linalg.norm(w), 0, beta)
        following = jnp.where(beta == 0, 0, rest / jnp.where(beta == 0, 1, beta))
        return V.at[j + 1].set(following), T.at[j + 1, j].set(beta, mode="drop"), beta

    def cycle(state: Any) -> Any:
        count, V, T, start, *_ = state
        stop = jnp.minimum(k, start + how.maxiter - count)
        V, T, beta = lax.fori_loop(start, stop, step, (V, T, jnp.zeros((), T.dtype)))
        squares, Y = jnp.linalg.eigh(-T, symmetrize_input=False)
        squares = jnp.maximum(-squares, 0)
        coupling = beta * Y[stop - 1]
        V = jnp.zeros_like(V).at[:kept].set(_mm(Y[:, :kept].T, V[:-1])).at[kept].set(V[-1])
        T = jnp.diag(squares.at[kept:].set(0)).at[kept, :kept].set(coupling[:kept], mode="drop")
        return count + stop - start, V, T, kept, squares, jnp.abs(coupling[0])

    def unfinished(state: Any) -> Array:
        count, *_, squares, residual = state
        more: Array = (residual > tol * squares[0]) & (count < how.maxiter)
        return more

    V, T = jnp.zeros((k + 1, n), dtype).at[0].set(v0), jnp.zeros((k, k), v0.real.dtype)
    state = 0, V, T, 0, T[0], jnp.array(jnp.inf, T.dtype)
    *_, V, _, _, squares, residual = lax.while_loop(unfinished, cycle, state)
    v = _unit(V[0])
    sigma, u = _image(product(v) / size)
    good &= residual <= tol * squares[0]
    sigma, u, v = (jnp.where(good, x, jnp.nan) for x in (sigma * size, u, v))
    return sigma, u, v, _Known(jnp.sqrt(squares) * size, W=V[:kept].T)


def _noise(n: int, dtype: Any) -> Array:
    """Seeded normal numbers of length about one."""
    noise: Array = jax.random.normal(jax.random.key(0), (n,), dtype) / n**0.5
    return noise


def _unit(x: Array) -> Array:
    """x/‖x‖, the squares formed of numbers up to one; 0 stays 0."""
    largest = jnp.abs(x).max()
    x = x / jnp.where(largest == 0, 1, largest)
    length = jnp.linalg.norm(x)
    return x / jnp.where(length == 0, 1, length)


def _image(w: Array) -> tuple[Array, Array]:
    """σ and u from A v; A v = 0 says nothing of u: any unit vector will do."""
    sigma = jnp.linalg.norm(w)
    return sigma, jnp.where(sigma == 0, jnp.zeros_like(w).at[0].set(1), w / jnp.where(sigma == 0, 1, sigma))


# y A, and not Aᵀ y, which compiled by XLA takes many times as long on CPUs: the book's chapter In JAX times the two
_DENSE: Products = (lambda A, x: _mm(A, x), lambda A, y: _mm(y.conj(), A).conj())


def _choose(A: Array, index: int, forward: str, adjoint: str, tol: float | None, maxiter: int | None) -> _How:
    """What "auto" means, after a look at everything that is known without the entries."""
    if not jnp.issubdtype(A.dtype, jnp.inexact):
        raise TypeError(
            f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.astype(float)"
        )
    if A.ndim < 2:
        raise ValueError(
            f"A must be a matrix (..., m, n), found shape {A.shape}: make a vector a matrix with A[:, None]"
        )
    m, n = A.shape[-2:]
    if min(m, n) == 0:
        raise ValueError(
            f"A must have at least one row and one column, found shape {A.shape}: an empty side has no triplet"
        )
    if not -min(m, n) <= index < min(m, n):
        raise ValueError(
            f"index must be from {-min(m, n)} to {min(m, n) - 1} for a matrix of shape {m}×{n}, found {index}"
        )
    for what, name, names in (("forward", forward, FORWARDS), ("adjoint", adjoint, ADJOINTS)):
        if name not in ("auto", *names):
            raise ValueError(f"unknown {what} {name!r}: the names are 'auto', {', '.join(map(repr, names))}")
    if forward == "auto":
        dominant, small = index % min(m, n) == 0, min(m, n) <= _GRAM_UP_TO or A.ndim > 2
        forward = "svd" if not dominant else "gram" if small else "lanczos"
    adjoint = ("cg" if forward == "lanczos" else "spectral") if adjoint == "auto" else adjoint
    if forward == "lanczos" and adjoint == "spectral":
        raise ValueError(
            "adjoint 'spectral' needs all singular vectors, which forward 'lanczos' does not have: use adjoint 'cg'"
        )
    if index % min(m, n) != 0 and (forward, adjoint) != ("svd", "spectral"):
        name = "adjoint 'cg'" if forward == "svd" else f"forward {forward!r}"
        others = "use forward 'svd' and adjoint 'spectral'"
        raise ValueError(f"{name} needs index 0, the largest singular value, found {index}: {others}")
    return _How(forward, adjoint, index, tol, _most(maxiter))


def _most(maxiter: int | None) -> int:
    if maxiter is not None and maxiter < 1:
        raise ValueError(f"maxiter must be at least 1, found {maxiter}")
    return 1000 if maxiter is None else maxiter
