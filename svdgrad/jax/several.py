"""The derivative of k singular triplets at once, in two steps: of the spaces that they span, and of each in them.

    A ──spaces──▶ (U, H, V),  A V = U H,  AᴴU = V H,  H Hermitian ──separated──▶ (σ, U, V)

In value H is diag(σ), and the second step does nothing. But a tangent dH has entries off the diagonal: along dA the
first step turns U and V no more than it must, UᴴdU + VᴴdV = 0. Then only the gap σₖ − σₖ₊₁ to what is left out is ever
divided by, and values inside the set may be as close as they like. The second step turns the columns so that H stays
diagonal, and so divides by the distances of its values.

A loss that is blind to a common rotation, of (UZ, ZᴴHZ, VZ) with ZᴴZ = I, needs the first step only. One that is
written in (σ, U, V) may be blind too. Then what the second step divides in reverse mode is rounding, and is told by its
size.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .adjoint import tie
from .block import basis_size, block_lanczos, block_size, columns_cg
from .forward import is_lost
from .inside import diagonal, herm, solution, stacked
from .primitive import call
from .triplet import How, Known, LowRank, Products, adjoint, divided, half, mm, or_one, power_of_two, svd, times


class Operator(NamedTuple):
    """A matrix (m, n) by its products with one vector, which depend on parameters; static under jit."""

    products: Products
    m: int
    n: int
    dtype: Any

    def mm(self, params: Any, X: Array) -> Array:
        """A X, column by column."""
        return jax.vmap(partial(self.products[0], params), 1, 1)(X)

    def rmm(self, params: Any, Y: Array) -> Array:
        return jax.vmap(partial(self.products[1], params), 1, 1)(Y)


def find_spaces(A: Operator, how: How, k: int, params: Any, v0: Array | None = None) -> tuple[LowRank, Known]:
    """(U, H, V) of one matrix, the largest entry of each column of V positive, and what is known besides; ``v0`` holds
    rows for "lanczos" to start from.
    """
    found: tuple[LowRank, Known] = call(_find, _move, (A, how, k), params, v0)
    return found


def _find(A: Operator, how: How, k: int, params: Any, v0: Array | None) -> tuple[LowRank, Known]:
    wide = A.m < A.n
    if how.forward == "svd":
        sigma, U, V, known = _svd(k, params)
    elif how.forward == "gram":
        sigma, U, V, known = _gram(k, adjoint(params) if wide else params)
        U, V = (V, U) if wide else (U, V)
    else:
        forth, back = (jax.vmap(partial(of, params)) for of in (A.products[0], A.products[-1]))
        if min(A.m, A.n) < basis_size(k) + block_size(k):  # the basis would be all of it
            sigma, U, V, known = _svd(k, forth(jnp.eye(A.n, dtype=A.dtype)).T)
        elif wide:
            begin = None if v0 is None else forth(v0[:k])
            sigma, V, U, known = block_lanczos(back, forth, A.n, A.m, A.dtype, k, how, begin)
            U, V = U.T, V.T
        else:
            sigma, U, V, known = block_lanczos(forth, back, A.m, A.n, A.dtype, k, how, v0)
            U, V = U.T, V.T
    anchor = jnp.take_along_axis(V, jnp.abs(V).argmax(0)[None], 0)
    c = jnp.where(anchor == 0, 1, jnp.sign(anchor).conj())
    core = jnp.diag(sigma).astype(A.dtype)
    lost = is_lost(known.S[0], params)
    if v0 is not None:  # of NaN where an operator has failed a check under jit; a direct method would not see it
        lost |= ~jnp.isfinite(v0).all()
    return LowRank(*(jnp.where(lost, jnp.nan, x) for x in (U * c, core, V * c))), known


def _svd(k: int, A: Array) -> tuple[Array, Array, Array, Known]:
    U, S, Vh = svd(A)
    return S[:k], U[:, :k], adjoint(Vh[:k]), Known(S, U, Vh)


def _gram(k: int, A: Array) -> tuple[Array, Array, Array, Known]:
    """(σ, U, V) of a tall matrix: V spans what the first k eigenvectors W of AᴴA do, and A W is taken apart."""
    size = jnp.abs(A).max()  # or squares would leave the range of float32 for entries beyond 1e±19
    size = or_one(size)
    A = divided(A, size)
    minus_S2, W = jnp.linalg.eigh(-mm(adjoint(A), A), symmetrize_input=False)  # eigh sorts upwards
    U, sigma, Zh = svd(mm(A, W[:, :k]))
    V = mm(W[:, :k], adjoint(Zh))
    S = jnp.sqrt(jnp.maximum(-minus_S2, 0)).at[:k].set(sigma)
    return sigma * size, U, V, Known(S * size, W=W)


def _move(A: Operator, how: How, k: int, primals: Any, tangents: Any) -> Any:
    """(dU, dH, dV), linear in dA (eq-tangent-factors): dH = herm(UᴴdA V), and [dU; dV] from

    [dU H − A dV; dV H − AᴴdU] = [dA V − U dH; dAᴴU − V dH],   UᴴdU + VᴴdV = 0.
    """
    (params, v0), (dparams, _) = primals, tangents
    spaces, known = find_spaces(A, how, k, params, v0)
    U, H, V = spaces
    _, dA_V = jax.jvp(lambda params: A.mm(params, V), (params,), (dparams,))
    _, dA_U = jax.jvp(lambda params: A.rmm(params, U), (params,), (dparams,))
    dH = herm(mm(adjoint(U), dA_V))
    weight = lax.stop_gradient(known.S[0]).astype(H.dtype)

    def K_hat(x: Array) -> Array:
        dU, dV = x[: len(U)], x[len(U) :]
        X, Y = mm(adjoint(U), dU), mm(adjoint(V), dV)
        even, odd = X + Y, X - Y
        # the common rotation is held, by a weight in place of its own factor, even H − H even, which may be zero
        held = weight * even - (mm(even, H) - mm(H, even)) / 2
        # so is, for real A, a part that no tangent has
        grown = weight * diagonal(odd) / 2 if H.dtype.kind != "c" else jnp.zeros_like(H)
        top = mm(dU, H) - A.mm(params, dV) + mm(U, held + grown)
        return stacked(top, mm(dV, H) - A.rmm(params, dU) + mm(V, held - grown))

    solve = partial(_solve, A, how, k, *lax.stop_gradient((params, spaces, known)))
    x = solution(K_hat, stacked(dA_V - mm(U, dH), dA_U - mm(V, dH)), solve, solve)
    return (spaces, known), (LowRank(x[: len(U)], dH, x[len(U) :]), jax.tree.map(jnp.zeros_like, known))


def _solve(A: Operator, how: How, k: int, params: Any, spaces: LowRank, known: Known, c: Array) -> Array:
    """[P; Q] with K̂ [P; Q] = c, for numbers only: a column is zero for one of zeros in c whatever the gap, and NaN for
    any other if its value is tied with what is left out.
    """
    U, _, V = spaces
    # in a unit near σ₁, where reciprocals are numbers wherever those of A leave their range
    most = power_of_two(or_one(known.S[0]))
    S = divided(known.S, most)
    known = known._replace(S=S)
    m, n, complex_ = len(U), len(V), U.dtype.kind == "c"
    size = jnp.abs(c).max()
    c = divided(c, or_one(size))
    phi, psi = c[:m], c[m:]
    a, b = mm(adjoint(U), phi), mm(adjoint(V), psi)
    inner = S[:k, None] + S[None, :k] + (0 if complex_ else S[0]) * jnp.eye(k, dtype=S.dtype)
    even, odd = divided((a + b) / 2, S[0]), divided(a - b, inner)
    phi, psi = phi - mm(U, a), psi - mm(V, b)
    if known.U is None and how.forward == "lanczos":
        forth, back = (
            lambda X, of=of: divided(jax.vmap(partial(of, params), 1, 1)(X), most)
            for of in (A.products[0], A.products[-1])
        )
        off_U, off_V = (lambda X, W=W: X - mm(W, mm(adjoint(W), X)) for W in (U, V))
        if m < n:
            Q, P = columns_cg(back, forth, off_V, off_U, S[:k], known, psi, phi, how.maxiter)
        else:
            P, Q = columns_cg(forth, back, off_U, off_V, S[:k], known, phi, psi, how.maxiter)
    else:
        P, Q = _outside(k, params, most, known, phi, psi)
    x = stacked(P + mm(U, even + odd) / 2, Q + mm(V, even - odd) / 2)
    # to what is left out; where nothing is, to zero; for a square A that is kept whole, what its rotations divide by
    gap = S[:k] - S[k] if k < S.size else S[:k] if m != n else inner.min(0)
    tied = ~(gap > tie(m, n, S.dtype) * S[0])
    part = half(most)  # or size over σ₁ leaves the range where a gradient does not
    x = divided(times(size / part, x), most / part)
    return jnp.where((c == 0).all(0), 0, jnp.where(tied, jnp.nan, x))


def _outside(k: int, A: Array, most: Array, known: Known, phi: Array, psi: Array) -> tuple[Array, Array]:
    """P S − A Q = φ, Q S − AᴴP = ψ off all kept vectors, in closed form: k systems, each with its own σᵢ, in units of
    ``most``, and so with A/``most`` for A.

    P = U₂ (a S + S₂ b)/d + (I − U₂U₂ᴴ) φ/S with a = U₂ᴴφ, b = V₂ᴴψ, dⱼᵢ = σᵢ² − σⱼ², where ₂ is what is left out; Q
    alike. With the vectors of one side only, Q = W₂ W₂ᴴ(Aᴴφ + ψ S)/d, and P = (φ + A Q)/S.
    """
    S, U, Vh, W = known[:4]
    sigma, rest = S[None, :k], S[k:, None]
    one, two = 1 / (sigma - rest), 1 / (sigma + rest)  # 1/d in two factors, lest it leaves the range
    if W is not None:
        wide = phi.shape[0] < psi.shape[0]
        if wide:
            A, phi, psi = adjoint(A), psi, phi
        back = divided(mm(adjoint(A), divided(phi, sigma)), most) + psi
        Q = mm(W[:, k:], times(one * (two * sigma), mm(adjoint(W[:, k:]), back)))
        P = divided(phi + divided(mm(A, Q), most), sigma)
        return (Q, P) if wide else (P, Q)
    assert U is not None and Vh is not None
    a, b = mm(adjoint(U[:, k:]), phi), mm(Vh[k:], psi)
    P = mm(U[:, k:], times(one, times(two * sigma, a) + times(two * rest, b)))
    Q = mm(adjoint(Vh[k:]), times(one, times(two * rest, a) + times(two * sigma, b)))
    if U.shape[0] > S.size:
        P = P + divided(phi - mm(U[:, k:], a), sigma)
    if Vh.shape[1] > S.size:
        Q = Q + divided(psi - mm(adjoint(Vh[k:]), b), sigma)
    return P, Q
