"""The k dominant triplets in JAX, against differences in 80-bit floats, which share no code with it.

σ = 3, 3 − d, 3 − 2d in the set and 2 beside it: whatever d, a loss that is blind to rotations of the columns in the set
has a derivative, and its condition is that of the gap at the cut.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse
from marks import slow_but
from test_jax_inputs import STATES

import svdgrad.jax as sj
from svdgrad.jax.inside import ROUNDING
from svdgrad.lab import relative_error

EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}
SHAPES = [(9, 6), (6, 9), (7, 7)]
WIDE = pytest.mark.skipif(np.finfo(np.longdouble).eps > 2.0**-60, reason="long double is float64 on this processor")


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, complex_=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


def with_values(s, m, n, complex_=False, seed=0):
    U, V = (np.linalg.qr(normal(size, len(s), complex_=complex_, seed=seed + k))[0] for k, size in enumerate((m, n)))
    return (U * np.asarray(s)) @ V.conj().T


# --- the oracle


def triplets_in_80_bits(A, k):
    """(σ, U, V) by Jacobi's rotations of pairs of columns, started from LAPACK's V."""
    m, n = A.shape
    if m < n:
        s, V, U = triplets_in_80_bits(A.conj().T, k)
        return s, U, V
    V = np.linalg.svd(A.astype(complex if A.dtype.kind == "c" else float))[2].conj().T.astype(A.dtype)
    for _ in range(3):  # orthonormal to the last bit (Newton and Schulz)
        V = V @ (1.5 * np.eye(n, dtype=V.dtype) - 0.5 * V.conj().T @ V)
    W = A @ V
    for _ in range(4):  # quadratically convergent, from half the digits
        for p in range(n - 1):
            for q in range(p + 1, n):
                a, b, c = (np.vdot(W[:, i], W[:, j]) for i, j in ((p, p), (q, q), (p, q)))
                if abs(c) > np.finfo(A.dtype).eps * np.sqrt(abs(a * b)):
                    zeta = (b - a).real / (2 * abs(c))
                    t = (1 if zeta >= 0 else -1) / (abs(zeta) + np.sqrt(1 + zeta**2))
                    phase, cos = c / abs(c), 1 / np.sqrt(1 + t * t)
                    for X in (W, V):
                        x, y = X[:, p].copy(), X[:, q] * np.conj(phase)
                        X[:, p], X[:, q] = cos * (x - t * y), cos * (t * x + y)
    s = np.sqrt((np.abs(W) ** 2).sum(0))
    first = np.argsort(-s)[:k]
    return s[first], W[:, first] / s[first], V[:, first]


def directions(A, count=2):
    """Of length one, in 80 bits."""
    for seed in range(count):
        E = normal(*A.shape, complex_=A.dtype.kind == "c", seed=90 + seed).astype(wide(A))
        yield E / np.sqrt((np.abs(E) ** 2).sum())


def wide(A):
    return np.clongdouble if A.dtype.kind == "c" else np.longdouble


def error(gradient, loss, A, k):
    """Of JAX's gradient along some directions, relative to what a direction of chance has of it.

    Central differences of fourth order: what is left out is h⁴, what is rounded 1e-19/h. A direction may see three
    times what the error is.
    """
    h, A, worst = np.longdouble(2) ** -13, np.asarray(A).astype(wide(A)), 0.0
    G = np.asarray(gradient).conj()  # JAX's gradient is the conjugate of what pairs with dA
    for E in directions(A):
        value = lambda t: loss(*triplets_in_80_bits(A + t * h * E, k))
        slope = (8 * (value(1) - value(-1)) - (value(2) - value(-2))) / (12 * h)
        found = (G.conj().astype(A.dtype) * E).sum().real
        worst = max(worst, float(abs(found - slope) * A.size**0.5 / np.linalg.norm(G)))
    return worst


# --- losses, of NumPy's arrays and JAX's


def inner(G, X):
    return (G.conj() * X).sum().real


class Blind:
    """Losses that are blind to a rotation of the columns."""

    def __init__(self, m, n, complex_):
        self.G, self.left, self.right = (
            normal(*shape, complex_=complex_, seed=50) for shape in ((m, n), (m, m), (n, n))
        )

    def left_projector(self, U, core, V):
        return inner(self.left, U @ U.conj().T)

    def right_projector(self, U, core, V):
        return inner(self.right, V @ V.conj().T)

    def polar(self, U, core, V):
        return inner(self.G, U @ V.conj().T)

    def values(self, U, core, V):
        return (core @ core @ core).trace().real

    def truncated(self, U, core, V):
        return inner(self.G, U @ core @ V.conj().T)

    def function(self, U, core, V):
        return inner(self.left, U @ core @ core @ U.conj().T)


OF_COLUMNS = ["left_projector", "right_projector", "polar", "values"]
OF_FACTORS = [*OF_COLUMNS, "truncated", "function"]


class Seeing:
    """A loss that sees every triplet, and of a complex one not the common phase."""

    def __init__(self, m, n, k, complex_):
        self.B, self.D = normal(2, m, n, complex_=complex_, seed=60)
        self.xi, self.weight = normal(k, seed=61), normal(k, k, seed=62)

    def __call__(self, sigma, U, V):
        overlaps = abs(U.conj().T @ self.D @ V)
        return inner(self.weight, overlaps**2) + inner(U, self.B @ V * self.xi) + (self.xi * sigma**2).sum()


def of_factors(loss):
    return lambda sigma, U, V: loss(U, np.diag(sigma).astype(U.dtype), V)


# --- the derivative


@WIDE
@pytest.mark.parametrize(
    ("shape", "k", "forward", "complex_"),
    slow_but(
        [((9, 6), 3, "svd", True), ((6, 9), 6, "svd", False), ((7, 7), 3, "gram", False)],
        [
            (shape, k, forward, complex_)
            for shape in SHAPES
            for k in (1, 3, min(shape))
            for forward in ("svd", "gram")
            for complex_ in (False, True)
        ],
    ),
    ids=str,
)
def test_a_loss_that_sees_every_triplet(shape, k, forward, complex_):
    A, loss = with_values(np.linspace(3, 1, min(shape)), *shape, complex_), Seeing(*shape, k, complex_)
    of = lambda A: loss(*sj.singular_triplets(A, k, forward))
    G = jax.jit(jax.grad(of))(jnp.asarray(A))
    assert error(G, loss, A, k) < 3 * 50 * EPS[np.float64] * 3 / 0.3
    E = jnp.asarray(np.asarray(next(directions(A)), A.dtype))
    assert abs(jax.jvp(of, (A,), (E,))[1] - (G * E).sum().real) < 1e-13 * jnp.linalg.norm(G)


DISTANCES = {np.float64: (0, 1e-15, 1e-13, 1e-12, 1e-10, 1e-8, 1e-6), np.float32: (0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-2)}


def inner_ties(dtype, complex_, m=11, n=8):
    """Matrices with three values in the set, d apart."""
    for d in DISTANCES[dtype]:
        s = np.r_[3, 3 - d, 3 - 2 * d, np.linspace(2, 0.5, min(m, n) - 3)]
        yield (
            d,
            jnp.asarray(with_values(s, m, n, complex_), jnp.promote_types(dtype, jnp.complex64 if complex_ else dtype)),
        )


@WIDE
@pytest.mark.parametrize(
    ("name", "factors", "dtype", "complex_"),
    slow_but(
        [
            ("truncated", True, np.float64, True),
            ("polar", False, np.float64, True),
            ("left_projector", False, np.float32, False),
        ],
        [
            (name, factors, dtype, complex_)
            for factors, names in ((True, OF_FACTORS), (False, OF_COLUMNS))
            for name in names
            for dtype in DISTANCES
            for complex_ in (False, True)
        ],
    ),
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_ties_inside_the_set_at_any_distance(name, factors, dtype, complex_):
    loss = getattr(Blind(11, 8, complex_), name)

    def of(A):
        if factors:
            return loss(*sj.low_rank(A, 3))
        sigma, U, V = sj.singular_triplets(A, 3)
        return loss(U, jnp.diag(sigma).astype(U.dtype), V)

    gradient = jax.jit(jax.grad(of))
    for d, A in inner_ties(dtype, complex_):
        assert error(gradient(A), of_factors(loss), A, 3) < 3 * 50 * EPS[dtype] * 3, d


@pytest.mark.parametrize(
    ("name", "complex_"), slow_but([("truncated", True)], [(x, c) for x in OF_FACTORS for c in (False, True)])
)
def test_forward_mode_through_the_factors_at_any_distance(name, complex_):
    loss = getattr(Blind(11, 8, complex_), name)
    E = jnp.asarray(normal(11, 8, complex_=complex_, seed=90))
    along = jax.jit(lambda A: jax.jvp(lambda A: loss(*sj.low_rank(A, 3)), (A,), (E,))[1])
    gradient = jax.jit(jax.grad(lambda A: loss(*sj.low_rank(A, 3))))
    for d, A in inner_ties(np.float64, complex_):
        G = gradient(A)  # which the test above has judged
        assert abs(along(A) - (G * E).sum().real) < 50 * EPS[np.float64] * 3 * jnp.linalg.norm(G) * 2, d


def test_forward_mode_through_the_columns_at_a_tie():
    """Of losses that do not see the rotation it is right there; close to a tie it loses ε over the distance."""
    loss, E = Blind(11, 8, False), jnp.asarray(normal(11, 8, seed=90))
    _, A = next(inner_ties(np.float64, False))
    for name in ("left_projector", "right_projector", "polar"):
        of = lambda A: getattr(loss, name)((t := sj.singular_triplets(A, 3)).U, None, t.V)
        truth = lambda A: getattr(loss, name)((t := sj.low_rank(A, 3)).U, None, t.V)
        along, expected = (jax.jvp(f, (A,), (E,))[1] for f in (of, truth))
        assert abs(along - expected) < 1e-12


def test_at_a_tie_nan_is_what_the_columns_cannot_tell():
    """A loss of one of the tied columns has no gradient; that of A_k has one, but not from U, σ and V."""
    _, A = next(inner_ties(np.float64, False))
    G = normal(11, 8, seed=50)
    for loss in (
        lambda s, U, V: U[0, 0],
        lambda s, U, V: (V[:, 0] ** 2)[2],
        lambda s, U, V: (G * ((U * s) @ V.T)).sum(),
        lambda s, U, V: s[0] * (U @ U.T)[0, 1],
    ):
        assert jnp.isnan(jax.grad(lambda A: loss(*sj.singular_triplets(A, 3)))(A)).any()
    for weights in (jnp.ones(3), jnp.arange(3.0)):  # a subgradient, as of the norm
        assert jnp.isfinite(jax.grad(lambda A: (weights * sj.singular_triplets(A, 3).sigma).sum())(A)).all()
    # its cotangents are rounding themselves; through the factors there is nothing to divide
    distance = jax.grad(lambda A: (abs(A - sj.low_rank(A, 3).dense()) ** 2).sum())(A)
    np.testing.assert_allclose(distance, 2 * (A - sj.low_rank(A, 3).dense()), atol=1e-13)


@pytest.mark.parametrize(
    ("way", "complex_"), slow_but([("gram", True)], itertools.product(["svd", "gram"], [True, False]))
)
def test_at_a_tie_along_the_axes_nan_is_what_the_columns_cannot_tell(way, complex_):
    """There the cotangents of the tied values are alike by chance, and A_k lacked half of its gradient."""
    A = jnp.diag(jnp.asarray([3, 3, 1, 0.5], complex if complex_ else float))
    whole = lambda A, k: (lambda s, U, V: (U * s) @ V.conj().T)(*sj.singular_triplets(A, k, way))
    for see in (lambda X: X[0, 1].real, lambda X: X.real.sum(), *[lambda X: X[0, 1].imag] * complex_):
        assert jnp.isnan(jax.grad(lambda A: see(whole(A, 2)))(A)).any()
    np.testing.assert_allclose(whole(A, 3), A.at[3, 3].set(0), atol=1e-14)


@pytest.mark.parametrize(
    "d", [[0.1 + 0.2, 0.3, 0.1], [1 + 3e-15, 1 + 1.5e-15, 1, 0.5], [1 + 6e-15, 1 + 3e-15, 1, 0.5]], ids=str
)
def test_so_it_is_where_rounding_has_split_the_tie(d):
    """Half of the gradient was lacking for a sum and a number that are equal but for a rounding."""
    A, k = jnp.diag(jnp.asarray(d)), len(d) - 1
    whole = lambda A: (lambda s, U, V: (U * s) @ V.T)(*sj.singular_triplets(A, k))
    assert jnp.isnan(jax.grad(lambda A: whole(A)[0, 1])(A)).any()
    np.testing.assert_allclose(whole(A), A.at[k, k].set(0), atol=2e-14)


def test_a_loss_that_is_blind_to_a_chain_in_blocks_has_a_gradient():
    """Its numerators are rounding between blocks that share no entry, and not exactly zero: half of these were NaN."""
    d = 1 + 10 * 2.0**-52 * np.arange(3, -1, -1)
    gradient = jax.jit(jax.grad(lambda A, C: (lambda t: ((t.U @ t.V.T) * C).sum())(sj.singular_triplets(A, 4))))
    for seed in range(8):
        X, Y = (np.kron(np.eye(2), np.linalg.qr(normal(2, 2, seed=seed + 50 * i))[0]) for i in range(2))
        assert jnp.isfinite(gradient(jnp.asarray((X * d) @ Y.T), jnp.asarray(normal(4, 4, seed=seed)))).all()


def test_values_that_differ_are_not_turned_into_each_other():
    """Graded values below rounding of the first: A V = U S, and dσ = uᵀdA v."""
    d = jnp.asarray([1, 1e-6, 1e-7, 1e-8, 1e-9], jnp.float32)
    s, U, V = sj.singular_triplets(jnp.diag(d), 5)
    np.testing.assert_array_equal(jnp.diag(d) @ V, U * s)
    slopes = jax.grad(lambda d: jnp.log(sj.singular_triplets(jnp.diag(d), 5).sigma).sum())(d)
    np.testing.assert_allclose(slopes * d, jnp.ones(5), rtol=1e-6)
    chain = jnp.eye(60, dtype=jnp.float32) + jnp.asarray(3e-6 * normal(60, 60), jnp.float32)
    s, U, V = sj.singular_triplets(chain, 60)
    assert relative_error((U * s) @ V.T, chain) < 30 * 2**-23


def test_the_numerator_of_a_tie_is_told_from_rounding():
    """What rounding made is at most a third of what is taken for it, at sizes where sums are long, and large losses."""
    for seed, dtype in enumerate((np.float64, np.float32) * 2):
        complex_ = seed % 4 > 1
        A = with_values(np.r_[np.full(8, 3), np.linspace(2, 0.5, 72)], 120, 80, complex_, seed)
        A = jnp.asarray(A, np.result_type(dtype, np.complex64) if complex_ else dtype)
        sigma, U, V = sj.singular_triplets(A, 8)
        G = jnp.asarray(normal(120, 80, complex_=complex_, seed=seed), A.dtype)
        phi, psi = jax.grad(lambda U, V: (abs(G + 30 * U @ V.conj().T) ** 4).sum(), (0, 1))(U, V)
        N = U.T @ phi + V.T @ psi  # JAX's cotangents are conjugates
        norms = jnp.linalg.norm(phi, axis=0) + jnp.linalg.norm(psi, axis=0)
        violation = jnp.abs(N - N.conj().T) / 2 / (norms[None] + norms[:, None])
        assert violation.max() < ROUNDING / 3 * EPS[dtype]


def test_a_small_cotangent_is_a_cotangent():
    _, A = next(inner_ties(np.float32, False))
    loss = Blind(11, 8, False).polar
    of = lambda A: loss((t := sj.singular_triplets(A, 3)).U, None, t.V)
    G = jax.grad(of)(A)
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        assert relative_error(jax.grad(lambda A: of(A) * jnp.float32(scale))(A) / scale, G) < 1e-6
        scaled = jax.grad(of)(A * jnp.float32(scale))  # of a function that the size of A does not change
        assert relative_error(scaled * scale, G) < 1e-4


@pytest.mark.parametrize("forward", slow_but([("lanczos",)], [("svd",), ("gram",), ("lanczos",)]))
def test_a_large_matrix_keeps_its_digits(forward):
    """The reciprocal of 1e38, or of a gap of that size, is no normal number, so XLA takes it for zero."""
    A = jnp.asarray(with_values([3, 2, 1.5, 1], 5, 4), jnp.float32)
    loss = Blind(5, 4, False)
    for of in (
        lambda A: loss.polar((t := sj.singular_triplets(A, 2, forward)).U, None, t.V),
        lambda A: sj.singular_triplets(A, 2, forward).U[0, 0],
        lambda A: loss.left_projector(*sj.low_rank(A, 2, forward)),
    ):
        gradient = jax.jit(jax.grad(lambda A, c: of(A) * c))
        for scale in map(np.float32, (1e37, 1e38)):
            assert relative_error(8 * gradient(A * scale, scale / 8), gradient(A, np.float32(1))) < 1e-4


# --- the gap at the cut


@pytest.mark.parametrize("forward", slow_but([("svd",)], [("svd",), ("gram",)]))
def test_a_tie_at_the_cut_gives_nan_and_the_values_have_a_gradient(forward):
    A = jnp.asarray(with_values([3, 2, 2, 1], 6, 4))
    for of in (
        lambda A: sj.singular_triplets(A, 2, forward).U[0, 1],
        lambda A: sj.singular_triplets(A, 2, forward).V[0, 1],
        lambda A: sj.low_rank(A, 2, forward).dense()[0, 0],
    ):
        assert jnp.isnan(jax.grad(of)(A)).all()
    for of in (
        lambda A: (jnp.array([1.0, 2.0]) * sj.singular_triplets(A, 2, forward).sigma).sum(),
        lambda A: jnp.trace(sj.low_rank(A, 2, forward).core),
    ):
        assert jnp.isfinite(jax.grad(of)(A)).all()
    # and what is read of no tied vector
    of = lambda A, k: sj.singular_triplets(A, k, forward).U[0, 0] * sj.singular_triplets(A, k, forward).V[1, 0]
    np.testing.assert_allclose(jax.grad(of)(A, 2), jax.grad(of)(A, 1), atol=1e-14)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (50, 14)], ids=str)
def test_a_tie_is_a_gap_of_three_roundings_times_the_root_of_the_size_and_sixteen(m, n):
    tie = EPS[np.float64] * max(16, 3 * (m + n) ** 0.5)
    for factor in (0.94, 1.06):
        s = jnp.array([1, 0.5, 0.5 - factor * tie])
        A = jnp.zeros((m, n)).at[jnp.arange(3), jnp.arange(3)].set(s)
        assert jnp.isnan(jax.grad(lambda A: sj.low_rank(A, 2).U[0, 1])(A)).any() == (factor < 1)
        A = A.at[1, 1].set(1 - factor * tie).at[2, 2].set(0.5)
        assert jnp.isnan(jax.grad(lambda A: sj.singular_triplets(A, 2).U[1, 0])(A)).any() == (factor < 1)


def test_all_values_kept():
    """Zero is beyond the cut where a side is longer; of a square matrix nothing is, and a simple zero does no harm."""
    for shape in SHAPES:
        r = min(shape)
        A = jnp.asarray(with_values(np.r_[np.linspace(3, 1, r - 1), 0], *shape))
        G = jax.grad(lambda A: sj.singular_triplets(A, r).V[0, r - 1])(A)
        assert jnp.isnan(G).all() == (shape != (7, 7))
    A = jnp.asarray(with_values(np.r_[np.linspace(3, 1, 5), 0, 0], 7, 7))
    assert jnp.isnan(jax.grad(lambda A: sj.low_rank(A, 7).U[0, 6])(A)).all()
    assert jnp.isnan(jax.grad(lambda A: sj.low_rank(A, 2).U[0, 0])(jnp.zeros((4, 3)))).all()


def dead(shape, count=1):
    """Of full rank but for the last columns, of zeros."""
    return jnp.asarray(normal(*shape)).at[:, -count:].set(0)


@pytest.mark.parametrize("forward", slow_but([("gram",)], [("svd",), ("gram",), ("lanczos",)]))
def test_a_loss_of_a_triplet_of_zero_is_not_taken_for_one_of_the_others(forward):
    """The cotangent of its vectors is zero because σ is, and not because the loss did not read them."""
    A, C = dead((5, 4)), jnp.asarray(normal(5, 4, seed=1))
    for of in (
        lambda A: (C * sj.low_rank(A, 4, forward).dense()).sum(),
        lambda A: (C * ((t := sj.singular_triplets(A, 4, forward)).U * t.sigma) @ t.V.T).sum(),
        lambda A: (C * (t := sj.singular_triplets(A, 4, forward)).U * t.sigma).sum(),
    ):
        assert jnp.isnan(jax.jit(jax.grad(of))(A)).any()
    # what reads another triplet, or no vectors, has its derivative
    values = jax.grad(lambda A: jnp.trace(sj.low_rank(A, 4, forward).core @ sj.low_rank(A, 4, forward).core))(A)
    np.testing.assert_allclose(values, 2 * A, atol=1e-6)
    first = jax.grad(lambda A: (C[:, 0] * sj.singular_triplets(A, 4, forward).U[:, 0]).sum())(A)
    np.testing.assert_allclose(first, jax.grad(lambda A: C[:, 0] @ sj.singular_triplet(A).u)(A), atol=1e-6)


@pytest.mark.parametrize("complex_", [False, True])
def test_zeros_of_a_square_matrix_kept_whole(complex_):
    """There a simple zero of a real matrix has vectors, but for a sign: A_n is A, and has its gradient."""
    C = jnp.asarray(normal(4, 4, seed=1))
    gradient = jax.jit(jax.grad(lambda A: (C * sj.low_rank(A, 4).dense()).real.sum()))
    one, two = (dead((4, 4), count) * (1 + 0j if complex_ else 1) for count in (1, 2))
    assert jnp.isnan(gradient(two)).any()
    assert jnp.isnan(gradient(one)).any() if complex_ else relative_error(gradient(one), C) < 1e-13


def test_a_tie_spoils_nothing_but_its_own_matrix():
    A = jnp.stack([jnp.diag(jnp.array([3.0, 1.0, 1.0])), jnp.diag(jnp.array([3.0, 2.0, 1.0]))])
    G = jax.grad(lambda A: sj.singular_triplets(A, 2).U.sum())(A)
    assert jnp.isnan(G[0]).any() and jnp.isfinite(G[1]).all()


# --- more than once


def second_order(f):
    return [one(other(f)) for one in (jax.jacfwd, jax.jacrev) for other in (jax.jacfwd, jax.jacrev)]


@pytest.mark.parametrize(
    ("shape", "k"),
    slow_but([], [((6, 4), 2), ((4, 6), 3), ((5, 5), 2), ((5, 5), 5)]),
    ids=str,
)
def test_second_derivatives_in_every_order_of_modes(shape, k):
    constant, slope, curve = normal(3, *shape)
    loss = Seeing(*shape, k, False)
    matrix = lambda t: constant + t[0] * slope + t[0] * t[1] * curve

    def by_the_svd(t):
        U, S, Vh = jnp.linalg.svd(matrix(t), full_matrices=False)
        return loss(S[:k], U[:, :k], Vh[:k].T)

    t = jnp.array([0.3, -0.2])
    truth = jax.jit(jax.hessian(by_the_svd))(t)
    for hessian in second_order(lambda t: loss(*sj.singular_triplets(matrix(t), k))):
        assert relative_error(jax.jit(hessian)(t), truth) < 1e-10


@pytest.mark.parametrize(
    ("shape", "complex_"),
    slow_but([((6, 5), False)], [((6, 5), False), ((5, 6), True), ((5, 5), False)]),
    ids=str,
)
def test_second_derivatives_at_an_exact_tie(shape, complex_):
    """Of a loss of the factors, against differences of fourth order of its gradient: 1e-12 of them and ε/h."""
    A, E = with_values([3, 3, 3, 1, 0.5], *shape, complex_), normal(*shape, complex_=complex_, seed=3)
    A, E = jnp.asarray(A), jnp.asarray(E / np.linalg.norm(E))
    blind = Blind(*shape, complex_)
    of = lambda A: blind.truncated(*(f := sj.low_rank(A, 3))) ** 2 + blind.polar(*f) * blind.function(*f)
    gradient = jax.jit(jax.grad(of))
    h = 1e-3
    difference = (
        8 * (gradient(A + h * E) - gradient(A - h * E)) - gradient(A + 2 * h * E) + gradient(A - 2 * h * E)
    ) / (12 * h)
    forward = jax.jit(lambda A: jax.jvp(jax.grad(of), (A,), (E,))[1])(A)
    reverse = jax.jit(jax.grad(lambda A: (jax.grad(of)(A) * E).sum().real))(A)
    assert relative_error(forward, difference) < 1e-9
    assert relative_error(reverse, forward) < 1e-12


@pytest.mark.parametrize("complex_", slow_but([(True,)], [(False,), (True,)]))
def test_forward_and_reverse_mode_of_every_entry(complex_):
    """Phases are fixed by the sign rule, so each entry of the triplets is a function of A; the factors move along the
    same derivative in both modes.
    """
    A = jnp.asarray(with_values([3, 2, 1.5, 1], 5, 4, complex_))
    for of in (sj.singular_triplets, sj.low_rank):
        parts = lambda A: [x for y in of(A, 3) for x in (y.real, y.imag)]
        _, push = jax.linearize(parts, A)
        _, pull = jax.vjp(parts, A)
        E = jnp.asarray(normal(5, 4, complex_=complex_, seed=1))
        c = [jnp.asarray(normal(*x.shape, seed=k)) for k, x in enumerate(parts(A))]
        left = sum((a * b).sum() for a, b in zip(c, push(E)))
        assert abs(left - (pull(c)[0] * E).sum().real) < 1e-12 * abs(left)
    h = 1e-4
    E = E / jnp.linalg.norm(E)
    moved = jax.jvp(lambda A: sj.singular_triplets(A, 3), (A,), (E,))[1]
    values = [sj.singular_triplets(A + t * h * E, 3) for t in (2, 1, -1, -2)]
    for tangent, (a, b, c, d) in zip(moved, zip(*values)):
        np.testing.assert_allclose(tangent, (8 * (b - c) - a + d) / (12 * h), atol=1e-10)


# --- transforms, batches, types


NESTINGS = {
    "jit grad": lambda f: jax.jit(jax.grad(f)),
    "vmap grad": lambda f: lambda A: jax.vmap(jax.grad(f))(jnp.stack([A, 2 * A]))[1],
    "grad vmap": lambda f: lambda A: jax.grad(lambda A: jax.vmap(f)(jnp.stack([A, 2 * A])).sum())(A),
    "grad checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "grad cond": lambda f: jax.grad(lambda A: lax.cond(A[0, 0] > -9, f, lambda A: 2 * f(A), A)),
    "grad scan": lambda f: jax.grad(lambda A: lax.scan(lambda A, _: (1.01 * A, f(A)), A, None, length=2)[1].sum()),
    "jvp grad scan": lambda f: lambda A: jax.jvp(NESTINGS["grad scan"](f), (A,), (jnp.ones_like(A),))[1],
}


@pytest.mark.parametrize("nesting", slow_but([("vmap grad",), ("jit grad",), ("grad scan",)], [(x,) for x in NESTINGS]))
def test_a_nesting_of_transforms(nesting):
    A, loss = jnp.asarray(with_values([3, 2, 1.5, 1], 5, 4)), Seeing(5, 4, 2, False)

    def by_the_svd(A):
        U, S, Vh = jnp.linalg.svd(A, full_matrices=False)
        return loss(S[:2], U[:, :2], Vh[:2].T)

    ours, truth = (NESTINGS[nesting](f)(A) for f in (lambda A: loss(*sj.singular_triplets(A, 2)), by_the_svd))
    assert relative_error(ours, truth) < 1e-11


@pytest.mark.parametrize(("forward", "complex_"), slow_but([], [("svd", True), ("svd", False), ("gram", True)]))
def test_a_batch_is_its_matrices_one_by_one(forward, complex_):
    A = jnp.asarray(normal(2, 3, 6, 5, complex_=complex_))
    w = jnp.asarray(normal(6, 5, complex_=complex_, seed=1))
    for of in (
        lambda A: (
            (t := sj.singular_triplets(A, 2, forward)).sigma.sum() + abs(jnp.einsum("...mk,mn->...", t.U, w)).sum()
        ),
        lambda A: abs(sj.low_rank(A, 2, forward).dense() * w).sum(),
    ):
        G = jax.jit(jax.grad(of))(A)
        np.testing.assert_allclose(G[1, 2], jax.grad(of)(A[1, 2]), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(G, jax.vmap(jax.vmap(jax.grad(of)))(A), rtol=1e-11, atol=1e-12)
    shapes = [x.shape for x in (*sj.singular_triplets(A, 2), *sj.low_rank(A, 2))]
    assert shapes == [(2, 3, 2), (2, 3, 6, 2), (2, 3, 5, 2), (2, 3, 6, 2), (2, 3, 2, 2), (2, 3, 5, 2)]
    assert sj.low_rank(A, 2).dense().shape == A.shape
    assert [x.shape for x in sj.singular_triplets(A[:0], 2)] == [(0, 3, 2), (0, 3, 6, 2), (0, 3, 5, 2)]


@pytest.mark.parametrize(
    ("shape", "forward", "complex_"),
    slow_but(
        [(shape, forward, shape != (9, 6)) for shape in SHAPES for forward in ("svd", "gram")],
        [(shape, forward, c) for shape in SHAPES for forward in ("svd", "gram") for c in (False, True)],
    ),
    ids=str,
)
def test_what_the_triplets_are(shape, forward, complex_):
    A = jnp.asarray(normal(*shape, complex_=complex_))
    sigma, U, V = sj.singular_triplets(A, 4, forward)
    np.testing.assert_allclose(sigma, np.linalg.svd(A, compute_uv=False)[:4], rtol=1e-13)
    for left, right in ((A @ V, U * sigma), (A.conj().T @ U, V * sigma), (U.conj().T @ U, jnp.eye(4))):
        np.testing.assert_allclose(left, right, atol=2e-14)
    largest = jnp.take_along_axis(V, jnp.abs(V).argmax(0)[None], 0)[0]
    assert (largest.real > 0).all() and (jnp.abs(largest.imag) < 1e-15).all()
    factors = sj.low_rank(A, 4, forward)
    np.testing.assert_array_equal(factors.core, jnp.diag(sigma).astype(A.dtype))
    np.testing.assert_allclose(factors.dense(), (U * sigma) @ V.conj().T, atol=1e-14)


@pytest.mark.parametrize(
    "how",
    slow_but([({},)], [({},), ({"forward": "svd", "adjoint": "cg"},), ({"forward": "lanczos", "tol": 1e-13},)]),
    ids=str,
)
def test_one_triplet_is_the_single_one(how):
    for A in (jnp.asarray(normal(6, 5)), jnp.asarray(normal(2, 4, 5, complex_=True))):
        one, several, factors = (
            sj.singular_triplet(A, 0, **how),
            sj.singular_triplets(A, 1, **how),
            sj.low_rank(A, 1, **how),
        )
        np.testing.assert_array_equal(one.sigma, several.sigma[..., 0])
        np.testing.assert_array_equal(one.sigma, factors.core[..., 0, 0])
        for x, y, z in ((one.u, several.U, factors.U), (one.v, several.V, factors.V)):
            np.testing.assert_array_equal(x, y[..., 0])
            np.testing.assert_array_equal(x, z[..., 0])
        ours, theirs = (
            jax.grad(lambda A: abs(x(A)[..., 0]).sum())(A)
            for x in (
                lambda A: sj.singular_triplets(A, 1, **how).U[..., 0],
                lambda A: sj.singular_triplet(A, 0, **how).u,
            )
        )
        np.testing.assert_array_equal(ours, theirs)


def test_one_triplet_of_a_sparse_matrix():
    M = sparse.BCOO.fromdense(normal(5, 4))
    np.testing.assert_array_equal(sj.singular_triplets(M, 1).sigma[0], sj.spectral_norm(M))


@pytest.mark.parametrize(
    ("state", "complex_"),
    slow_but(
        [("rank promotion", False)],
        [(state, complex_) for state in STATES for complex_ in (False, True)],
    ),
)
def test_a_global_state_changes_nothing(state, complex_):
    A = jnp.asarray(normal(5, 4, complex_=complex_), jnp.complex64 if complex_ else jnp.float32)

    def numbers():
        loss = lambda A: (
            abs((t := sj.singular_triplets(A, 2)).U[0, 0]) + t.sigma[1] + abs(sj.low_rank(A, 2, "gram").dense()[0, 0])
        )
        return jax.value_and_grad(loss)(A)

    truth = numbers()
    with jax.enable_x64(False), STATES[state]():
        found = numbers()
    for ours, expected in zip(found, truth):
        assert ours.dtype == expected.dtype
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    A = jnp.asarray(normal(6, 5), dtype)
    for of in (sj.singular_triplets, sj.low_rank):
        for ours, theirs in zip(of(A, 2), of(A.astype(jnp.float32), 2)):
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours, theirs.astype(dtype))
    assert jax.grad(lambda A: sj.low_rank(A, 2).dense()[0, 0])(A).dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "gap"),
    slow_but(
        [(jnp.bfloat16, 1e-4)], [(dtype, gap) for dtype in (jnp.float16, jnp.bfloat16) for gap in (1e-2, 1e-4, 0)]
    ),
)
def test_the_rounding_of_half_precision_is_divided_by_no_distance(dtype, gap):
    """A loss that is blind to the turn had an error of ε over the gap: 30% at 1e-3 in bfloat16, 400% at 1e-4."""
    A = jnp.asarray(with_values(np.r_[3, 3 - 3 * gap, 3 - 6 * gap, np.linspace(1.5, 0.1, 37)], 64, 40), dtype)
    C, D = (jnp.asarray(normal(64, n, seed=n), dtype) for n in (64, 40))
    for loss in (
        lambda U, V: ((U @ U.T) * C.astype(U.dtype)).sum(),
        lambda U, V: ((U @ V.T) * D.astype(U.dtype)).sum(),
    ):
        found, truth = (jax.grad(lambda A: loss(*sj.singular_triplets(A, 3)[1:]))(X) for X in (A, A.astype(np.float32)))
        assert relative_error(found.astype(np.float32), truth) < float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "most"), [(jnp.float16, 1), (jnp.bfloat16, 4)])
def test_a_tie_is_seen_in_half_precision(dtype, most):
    """σ = 8, 8, and losses Σ W ∘ U: two digits do not tell all of them from one that is blind to a turn."""
    A = jnp.asarray(np.outer([2, 2, 2, 2, 0], [1, 1, 1, 1]) + np.outer([1, -1, 1, -1, 0], [4, -4, 4, -4]) / 2, dtype)
    found = jax.vmap(lambda W: jax.grad(lambda A: (W * sj.singular_triplets(A, 2).U).sum())(A))(
        jnp.asarray(normal(40, 5, 2), dtype)
    )
    assert jnp.isfinite(found).all((1, 2)).sum() <= most


@pytest.mark.parametrize("dtype", slow_but([(jnp.bfloat16,)], [(jnp.float16,), (jnp.bfloat16,)]))
def test_half_precision_takes_nothing_real_for_rounding(dtype):
    """Numerators of single long vectors are small beside whole cotangents, and so is a slope next to a curvature."""
    A = jnp.asarray(normal(256, 64) * 0.9 ** np.arange(64), dtype)
    R = jnp.asarray(normal(256, 3, seed=1), dtype)
    gradient = jax.grad(lambda A: (sj.singular_triplets(A, 3).U * R.astype(A.dtype)).sum())
    assert relative_error(gradient(A).astype(np.float32), gradient(A.astype(np.float32))) < float(jnp.finfo(dtype).eps)
    A, c = jnp.diag(jnp.asarray([1, 0.7, 0.3], dtype)), jnp.asarray([1, 0.004, 0.002], dtype)
    curvature = jax.hessian(lambda A: -c.astype(A.dtype) @ sj.singular_triplets(A, 2).U[:, 0])
    found, truth = (float(curvature(X)[1, 0, 1, 0]) for X in (A, A.astype(float)))
    assert abs(found / truth - 1) < 4 * float(jnp.finfo(dtype).eps)


def test_the_gram_matrix_costs_digits_of_the_smaller_triplets():
    """Its eigenvectors feel ε σ₁², so an error of up to ε (σ₁/σₖ)², which the full SVD has not."""
    A = jnp.asarray(with_values([1, 1e-4, 1e-5, 1e-6], 7, 4))
    loss = Blind(7, 4, False).left_projector
    G = {x: jax.grad(lambda A: loss(*sj.low_rank(A, 2, x)))(A) for x in ("svd", "gram")}
    assert 1e-12 < relative_error(G["gram"], G["svd"]) < 50 * EPS[np.float64] * 1e8


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_inf_in_gives_nan_out(bad):
    for forward in ("svd", "gram"):
        for x in sj.singular_triplets(jnp.array([[1.0, bad], [0.0, 2.0]]), 2, forward):
            assert jnp.isnan(x).all()
    assert jnp.isnan(sj.singular_triplets(jnp.asarray(np.float32(1e-40) * np.eye(3, dtype=np.float32)), 2).sigma).all()


# --- errors


@pytest.mark.parametrize(
    ("error", "message", "k", "how"),
    [
        (ValueError, "k must be from 1 to 3 for a matrix of shape 4×3, found 0", 0, {}),
        (ValueError, "k must be from 1 to 3 for a matrix of shape 4×3, found 4", 4, {}),
        (ValueError, "k must be from 1 to 3", -1, {}),
        (TypeError, "k must be an integer, found float", 2.0, {}),
        (TypeError, "k must be an integer, found bool", True, {}),
        (TypeError, "k must be an integer, found NoneType", None, {}),
        (ValueError, "adjoint must be 'auto' or 'spectral' .* found 'cg'", 2, {"forward": "svd", "adjoint": "cg"}),
        (ValueError, "adjoint 'spectral' needs all", 2, {"forward": "lanczos", "adjoint": "spectral"}),
        (ValueError, "unknown forward 'qr'", 2, {"forward": "qr"}),
        (ValueError, "unknown adjoint 'lu'", 2, {"adjoint": "lu"}),
        (ValueError, "tol is an option of an iteration", 2, {"forward": "svd", "tol": 1e-3}),
        (ValueError, "missed must be a probability", 2, {"missed": 0.0}),
        (ValueError, "maxiter must be at least 1", 2, {"maxiter": 0}),
    ],
    ids=lambda x: x[:24] if isinstance(x, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_named(error, message, k, how):
    for of in (sj.singular_triplets, sj.low_rank):
        with pytest.raises(error, match=message):
            of(jnp.ones((4, 3)), k, **how)
        with pytest.raises(error, match=message):
            jax.jit(lambda A: of(A, k, **how))(jnp.ones((4, 3)))


def test_what_is_no_matrix_is_named():
    for A, error in ((jnp.ones(3), ValueError), (jnp.ones((0, 3)), ValueError), (jnp.ones((3, 3), int), TypeError)):
        with pytest.raises(error, match="A must"):
            sj.singular_triplets(A, 1)
    for of in (sj.singular_triplet, lambda A: sj.singular_triplets(A, 2), lambda A: sj.low_rank(A, 2)):
        with pytest.raises(TypeError, match="A must be an array, found None"):
            of(None)
        with pytest.raises(TypeError, match="found float8_e4m3fn.* 16 bits or more"):
            of(jnp.ones((4, 3), jnp.float8_e4m3fn))
        assert all(x.shape for x in of([[3.0, 1.0], [0.0, 2.0]])[1:])  # lists are arrays, as in JAX's own functions
    with pytest.raises(TypeError, match="k must be an integer, .* static_argnames='k'"):
        jax.jit(sj.low_rank)(jnp.ones((4, 3)), 2)
    assert sj.singular_triplets(np.ones((4, 3)), np.int64(2), tol=1e-3, maxiter=9, missed=None).sigma.shape == (2,)
