"""The derivative of the triplet, once, for matrices and operators: everything else JAX makes from it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .adjoint import solve_adjoint
from .forward import find
from .inside import solution, stacked
from .primitive import call
from .triplet import How, Known, Products, Triplet, dot, times


def find_triplet(products: Products, how: How, params: Any, v0: Array | None) -> tuple[Triplet, Known]:
    """The triplet of one operator, in the sign or phase that v0 asks for, and what is known besides."""
    found: tuple[Triplet, Known] = call(_find, _move, (products, how), params, v0)
    return found


def _find(products: Products, how: How, params: Any, v0: Array | None) -> tuple[Triplet, Known]:
    (sigma, u, v), known = find(products, how, params, v0)
    a = anchor(v, v0)
    c = jnp.where(a == 0, 1, jnp.sign(a).conj())
    if v0 is not None:  # zero, or not a number, says nothing of a sign
        c = jnp.where(v0.any() & jnp.isfinite(v0).all(), c, jnp.nan)
        sigma = jnp.where(jnp.isnan(c), jnp.nan, sigma)
    return Triplet(sigma, u * c, v * c), known


def _move(products: Products, how: How, primals: Any, tangents: Any) -> Any:
    """(dσ, du, dv), linear in the tangent of the parameters (eq-tangent-deflated)."""
    (params, v0), (dparams, _) = primals, tangents
    triplet, known = find_triplet(products, how, params, v0)
    sigma, u, v = triplet
    product, adjoint = products[:2]
    _, dA_v = jax.jvp(lambda params: product(params, v), (params,), (dparams,))
    _, dA_u = jax.jvp(lambda params: adjoint(params, u), (params,), (dparams,))
    dsigma = dot(u, dA_v).real
    weight = lax.stop_gradient(known.S[0]).astype(u.dtype)

    def K_hat(x: Array) -> Array:
        du, dv = x[: len(u)], x[len(u) :]
        lam, mu = dot(u, du), dot(v, dv)
        if u.dtype.kind == "c":  # the phase of u relative to v moves with A: only the common one is held
            lam = mu = (lam + mu) / 2
        top = times(sigma, du) - product(params, dv) + weight * lam * u
        return stacked(top, times(sigma, dv) - adjoint(params, du) + weight * mu * v)

    fixed = lax.stop_gradient((params, triplet, known))

    # a solver is not differentiated, K_hat is: solve is called again for the derivatives of a solution
    def solve(c: Array) -> Array:
        return stacked(*solve_adjoint(products, how, *fixed, (c[: len(u)], c[len(u) :])))

    x = solution(K_hat, stacked(dA_v - times(dsigma, u), dA_u - times(dsigma, v)), solve, solve)
    du, dv = x[: len(u)], x[len(u) :]
    if u.dtype.kind == "c":
        rate = anchor(v, v0, dv).imag / anchor(v, v0).real
        turn = lax.complex(jnp.zeros_like(rate), rate)
        du, dv = du - turn * u, dv - turn * v
    return (triplet, known), (Triplet(dsigma, du, dv), jax.tree.map(jnp.zeros_like, known))


def anchor(v: Array, v0: Array | None, x: Array | None = None) -> Array:
    """The number that the sign rule makes positive: v0ᴴv, or the largest entry of v; or the same of x in place of v."""
    x = v if x is None else x
    found: Array = x[jnp.argmax(jnp.abs(v))] if v0 is None else dot(v0, x)
    return found
