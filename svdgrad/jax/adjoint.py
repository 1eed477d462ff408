"""Ways to solve the adjoint system K̂ [p; q] = [φ; ψ]; each divides by σ what it multiplied by A."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .lanczos import has_hidden_copy
from .triplet import (
    How,
    Known,
    Product,
    Products,
    Triplet,
    divided,
    dot,
    half,
    mm,
    norm,
    off,
    or_one,
    power_of_two,
    times,
)


def tie(m: int, n: int, dtype: Any) -> float:
    """3 ε √(m + n), and at least 16 ε: what is closer, relative to σ₁, cannot be told apart.

    Two equal singular values were seen to come out up to 4 ε apart for few rows, and up to ε √(m + n) for thousands.
    """
    return float(jnp.finfo(dtype).eps * max(16.0, 3 * (m + n) ** 0.5))


def solve_adjoint(
    products: Products, how: How, params: Any, triplet: Triplet, known: Known, c: tuple[Array, Array]
) -> tuple[Array, Array]:
    """K̂ [p; q] = c, for numbers only: zero for c = 0 whatever the gap, NaN for any other c at a tie."""
    (sigma, u, v), S, W, foreign = triplet, known.S, known.W, known.foreign
    m, n, complex_ = u.size, v.size, u.dtype.kind == "c"
    A, AH = (partial(of, params) for of in (products[0], products[-1]))
    size = jnp.maximum(jnp.abs(c[0]).max(), jnp.abs(c[1]).max())
    phi, psi = (divided(x, or_one(size)) for x in c)
    lam, mu = dot(u, phi), dot(v, psi)
    inner = _spectral if how.adjoint == "spectral" else _schur_cg
    # in a unit near σ₁, where reciprocals are numbers wherever those of A leave their range
    most = power_of_two(or_one(S[0]))
    sigma, S = divided(sigma, most), divided(S, most)
    forth, back = (lambda x: divided(A(x), most)), (lambda y: divided(AH(y), most))
    relative = Triplet(sigma, u, v), known._replace(S=S)
    p, q = inner(forth, back, how, *relative, phi - lam * u, psi - mu * v)
    # on [u; v] K̂ multiplies by s, on [u; −v] by 2σ + s, or by 2σ if the relative phase is free
    even = divided((lam + mu) / 2, S[0])
    odd = divided((lam - mu) / 2, 2 * sigma + (0 if complex_ else S[0]))
    p, q = p + (even + odd) * u, q + (even - odd) * v
    own = jnp.arange(S.size) == how.which % S.size
    nearest = jnp.where(own, jnp.inf, jnp.abs(S - sigma)).min()
    nothing = tie(m, n, S.dtype)
    tied = ~(jnp.minimum(nearest, sigma if m != n or complex_ else S[0]) > nothing * S[0])
    if how.forward == "lanczos":  # which finds one copy of σ, and nothing of any other
        assert W is not None and foreign is not None
        tied |= has_hidden_copy(*((back, forth) if m < n else (forth, back)), sigma, W, foreign, nothing)
    part = half(most)  # or size over σ₁ leaves the range where a gradient does not
    p, q = (divided(times(size / part, x), most / part) for x in (p, q))
    p, q = (jnp.where(size == 0, 0, jnp.where(tied, jnp.nan, x)) for x in (p, q))
    return p, q


def _spectral(
    A: Product, AH: Product, how: How, triplet: Triplet, known: Known, phi: Array, psi: Array
) -> tuple[Array, Array]:
    """p = U(σa + Σb)/d + (I − UUᴴ)φ/σ and q = V(Σa + σb)/d + (I − VVᴴ)ψ/σ with a = Uᴴφ, b = Vᴴψ (eq-spectral).

    With the vectors of one side only, (σ²I − AᴴA) q = Aᴴφ + σψ in their basis, and p = (φ + Aq)/σ (eq-spectral-gram).
    """
    sigma, (S, U, Vh, W) = triplet.sigma, known[:4]
    own = jnp.arange(S.size) == how.which % S.size
    # 1/d in two factors, and no division by the zero of σ itself
    one, two = (1 / jnp.where(own, jnp.inf, x) for x in (sigma - S, sigma + S))
    if W is not None and phi.size < psi.size:
        q, p = _in_one_basis(AH, A, sigma, W, one * (two * sigma), psi, phi)
        return p, q
    if W is not None:
        return _in_one_basis(A, AH, sigma, W, one * (two * sigma), phi, psi)
    assert U is not None and Vh is not None
    a, b = mm(phi, U.conj()), mm(Vh, psi)
    p = mm(U, times(one, times(two * sigma, a) + times(two * S, b)))
    q = mm(times(one, times(two * S, a) + times(two * sigma, b)), Vh.conj())
    if U.shape[0] > S.size:
        p = p + times(1 / sigma, phi - mm(U, a))
    if Vh.shape[1] > S.size:
        q = q + times(1 / sigma, psi - mm(b, Vh.conj()))
    return p, q


def _in_one_basis(
    A: Product, AH: Product, sigma: Array, W: Array, weight: Array, phi: Array, psi: Array
) -> tuple[Array, Array]:
    q = mm(W, times(weight, mm(times(1 / sigma, AH(phi)) + psi, W.conj())))
    return times(1 / sigma, phi + A(q)), q


def _schur_cg(
    A: Product, AH: Product, how: How, triplet: Triplet, known: Known, phi: Array, psi: Array
) -> tuple[Array, Array]:
    """(σ²I − AᴴA) q = Aᴴφ + σψ off v on the smaller side, and p = (φ + Aq)/σ (eq-schur), all divided by σ twice.

    The Ritz vectors of "lanczos" precondition it (eq-preconditioner).
    """
    sigma, u, v = triplet
    wide = u.size < v.size
    if wide:
        A, AH, u, v, phi, psi = AH, A, v, u, psi, phi
    eps = float(jnp.finfo(sigma.dtype).eps)
    over = 1 / sigma

    def schur(q: Array) -> Array:
        return q - off(v, times(over, AH(times(over, A(off(v, q))))))

    precondition = None
    if how.forward == "lanczos":
        assert known.W is not None
        W, theta = known.W[:, 1:], known.S[1 : known.W.shape[1]] * over
        weight = 1 / jnp.maximum((1 - theta) * (1 + theta), eps) - 1
        precondition = lambda r: r + mm(W, times(weight, mm(r, W.conj())))
    right = off(v, off(v, times(over, AH(phi)) + psi))  # of rank one nothing may be left but rounding, along v
    q = jax.scipy.sparse.linalg.cg(schur, right, tol=eps, maxiter=how.maxiter, M=precondition)[0]
    # out of steps, or at a tie: no number is better than a wrong one
    left, size = norm(right - schur(q)), norm(right) + norm(q)
    good = left <= 100 * eps * v.size**0.5 * size
    # it is longer by a factor of 1/2gap at most: what is longer than a gap of 8 ε √(m + n) allows shows a copy that the
    # Ritz values and the search have not seen, or a gap next to that of a tie
    good &= norm(q) * 16 * eps * (u.size + v.size) ** 0.5 < jnp.where(size == 0, 1, norm(right))
    q = jnp.where(good, off(v, q), jnp.nan)
    p = off(u, phi + times(over, A(q)))
    p, q = times(over, p), times(over, q)
    return (q, p) if wide else (p, q)
