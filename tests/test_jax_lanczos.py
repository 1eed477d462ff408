"""What Lanczos' iteration in JAX proves: that it missed nothing, that σ₁ is simple."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import gapped
from marks import slow_but

import svdgrad.jax as sj
from svdgrad import matrices
from svdgrad.jax import lanczos
from svdgrad.jax.triplet import How


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@partial(jax.jit, static_argnames=("tol", "missed", "maxiter"))
def sigma_from(A, v0, tol=None, missed=1e-3, maxiter=None):
    return sj.spectral_norm(A, "lanczos", tol, maxiter, v0, missed)


def two_blocks(rng, half, lead):
    """A matrix whose second block has just taken the lead, and the vector that was the first before."""
    B, C = (rng.standard_normal((half, half)) for _ in "ab")
    A = np.zeros((2 * half, 2 * half))
    A[:half, :half] = B / np.linalg.norm(B, 2)
    A[half:, half:] = (1 + lead) * C / np.linalg.norm(C, 2)
    return A, np.concatenate([np.linalg.svd(B)[2][0], np.zeros(half)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tol", [None, 1e-2])
def test_a_start_in_the_block_that_lost_the_lead_hides_nothing(dtype, tol):
    """A residual alone returns the second value in five of twenty such matrices at the looser of the two."""
    for seed in range(10):
        A, v0 = two_blocks(np.random.default_rng(seed), 60, 0.003)
        assert abs(float(sigma_from(jnp.asarray(A, dtype), jnp.asarray(v0, dtype), tol)) - 1.003) < 0.001


def test_without_proof_the_answer_is_nan():
    """Four steps leave a small residual at the wrong triplet, and no evidence that it is the right one."""
    A, v0 = (jnp.asarray(x) for x in two_blocks(np.random.default_rng(0), 45, 0.003))
    assert jnp.isnan(sigma_from(A, v0, 1e-2, maxiter=4))
    assert abs(sigma_from(A, v0, 1e-2, missed=None, maxiter=4) - 1) < 1e-6


def planted(values, missed, tol, lead=1e-3):
    """Where σ₂ is returned for σ₁: A is diagonal, v0 = e₁ belongs to the second largest value, and the largest is
    put at one coordinate after the other, of which each got its own number from the noise.
    """
    n = values.size
    how = How("lanczos", "cg", 0, tol, 400, missed)

    def found(j):
        d = jnp.asarray(values).at[j].set(1 + lead)
        return lanczos.lanczos(lambda x: d * x, lambda y: d * y, jnp.eye(1, n)[0], how)[0].sigma

    sigma = np.asarray(jax.jit(lambda js: jax.lax.map(found, js, batch_size=50))(1 + jnp.arange(n - 1)))
    assert np.isfinite(sigma).all()
    return np.abs(sigma - (1 + lead)) > lead / 2


def test_the_promise_is_kept_for_every_place_of_the_largest():
    """At missed = 0.05 one in twenty may be wrong, in a draw of 299 three standard deviations more."""
    wrong = planted(np.r_[1, np.linspace(0.9, 0.1, 299)], 0.05, 1e-3)
    assert wrong.mean() <= 0.05 + 3 * (0.05 * 0.95 / 299) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-2, 1e-12], ids=str)
@pytest.mark.parametrize(
    "tail",
    [
        np.linspace(0.9, 0.1, 399),
        np.linspace(0.99, 0.1, 399),
        np.r_[np.full(100, 0.95), np.linspace(0.5, 0.1, 299)],
        0.95 / np.arange(1, 400),
    ],
    ids=["even", "close", "copies", "falling"],
)
def test_few_of_twelve_hundred(tail, tol):
    """The default, at three leads and through restarts: the number of wrong answers is Poisson's, of mean 1.2 at most,
    so that more than five have a probability of a thousandth.
    """
    assert sum(planted(np.r_[1, tail], 1e-3, tol, lead).sum() for lead in (1e-3, 3e-3, 1e-2)) <= 5


def test_the_bound_survives_restarts():
    """c after restarts is that of a basis which holds all: the start times a polynomial that is one at σ²."""
    d = jnp.asarray(np.r_[1, 0.999, np.linspace(0.99, 0.1, 198)])
    start = jnp.asarray(np.random.default_rng(0).standard_normal(200))
    start = start / jnp.linalg.norm(start)

    def c(rows, steps, at):
        """For values of ``at`` or more, after so many steps with a basis of so many rows."""
        basis = lanczos._begun(jnp.zeros((rows + 1, 200)), start, jnp.zeros(()))
        while steps:
            if basis.filled == rows:
                basis = lanczos._restarted(basis, 16)
            more = min(steps, rows - int(basis.filled))
            basis = lanczos._extended(lambda x: d * d * x, basis, basis.filled + more)
            steps -= more
        return float(lanczos._unseen(basis, at, jnp.zeros(rows, bool))), np.asarray(basis.theta2)

    whole, restarted = c(100, 80, 1.02), c(48, 80, 1.02)
    # restarts lose some of the evidence, and never claim what the whole basis does not know
    assert whole[0] <= restarted[0] <= 1e3 * whole[0] < 1e-3
    # against the definition: the least ‖p(AᴴA) x‖ with p(τ) = 1 for all p of degree 5, as a least-squares problem
    nodes, x = np.asarray(d) ** 2, np.asarray(start)
    columns = np.stack([(nodes - 1.02) * nodes**i * x for i in range(5)], 1)
    least = np.linalg.norm(x - columns @ np.linalg.lstsq(columns, x)[0])
    assert abs(c(48, 5, 1.02)[0] / least - 1) < 1e-9


def double(m, n, dtype, seed=0):
    s = np.r_[1, 1, gapped(min(m, n) - 2, 0.1)[1:], 0.1]
    return jnp.asarray(matrices.with_singular_values(s, m, n, seed).numpy(), dtype)


def of_the_vectors(A, w, v0=None, tol=None):
    return w @ sj.singular_triplet(A, forward="lanczos", v0=v0, tol=tol).u


gradient = jax.jit(jax.grad(of_the_vectors), static_argnames="tol")
gradient_of_sigma = jax.jit(jax.grad(partial(sj.spectral_norm, forward="lanczos")))


@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [
        (50, 60, np.float64),
        pytest.param(60, 50, np.float32, marks=pytest.mark.slow),
        pytest.param(60, 50, np.float64, marks=pytest.mark.slow),
        pytest.param(50, 60, np.float32, marks=pytest.mark.slow),
    ],
)
def test_a_double_singular_value_gives_nan_and_only_to_the_vectors(m, n, dtype):
    for seed in range(3):
        A = double(m, n, dtype, seed)
        w = np.random.default_rng(seed).standard_normal(m)
        for tol in (None, 1e-3):
            assert jnp.isnan(gradient(A, jnp.asarray(w, dtype), tol=tol)).all()
        G = gradient_of_sigma(A)
        # one of many subgradients u vᵀ, of nuclear and spectral norm one
        np.testing.assert_allclose(jnp.linalg.svd(G, compute_uv=False)[:2], [1, 0], atol=1e-5)


def test_a_copy_that_the_loss_does_not_touch():
    """d = (2, 2, 1, …) and v0 = e₁: a loss of the entries from the third on touches nothing of the second vector."""
    d = jnp.asarray(np.r_[2, 2, np.linspace(1, 0.1, 38)])
    v0, w = jnp.eye(1, 40)[0], jnp.ones(40).at[:2].set(0)
    loss = lambda d: w @ sj.operator_triplet(lambda d, x: d * x + 0.1 * d.sum() * x[0] * v0, d, v0).u
    assert jnp.isfinite(jax.grad(loss)(d)).all()  # 2 + 0.1 Σd at the first entry: no tie yet
    loss = lambda d: w @ sj.operator_triplet(lambda d, x: d * x, d, v0).u
    assert jnp.isnan(jax.grad(loss)(d)).all()


@pytest.mark.slow
def test_a_circular_convolution_is_a_tie_by_rule():
    kernel = jnp.array([1.0, 1.0, 0.3])  # its spectrum is symmetric: frequencies k and −k, and the largest at none

    def periodic(kernel, x):
        y = x - x.mean()  # frequency 0 taken out
        return sum(kernel[k] * jnp.roll(y, k) for k in range(3))

    x = jnp.asarray(np.random.default_rng(0).standard_normal(24))
    triplet = lambda k: sj.operator_triplet(periodic, k, x)
    assert jnp.isfinite(jax.grad(lambda k: triplet(k).sigma)(kernel)).all()
    assert jnp.isnan(jax.grad(lambda k: triplet(k).u[3])(kernel)).all()


@pytest.mark.parametrize("dtype", slow_but([(np.float64,)], [(np.float32,), (np.float64,)]))
def test_near_a_tie_is_not_a_tie(dtype):
    """A gap of a hundred times what counts as a tie."""
    tie = 3 * np.finfo(dtype).eps * 110**0.5
    s = np.r_[1, 1 - 100 * tie, np.linspace(0.9, 0.1, 48)]
    A = jnp.asarray(matrices.with_singular_values(s, 60, 50, 0).numpy(), dtype)
    w = jnp.asarray(np.random.default_rng(0).standard_normal(60), dtype)
    assert jnp.isfinite(gradient(A, w)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tol", [None, 1e-3])
@pytest.mark.parametrize("gap", [0.1, 1e-2, 1e-3])
def test_no_tie_passes_for_a_simple_value(gap, tol, dtype):
    """24 matrices of two sizes: their gradients are no numbers, but for one in a hundred that the search overlooks, and
    the rest may see; with one of the two values only, all are.
    """
    overlooked = 0
    for m, n in ((150, 120), (300, 280)):
        simple = np.r_[1, np.linspace(1 - gap, 0.05, n - 1)]
        for seed in range(24):
            rng = np.random.default_rng(seed)
            w = jnp.asarray(rng.standard_normal(m), dtype)
            for s, tied in ((np.r_[1, simple[:-1]], True), (simple, False)):
                A = jnp.asarray(matrices.with_singular_values(s, m, n, seed).numpy(), dtype)
                isnan = jnp.isnan(gradient(A, w, tol=tol)).any()
                assert tied or not isnan, (m, n, seed)
                overlooked += tied and not isnan
    assert overlooked <= 1
