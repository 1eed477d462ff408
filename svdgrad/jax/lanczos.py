"""Lanczos' iteration on AᴴA with full orthogonalisation and thick restarts (Wu and Simon 2000), and what it proves.

The basis is the rows of V, so AᴴA Vᵀ = Vᵀ T + β v eᵀ (eq-tridiagonal). The dominant eigenpair (σ², y) of T gives Vᵀy
for v, with residual ‖Aᴴu − σv‖ = β abs(y_k)/σ. When the basis is full, its best Ritz vectors take its place, each with
a component β y_k along the next vector, and the iteration goes on from there (eq-thick-restart).

A small residual says that (σ, u, v) is a triplet, and nothing of whether a larger one was missed, as it is where the
start had next to nothing of it. But the start holds noise, of which no direction has much less than its share. So the
least norm c of p(AᴴA) x, x the start and p a polynomial with p(σ²) = 1, is evidence: all of a larger w is still in it,
abs⟨w, x⟩ ≤ c. It costs no product with A, since x and all that the iteration did to it are known in the basis.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .triplet import How, Known, Product, Triplet, divided, image, mm, norm, or_one, times, unit

ROWS, KEPT = 48, 16  # of the basis, and of the Ritz vectors that take its place when it is full
STEPS, PROBE = 16, 4  # from one look at T to the next, at most and at least
NOISE = 0.1  # beside v0: enough to see by, and a step or two to forget
LEAD = 1e-3  # by which a larger singular value is to be told from σ at any tolerance
SEED = 1_936_024_167  # of all noise


class Basis(NamedTuple):
    """Rows 0 to ``filled`` of V, the last of them not yet multiplied by A, and what T says of them."""

    V: Array
    T: Array
    filled: Array
    x: Array
    """the start in this basis, times a polynomial that is 1 at σ² and larger beyond"""
    theta2: Array
    """Ritz values, descending, of AᴴA"""
    Y: Array
    """as columns, their vectors in this basis"""
    coupling: Array
    """their residuals, all along the last row of V"""


def lanczos(A: Product, AH: Product, v0: Any, how: How) -> tuple[Triplet, Known]:
    """The dominant triplet, sign left open, and Ritz pairs; NaN after ``maxiter`` steps without proof.

    ``v0`` is the vector to start from, or a shape and a dtype for a start from noise alone. With a ``resolution`` it is
    never NaN for that: the best triplet comes with the excess that is left to a larger value.
    """
    n, dtype = v0.size, v0.dtype
    best = how.resolution is not None
    if best:
        how = how._replace(maxiter=min(n, how.maxiter))
    k = how.maxiter if best else min(n, ROWS, how.maxiter)
    kept = max(1, min(KEPT, k // 2))
    eps = float(jnp.finfo(dtype).eps)
    tol, floor = 10 * eps if how.tol is None else how.tol, 4 * eps  # below which c is rounding
    noise = white_noise(0, n, dtype)
    share = 1.0
    if isinstance(v0, jax.Array):
        # without proof the noise is there only lest v0 have no component along v at all
        share = eps**0.5 if how.missed is None else NOISE
        noise = unit(v0) + share * noise
    allowed = jnp.inf if how.missed is None else _most(how.missed, n, dtype) * share / norm(noise)
    # of two vectors whose σ differ by LEAD the iteration has found the larger once the rest of the start is less, by
    # that factor, than what the start has of the larger; before, the Ritz vector is a mixture, which hides it
    most = jnp.maximum(allowed * LEAD, floor)
    allowed = jnp.maximum(allowed - eps / n**0.5, eps**2)  # rounding leaves in every vector about ε/√n of any other
    start = unit(noise)
    size = jnp.abs(A(start)).max()  # or fourth powers would leave the range of float32
    size = or_one(size)
    zero = jnp.where(size > 0, 0 * size, 0)  # inside shard_map a loop's state must vary over devices as its data do

    def square(x: Array) -> Array:
        return divided(AH(divided(A(x), size)), size)

    # a start that is trusted may be all that is wanted; evidence takes steps
    first, longest = 1 if how.missed is None else PROBE, PROBE if best else STEPS

    def cycle(state: tuple[Array, Basis]) -> tuple[Array, Basis]:
        count, basis = state
        basis = lax.cond(basis.filled == k, lambda b: _restarted(b, kept), lambda b: b, basis)
        steps = jnp.minimum(jnp.clip(basis.filled, first, longest), how.maxiter - count)
        stop = jnp.minimum(basis.filled + steps, k)
        return count + stop - basis.filled, _extended(square, basis, stop)

    def accepted(basis: Basis) -> Array:
        if how.resolution is None:
            return _accepted(basis, tol, most)
        residual: Array = jnp.abs(basis.coupling[0])
        return (residual <= tol * basis.theta2[0]) & (_excess(basis, allowed) <= how.resolution)

    def unfinished(state: tuple[Array, Basis]) -> Array:
        count, basis = state
        return ~accepted(basis) & (count < how.maxiter) & jnp.isfinite(basis.theta2[0])

    begun = _begun(jnp.zeros((k + 1, n), dtype), start, zero)
    _, basis = lax.while_loop(unfinished, cycle, (begun.filled, begun))
    W = mm(basis.Y[:, :kept].T.astype(dtype), basis.V[:-1])
    v = unit(W[0])
    sigma, u = image(divided(A(v), size))
    good = jnp.isfinite(basis.theta2[0]) if best else accepted(basis)
    sigma, u, v = (jnp.where(good, x, jnp.nan) for x in (sigma * size, u, v))
    away = jnp.maximum(basis.theta2[0] - basis.theta2, eps * basis.theta2[0])
    foreign = jnp.abs(basis.coupling / jnp.where(away == 0, 1, away)).at[0].set(0)
    excess = _excess(basis, allowed) if best else None
    return Triplet(sigma, u, v), Known(jnp.sqrt(basis.theta2) * size, None, None, W.T, foreign[:kept], excess)


def has_hidden_copy(A: Product, AH: Product, sigma: Array, W: Array, foreign: Array, tie: float) -> Array:
    """Whether σ belongs to a vector off W too, up to a relative gap of ``tie``: a tie, which no start shows by itself.

    From one start the iteration finds one vector of every eigenspace; others come from rounding, and late. So it goes
    on from fresh noise off those Ritz vectors W that have nothing of a copy in them, beside which a copy soon stands
    alone, until the noise proves that there is none or the largest Ritz value is known.
    """
    W = jnp.where((foreign <= tie**0.5 / 8)[None], W, 0)
    n, l = W.shape
    k = min(n, ROWS)
    if l >= k:  # W spans all that A sees
        return jnp.zeros((), bool)
    eps = float(jnp.finfo(W.dtype).eps)
    start = white_noise(1, n, W.dtype)
    for _ in range(2):
        start = start - mm(W, mm(start, W.conj()))
    most, zero, tau = _most(1e-2, n, W.dtype) / norm(start), 0 * sigma, 1 - 2 * tie
    V = jnp.zeros((k + 1, n), W.dtype).at[:l].set(W.T)

    def square(x: Array) -> Array:
        return divided(AH(divided(A(x), sigma)), sigma)

    def error(basis: Basis) -> Array:
        """Of the largest Ritz value."""
        gap = basis.theta2[0] - basis.theta2[1]
        return basis.coupling[0] ** 2 / jnp.where(gap > 0, gap, 1)

    def unknown(basis: Basis) -> Array:
        proved = (basis.theta2[0] < tau) & (_unseen(basis, tau, jnp.zeros(k, bool)) <= most)
        return (basis.filled == l) | ~proved & ~(error(basis) <= tie / 4) & (basis.filled < k)

    begun = _begun(V, unit(start), zero, l)
    probe = lax.while_loop(unknown, lambda b: _extended(square, b, jnp.minimum(b.filled + PROBE, k)), begun)
    # out of rows, what may be a copy within an error of √ε is taken for one
    return probe.theta2[0] + jnp.where(error(probe) <= eps**0.5, error(probe), 0) >= tau


def _begun(V: Array, start: Array, zero: Array, row: int = 0) -> Basis:
    """The start as a row of V, and nothing known yet: a Ritz value of 0 with a residual of 1."""
    k = V.shape[0] - 1
    V = V.at[row].set(start) + zero.astype(V.dtype)
    Y = jnp.eye(k, dtype=zero.dtype) + zero
    return Basis(V, 0 * Y, jnp.asarray(row), Y[row], 0 * Y[row], Y, Y[row])


def _extended(square: Product, basis: Basis, stop: Array) -> Basis:
    """The basis with ``stop`` rows, a step of two products each, and the eigenpairs of its T."""
    V, T, filled, x, *_ = basis
    eps = float(jnp.finfo(V.dtype).eps)

    def step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        V, T, _ = state
        w = square(V[j])
        along = mm(V.conj(), w)
        T = T.at[j, j].set(along[j].real)
        rest = w - mm(along, V)
        rest = rest - mm(mm(V.conj(), rest), V)  # once leaves something where w is almost in the span
        beta = norm(rest)
        # where the basis spans all that A sees, rounding is left: then zeros go on, and find nothing
        beta = jnp.where(beta < 10 * eps * norm(w), 0, beta)
        following = times(jnp.where(beta == 0, 0, 1 / jnp.where(beta == 0, 1, beta)), rest)
        return V.at[j + 1].set(following), T.at[j + 1, j].set(beta, mode="drop"), beta

    V, T, beta = lax.fori_loop(filled, stop, step, (V, T, 0 * T[0, 0]))
    live = jnp.arange(T.shape[0]) < stop
    minus, Y = jnp.linalg.eigh(-jnp.where(live[None] & live[:, None], T, 0), symmetrize_input=False)
    return Basis(V, T, stop, x, jnp.maximum(-minus, 0), Y, beta * Y[stop - 1])


def _restarted(basis: Basis, kept: int) -> Basis:
    """The first Ritz vectors for a basis, and the start times the polynomial that is zero at the Ritz values that
    go.
    """
    V, T, _, x, theta2, Y, coupling = basis
    V = jnp.zeros_like(V).at[:kept].set(mm(Y[:, :kept].T.astype(V.dtype), V[:-1])).at[kept].set(V[-1])
    T = jnp.diag(theta2.at[kept:].set(0)).at[kept, :kept].set(coupling[:kept], mode="drop")
    gone = theta2[kept:]
    scale = theta2[0] - gone
    factors = (theta2[:kept, None] - gone[None]) / jnp.where(scale == 0, 1, scale)[None]
    x = (0 * x).at[:kept].set(mm(x, Y[:, :kept]) * factors.prod(1))
    return Basis(V, T, jnp.asarray(kept), x, theta2, jnp.eye(Y.shape[0], dtype=Y.dtype) + 0 * Y, coupling)


def _accepted(basis: Basis, tol: float, most: Any) -> Array:
    """The residual is small, and so is the probability that the start hid a larger singular value."""
    tau, residual = basis.theta2[0], jnp.abs(basis.coupling)
    # what is as close as its residual is not larger but a neighbour: it has been found as well as the first
    found = (residual <= tol * tau) & (tau - basis.theta2 <= residual)
    accepted: Array = (residual[0] <= tol * tau) & (_unseen(basis, tau, found) <= most)
    return accepted


def _unseen(basis: Basis, tau: Any, found: Array) -> Array:
    """c with abs⟨w, x⟩ ≤ c for each vector w that belongs to a value of τ or more and is off the Ritz vectors found.

    The minimum of ‖p(AᴴA) x‖ over p(τ) = 1, x taken off what was found, in closed form: with gᵢ the part of x along the
    i-th Ritz vector and aᵢ its residual over τ − θᵢ², c = abs(Σ aᵢ gᵢ)/√(1 + Σ aᵢ²) (eq-unseen).
    """
    limits = jnp.finfo(basis.theta2.dtype)
    away = jnp.maximum(tau - basis.theta2, float(limits.eps) * tau + float(limits.tiny))
    a = jnp.where(found, 0, basis.coupling / away)
    c: Array = jnp.abs((a * mm(basis.x, basis.Y)).sum()) / jnp.sqrt(1 + (a * a).sum())
    return c


def _excess(basis: Basis, allowed: Any) -> Array:
    """The least δ, to a percent, for which no value above (1 + δ)σ leaves as much as ``allowed`` of its vector in the
    start.
    """
    square, beta, n = basis.theta2[0], norm(basis.coupling), basis.V.shape[1]
    square = jnp.where(square > 0, square, 1)
    low = 1000 * float(jnp.finfo(square.dtype).eps)  # a smaller δ has no digits left in σ²(1 + δ)²
    high = jnp.sqrt(1 + beta / (allowed * square))  # enough in any case, since c ≤ β/(τ − σ²) (eq-unseen)
    first = _spread(low + 0 * high, jnp.maximum(high, 2 * low))
    i = jnp.argmax(_hidden(basis, square * (1 + first) ** 2) <= allowed)
    second = _spread(first[jnp.maximum(i - 1, 0)], first[i])
    enough = _hidden(basis, square * (1 + second) ** 2) <= allowed
    delta = jnp.where(enough.any(), second[jnp.argmax(enough)], jnp.inf)
    # what fills the space, or what A sees of it, leaves nothing out
    return jnp.where((basis.filled == n) | (basis.theta2[0] == 0), 0, delta)


def _spread(low: Array, high: Array) -> Array:
    """64 numbers from one to the other, each by the same factor larger than the one before."""
    return low * (high / low) ** jnp.linspace(0, 1, 64, dtype=low.dtype)


def _hidden(basis: Basis, values: Array) -> Array:
    """c as in ``_unseen``, with nothing found, for a basis that was never restarted: 1/√Σ πᵢ(λ)² (eq-hidden).

    T is tridiagonal then, and the recurrence for πᵢ adds nothing of changing sign: digits that the sum over Ritz
    vectors loses in float32. It is 1, which says nothing, where λ does not exceed the Ritz values.
    """
    alpha, beta = jnp.diagonal(basis.T), jnp.append(jnp.diagonal(basis.T, -1), 0)
    # of the last row filled what comes next may have no place in T
    beta = jnp.where(jnp.arange(beta.size) == basis.filled - 1, norm(basis.coupling), beta)
    before = jnp.roll(beta, 1).at[0].set(0)
    one = 0 * values + 1

    def step(state: tuple[Array, Array, Array, Array], row: tuple[Array, ...]) -> tuple[Any, None]:
        d, pi, total, sound = state
        alpha, beta, before, live = row
        d = values - alpha - before**2 / d
        pi = pi * d / beta  # without end where the basis spans all that A sees
        return (d, pi, total + jnp.where(live, pi**2, 0), sound & (~live | (d > 0))), None

    rows = alpha, beta, before, jnp.arange(beta.size) < basis.filled
    (_, _, total, sound), _ = lax.scan(step, (one, one, one, one > 0), rows)
    return jnp.where(sound, 1 / jnp.sqrt(total), 1)


def _most(missed: float, n: int, dtype: Any) -> float:
    """What a unit vector keeps along noise of length one but for a probability of ``missed``, from below."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return math.sqrt(missed / n)
    return missed * math.sqrt(math.pi / (2 * n))


def white_noise(seed: int, n: int, dtype: Any) -> Array:
    """Seeded normal numbers of length about one, with no key that a caller may have taken for what A is made of."""
    noise: Array = jax.random.normal(jax.random.key(SEED + seed), (n,), dtype) / n**0.5
    return noise
