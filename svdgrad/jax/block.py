"""k dominant triplets by products alone: Golub and Kahan's bidiagonalisation with blocks, and its adjoint.

Vectors are rows: A Q = P T and Aᴴ P = Q Tᴴ + G (eq-block-bidiagonal), so that the singular value decomposition
T = X S Yᴴ gives V = XᴴQ and U = YᴴP, and the last block of G, the only one that is not zero, their residuals. A block
has k + 2 rows or more, of a multiple value as many copies as are asked for, and one more. When the basis is full, its
best vectors go on (thick restart).

A small residual says that these are triplets, and nothing of whether a larger one was missed. So a single vector of
fresh noise off V goes the same way after it, until it proves that there is none, or finds one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import lanczos
from .triplet import How, Known, Product, divided, mm, norm, or_one, svd, times, unit

BLOCKS, KEPT, ROWS = 10, 4, 60  # of the basis, of those that go on, in blocks; and the least rows of a basis
RESOLUTION = 1e-3  # a value larger than a known one by less than this part of it is not sought


class Space(NamedTuple):
    Q: Array
    P: Array
    T: Array
    next: Array
    """the rows after Q"""
    left: Array
    """what the last product has along these, the last block of G"""
    S: Array
    X: Array
    Y: Array


def block_size(k: int) -> int:
    return k + 2 + k // 4


def basis_size(k: int) -> int:
    b = block_size(k)
    return b * max(BLOCKS, -(-ROWS // b))


def block_lanczos(
    A: Product, AH: Product, m: int, n: int, dtype: Any, k: int, how: How, start: Array | None
) -> tuple[Array, Array, Array, Known]:
    """σ (k,), U (k, m), V (k, n) of an m×n operator by its products with rows, n ≥ ``basis_size(k) + block_size(k)``,
    and Ritz values and vectors; NaN after ``maxiter`` steps without a proof.
    """
    b, rows, eps = block_size(k), basis_size(k), float(jnp.finfo(dtype).eps)
    tol = 10 * eps if how.tol is None else how.tol
    first = _noise(0, b, n, dtype)
    if start is not None:
        given = jax.vmap(unit)(start[:k])
        first = first.at[: len(given)].set(given + lanczos.NOISE * first[: len(given)])
    size = jnp.abs(A(first)).max()  # or squares would leave the range of float32
    size = or_one(size)
    forth: Product = lambda X: divided(A(X), size)
    back: Product = lambda Y: divided(AH(Y), size)
    real = jnp.where(size > 0, 0 * size, 0)  # inside shard_map a loop's state must vary over devices as its data do

    def begun(first: Array) -> Space:
        zeros = [jnp.zeros(shape, dtype) + real.astype(dtype) for shape in ((rows, n), (rows, m), (rows, rows), (b, b))]
        Q, P, T, left = zeros
        _, _, first = _orthonormal(first, Q, 0)
        return Space(Q, P, T, first, left, jnp.zeros(rows, size.dtype) + real, T, T)

    def cycle(state: tuple[Array, Array, Space]) -> tuple[Array, Array, Space]:
        count, _, space = state
        begin = jnp.where(space.S[0] > 0, KEPT, 0)
        space = lax.cond(begin > 0, lambda x: _restarted(x, KEPT * b), lambda x: x, space)
        space = _filled(forth, back, space, begin, count)
        return count + rows // b - begin, _accepted(space, k, tol), space

    def attempt(state: Any) -> Any:
        count, _, space, seed = state
        count, found, space = lax.while_loop(
            lambda s: ~s[1] & (s[0] < how.maxiter) & jnp.isfinite(s[2].S[0]), cycle, (count, jnp.zeros((), bool), space)
        )
        V = mm(space.X[:, :k].conj().T, space.Q)
        proven, larger = (found, V[0]) if how.missed is None else _probe(forth, back, V, space.S, k, how, seed)
        again = jnp.concatenate([V, larger[None], _noise(seed, b - k - 1, n, dtype)])
        space = lax.cond(proven | ~found, lambda x: x, lambda x: begun(again), space)
        return count, found & proven, space, seed + 1

    def unfinished(state: Any) -> Array:
        count, done, space, _ = state
        going: Array = ~done & (count < how.maxiter) & jnp.isfinite(space.S[0])
        return going

    count, done, space, _ = lax.while_loop(
        unfinished, attempt, (jnp.zeros((), int), jnp.zeros((), bool), begun(first), jnp.ones((), int))
    )
    good = done & (count <= how.maxiter)
    S, V, U = times(size, space.S), mm(space.X.conj().T, space.Q), mm(space.Y[:, :k].conj().T, space.P)
    sigma, U = (jnp.where(good, x, jnp.nan) for x in (S[:k], U))
    return sigma, U, jnp.where(good, V[:k], jnp.nan), Known(S, W=V[: KEPT * b].T)


def _noise(seed: Any, count: int, n: int, dtype: Any) -> Array:
    noise: Array = jax.random.normal(jax.random.key(lanczos.SEED + seed), (count, n), dtype) / n**0.5
    return noise


def _orthonormal(W: Array, rows: Array, seed: Any) -> tuple[Array, Array, Array]:
    """(C, R, Q) with W = C rows + R Q, the rows of Q orthonormal and orthogonal to ``rows``.

    In two rounds, since much of what a first leaves may be rounding. Where nothing but rounding is left of a row, as
    where A sees fewer dimensions than the basis has, noise of its size takes its place before the others are made
    orthogonal to it, and there is a third.
    """
    C = mm(W, rows.conj().T)
    rest, size = W - mm(C, rows), jnp.linalg.norm(W)

    def off_rows(Q: Array) -> Array:
        found: Array = jnp.linalg.qr((Q - mm(mm(Q, rows.conj().T), rows)).T)[0].T
        return found

    Q, R = jnp.linalg.qr(rest.T)
    nothing = jnp.abs(jnp.diagonal(R)) <= 10 * float(jnp.finfo(W.dtype).eps) * size

    def filled(_: Array) -> Array:
        noise = times(or_one(size), _noise(seed, len(W), W.shape[1], W.dtype))
        return off_rows(jnp.linalg.qr(jnp.where(nothing[:, None], noise, rest).T)[0].T)

    Q = off_rows(lax.cond(nothing.any(), filled, lambda Q: Q, Q.T))
    return C + mm(rest, rows.conj().T), mm(rest, Q.conj().T), Q


def _filled(forth: Product, back: Product, space: Space, begin: Array, seed: Array) -> Space:
    """The space with a full basis, a step of two block products each, and T = X S Yᴴ."""
    b, rows = space.next.shape[0], space.T.shape[0]

    def step(j: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        Q, P, T, new, _ = state
        Q = lax.dynamic_update_slice_in_dim(Q, new, j * b, 0)
        C, R, left = _orthonormal(forth(new), P, seed + j)
        T = lax.dynamic_update_slice_in_dim(T, C, j * b, 0)
        T = lax.dynamic_update_slice(T, R, (j * b, j * b))
        P = lax.dynamic_update_slice_in_dim(P, left, j * b, 0)
        _, G, new = _orthonormal(back(left), Q, seed + j)
        return Q, P, T, new, G

    Q, P, T, new, G = lax.fori_loop(begin, rows // b, step, (*space[:4], space.left))
    X, S, Yh = svd(T)
    return Space(Q, P, T, new, G, S, X, Yh.conj().T)


def _restarted(space: Space, kept: int) -> Space:
    """The space with its best vectors for a basis."""
    Q, P, T, _, _, S, X, Y = space
    Q = jnp.zeros_like(Q).at[:kept].set(mm(X[:, :kept].conj().T, Q))
    P = jnp.zeros_like(P).at[:kept].set(mm(Y[:, :kept].conj().T, P))
    T = jnp.diag(jnp.where(jnp.arange(len(S)) < kept, S, 0)).astype(T.dtype)
    return space._replace(Q=Q, P=P, T=T)


def _accepted(space: Space, k: int, tol: float) -> Array:
    """The residuals of the first k are small, and that of the next is beside its distance."""
    S, b = space.S, space.left.shape[0]
    residuals = jnp.linalg.norm(mm(space.Y[-b:, : k + 1].conj().T, space.left), axis=1)
    allowed = jnp.full(k + 1, tol, S.dtype) * S[0]
    allowed = allowed.at[k].max((S[k - 1] - S[k]) / 2)
    accepted: Array = (residuals <= allowed).all()
    return accepted


def _probe(forth: Product, back: Product, V: Array, S: Array, k: int, how: How, seed: Array) -> tuple[Array, Array]:
    """Whether no vector off V belongs to a value of σ_k or more, but for a probability of ``missed``; and the vector of
    the largest value that was found there.
    """
    n, dtype = V.shape[1], V.dtype
    assert how.missed is not None
    # where the next known is as large as σ_k, or nearly, one a little larger than that; of zero there is rounding left
    limits = jnp.finfo(dtype)
    known = jnp.maximum(jnp.maximum(S[k - 1], S[k] * (1 + RESOLUTION)), 100 * float(limits.eps) * S[0])
    tau = jnp.maximum(known**2, float(limits.tiny))
    off: Product = lambda x: x - mm(mm(V.conj(), x), V)
    noise = _noise(seed + 1000, 1, n, dtype)[0]
    start = off(off(noise))
    most = jnp.maximum(lanczos._most(how.missed, n, dtype) / norm(start), 4 * float(limits.eps))
    rows, steps, kept = lanczos.ROWS, lanczos.STEPS, lanczos.KEPT
    square: Product = lambda x: off(back(forth(off(x)[None]))[0])

    def unknown(state: tuple[Array, lanczos.Basis]) -> Array:
        count, basis = state
        unseen = lanczos._unseen(basis, tau, jnp.zeros(rows, bool))
        going: Array = (count == 0) | (basis.theta2[0] < tau) & (unseen > most) & (count < how.maxiter)
        return going

    def cycle(state: tuple[Array, lanczos.Basis]) -> tuple[Array, lanczos.Basis]:
        count, basis = state
        basis = lax.cond(basis.filled == rows, lambda x: lanczos._restarted(x, kept), lambda x: x, basis)
        stop = jnp.minimum(basis.filled + steps, rows)
        return count + stop - basis.filled, lanczos._extended(square, basis, stop)

    begun = lanczos._begun(jnp.zeros((rows + 1, n), dtype), unit(start), 0 * tau)
    _, basis = lax.while_loop(unknown, cycle, (begun.filled, begun))
    unseen = lanczos._unseen(basis, tau, jnp.zeros(rows, bool))
    return (basis.theta2[0] < tau) & (unseen <= most), unit(mm(basis.Y[:, 0].astype(dtype), basis.V[:-1]))


def columns_cg(
    A: Product, AH: Product, off_U: Product, off_V: Product, sigma: Array, known: Known, phi: Array, psi: Array,
    maxiter: int,
) -> tuple[Array, Array]:  # fmt: skip
    """P S − A Q = φ, Q S − AᴴP = ψ off U and V by conjugate gradients, a system a column (eq-outside-schur), on the
    smaller side; NaN for a column without an answer.

    Ritz vectors beyond the k found precondition each by its own shift.
    """
    k, eps = sigma.size, float(jnp.finfo(sigma.dtype).eps)
    assert known.W is not None
    sigma = sigma[None]
    W, theta = known.W[:, k:], known.S[k : known.W.shape[1], None] / sigma
    weight = 1 / jnp.maximum((1 - theta) * (1 + theta), eps) - 1
    over = 1 / sigma
    dots: Callable[[Array, Array], Array] = lambda X, Y: (X.conj() * Y).sum(0, keepdims=True).real
    precondition: Product = lambda R: R + mm(W, times(weight, mm(W.conj().T, R)))
    right = off_V(off_V(AH(times(over, phi)) + psi))  # of a low rank nothing may be left but rounding, along V
    Z = precondition(right)
    stop = (4 * eps) ** 2 * dots(right, Z)

    def going(state: Any) -> Array:
        count, rz, lowest, *_ = state
        found: Array = ((rz > stop) & (lowest == 0)).any() & (count < maxiter)
        return found

    def step(state: Any) -> Any:
        count, rz, lowest, X, AX, R, D = state
        # what is left along U would be made (σ₁/σ_k)² times as large in a step
        Y = off_U(times(over, A(D)))
        MD = D - times(over, AH(Y))
        open_ = (rz > stop) & (lowest == 0)
        curvature = dots(D, MD)
        alpha = jnp.where(open_, rz / jnp.where(curvature == 0, 1, curvature), 0)
        X, AX, R = X + times(alpha, D), AX + times(alpha, Y), off_V(R - times(alpha, MD))
        Z = precondition(R)
        new = dots(R, Z)
        D = Z + times(jnp.where(rz == 0, 0, new / jnp.where(rz == 0, 1, rz)), D)
        return count + 1, new, jnp.minimum(lowest, alpha), X, AX, R, D

    begin = (jnp.zeros((), int), dots(right, Z), 0 * stop, 0 * right, 0 * phi, right, Z)
    count, rz, lowest, X, AX, *_ = lax.while_loop(going, step, begin)
    good = (rz <= stop) & (lowest == 0)
    X, AX = (jnp.where(good, x, jnp.nan) for x in (X, AX))
    return times(over, phi + AX), times(over, off_V(X))
