"""The JAX side against extended precision, against differences, and against the PyTorch side."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FAMILIES, NAN_MATRICES, NARROW, Family, gapped, problem
from jax.experimental import sparse
from jax.test_util import check_grads
from marks import slow_but

import svdgrad
import svdgrad.jax as sj
from svdgrad.jax.auto import choose
from svdgrad.lab import relative_error

WAYS = {
    "svd": {"forward": "svd"},
    "cg": {"forward": "svd", "adjoint": "cg"},
    "gram": {"forward": "gram"},
    "lanczos": {"forward": "lanczos"},
}
EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}


def first_of_each_way(cases):
    """Every way with every case, of which those of the closed form and the first of each way are quick."""
    return slow_but([*product(["svd"], cases), *product(WAYS, [next(iter(cases))])], product(WAYS, cases))


@pytest.fixture
def x64():
    """Double precision for one test, not for the session."""
    with jax.enable_x64(True):
        yield


@partial(jax.jit, static_argnames=("index", "forward", "adjoint"))
def gradient(A, xi, phi, psi, v0, index=0, forward="auto", adjoint="auto"):
    def loss(A):
        sigma, u, v = sj.singular_triplet(A, index, forward, adjoint, v0=v0)
        return (xi * sigma + (phi * u).sum(-1) + (psi * v).sum(-1)).sum()

    return jax.grad(loss)(A)


def arrays(dtype, *tensors):
    return [jnp.asarray(np.asarray(x), dtype) for x in tensors]


def normal(*shape, complex_=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


# --- against extended precision
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "way"),
    [
        (np.float32, "svd"),
        (np.float64, "svd"),
        (np.float32, "gram"),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in ((np.float32, "cg"), (np.float64, "gram"), (np.float64, "lanczos"))
        ),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_agrees_with_extended_precision(x64, family, dtype, way):
    A = FAMILIES[family].matrix(getattr(torch, dtype.__name__))
    *data, truth = problem(A)
    G = gradient(*arrays(dtype, A, *data), **WAYS[way])
    assert G.dtype == dtype
    assert relative_error(G, truth) <= FAMILIES[family].bound(getattr(torch, dtype.__name__))


@pytest.mark.parametrize(("way", "family"), first_of_each_way(NARROW))
def test_gradient_at_narrow_gaps(x64, family, way):
    A = NARROW[family].matrix()
    *data, truth = problem(A)
    G = gradient(*arrays(np.float64, A, *data), **WAYS[way])
    assert relative_error(G, truth) <= NARROW[family].bound(torch.float64)


@pytest.mark.parametrize("index", [1, 4, -1])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9)], ids=str)
def test_any_simple_triplet(x64, shape, index):
    family = Family(*shape, np.linspace(9, 1, 9), index)
    A = family.matrix()
    *data, truth = problem(A, index)
    assert relative_error(gradient(*arrays(np.float64, A, *data), index=index), truth) <= family.bound(torch.float64)


@pytest.mark.parametrize(("way", "matrix"), first_of_each_way(NAN_MATRICES))
def test_finite_and_right_where_the_gradient_of_the_svd_is_nan(x64, matrix, way):
    A = torch.from_numpy(NAN_MATRICES[matrix])
    *data, truth = problem(A)
    s = np.linalg.svd(NAN_MATRICES[matrix], compute_uv=False)
    G = gradient(*arrays(np.float64, A, *data), **WAYS[way])
    assert relative_error(G, truth) <= 50 * EPS[np.float64] * s[0] / (s[0] - s[1])

    def by_the_svd(A):
        U, _, _ = jnp.linalg.svd(A, full_matrices=False)
        return U[:, 0] @ jnp.asarray(np.asarray(data[1]))

    assert jnp.isnan(jax.grad(by_the_svd)(jnp.asarray(NAN_MATRICES[matrix]))).any()


def test_a_null_vector_has_a_gradient(x64):
    """The smallest singular value of a singular square matrix is zero and simple: ∂v₁/∂A₁₃ = −1/3 by hand."""
    G = jax.grad(lambda A: sj.singular_triplet(A, index=-1).v[0])(jnp.diag(jnp.array([3.0, 1.0, 0.0])))
    np.testing.assert_allclose(G, [[0, 0, -1 / 3], [0, 0, 0], [0, 0, 0]], atol=1e-15)


# --- every derivative
# --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "index", "complex_", "way"),
    [
        ((6, 4), 0, False, "svd"),
        ((4, 6), 1, False, "svd"),
        ((4, 4), -1, False, "svd"),
        ((1, 4), 0, False, "svd"),
        ((4, 3), 0, True, "svd"),
        ((3, 4), 1, True, "svd"),
        ((3, 3), -1, True, "svd"),
        ((1, 3), 0, True, "svd"),
        ((4, 3), 0, True, "cg"),
        ((4, 3), 0, True, "gram"),
        ((3, 4), 0, False, "gram"),
        ((3, 4), 0, False, "lanczos"),
    ],
    ids=str,
)
def test_first_and_second_derivatives_in_both_modes(x64, shape, index, complex_, way):
    """For complex A too every entry of u and v is looked at: the phase is fixed, so each is a function of A."""
    A = jnp.asarray(normal(*shape, complex_=complex_))
    order = 1 if way == "lanczos" else 2  # a minute to compile, and the Hessian of an operator goes the same way
    check_grads(
        jax.jit(partial(sj.singular_triplet, index=index, **WAYS[way])), (A,), order=order, modes=("fwd", "rev")
    )


def test_derivatives_with_a_given_phase(x64):
    A, v0 = jnp.asarray(normal(4, 3, complex_=True)), jnp.asarray(normal(3, complex_=True, seed=1))
    assert abs(jnp.vdot(v0, sj.singular_triplet(A, v0=v0).v).imag) < 1e-14
    check_grads(jax.jit(lambda A: sj.singular_triplet(A, v0=v0)), (A,), order=1, modes=("fwd", "rev"))


def test_third_derivative(x64):
    """d³σ along E against a difference of second derivatives, whose error is that of h² and ε/h."""
    A, E = jnp.asarray(normal(4, 3)), jnp.asarray(normal(4, 3, seed=1))
    along = [lambda h: sj.spectral_norm(A + h * E)]
    for _ in range(3):
        along.append(jax.grad(along[-1]))
    second = jax.jit(along[2])
    h = 1e-4
    difference = (second(h) - second(-h)) / (2 * h)
    assert abs(jax.jit(along[3])(0.0) / difference - 1) < 1e-6


@pytest.mark.slow
def test_forward_and_reverse_and_their_mixtures_agree(x64):
    A, w = jnp.asarray(normal(4, 3)), jnp.asarray(normal(4, seed=1))

    def loss(A):
        sigma, u, v = sj.singular_triplet(A)
        return sigma**2 + (w @ u) * v[0]

    np.testing.assert_allclose(jax.jacfwd(loss)(A), jax.grad(loss)(A), rtol=1e-12, atol=1e-13)
    found = [jax.jit(one(other(loss)))(A) for one in (jax.jacfwd, jax.jacrev) for other in (jax.jacfwd, jax.jacrev)]
    for H in found:
        np.testing.assert_allclose(H, found[0], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(H, H.transpose(2, 3, 0, 1), rtol=1e-11, atol=1e-12)


# --- the PyTorch side as a witness
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
def test_the_two_sides_agree(x64, shape, complex_):
    A = normal(*shape, complex_=complex_)
    a, b = normal(shape[0], complex_=complex_, seed=1), normal(shape[1], complex_=complex_, seed=2)
    for index in (0, 2, -1):
        # a loss that knows nothing of the common phase
        def torch_loss(X):
            sigma, u, v = svdgrad.singular_triplet(X, index=index)
            w = (torch.from_numpy(a).conj() @ u) * (torch.from_numpy(b).conj() @ v).conj()
            return sigma**2 + w.real + (w.abs() ** 2)

        def jax_loss(X):
            sigma, u, v = sj.singular_triplet(X, index=index)
            w = (a.conj() @ u) * (b.conj() @ v).conj()
            return sigma**2 + w.real + jnp.abs(w) ** 2

        for ours, theirs in zip(
            sj.singular_triplet(jnp.asarray(A), index), svdgrad.singular_triplet(torch.from_numpy(A), index)
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)  # signs and phases too
        X = torch.from_numpy(A).requires_grad_()
        torch_loss(X).backward()
        G = jax.jit(jax.grad(jax_loss))(jnp.asarray(A)).conj()  # JAX's gradient is the conjugate of PyTorch's
        assert relative_error(G, X.grad.resolve_conj()) < 1e-12


@pytest.mark.slow
def test_the_two_sides_agree_on_the_hessian(x64):
    A, w = normal(5, 3), normal(5, seed=1)
    theirs = torch.autograd.functional.hessian(
        lambda A: (t := svdgrad.singular_triplet(A, index=1)).sigma ** 2 + torch.from_numpy(w) @ t.u,
        torch.from_numpy(A),
    )
    ours = jax.hessian(lambda A: (t := sj.singular_triplet(A, index=1)).sigma ** 2 + w @ t.u)(jnp.asarray(A))
    assert relative_error(ours, theirs) < 1e-11


# --- transforms and batches
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", slow_but([("svd",)], [(way,) for way in WAYS]))
def test_a_batch_is_its_matrices_one_by_one(x64, way):
    A = np.stack(
        [
            Family(8, 5, gapped(5, gap)).matrix(seed=seed).numpy()
            for seed, gap in enumerate((0.5, 0.3, 0.2, 0.1, 0.4, 0.25))
        ]
    )
    A = jnp.asarray(A.reshape(2, 3, 8, 5))
    weights = [jnp.asarray(normal(*shape, seed=k)) for k, shape in enumerate(((2, 3), (2, 3, 8), (2, 3, 5), (2, 3, 5)))]
    together = gradient(A, *weights, **WAYS[way])
    mapped = jax.vmap(jax.vmap(partial(gradient, **WAYS[way])))(A, *weights)
    np.testing.assert_allclose(mapped, together, rtol=1e-12, atol=1e-12)
    for i in [(0, 0), (1, 2)]:
        np.testing.assert_allclose(
            gradient(A[i], *(w[i] for w in weights), **WAYS[way]), together[i], rtol=1e-11, atol=1e-12
        )


def test_one_v0_serves_a_batch(x64):
    A, v0 = jnp.asarray(normal(3, 4, 2)), jnp.array([1.0, -2.0])
    assert (sj.singular_triplet(A, v0=v0).v @ v0 > 0).all()


@pytest.mark.parametrize("way", ["svd", "gram", "lanczos"])
def test_a_v0_orthogonal_to_v_leaves_only_the_sign_open(way):
    sigma, u, v = sj.singular_triplet(jnp.diag(jnp.array([3.0, 1.0])), v0=jnp.array([0.0, 1.0]), **WAYS[way])
    np.testing.assert_allclose([sigma, abs(v[0]), u[0] * v[0]], [3, 1, 1], atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2, 3)], ids=str)
def test_an_empty_batch(shape):
    A = jnp.ones(shape)
    assert [x.shape for x in sj.singular_triplet(A)] == [shape[:-2], shape[:-1], (*shape[:-2], shape[-1])]
    assert jax.grad(lambda A: sj.singular_triplet(A).u.sum())(A).shape == shape


def test_hessian_under_vmap_and_jit(x64):
    A = jnp.asarray(normal(3, 3, 2))
    hessian = jax.hessian(lambda A: sj.singular_triplet(A).u[0])
    np.testing.assert_allclose(jax.jit(jax.vmap(hessian))(A)[1], hessian(A[1]), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    A = jnp.asarray(FAMILIES["tall"].matrix().numpy(), dtype)
    found, expected = sj.singular_triplet(A), sj.singular_triplet(A.astype(jnp.float32))
    for ours, theirs in zip(found, expected):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs.astype(dtype))
    assert jax.grad(lambda A: sj.singular_triplet(A).u[0])(A).dtype == dtype


# --- ties
# --------------------------------------------------------------------------------------------------------------

TIES = {
    "identity": np.eye(3),
    "zero": np.zeros((3, 3)),
    "zero, tall": np.zeros((4, 2)),
    "two and a half": np.diag([2.0, 2.0, 0.5]),
}


@pytest.mark.parametrize(
    ("tie", "way", "jit"),
    [
        pytest.param(tie, *x, marks=pytest.mark.slow if x[0] != "svd" and tie != "zero, tall" else [])
        for tie in TIES
        for x in (("svd", False), ("svd", True), ("cg", True), ("gram", True), ("lanczos", True))
    ],
)
def test_at_a_tie_the_vectors_have_no_gradient_and_sigma_has(tie, jit, way):
    A = jnp.asarray(TIES[tie], jnp.float32)
    grad = (lambda f: jax.jit(jax.grad(f))) if jit else jax.grad
    triplet = sj.singular_triplet(A, **WAYS[way])
    G = grad(lambda A: sj.singular_triplet(A, **WAYS[way]).sigma)(A)
    np.testing.assert_allclose(G, jnp.outer(triplet.u, triplet.v), atol=1e-6)
    for part in (1, 2):
        assert jnp.isnan(grad(lambda A: sj.singular_triplet(A, **WAYS[way])[part][0])(A)).any()
    if way != "svd":
        return
    _, pull = jax.vjp(partial(sj.singular_triplet, **WAYS[way]), A)
    (G,) = pull(sj.Triplet(jnp.ones_like(triplet.sigma), 0 * triplet.u, 0 * triplet.v))  # zeros that are numbers
    np.testing.assert_allclose(G, jnp.outer(triplet.u, triplet.v), atol=1e-6)
    _, (dsigma, du, _) = jax.jvp(
        partial(sj.singular_triplet, **WAYS[way]), (A,), (jnp.asarray(normal(*A.shape), jnp.float32),)
    )
    assert jnp.isfinite(dsigma) and jnp.isnan(du).any()


def test_a_tie_up_to_rounding_is_a_tie(x64):
    family = Family(8, 6, np.array([1.0, 1 - 1e-15, 0.5, 0.4, 0.3, 0.2]))
    assert jnp.isnan(jax.grad(lambda A: sj.singular_triplet(A).u[0])(jnp.asarray(family.matrix().numpy()))).all()


@pytest.mark.parametrize(("m", "n"), [(2, 2), (50, 14)], ids=str)
def test_a_tie_is_a_gap_of_three_roundings_times_the_root_of_the_size_and_sixteen(x64, m, n):
    tie = np.finfo(float).eps * max(16, 3 * (m + n) ** 0.5)
    for factor in (0.94, 1.06):
        A = jnp.zeros((m, n)).at[0, 0].set(1).at[1, 1].set(1 - factor * tie)
        assert jnp.isnan(jax.grad(lambda A: sj.singular_triplet(A, forward="svd").u[0])(A)).any() == (factor < 1)


def test_a_tie_to_which_the_ritz_values_are_blind_is_a_tie():
    """A gap of 1e-8 in float32: one vector finds one copy, and only the size of the solution tells of the other."""
    A = jnp.asarray(Family(620, 600, gapped(600, 1e-8)).matrix().numpy(), jnp.float32)
    assert jnp.isnan(jax.grad(lambda A: sj.singular_triplet(A, forward="lanczos").u[0])(A)).all()


def test_a_tie_spoils_nothing_but_its_own_matrix():
    A = jnp.stack([jnp.eye(3), jnp.diag(jnp.array([3.0, 2.0, 1.0]))])
    G = jax.grad(lambda A: sj.singular_triplet(A).u.sum())(A)
    assert jnp.isnan(G[0]).any() and jnp.isfinite(G[1]).all()


def test_the_norm_of_the_identity():
    G = jax.grad(sj.spectral_norm)(jnp.eye(4))
    assert jnp.trace(G) == pytest.approx(1, abs=1e-6) and jnp.linalg.matrix_rank(G) == 1


def test_debug_nans_finds_a_tie():
    with jax.debug_nans(True):
        assert jnp.isfinite(jax.grad(sj.spectral_norm)(jnp.eye(3))).all()
        with pytest.raises(FloatingPointError, match="nan"):
            jax.grad(lambda A: sj.singular_triplet(A).u[0])(jnp.eye(3)).block_until_ready()


# --- inputs
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["svd", "gram", "lanczos"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_inf_in_gives_nan_out(bad, way):
    for x in sj.singular_triplet(jnp.array([[1.0, bad], [0.0, 2.0]]), **WAYS[way]):
        assert jnp.isnan(x).all()


@pytest.mark.parametrize(
    ("error", "message", "A", "how"),
    [
        (TypeError, "must be floating point, found int32", np.eye(3, dtype=np.int32), {}),
        (ValueError, r"must be a matrix \(..., m, n\), found shape \(3,\)", np.ones(3, np.float32), {}),
        (ValueError, "at least one row and one column", np.ones((0, 3), np.float32), {}),
        (
            ValueError,
            "index must be from -2 to 1 for a matrix of shape 3×2, found 2",
            np.ones((3, 2), np.float32),
            {"index": 2},
        ),
        (
            ValueError,
            "unknown forward 'qr': the names are 'auto', 'svd', 'gram', 'lanczos'",
            np.eye(3, dtype=np.float32),
            {"forward": "qr"},
        ),
        (
            ValueError,
            "unknown adjoint 'lu': the names are 'auto', 'spectral', 'cg'",
            np.eye(3, dtype=np.float32),
            {"adjoint": "lu"},
        ),
        (
            ValueError,
            "'spectral' needs all singular vectors",
            np.eye(3, dtype=np.float32),
            {"forward": "lanczos", "adjoint": "spectral"},
        ),
        (
            ValueError,
            "forward 'lanczos' needs index 0",
            np.eye(3, dtype=np.float32),
            {"forward": "lanczos", "index": 1},
        ),
        (
            ValueError,
            "forward 'gram' needs index 0",
            np.eye(3, dtype=np.float32),
            {"forward": "gram", "adjoint": "cg", "index": 2},
        ),
        (ValueError, "adjoint 'cg' needs index 0", np.eye(3, dtype=np.float32), {"adjoint": "cg", "index": -1}),
        (ValueError, "v0 must have 3 entries", np.eye(3, dtype=np.float32), {"v0": np.ones(2, np.float32)}),
        (ValueError, "maxiter must be at least 1", np.eye(3, dtype=np.float32), {"forward": "lanczos", "maxiter": 0}),
    ],
    ids=lambda x: x[:24] if isinstance(x, str) else "",
)
def test_what_is_wrong_is_named(error, message, A, how):
    for call in (
        sj.singular_triplet,
        jax.jit(
            lambda A, **how: sj.singular_triplet(A, **how), static_argnames=("forward", "adjoint", "index", "maxiter")
        ),
    ):
        with pytest.raises(error, match=message):
            call(A, **how)


def test_out_of_steps_gives_nan(x64):
    A = jnp.asarray(normal(120, 100))
    assert jnp.isnan(sj.singular_triplet(A, forward="lanczos", maxiter=8).sigma)
    assert jnp.isfinite(sj.singular_triplet(A, forward="lanczos").sigma)
    assert jnp.isnan(jax.grad(lambda A: sj.singular_triplet(A, adjoint="cg", maxiter=3).u[0])(A)).all()


def test_maxiter_is_the_most_steps(x64):
    """Six steps are too few for this matrix, eight are enough; two rounds of six would be, too."""
    A = jnp.asarray(Family(50, 40, np.array([1, *np.linspace(0.1, 0.01, 39)])).matrix().numpy())
    assert jnp.isnan(sj.singular_triplet(A, forward="lanczos", maxiter=6).sigma)
    assert abs(sj.singular_triplet(A, forward="lanczos", maxiter=8).sigma - 1) < 1e-14


@pytest.mark.parametrize("shape", [(4, 3), (3, 5)], ids=str)
def test_lanczos_on_a_matrix_of_rank_one(shape):
    """Ritz values of almost zero beside σ₁ are no reason to give up."""
    x, y = (np.arange(1, n + 1, dtype=np.float32) for n in shape)
    sigma, u, v = sj.singular_triplet(jnp.outer(x, y), forward="lanczos")
    np.testing.assert_allclose(sigma, np.linalg.norm(x) * np.linalg.norm(y), rtol=1e-6)
    np.testing.assert_allclose(u, x / np.linalg.norm(x), atol=1e-6)
    np.testing.assert_allclose(v, y / np.linalg.norm(y), atol=1e-6)


def test_a_second_ritz_value_of_zero_does_not_touch_u():
    """From v itself almost nothing else is found; only where σ₁ is zero may u be any unit vector."""
    triplet = sj.singular_triplet(jnp.array([[0.0, 0.0], [3.0, 0.0]]), forward="lanczos", v0=jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(jnp.concatenate([jnp.ravel(x) for x in triplet]), [3, 0, 1, 1, 0], rtol=1e-6, atol=1e-6)


def test_auto_is_what_the_size_asks_for():
    """A batch and a small matrix by the Gram matrix, a large one by products, another index than the first by the
    SVD.
    """

    for shape, index, forward in [
        ((40, 30), 0, "gram"),
        ((40, 30), 1, "svd"),
        ((2, 400, 310), 0, "gram"),
        ((400, 310), 0, "lanczos"),
        ((8192, 81), 0, "lanczos"),
        ((80, 1296), 0, "gram"),
        ((400, 310), -1, "svd"),
    ]:
        how = choose(jax.ShapeDtypeStruct(shape, jnp.float32), index)
        assert (how.forward, how.adjoint) == (forward, "cg" if forward == "lanczos" else "spectral")
        lowered = jax.jit(lambda A, index=index: sj.singular_triplet(A, index)).lower(jnp.zeros(shape)).as_text()
        assert ("stablehlo.while" in lowered) == (forward == "lanczos")


@pytest.mark.parametrize("rank", [1, 3, 10, 47])
def test_lanczos_on_a_matrix_of_low_rank(x64, rank):
    """Where the basis spans all that A sees, what is left is rounding, which must not be taken for a vector."""
    A = jnp.asarray(normal(90, rank) @ normal(rank, 70, seed=1))
    S = jnp.linalg.svd(A, compute_uv=False)
    bound = 50 * jnp.finfo(S.dtype).eps * S[0] / (S[0] - S[1])  # as in ``families.Family.bound``
    for ours, truth in zip(sj.singular_triplet(A, forward="lanczos"), sj.singular_triplet(A, forward="svd")):
        assert relative_error(ours, truth) <= bound
    G, truth = (jax.grad(lambda A: sj.singular_triplet(A, **WAYS[way]).v[0])(A) for way in ("lanczos", "svd"))
    assert relative_error(G, truth) <= bound


def test_lanczos_stops_at_the_residual_that_tol_names(x64):
    """Two steps leave a residual r = ‖Aᴴu − σv‖/σ: enough for a tol a little larger, too few for one a little
    smaller.
    """
    A = jnp.diag(1 / jnp.arange(1.0, 7.0))
    two_steps = partial(sj.singular_triplet, A, forward="lanczos", maxiter=2, v0=jnp.ones(6), missed=None)
    sigma, u, v = two_steps(tol=1.0)
    r = float(jnp.linalg.norm(A.T @ u - sigma * v) / sigma)
    assert jnp.isfinite(two_steps(tol=1.001 * r).sigma) and jnp.isnan(two_steps(tol=0.999 * r).sigma)


@pytest.mark.parametrize(
    ("way", "shape"),
    slow_but([("svd", (1, 3)), ("gram", (3, 2))], product(["svd", "gram", "lanczos"], [(1, 3), (3, 1), (3, 2)])),
    ids=str,
)
def test_the_triplet_of_zero_has_unit_vectors(shape, way):
    sigma, u, v = sj.singular_triplet(jnp.zeros(shape), **WAYS[way])
    np.testing.assert_allclose([sigma, jnp.linalg.norm(u), jnp.linalg.norm(v)], [0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("way", ["svd", "gram", "lanczos"])
@pytest.mark.parametrize("shape", [(3, 3), (3, 2), (2, 3)], ids=str)
def test_sigma_of_zero_is_not_negative(shape, way):
    for zero in (0.0, -0.0):
        A = jnp.full(shape, zero)
        values = [sj.singular_triplet(A, **WAYS[way]).sigma]
        values += [sj.singular_triplets(A, 2, way).sigma for _ in range(way != "lanczos")]
        assert not any(jnp.signbit(sigma).any() for sigma in values)


# --- operators
# ---------------------------------------------------------------------------------------------------------


def loss_of(triplet, w):
    return triplet.sigma**2 + jnp.ravel(w) @ jnp.ravel(triplet.u) + triplet.v.ravel()[0]


@pytest.mark.parametrize(
    "transform", [pytest.param(lambda f: f, id="eager", marks=pytest.mark.slow), pytest.param(jax.jit, id="jit")]
)
def test_a_dense_operator_is_its_matrix(x64, transform):
    A, w, v0 = jnp.asarray(normal(7, 5)), jnp.asarray(normal(7, seed=1)), jnp.ones(5)
    G = transform(jax.grad(lambda A: loss_of(sj.operator_triplet(lambda A, x: A @ x, A, v0), w)))(A)
    assert relative_error(G, jax.grad(lambda A: loss_of(sj.singular_triplet(A, v0=v0), w))(A)) < 1e-12


def test_a_diagonal(x64):
    d = jnp.array([3.0, -4.0, 2.0, 1.0])
    G = jax.grad(lambda d: sj.operator_triplet(lambda d, x: d * x, d, jnp.ones(4)).sigma)(d)
    np.testing.assert_allclose(G, [0, -1, 0, 0], atol=1e-12)


@pytest.mark.slow
def test_a_convolution(x64):
    """Images as vectors: v0, u and v keep their shapes; the formed matrix, by the other way through this module, is the
    witness.
    """
    kernel, v0 = jnp.asarray(normal(3, 2, 3, 3)), jnp.asarray(normal(1, 2, 6, 6, seed=1))
    w = jnp.asarray(normal(3 * 36, seed=2))

    def product(kernel, x):
        return jax.lax.conv(x, kernel, (1, 1), "SAME")

    def formed(kernel):
        return jax.vmap(lambda e: jnp.ravel(product(kernel, e.reshape(v0.shape))))(jnp.eye(v0.size)).T

    triplet = sj.operator_triplet(product, kernel, v0)
    assert triplet.u.shape == (1, 3, 6, 6) and triplet.v.shape == v0.shape
    G = jax.jit(jax.grad(lambda k: loss_of(sj.operator_triplet(product, k, v0), w)))(kernel)
    truth = jax.grad(lambda k: loss_of(sj.singular_triplet(formed(k), v0=jnp.ravel(v0)), w))(kernel)
    assert relative_error(G, truth) < 1e-11


@pytest.mark.slow
def test_links_of_a_graph_and_a_sparse_matrix(x64):
    rng = np.random.default_rng(0)
    D = rng.standard_normal((9, 6)) * (rng.random((9, 6)) < 0.6)
    rows, columns = np.nonzero(D)
    strength, w, v0 = jnp.asarray(D[rows, columns]), jnp.asarray(normal(9, seed=1)), jnp.ones(6)

    def along_the_links(strength, x):
        return jax.ops.segment_sum(strength * x[columns], rows, 9)

    def dense(strength):
        return jnp.zeros(D.shape).at[rows, columns].set(strength)

    truth = jax.grad(lambda s: loss_of(sj.singular_triplet(dense(s), v0=v0), w))(strength)
    G = jax.jit(jax.grad(lambda s: loss_of(sj.operator_triplet(along_the_links, s, v0), w)))(strength)
    assert relative_error(G, truth) < 1e-12
    M = sparse.BCOO((strength, jnp.asarray(np.stack([rows, columns], 1))), shape=D.shape)
    G = jax.grad(lambda M: loss_of(sj.operator_triplet(lambda M, x: M @ x, M, v0), w), allow_int=True)(M)
    assert relative_error(G.data, truth) < 1e-12  # its indices, which are integers, go along


@pytest.mark.slow
def test_an_operator_twice_and_in_forward_mode(x64):
    A, w, v0 = jnp.asarray(normal(4, 3)), jnp.asarray(normal(4, seed=1)), jnp.ones(3)
    ours, truth = (
        jax.jit(jax.hessian(lambda A: loss_of(triplet(A), w)))(A)
        for triplet in (
            lambda A: sj.operator_triplet(lambda A, x: A @ x, A, v0),
            lambda A: sj.singular_triplet(A, v0=v0),
        )
    )
    assert relative_error(ours, truth) < 1e-11


def test_a_complex_operator(x64):
    A, v0 = jnp.asarray(normal(5, 4, complex_=True)), jnp.ones(4) + 0j
    ours, truth = (
        jax.jit(jax.grad(lambda A: jnp.abs((t := triplet(A)).u[0]) + t.v[1].imag))(A)
        for triplet in (
            lambda A: sj.operator_triplet(lambda A, x: A @ x, A, v0),
            lambda A: sj.singular_triplet(A, v0=v0),
        )
    )
    assert relative_error(ours, truth) < 1e-12


def test_what_matvec_takes_from_elsewhere_is_a_parameter(x64):
    A, v0 = jnp.asarray(normal(5, 4)), jnp.ones(4)
    slope = jax.grad(lambda c: sj.operator_triplet(lambda A, x: c * (A @ x), A, v0).sigma)(2.0)
    assert abs(slope / sj.spectral_norm(A) - 1) < 1e-13


def test_a_special_start_hides_nothing(x64):
    """Ones are a singular vector of every periodic convolution, here to σ = 0; the largest is 4, of alternating
    signs.
    """

    def periodic(kernel, x):
        return sum(kernel[k] * jnp.roll(x, k) for k in range(3))

    assert abs(sj.operator_triplet(periodic, jnp.array([1.0, -2.0, 1.0]), jnp.ones(16)).sigma - 4) < 1e-13


def test_many_restarts(x64):
    """A gap of 1e-3 takes more than one cycle of the bidiagonalisation."""
    A = jnp.asarray(Family(150, 120, gapped(120, 1e-3)).matrix().numpy())
    sigma, u, _ = sj.operator_triplet(lambda A, x: A @ x, A, jnp.ones(120))
    truth = sj.singular_triplet(A, v0=jnp.ones(120))
    assert abs(sigma - truth.sigma) < 1e-13 and relative_error(u, truth.u) < 50 * 2.0**-52 / 1e-3


def test_an_operator_in_single_precision_at_any_scale():
    A = normal(6, 5).astype(np.float32)
    w, v0 = jnp.asarray(normal(6, seed=1), jnp.float32), jnp.ones(5)
    gradient_of_u = jax.jit(jax.grad(lambda A: w @ sj.operator_triplet(lambda A, x: A @ x, A, v0).u))
    G = [gradient_of_u(jnp.asarray(A * np.float32(c))) for c in (1, 1e30, 1e-30)]
    s = np.linalg.svd(A, compute_uv=False)
    for c, found in zip((1e30, 1e-30), G[1:]):
        assert relative_error(np.float64(found) * c, G[0]) < 50 * EPS[np.float32] * s[0] / (s[0] - s[1])


@pytest.mark.parametrize(
    ("error", "message", "matvec", "v0"),
    [
        (ValueError, r"found matvec\(params, 0\) ≠ 0", lambda d, x: d * x + 1, np.ones(3, np.float32)),
        (ValueError, "JAX cannot transpose it", lambda d, x: d * x * x, np.ones(3, np.float32)),
        (ValueError, "JAX cannot transpose it", lambda d, x: d * jnp.abs(x), np.ones(3, np.float32)),
        (
            TypeError,
            "v0 must be floating point of 32 bits or more, found int32",
            lambda d, x: d * x,
            np.ones(3, np.int32),
        ),
        (
            TypeError,
            "v0 must be floating point of 32 bits or more, found float16",
            lambda d, x: d * x,
            np.ones(3, np.float16),
        ),
        (TypeError, "must return the dtype of v0, found complex64", lambda d, x: 1j * d * x, np.ones(3, np.float32)),
    ],
)
def test_what_is_wrong_with_an_operator_is_named(error, message, matvec, v0):
    d = jnp.arange(1.0, 4.0)
    with pytest.raises(error, match=message):
        sj.operator_triplet(matvec, d, v0)
    with pytest.raises(error, match=message):
        jax.grad(lambda d: sj.operator_triplet(matvec, d, v0).sigma)(d)


def test_under_jit_a_bias_gives_nan():
    assert jnp.isnan(jax.jit(lambda d: sj.operator_triplet(lambda d, x: d * x + 1, d, jnp.ones(3)).sigma)(jnp.ones(3)))


def test_a_start_of_zeros_gives_nan():
    assert jnp.isnan(sj.operator_triplet(lambda d, x: d * x, jnp.ones(3), jnp.zeros(3)).sigma)


@pytest.mark.slow
@pytest.mark.parametrize("complex_", [True, False], ids=["complex", "real"])
def test_a_given_adjoint_serves_the_iterations_alone(x64, complex_):
    """It reads the parameters as a constant, and takes a traced number from elsewhere; no derivative is lost."""
    A, v0 = jnp.asarray(normal(6, 4, complex_=complex_)), jnp.asarray(normal(2, 2, seed=1, complex_=complex_))
    calls = []

    def loss(triplet):
        return triplet.sigma + jnp.abs(triplet.u.ravel()[1]) ** 2 + jnp.abs(triplet.v.ravel()[0]) ** 2

    def of(A, scale):
        def rmatvec(A, y):
            calls.append(y.shape)
            return scale * (jax.lax.stop_gradient(A).conj().T @ y.ravel()).reshape(2, 2)

        return loss(sj.operator_triplet(lambda A, x: scale * (A @ x.ravel())[:, None], A, v0, rmatvec=rmatvec))

    found = jax.jit(jax.grad(of, (0, 1)))(A, 1.5)
    truth = jax.grad(lambda A, c: loss(sj.singular_triplet(c * A, v0=v0.ravel())), (0, 1))(A, 1.5)
    assert all(relative_error(x, y) < 1e-12 for x, y in zip(found, truth)) and set(calls) == {(6, 1)}
    second = lambda f: jax.jit(jax.hessian(lambda t: f(A + t * A * A)))(0.1)
    ours, truth = second(lambda A: of(A, 1.0)), second(lambda A: loss(sj.singular_triplet(A, v0=v0.ravel())))
    assert abs(ours / truth - 1) < 1e-9


@pytest.mark.parametrize("wrong", [lambda A, y: 2 * (A.T @ y), lambda A, y: -A.T @ y], ids=["twice", "minus"])
def test_an_adjoint_of_another_matrix_is_named(wrong):
    A, v0 = jnp.asarray(normal(5, 4), jnp.float32), jnp.ones(4)
    f = lambda A: sj.operator_triplet(lambda A, x: A @ x, A, v0, rmatvec=wrong).sigma
    with pytest.raises(ValueError, match="not those of a matrix and its adjoint"):
        f(A)
    assert jnp.isnan(jax.jit(f)(A))
    for answer in (lambda A, y: y, lambda A, y: None, lambda A, y: 1j * v0):
        with pytest.raises(
            TypeError, match=r"rmatvec\(params, y\) must return an array like v0, float32 of shape \(4,\)"
        ):
            sj.operator_triplet(lambda A, x: A @ x, A, v0, rmatvec=answer)
