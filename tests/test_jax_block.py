"""The k dominant triplets in JAX by products alone, beside LAPACK's and PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental import sparse
from marks import slow_but

import svdgrad
import svdgrad.jax as sj
from svdgrad.jax import block
from svdgrad.lab import relative_error

SHAPES = {"tall": (110, 80), "wide": (80, 110), "square": (90, 90)}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, complex_=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


def with_values(first, m, n, complex_=False, highest=0.9, seed=0):
    """These values, and an even rest below."""
    s = np.r_[first, np.linspace(highest, 0.05, min(m, n) - len(first))]
    U, V = (np.linalg.qr(normal(size, len(s), complex_=complex_, seed=seed + k))[0] for k, size in enumerate((m, n)))
    return (U * s) @ V.conj().T


def check(A, k, t, bound=1e-13):
    """A V = U S, AᴴU = V S, orthonormal, and the largest; ten units for the residual, and some for the products."""
    sigma, U, V = (np.asarray(x) for x in t)
    assert np.abs(sigma - np.linalg.svd(A, compute_uv=False)[:k]).max() <= bound
    assert max(np.abs(A @ V - U * sigma).max(), np.abs(A.conj().T @ U - V * sigma).max()) <= bound
    assert max(np.abs(X.conj().T @ X - np.eye(k)).max() for X in (U, V)) <= bound


@pytest.mark.parametrize(
    ("shape", "complex_"), slow_but([("wide", True)], [("tall", False), ("wide", True), ("square", False)])
)
def test_values_and_gradients_are_those_of_torch(shape, complex_):
    """At an exact tie inside the set: of U Vᴴ, and of A_k with the core."""
    A = with_values([2, 2, 1.5], *SHAPES[shape], complex_)
    G = normal(*A.shape, seed=9)
    check(A, 3, sj.singular_triplets(jnp.asarray(A), 3, "lanczos"))
    X = torch.from_numpy(A).requires_grad_()
    for ours, theirs in (
        (
            lambda A: jnp.sum(G * (lambda t: t.U @ jnp.conj(t.V).T)(sj.singular_triplets(A, 3, "lanczos")).real),
            lambda A: (torch.from_numpy(G) * (lambda t: t.U @ t.V.mH)(svdgrad.singular_triplets(A, 3)).real).sum(),
        ),
        (
            lambda A: jnp.sum(G * sj.low_rank(A, 3, "lanczos").dense().real),
            lambda A: (torch.from_numpy(G) * svdgrad.low_rank(A, 3).dense().real).sum(),
        ),
    ):
        (wanted,) = torch.autograd.grad(theirs(X), X)
        found = np.asarray(jax.grad(ours)(jnp.asarray(A))).conj()
        assert relative_error(torch.tensor(found), wanted) <= 50 * 2.2e-16 / 0.3  # the gap at the cut, of σ₁


def see(t):
    return (t.U[0] ** 2 * t.sigma).sum() + (t.U[1] * t.V[2]).sum() ** 2


@pytest.mark.parametrize("way", slow_but([("entries",)], [("entries",), ("operator",)]))
def test_entries_and_operators(way):
    A = with_values([2, 1.7, 1.4], 110, 80)
    A = np.where(np.abs(A) > 0.02, A, 0)
    M = sparse.BCOO.fromdense(A)
    rows, columns = M.indices.T
    wanted = jax.grad(lambda A: see(sj.singular_triplets(A, 2)))(jnp.asarray(A))[rows, columns]

    def f(data):
        if way == "entries":
            return see(sj.singular_triplets(sparse.BCOO((data, M.indices), shape=A.shape), 2))
        matvec = lambda data, x: jnp.zeros(110).at[rows].add(data * x[columns, 0])[None]
        t = sj.operator_triplets(matvec, data, jnp.ones((80, 1)), 2)
        return see(sj.Triplets(t.sigma, t.U[0], t.V[:, 0]))

    for of in (f, jax.jit(f)) if way == "operator" else (jax.jit(f),):
        value, found = jax.value_and_grad(of)(M.data)
        assert abs(value - see(sj.singular_triplets(jnp.asarray(A), 2))) <= 1e-13
        assert jnp.linalg.norm(found - wanted) <= 1e-12 * jnp.linalg.norm(wanted)
    E = jnp.asarray(normal(len(M.data)))
    assert abs(jax.jvp(f, (M.data,), (E,))[1] - wanted @ E) <= 1e-12 * jnp.linalg.norm(wanted) * jnp.linalg.norm(E)


@pytest.mark.slow
def test_a_batch_a_start_and_second_derivatives():
    A = jnp.asarray(np.stack([with_values([2, 1.7, 1.4], 80, 110, seed=i) for i in range(2)]))
    E = jnp.asarray(normal(80, 110, seed=7))
    V = sj.singular_triplets(A, 2).V
    for f in (
        lambda A, how, v0=None: sj.singular_triplets(A, 2, how, v0=v0),
        lambda A, how, v0=None: jax.vmap(lambda A, v0: sj.singular_triplets(A, 2, how, v0=v0))(
            A, V if v0 is None else v0
        ),
    ):
        for v0 in (None, V, -V + 1e-3):
            for x, y in zip(f(A, "lanczos", v0), sj.singular_triplets(A, 2, "svd")):
                np.testing.assert_allclose(x, y, atol=1e-13)
    one = lambda how: lambda A: see(sj.singular_triplets(A, 2, how))
    curve = lambda how: jax.jvp(jax.grad(one(how)), (A[0],), (E,))[1]
    assert jnp.linalg.norm(curve("lanczos") - curve("svd")) <= 1e-11 * jnp.linalg.norm(curve("svd"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_than_one_cycle(dtype):
    """A cut of 1%, beyond what one basis finds."""
    A = with_values(np.linspace(1, 0.95, 3), 400, 300, highest=0.94).astype(dtype)
    t = sj.singular_triplets(jnp.asarray(A), 3, "lanczos")
    assert t.U.dtype == dtype
    check(A, 3, t, (10 + 2 * 400**0.5) * np.finfo(dtype).eps)


def test_what_the_start_hides_is_found_by_fresh_noise(monkeypatch):
    """Two blocks, and a start that is blind to the one with the largest value; without a proof that is missed."""
    A = np.zeros((160, 160))
    A[:80, :80], A[80:, 80:] = with_values([0.9, 0.8], 80, 80, highest=0.5), with_values([1], 80, 80, highest=0.5)
    noise = block._noise
    blind = lambda seed, *x: noise(seed, *x) * (1 if isinstance(seed, jax.core.Tracer) else jnp.arange(160) < 80)
    monkeypatch.setattr(block, "_noise", blind)
    found = [sj.singular_triplets(jnp.asarray(A), 2, "lanczos", missed=x).sigma for x in (1e-3, None)]
    np.testing.assert_allclose(found, [[1, 0.9], [0.9, 0.8]], atol=1e-13)


def test_what_has_no_answer_is_nan():
    A = jnp.asarray(with_values([2, 1.5, 1.5], 110, 80))
    at = lambda i: jax.grad(lambda A: sj.singular_triplets(A, 2, "lanczos").U[0, i])(A)
    assert jnp.isnan(at(1)).all()  # tied at the cut
    wanted = jax.grad(lambda A: sj.singular_triplets(A, 1, "svd").U[0, 0])(A)  # and what is not
    assert jnp.linalg.norm(at(0) - wanted) <= 1e-12 * jnp.linalg.norm(wanted)
    assert jnp.isnan(sj.singular_triplets(A, 2, "lanczos", maxiter=3).sigma).all()
    assert jnp.isnan(sj.singular_triplets(A.at[0, 0].set(jnp.nan), 2, "lanczos").sigma).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_vectors_of_zero_are_orthonormal_too(rank):
    A = rank * np.outer(normal(90), normal(80, seed=1)) / 80
    t = sj.singular_triplets(jnp.asarray(A), 3, "lanczos")
    check(A, 3, t, 1e-12)
    assert not jnp.signbit(t.sigma).any()


@pytest.mark.parametrize(("columns", "k"), slow_but([(40, 2)], [(40, 2), (44, 5), (20, 3), (1, 2)]), ids=str)
def test_what_sees_fewer_dimensions_than_the_basis_has_is_right(columns, k):
    """Columns of zeros, as of nodes without a neighbour: σ was 7% off, and its gradient, without a word."""
    A = normal(200, 150) * (np.arange(150) < columns)
    rows, at = np.nonzero(A)
    values, places = jnp.asarray(A[rows, at]), jnp.asarray(np.stack([rows, at], 1))
    triplets = lambda x: sj.singular_triplets(sparse.BCOO((x, places), shape=A.shape), k)
    check(A, k, triplets(values), 1e-12)
    masked = sj.operator_triplets(lambda A, x: A @ jnp.where(jnp.arange(150) < columns, x, 0), A, jnp.ones(150), k)
    check(A, k, masked, 1e-12)
    loss = lambda of: lambda A: (of(A).V[:columns] ** 4).sum() + of(A).sigma.sum()
    if columns > k:
        wanted = jax.grad(loss(lambda A: sj.singular_triplets(A, k, "svd")))(jnp.asarray(A))
        np.testing.assert_allclose(jax.grad(loss(triplets))(values), wanted[rows, at], atol=1e-12)


@pytest.mark.parametrize("dtype", slow_but([(np.float32,)], [(np.float32,), (np.float64,)]))
def test_spectra_of_one_or_two_values(dtype):
    """The space closes after a step or two, and what goes on is rounding. More copies than a block has rows, too."""
    eps = np.finfo(dtype).eps
    for s in (np.ones(100), np.repeat([1, 0.5], 50), np.repeat([1, 0.3, 0], [1, 20, 79])):
        U, V = (np.linalg.qr(normal(size, 100, seed=i))[0] for i, size in enumerate((120, 100)))
        A = ((U * s) @ V.T).astype(dtype)
        check(A, 3, sj.singular_triplets(jnp.asarray(A), 3, "lanczos"), 60 * eps)


def test_values_far_below_the_largest_have_the_error_that_is_foretold(monkeypatch):
    """A step makes what it leaves along U (σ₁/σₖ)² times as large, unless it is taken off."""
    last = 1e-8
    s = np.r_[1, 0.9, last, last * np.linspace(0.6, 0, 77)]
    U, V = (np.linalg.qr(normal(size, 80, seed=i))[0] for i, size in enumerate((110, 80)))
    A = jnp.asarray((U * s) @ V.T)
    f = lambda how: jax.grad(lambda A: (sj.singular_triplets(A, 3, how).V[:3] ** 2).sum())(A)
    assert jnp.linalg.norm(f("lanczos") - f("svd")) <= 30 * 4 * 2.2e-16 / (0.4 * last) * jnp.linalg.norm(f("svd"))


def test_a_small_side_is_taken_whole():
    """Where the basis would be all of it, the matrix is formed by products."""
    A = with_values([3, 2], 9, 6, True)
    for t in (
        sj.singular_triplets(jnp.asarray(A), 2, "lanczos"),
        sj.operator_triplets(lambda A, x: A @ x, jnp.asarray(A), jnp.ones(6, complex), 2),
        sj.singular_triplets(sparse.BCOO.fromdense(A), 2),
    ):
        check(A, 2, t)


@pytest.mark.parametrize(
    ("error", "message", "how"),
    [
        (ValueError, r"of shape \(3, j\), .*found shape \(3,\)", {"v0": np.ones(3)}),
        (ValueError, r"found shape \(4, 2\)", {"v0": np.ones((4, 2))}),
        (ValueError, r"found shape \(2, 3, 2\)", {"v0": np.ones((2, 3, 2))}),
        (TypeError, "v0 must be real", {"v0": np.ones((3, 2), complex)}),
        (ValueError, "forward 'svd' does not iterate, found v0", {"v0": np.ones((3, 2)), "forward": "svd"}),
    ],
)
def test_a_start_that_cannot_be(error, message, how):
    with pytest.raises(error, match=message):
        sj.low_rank(np.ones((4, 3)), 2, **{"forward": "lanczos", **how})


def test_strict_promotion_of_dtypes_and_ranks():
    A = with_values([2, 1.5], 110, 80, True).astype(np.complex64)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        value, G = jax.value_and_grad(lambda A: jnp.abs(sj.singular_triplets(A, 2, "lanczos").U[0]).sum())(A)
    assert G.dtype == np.complex64 and jnp.isfinite(G).all()
    assert abs(value - np.abs(np.linalg.svd(A)[0][0, :2]).sum()) <= 1e-5
