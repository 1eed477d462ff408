"""The JAX side: every scale, every global state, and what is wrong with an input is named."""

import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import Family, gapped
from marks import slow_but

import svdgrad
import svdgrad.jax as sj
from svdgrad.lab import loss_vectors, relative_error

WAYS = {
    "auto": {},
    "svd": {"forward": "svd"},
    "svd, cg": {"forward": "svd", "adjoint": "cg"},
    "gram": {"forward": "gram"},
    "gram, cg": {"forward": "gram", "adjoint": "cg"},
    "lanczos": {"forward": "lanczos"},
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- scales: A from 1e-30 to 1e37, cotangents from 1e-34 to 1e37, wherever the gradient is a normal number


@partial(jax.jit, static_argnames=("way", "complex_"))
def gradient(A, xi, phi, psi, v0, way, complex_):
    _, back = jax.vjp(lambda A: sj.singular_triplet(A, v0=v0, **WAYS[way]), A)
    return back(sj.Triplet(xi, phi, psi))[0]


def scales(way, m, n, dtype, exponents=(-30, -10, 0, 10, 30, 37)):
    """What fails of the combinations, against the gradient at scale one in double precision by the full SVD, of which
    the part of ξ does not change with A, and that of φ and ψ as 1/A.
    """
    complex_ = np.issubdtype(dtype, np.complexfloating)
    A = Family(m, n, gapped(min(m, n), 0.3)).matrix().numpy()
    xi, phi, psi = (x.numpy() for x in loss_vectors(torch.from_numpy(A)))
    if complex_:
        A, phi, psi = A * (1 + 2j) / 5**0.5, phi + 1j * phi[::-1], psi + 1j * psi[::-1]
    v0 = np.linalg.svd(A)[2][0].conj()
    real = np.finfo(dtype).dtype
    wide = np.complex128 if complex_ else np.float64
    arguments = lambda xi, phi, psi, wide, real: (
        jnp.asarray(x, dtype) for x, dtype in ((xi, real), (phi, wide), (psi, wide), (v0, wide))
    )
    limits, bad = np.finfo(real), []
    with jax.enable_x64(True):
        of_sigma, of_vectors = (
            np.asarray(gradient(jnp.asarray(A, wide), *arguments(*c, wide, np.float64), "svd", complex_))
            for c in ((xi, 0 * phi, 0 * psi), (0 * xi, phi, psi))
        )
        # the vectors also by themselves, or the part of ξ hides theirs
        for a, b, on in itertools.product(exponents, (-34, -30, -10, 0, 10, 30, 37, max(exponents)), (1, 0)):
            c, p = on * 10.0**b * of_sigma, 10.0 ** (b - a) * of_vectors
            largest = np.abs(c + p).max()
            if not limits.tiny / limits.eps < largest < limits.max / 10 or np.abs(p).max() > limits.max / 10:
                continue  # no normal numbers to all its digits
            scaled = arguments(*(10.0**b * x for x in (on * xi, phi, psi)), dtype, real)
            G = gradient(jnp.asarray(10.0**a * A, dtype), *scaled, way, complex_)
            error = relative_error(np.asarray(G, wide), c + p)
            if not error <= 50 * limits.eps / 0.3:
                bad.append((a, b, on, error))
    return bad


@pytest.mark.parametrize("way", ["auto", "svd"])
def test_every_scale(way):
    assert not scales(way, 12, 9, np.float32)


def test_the_largest_scales_of_double_precision():
    assert not scales("auto", 12, 9, np.float64, (300, 304, 307))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (10, 10)], ids=str)
def test_every_scale_in_every_way(shape, way, dtype):
    assert not scales(way, *shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(84, 81), (81, 84)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_every_scale_beyond_the_threshold_of_auto(shape, dtype):
    assert not scales("auto", *shape, dtype)


def test_what_xla_takes_for_zero_gives_nan():
    """Numbers below the smallest normal one are zero to XLA on CPUs, so digits of a matrix that small are lost."""
    for way in ("auto", "svd", "lanczos"):
        for scale in (1e-33, 1e-40):
            for x in sj.singular_triplet(jnp.asarray(normal(4, 3) * scale, jnp.float32), **WAYS[way]):
                assert jnp.isnan(x).all()
        assert sj.singular_triplet(jnp.zeros((4, 3)), **WAYS[way]).sigma == 0


def test_beyond_its_range_a_half_precision_sigma_is_infinite():
    sigma, u, v = sj.singular_triplet(jnp.full((4, 4), 30000, jnp.float16))
    assert jnp.isinf(sigma) and jnp.isfinite(u).all() and jnp.isfinite(v).all()


# --- global states


def numbers(dtype, way):
    A = jnp.asarray(normal(5, 4), dtype)
    loss = lambda A: (t := sj.singular_triplet(A, **WAYS[way])).sigma + jnp.abs(t.u[0]) ** 2
    return jax.value_and_grad(loss)(A)


def operator(dtype):
    A = jnp.asarray(normal(5, 4), dtype)
    ones = jnp.ones((2, 2), dtype)
    loss = lambda A: (t := sj.operator_triplet(lambda A, x: A @ x.ravel(), A, ones)).sigma + jnp.abs(t.u[0]) ** 2
    return jax.value_and_grad(loss)(A)


STATES = {
    "double precision": lambda: jax.enable_x64(True),
    "single precision": lambda: jax.enable_x64(False),
    "bfloat16 products": lambda: jax.default_matmul_precision("bfloat16"),
    "debug_nans": lambda: jax.debug_nans(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "default device": lambda: jax.default_device(jax.devices("cpu")[0]),
    "leaks": lambda: jax.checking_leaks(),
}


@pytest.mark.parametrize(
    "state",
    slow_but([("double precision",), ("rank promotion",), ("default device",), ("leaks",)], [(x,) for x in STATES]),
)
def test_a_global_state_changes_nothing(state):
    truth = numbers(np.float32, "svd")
    with STATES[state]():
        found = [numbers(np.float32, "auto"), numbers(np.float32, "lanczos")]
        assert numbers(np.complex64, "svd")[1].dtype == np.complex64
    for value, G in found:
        np.testing.assert_allclose(value, truth[0], rtol=1e-5)
        np.testing.assert_allclose(G, truth[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("state", STATES)
def test_a_global_state_changes_nothing_in_any_way(state, dtype):
    truth = numbers(dtype, "svd")
    with STATES[state]():
        found = [*(numbers(dtype, way) for way in WAYS), operator(dtype)]
    for value, G in found:
        np.testing.assert_allclose(value, truth[0], rtol=1e-5)
        np.testing.assert_allclose(G, truth[1], atol=1e-5)


# --- errors

EYE = np.eye(3, dtype=np.float32)
MANY = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "how"),
    [
        (TypeError, "index must be an integer, found bool", {"index": True}),
        (TypeError, "index must be an integer, found str", {"index": "0"}),
        (TypeError, "index must be an integer, found float", {"index": 1.0}),
        (TypeError, "index must be an integer, found slice", {"index": slice(2)}),
        (ValueError, "tol must be 0 or more, found -1.0", {"tol": -1.0}),
        (ValueError, "tol must be 0 or more, found nan", {"tol": float("nan")}),
        (TypeError, "tol must be a number, found str", {"tol": "tight"}),
        (ValueError, "maxiter must be at least 1, found 0", {"maxiter": 0}),
        (TypeError, "maxiter must be an integer, found float", {"maxiter": 1e3}),
        (ValueError, "missed must be a probability", {"missed": 0.0}),
        (ValueError, "missed must be a probability", {"missed": 1.5}),
        (
            ValueError,
            "tol is an option of an iteration, found it with forward 'gram'",
            {"forward": "gram", "tol": 1e-3},
        ),
        (ValueError, "maxiter is an option of an iteration", {"forward": "svd", "maxiter": 9}),
        (ValueError, "tol is an option of an iteration", {"forward": "svd", "adjoint": "cg", "tol": 1e-3}),
        (ValueError, "v0 must have 3 entries", {"v0": np.ones(2, np.float32)}),
        (ValueError, r"v0 must be one vector, or one for each matrix, found shape \(4, 3\)", {"v0": MANY}),
        (TypeError, "v0 must be real for a real A, found complex64", {"v0": np.ones(3, np.complex64)}),
        (TypeError, "v0 must be numbers, found bool", {"v0": np.ones(3, bool)}),
    ],
    ids=lambda x: x[:24] if isinstance(x, str) else "",
)
def test_what_is_wrong_is_named(error, message, how):
    with pytest.raises(error, match=message):
        sj.singular_triplet(EYE, **how)
    with pytest.raises(error, match=message):
        jax.jit(lambda A: sj.singular_triplet(A, **how))(EYE)


def test_what_is_static_and_traced_is_named():
    for name in ("index", "maxiter"):
        with pytest.raises(TypeError, match=f"{name} must be an integer, .* static_argnames='{name}'"):
            jax.jit(lambda A, x: sj.singular_triplet(A, **{name: x}))(EYE, 0)
    with pytest.raises(TypeError, match="tol must be a number, .* static_argnames='tol'"):
        jax.jit(lambda A, x: sj.singular_triplet(A, tol=x))(EYE, 1e-3)


def test_options_that_auto_may_need_are_not_wrong():
    assert sj.singular_triplet(EYE, tol=1e-3, maxiter=9, missed=None).sigma == 1
    assert sj.singular_triplet(EYE, index=np.int64(-1)).sigma == 1
    assert sj.spectral_norm(EYE, "gram", v0=[1, 0, 0]) == 1


@pytest.mark.parametrize("way", ["auto", "svd", "lanczos"])
@pytest.mark.parametrize("v0", [np.zeros(3), np.array([1, np.nan, 0]), np.array([1, np.inf, 0])], ids=str)
def test_a_start_that_says_nothing_gives_nan(v0, way):
    for x in sj.singular_triplet(jnp.asarray(normal(4, 3), jnp.float32), v0=v0, **WAYS[way]):
        assert jnp.isnan(x).all()


@pytest.mark.parametrize(
    ("error", "message", "matvec", "v0"),
    [
        (TypeError, "matvec must return one array, found tuple", lambda d, x: (d * x,), np.ones(3, np.float32)),
        (TypeError, "matvec must return one array, found NoneType", lambda d, x: None, np.ones(3, np.float32)),
        (ValueError, "v0 must have at least one entry", lambda d, x: d[:0] * x, np.ones(0, np.float32)),
        (ValueError, "matvec must return at least one entry", lambda d, x: (d * x)[:0], np.ones(3, np.float32)),
    ],
    ids=["tuple", "None", "empty start", "empty result"],
)
def test_what_is_wrong_with_an_operator_is_named(error, message, matvec, v0):
    with pytest.raises(error, match=message):
        sj.operator_triplet(matvec, jnp.arange(1.0, 4.0), v0)


def test_nan_in_the_parameters_is_not_a_bias():
    assert jnp.isnan(sj.operator_triplet(lambda d, x: d * x, jnp.array([1.0, jnp.nan]), jnp.ones(2)).sigma)


#: (function, parameter) -> why one side has it and the other has not, or has it otherwise
DIFFERENCES: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", [name for name in sj.__all__ if name in svdgrad.__all__ and name != "nn"])
def test_the_same_parameters_and_defaults_on_both_sides(name):
    """Types apart, whose names differ as Tensor and Array do."""
    ours, theirs = (
        [(x.name, x.kind, x.default) for x in inspect.signature(getattr(side, name)).parameters.values()]
        for side in (sj, svdgrad)
    )
    differ = {x[0] for x in {*ours} ^ {*theirs}}
    assert differ == {parameter for function, parameter in DIFFERENCES if function == name}
    kept = lambda side: [x for x in side if x[0] not in differ]
    assert kept(ours) == kept(theirs)  # in this order


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_what_is_not_finite_is_nan(dtype):
    """LAPACK's SVD did not come back from Inf in a 5×4 matrix."""
    A = jnp.eye(5, 4, dtype=dtype)
    for bad in (A.at[0, 0].set(np.inf), A.T.at[1, 0].set(-np.inf), A.at[2, 1].set(np.nan)):
        for found in (
            sj.singular_triplets(bad, 2).sigma,
            sj.low_rank(bad, 2, forward="gram").U,
            sj.singular_triplet(bad, forward="svd").v,
            jax.vmap(lambda A: sj.singular_triplet(A, index=1).u)(jnp.stack([bad, jnp.eye(*bad.shape)]))[0],
        ):
            assert jnp.isnan(found).all()
