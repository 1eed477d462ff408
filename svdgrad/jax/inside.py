"""The derivative of k singular triplets inside the set that they make: each from the spaces (see several.py)."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .adjoint import tie
from .primitive import call
from .triplet import LowRank, Triplets, adjoint, divided, half, mm, or_one, times

#: what is at most so many times ε (‖φᵢ‖ + ‖φⱼ‖ + ‖ψᵢ‖ + ‖ψⱼ‖) in a numerator is rounding, of which 1.2 was seen
ROUNDING = 4
#: and so many times ε (‖uᵢ ∘ φⱼ‖ + ‖uⱼ ∘ φᵢ‖ + …) of half precision, of which 0.4 was seen where no terms cancel
HALF = 0.8
#: in a tie, where nothing is divided, so many times ``HALF`` may be rounding, 4 ε in all, for terms that cancel
CANCELLED = 5
#: values within so many roundings of themselves count as equal, no more than a tie is: half as much is the residual
EQUAL = 16


def separate(spaces: LowRank, dtype: Any = None) -> Triplets:
    """(σ, U, V) from (U, H, V) with H = diag(σ); ``dtype`` is that in which a loss gets them, where it is another."""
    eps = float(jnp.finfo(spaces.U.dtype if dtype is None else dtype).eps)
    triplets: Triplets = call(_separated, _turn, (eps,), spaces)[0]
    return triplets


def _separated(eps: float, spaces: LowRank) -> tuple[Triplets, Array]:
    """With the rotation Z that keeps ZᴴHZ diagonal, a result, since it moves: I but for equal values.

    What a loss of U S Vᴴ needs at a tie is in no cotangent, but in nearly every basis it shows in those of the tied
    values, which differ (see ``_rotate_back``). The basis of a tie that a diagonal matrix comes with, or one of blocks,
    is one of the few. So Z reflects the vectors, I − 2wwᴴ/‖w‖² with a fixed w, of values that lie within ``EQUAL``
    roundings of themselves: the triplets stay triplets. A longer chain of values keeps its basis, but for copies.
    """
    U, H, V = spaces
    sigma = jnp.diagonal(H).real
    equal = EQUAL * float(jnp.finfo(sigma.dtype).eps)
    group = jnp.cumsum(jnp.append(False, -jnp.diff(sigma) > equal * sigma[:-1]))
    distance = jnp.abs(sigma[None] - sigma[:, None])
    same = group[:, None] == group[None]
    chain = (same & (distance > equal * sigma[:, None])).any(1)  # longer than any two may be apart
    same &= (distance == 0) | ~(chain[:, None] | chain[None])
    tied = (same.sum(0) > 1)[None]
    j = np.arange(sigma.size)
    fixed = (1 + 0.618034 * j % 1) * (np.exp(1j * j**2) if U.dtype.kind == "c" else 1)
    w = jnp.asarray(fixed, U.dtype)
    lengths = jnp.where(same, jnp.abs(w)[None] ** 2, 0).sum(1)
    mirror = times(jnp.where(same & tied, 1 / or_one(lengths)[:, None], 0), w[:, None] * w.conj()[None])
    Z = jnp.eye(sigma.size, dtype=U.dtype) - 2 * mirror
    W = mm(V, Z)
    anchor = jnp.take_along_axis(W, jnp.abs(W).argmax(0)[None], 0)
    Z = Z * jnp.where(tied, jnp.sign(anchor).conj(), 1)
    return Triplets(sigma, mm(U, Z), mm(V, Z)), Z


def _turn(eps: float, primals: Any, tangents: Any) -> Any:
    """dσ = diag(ZᴴdH Z), dZ = Z X with Xᵢⱼ (σⱼ − σᵢ) = (ZᴴdH Z)ᵢⱼ (eq-tangent-turn), and dU Z + U X, dV Z + V X for U
    and V.
    """
    (spaces,), ((dU, dH, dV),) = primals, tangents
    triplets, Z = call(_separated, _turn, (eps,), spaces)
    sigma, U, V = triplets
    G = herm(mm(mm(adjoint(Z), dH), Z))

    parts = partial(_parts, len(U), len(V))

    def turned(x: Array) -> Array:
        dsigma, dU, dV, X = parts(x)
        return stacked(dsigma, dU - mm(U, X), dV - mm(V, X), times(sigma[None] - sigma[:, None], X))

    # in one system with dσ, dU and dV, so that the adjoint solve sees all cotangents at once
    right = stacked(jnp.diagonal(G)[None], mm(dU, Z), mm(dV, Z), G - diagonal(G))
    fixed = lax.stop_gradient(triplets)
    dsigma, dU, dV, X = parts(solution(turned, right, partial(_rotate, fixed), partial(_rotate_back, eps, fixed)))
    if U.dtype.kind == "c":  # the largest entry of each column of V stays real
        at = jnp.abs(V).argmax(0)[None]
        rate = jnp.take_along_axis(dV, at, 0).imag / jnp.take_along_axis(V, at, 0).real
        turn = lax.complex(jnp.zeros_like(rate), rate)
        dU, dV, X = dU - turn * U, dV - turn * V, X - diagonal(turn + jnp.zeros_like(X))
    return (triplets, Z), (Triplets(dsigma[0].real, dU, dV), mm(Z, X))


def _parts(m: int, n: int, x: Array) -> tuple[Array, Array, Array, Array]:
    """dσ as a row, dU, dV and X, or what is paired with them, which lie over one another."""
    return x[:1], x[1 : 1 + m], x[1 + m : 1 + m + n], x[1 + m + n :]


def _distances(triplets: Triplets) -> tuple[Array, Array]:
    """σⱼ − σᵢ, or 1 in ties, and what is a tie."""
    sigma, U, V = triplets
    away = sigma[None] - sigma[:, None]
    tied = ~(jnp.abs(away) > tie(U.shape[0], V.shape[0], sigma.dtype) * sigma[0])
    return jnp.where(tied, 1, away), tied


def _rotate(triplets: Triplets, c: Array) -> Array:
    """[dσ; dU; dV; X]; in a tie X is zero, and that is right for all losses that are blind to it."""
    _, U, V = triplets
    away, tied = _distances(triplets)
    dsigma, dU, dV, G = _parts(len(U), len(V), c)
    part = half(or_one(triplets.sigma[0]))  # or one over a distance leaves the range
    X = jnp.where(tied, 0, times(1 / (away / part), times(1 / part, herm(G))))
    return stacked(dsigma, dU + mm(U, X), dV + mm(V, X), X)


def _rotate_back(eps: float, triplets: Triplets, c: Array) -> Array:
    """The adjoint of ``_rotate``: (UᴴΦ + VᴴΨ)ᵢⱼ/(σⱼ − σᵢ), its anti-Hermitian part, where the numerator is more than
    rounding, else 0.

    So it is right for a loss that is blind to the rotation of columns i and j, however close their values are. In a tie
    the loss is not a function of A where the numerator is real; and where vectors are seen, but tied values not alike,
    the quotient is 0/0 and not zero, and not in the cotangents: NaN.
    """
    _, U, V = triplets
    away, tied = _distances(triplets)
    own = float(jnp.finfo(away.dtype).eps)
    xi, phi, psi, chi = _parts(len(U), len(V), c)
    size = jnp.abs(c[1:]).max()
    phi, psi, chi = (divided(x, or_one(size)) for x in (phi, psi, chi))
    numerator = chi + mm(adjoint(U), phi) + mm(adjoint(V), psi)
    numerator = (numerator - adjoint(numerator)) / 2
    norms = jnp.linalg.norm(phi, axis=0) + jnp.linalg.norm(psi, axis=0)
    bound = norms[None] + norms[:, None] + jnp.abs(chi) + jnp.abs(chi.T)
    rounding = ROUNDING * own * bound
    if eps > own:  # of half precision, each entry of φ and ψ has its own: for long vectors far less than ε ‖φ‖
        entries = _entries(U, phi) + _entries(V, psi)
        rounding += jnp.where(tied, CANCELLED, 1) * HALF * eps * (entries + entries.T)
    seen = jnp.abs(numerator) > rounding
    unlike = jnp.abs(xi - xi.T) > own**0.5 * (jnp.abs(xi) + jnp.abs(xi.T))
    part = half(or_one(triplets.sigma[0]))  # or size over a distance leaves the range
    X = jnp.where(seen, times(size / part, times(1 / (away / part), numerator)), 0)
    # of a longer chain than is reflected, along the axes: a distance is all that is more than half an ε of rounding
    separate = mm(abs(U).T, abs(U)) + mm(abs(V).T, abs(V)) == 0
    separate &= jnp.abs(triplets.sigma[None] - triplets.sigma[:, None]) <= EQUAL * own * triplets.sigma[None]
    X = jnp.where(tied & (seen | unlike & (bound > 0) | separate & (jnp.abs(numerator) > own * bound / 2)), jnp.nan, X)
    blurred = _undetermined(triplets)[None] & (xi != 0) & (c[1:] != 0).any()
    X = jnp.where(jnp.eye(len(norms), dtype=bool), 0, X)
    return stacked(jnp.where(blurred, jnp.nan, xi), c[1 : -len(xi.T)], X)


def _entries(X: Array, Y: Array) -> Array:
    """‖xᵢ ∘ yⱼ‖ at i, j, the product taken entry by entry."""
    unit = or_one(jnp.linalg.norm(Y, axis=0, keepdims=True))
    return unit * jnp.sqrt(mm(jnp.abs(X.T) ** 2, jnp.abs(divided(Y, unit)) ** 2))


def _undetermined(triplets: Triplets) -> Array:
    """Which values are zero, so that A does not determine their vectors; of a real square A kept whole one may be.

    Then u and v are still a function of A, but for a sign. Elsewhere, what a loss does with σu or σv has a cotangent of
    zero times what it was to be, and only that of σ shows that the loss sees the triplet.
    """
    sigma, U, V = triplets
    zero = sigma == 0
    alone = len(U) == len(V) == sigma.size and U.dtype.kind != "c"
    return zero & (zero.sum() > 1) if alone else zero


def watched(spaces: LowRank) -> LowRank:
    """The same, but with a gradient of NaN where a loss reads a value of zero and its vectors, as one of A_k does: the
    cotangents of those vectors are zero, whatever the loss does with them.
    """
    m, k = spaces.U.shape
    undetermined = lax.stop_gradient(_undetermined(Triplets(jnp.diagonal(spaces.core).real, spaces.U, spaces.V)))

    def seen(c: Array) -> Array:
        h = herm(c[m : m + k])
        off = h - diagonal(h)
        alone = ~((c[:m] != 0).any() | (c[m + k :] != 0).any() | (off != 0).any())  # a loss of values has a subgradient
        read = (undetermined & (h != 0).any(0) & ~alone)[None]
        return stacked(c[:m], jnp.where(read, jnp.nan, c[m : m + k]), c[m + k :])

    x = solution(lambda x: x, stacked(*spaces), lambda c: c, seen)
    return LowRank(x[:m], x[m : m + k], x[m + k :])


def herm(X: Array) -> Array:
    return (X + adjoint(X)) / 2


def diagonal(X: Array) -> Array:
    """X with zeros off the diagonal."""
    return jnp.where(jnp.eye(X.shape[0], dtype=bool), X, 0)


def stacked(*blocks: Array) -> Array:
    """Vectors, or matrices of k columns, over one another: the unknowns of a system, as one, or JAX cannot transpose
    its solution where only some of them are differentiated.
    """
    return jnp.concatenate(blocks)


def solution(matvec: Any, right: Array, solve: Any, solve_adjoint: Any) -> Array:
    """matvec⁻¹ right by ``solve``, which is not differentiated, while matvec is; JAX transposes without conjugating."""
    x: Array = lax.custom_linear_solve(
        matvec, right, lambda _, c: solve(c), lambda _, c: solve_adjoint(c.conj()).conj()
    )
    return x
