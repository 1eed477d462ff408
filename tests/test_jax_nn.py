"""The gain of a layer in JAX: against PyTorch's side and the formed matrix, and held from step to step."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from marks import slow_but
from torch import nn

import svdgrad.nn
from svdgrad.jax import lanczos
from svdgrad.jax.layer import rounded_up
from svdgrad.jax.nn import GainState, gain_step, init_state, operator_norm, upper_bound


def convolution(kernel, x, stride=1, padding="SAME", dilation=1, groups=1):
    dims = kernel.ndim - 2
    return lax.conv_general_dilated(
        x[None], kernel, dims * (stride,), padding, None, dims * (dilation,), feature_group_count=groups
    )[0]


def transposed(kernel, x):
    """torch.nn.ConvTranspose1d with stride 3: the transpose of a convolution, as its gradient."""
    return jax.linear_transpose(lambda y: convolution(kernel, y, 3, "VALID"), jnp.zeros((3, 43), x.dtype))(x)[0]


def circle(kernel, x):
    return convolution(kernel, jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="wrap"), padding="VALID")


def biased(params, x):
    return convolution(params["kernel"], x) + params["bias"][:, None, None]


LAYERS = {
    "linear": (lambda W, x: W @ x, lambda: nn.Linear(130, 90), (130,)),
    "conv1d, dilation": (
        partial(convolution, padding=[(2, 2)], dilation=2),
        lambda: nn.Conv1d(3, 5, 4, padding=2, dilation=2),
        (3, 40),
    ),
    "conv2d": (convolution, lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 12, 11)),
    "conv2d, stride": (
        partial(convolution, stride=2, padding=[(1, 1), (1, 1)], groups=2),
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        (4, 11, 9),
    ),
    "conv2d, circle": (circle, lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 11, 9)),
    "transposed 1d": (transposed, lambda: nn.ConvTranspose1d(4, 3, 4, stride=3), (4, 14)),
}


def made(name):
    torch.manual_seed(3)
    layer, make, shape = LAYERS[name]
    theirs = make()
    return layer, jnp.asarray(theirs.weight.detach().double().numpy(), float), shape, theirs


def formed(layer, params, shape):
    """The matrix of a layer, column by column."""
    dtype = jax.tree.leaves(params)[0].dtype
    columns = jax.vmap(lambda x: jnp.ravel(layer(params, x) - layer(params, jnp.zeros(shape, dtype))))
    return columns(jnp.eye(math.prod(shape), dtype=dtype).reshape(-1, *shape)).T


def true_gain(layer, params, shape):
    return np.linalg.norm(np.asarray(formed(layer, params, shape), np.float64), 2)


# --- the norm ---------------------------------------------------------------------------------------------------------


SINGLE = ("transposed 1d",)  # of the others make test sees the gain in double precision, just below


@pytest.mark.parametrize("name", [pytest.param(x, marks=[] if x in SINGLE else pytest.mark.slow) for x in LAYERS])
def test_the_gain_is_that_of_the_formed_matrix_and_of_the_other_side(name):
    layer, weight, shape, theirs = made(name)
    sigma = jax.jit(lambda W: operator_norm(layer, W, shape))(weight)
    assert sigma.dtype == weight.dtype and sigma.shape == ()
    assert abs(sigma / true_gain(layer, weight, shape) - 1) < 1e-5
    assert abs(sigma / svdgrad.nn.operator_norm(theirs, shape).item() - 1) < 1e-5


@pytest.mark.parametrize("name", slow_but([("conv2d, stride",)], [(x,) for x in LAYERS]))
def test_its_gradient_is_that_of_the_formed_matrix(name):
    with jax.enable_x64(True):
        layer, weight, shape, _ = made(name)
        u, S, vh = np.linalg.svd(np.asarray(formed(layer, weight, shape)))
        truth = jax.grad(lambda W: u[:, 0] @ formed(layer, W, shape) @ vh[0])(weight)
        sigma, G = jax.jit(jax.value_and_grad(lambda W: operator_norm(layer, W, shape, tol=1e-18)))(weight)
        assert sigma.dtype == weight.dtype and abs(sigma / S[0] - 1) < 1e-13
        # a circle has two vectors for each of its values, and the same derivative along the kernel for both
        assert jnp.linalg.norm(G - truth) < 1e-7 * jnp.linalg.norm(truth)


@pytest.mark.slow  # that it takes no digits is looked at below
def test_a_bias_is_left_aside_and_has_no_gradient():
    kernel = jax.random.normal(jax.random.key(0), (4, 2, 3, 3))
    params = {"kernel": kernel, "bias": jnp.arange(4.0)}
    sigma, G = jax.value_and_grad(lambda p: operator_norm(biased, p, (2, 9, 9)))(params)
    assert abs(sigma / operator_norm(convolution, kernel, (2, 9, 9)) - 1) < 1e-5
    assert G["kernel"].any() and not G["bias"].any()


def test_a_bias_takes_no_digits_of_a_small_weight():
    """In layer(x) − layer(0) it would: of a weight of 1e-8 beside it a rounding is a tenth."""
    kernel, shape = 1e-8 * jax.random.normal(jax.random.key(0), (4, 2, 3, 3)), (2, 9, 9)
    params, gain = {"kernel": kernel, "bias": jnp.arange(4.0)}, true_gain(convolution, kernel, shape)
    assert abs(operator_norm(biased, params, shape) / gain - 1) < 1e-5
    assert 0.999 < gain / gain_step(biased, params, init_state(shape))[0] < 1.001
    assert 1 <= upper_bound(biased, params, shape, failure=1e-3) / gain < 1.01
    missing = params | {"bias": jnp.full(4, jnp.nan)}
    assert jnp.isnan(operator_norm(biased, missing, shape))


@pytest.mark.parametrize("dtype", slow_but([(jnp.bfloat16,)], [(jnp.float16,), (jnp.bfloat16,)]))
def test_half_precision_is_computed_in_single(dtype):
    kernel = jax.random.normal(jax.random.key(0), (4, 2, 3, 3), dtype)
    truth = operator_norm(convolution, kernel.astype(jnp.float32), (2, 9, 9))
    assert operator_norm(convolution, kernel, (2, 9, 9)) == truth.astype(dtype)
    sigma, state = gain_step(convolution, kernel, init_state((2, 9, 9)))
    assert sigma.dtype == dtype and state.v.dtype == state.excess.dtype == jnp.float32


@pytest.mark.parametrize("dtype", slow_but([(jnp.bfloat16,)], [(jnp.bfloat16,), (jnp.float16,)]))
def test_in_half_precision_the_promise_holds_for_the_number_returned(dtype):
    kernels = jax.random.normal(jax.random.key(4), (20, 4, 2, 3, 3)).astype(dtype)
    state = init_state((2, 6, 6))
    both = lambda K: (gain_step(convolution, K, state)[0], gain_step(convolution, K.astype(jnp.float32), state)[0])
    sigmas, singles = jax.jit(jax.vmap(both))(kernels)
    over = np.asarray(sigmas, np.float64) / np.asarray(singles, np.float64)
    assert sigmas.dtype == dtype and over.min() >= 1 and over.max() <= 1 + float(jnp.finfo(dtype).eps)
    assert abs(jax.grad(lambda x: rounded_up(x, dtype).astype(float))(1.0001) - 1) == 0


def test_a_complex_layer():
    with jax.enable_x64(True):
        kernel = jax.random.normal(jax.random.key(0), (3, 2, 3, 3), complex)
        truth = np.linalg.norm(np.asarray(formed(convolution, kernel, (2, 7, 7))), 2)
        assert abs(operator_norm(convolution, kernel, (2, 7, 7)) / truth - 1) < 1e-10
        sigma, state = gain_step(convolution, kernel, init_state((2, 7, 7), complex))
        assert truth / 1.001 <= sigma <= 1.003 * truth and state.v.dtype == complex


def test_out_of_steps_it_is_not_a_number():
    kernel = kernels()[0]
    few, enough = (operator_norm(convolution, kernel, SHAPE, maxiter=n) for n in (3, 200))
    assert jnp.isnan(few) and enough == operator_norm(convolution, kernel, SHAPE)


# --- the state --------------------------------------------------------------------------------------------------------

SHAPE = (3, 10, 10)
HELD = 0.997, 1.001


def kernels(count=1):
    return jax.random.normal(jax.random.key(1), (count, 8, 3, 3, 3)) / 5


@pytest.mark.parametrize("name", slow_but([("conv2d, stride",)], [(x,) for x in LAYERS]))
def test_the_bound_lies_above_and_close(name):
    layer, weight, shape, theirs = made(name)
    with jax.enable_x64(True):
        sigma = true_gain(layer, jnp.asarray(weight, float), shape)
        tau, G = jax.jit(jax.value_and_grad(lambda W: upper_bound(layer, W, shape)))(weight)
        assert tau.dtype == jnp.float64 and sigma <= tau < 1.01 * sigma
        assert sigma <= svdgrad.nn.upper_bound(theirs, shape).item() * (1 + 1e-6)
        # Euler: σ is of degree one in the weight, and so is τ
        assert G.dtype == weight.dtype and abs((G * weight).sum() / tau - 1) < 1e-5


def optimised(f):
    """jit, with the optimisations of XLA that `make test` leaves out: for loops that take longer than to compile."""
    options = {"xla_backend_optimization_level": 2, "xla_cpu_use_fusion_emitters": True}
    return jax.jit(f, compiler_options=options)


@pytest.mark.slow
def test_the_bound_is_never_below():
    kernels = jax.random.normal(jax.random.key(5), (200, 4, 3, 3, 3))
    with jax.enable_x64(True):
        taus = optimised(jax.vmap(lambda K: upper_bound(convolution, K, (3, 6, 6))))(kernels)
        sigmas = jax.vmap(lambda K: jnp.linalg.norm(formed(convolution, K.astype(float), (3, 6, 6)), 2))(kernels)
        few = float(upper_bound(convolution, kernels[0], (3, 6, 6), maxiter=3))
    over = np.asarray(taus) / np.asarray(sigmas)
    assert over.min() >= 1 and np.median(over) < 1.005 and few > 1.01 * float(sigmas[0])
    # in single precision, with a failure that it allows
    assert 1 <= upper_bound(convolution, kernels[0], (3, 6, 6), failure=1e-2) / float(sigmas[0]) < 1.01


def train(rate, steps, maxiter=48):
    """Descent on a loss of the divided kernel, in one scan: the kernels that were used, and the excess of each step."""
    x, y = jax.random.normal(jax.random.key(2), SHAPE), jax.random.normal(jax.random.key(3), (8, 10, 10))

    def loss(kernel, state):
        sigma, state = gain_step(convolution, kernel, state, maxiter=maxiter)
        return ((convolution(kernel / sigma, x) - y) ** 2).mean(), (state, kernel / sigma)

    def step(carry, _):
        kernel, state = carry
        (_, (state, used)), G = jax.value_and_grad(loss, has_aux=True)(kernel, state)
        return (kernel - rate * G / jnp.linalg.norm(G), state), (used, state.excess)

    return jax.jit(lambda carry: lax.scan(step, carry, length=steps)[1])((kernels()[0], init_state(SHAPE)))


@pytest.mark.parametrize("rate", slow_but([(0.01,)], [(0.01,), (1.0,)]))
def test_the_gain_is_held_through_a_scan_of_twenty_steps(rate):
    used, _ = train(rate, 20)
    gains = [true_gain(convolution, kernel, SHAPE) for kernel in used]
    assert HELD[0] <= min(gains) and max(gains) <= HELD[1]
    assert jnp.linalg.norm(used[-1] - used[0]) > 0.1 * rate  # and the kernel did move


def test_with_few_steps_the_promise_holds_and_the_gain_is_less():
    used, excess = train(0.1, 5, maxiter=6)
    gains = [true_gain(convolution, kernel, SHAPE) for kernel in used]
    assert max(gains) < 0.99 and (excess > 0.01).all()
    # a second step starts where the first ended: the gain comes closer to what is promised
    assert gains[-1] > gains[0]


def test_the_gradient_is_that_of_the_divided_weight():
    with jax.enable_x64(True):
        kernel, C = (jax.random.normal(jax.random.key(i), (8, 3, 3, 3), float) for i in (1, 2))
        state = init_state(SHAPE, float)

        def ours(kernel):
            sigma, _ = gain_step(convolution, kernel, state, tol=1e-10)
            return (kernel / sigma * C).sum()

        truth = jax.grad(lambda K: (K / jnp.linalg.norm(formed(convolution, K, SHAPE), 2) * C).sum())(kernel)
        factor = gain_step(convolution, kernel, state, tol=1e-10)[0] / true_gain(convolution, kernel, SHAPE)
        for G in (jax.grad(ours)(kernel), jax.jit(jax.grad(ours))(kernel)):
            assert jnp.linalg.norm(factor * G - truth) < 1e-4 * jnp.linalg.norm(truth)


@pytest.mark.slow
def test_layers_side_by_side_are_layers_one_by_one():
    K = kernels(3) * jnp.array([1.0, 10.0, 0.1])[:, None, None, None, None]
    step = jax.jit(partial(gain_step, convolution))
    states = jax.vmap(lambda _: init_state(SHAPE))(K)
    for _ in range(2):
        sigmas, following = jax.jit(jax.vmap(step))(K, states)
        for i, (kernel, sigma) in enumerate(zip(K, sigmas)):
            one, state = step(kernel, jax.tree.map(lambda x: x[i], states))
            # the batch goes on until its last layer is done, in steps that were frozen for the others
            np.testing.assert_allclose(sigma, one, rtol=1e-5)
            np.testing.assert_allclose(jnp.abs((state.v * following.v[i]).sum()), 1, rtol=1e-5)
        states, K = following, K + 0.01 * K[::-1]


def test_one_trace_for_all_steps_and_the_state_is_donated():
    traces = []

    @partial(jax.jit, donate_argnums=1)
    def step(kernel, state):
        traces.append(None)
        return gain_step(convolution, kernel, state)

    kernel, state = kernels()[0], init_state(SHAPE)
    for _ in range(4):
        before = state
        sigma, state = step(kernel, state)
        kernel = 1.01 * kernel / sigma
        assert before.v.is_deleted() and before.excess.is_deleted()
    assert len(traces) == 1


def test_a_weight_that_did_not_change_may_trust_the_state():
    kernel = kernels()[0]
    sigma, state = gain_step(convolution, kernel, init_state(SHAPE))
    again, same = gain_step(convolution, kernel, state, maxiter=0)
    np.testing.assert_allclose(again, sigma, rtol=1e-5)
    assert (same.v == state.v).all() and same.excess == state.excess
    G, truth = (jax.grad(lambda K, m=m: gain_step(convolution, K, state, maxiter=m)[0])(kernel) for m in (0, 48))
    assert jnp.linalg.norm(G - truth) < 0.05 * jnp.linalg.norm(truth)  # as far apart as two v with a residual of √tol


def test_zeros_and_what_is_not_finite():
    state = gain_step(convolution, kernels()[0], init_state(SHAPE))[1]
    sigma, after = gain_step(convolution, jnp.zeros((8, 3, 3, 3)), state)
    assert sigma == 0 and after.excess == 0
    assert jnp.isinf(gain_step(convolution, jnp.zeros((8, 3, 3, 3)), init_state(SHAPE), maxiter=0)[0])
    for bad in (jnp.nan, jnp.inf):
        sigma, after = gain_step(convolution, kernels()[0].at[0, 0, 0, 0].set(bad), state)
        assert jnp.isnan(sigma) and (after.v == state.v).all() and after.excess == state.excess


def soft(kernel, state, bound, **options):
    """As the docstring has it: only what exceeds the bound shrinks."""
    sigma, state = gain_step(convolution, kernel, state, **options)
    return kernel / jnp.maximum(sigma / bound, 1), state


def test_soft_shrinks_only_what_exceeds_the_bound():
    kernel = kernels()[0]
    gain = true_gain(convolution, kernel, SHAPE)
    step = jax.jit(soft)
    divided, state = step(kernel, init_state(SHAPE), 0.5 * gain)
    assert HELD[0] <= true_gain(convolution, divided, SHAPE) / (0.5 * gain) <= HELD[1]
    # σ is at most 1.003 times the gain
    assert (step(kernel, state, 1.004 * gain)[0] == kernel).all()
    # and in a scan, where the kernel grows through the bound: smaller gains are left as they are
    grown = lax.scan(lambda s, c: soft(c * kernel, s, gain)[::-1], init_state(SHAPE), jnp.array([0.5, 0.9, 1.1, 2.0]))
    gains = [true_gain(convolution, K, SHAPE) / gain for K in grown[1]]
    np.testing.assert_allclose(gains, [0.5, 0.9, 1, 1], rtol=4e-3)


def test_soft_has_the_gradient_of_the_weight_or_of_the_divided_weight():
    kernel, state = kernels()[0], init_state(SHAPE)
    G = jax.jit(jax.grad(lambda K, bound: soft(K, state, bound)[0].sum()))
    assert (G(kernel, 100.0) == 1).all()
    held = jax.grad(lambda K: (K / gain_step(convolution, K, state)[0]).sum())(kernel)
    np.testing.assert_allclose(G(kernel, 1.0), held, rtol=1e-4, atol=1e-5)
    # a layer of zeros stays zero, and can leave it
    zeros = 0 * kernel
    assert not soft(zeros, state, 1.0)[0].any() and (G(zeros, 1.0) == 1).all()


@pytest.mark.parametrize("lost", [0.0, jnp.nan])
def test_a_state_that_was_lost_is_one_that_knows_nothing(lost):
    """As zeros_like makes one for a checkpoint to be loaded into."""
    kernel, fresh = kernels()[0], init_state(SHAPE)
    state = jax.tree.map(lambda x: lost * jnp.ones_like(x), fresh)
    again, begun = (gain_step(convolution, kernel, s) for s in (state, fresh))
    assert again[0] == begun[0] and (again[1].v == begun[1].v).all()
    assert jnp.isinf(gain_step(convolution, kernel, state, maxiter=0)[0])


def relu(kernel, x):
    return jax.nn.relu(convolution(kernel, x))


def half(kernel, x):
    """A layer with a dtype of its own, as nnx.Conv(…, dtype=jnp.bfloat16)."""
    return convolution(kernel.astype(jnp.bfloat16), x.astype(jnp.bfloat16))


def norm_with(**options):
    return operator_norm(convolution, kernels()[0], SHAPE, **options)


step_of = partial(gain_step, convolution)


def step_with(**options):
    return step_of(kernels()[0], init_state(SHAPE), **options)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: operator_norm(relu, kernels()[0], SHAPE), ValueError, "linear"),
        (lambda: operator_norm(lambda _, x: 2 * x, (), SHAPE), TypeError, "weight of the layer is missing"),
        (lambda: gain_step(relu, kernels()[0], init_state(SHAPE)), ValueError, "linear"),
        (lambda: init_state(SHAPE, jnp.bfloat16), TypeError, "32 bits or more"),
        (lambda: init_state((3, 0)), ValueError, "input_shape must be 1 or more"),
        (lambda: init_state((3, 8.0)), TypeError, "input_shape must be integers"),
        (lambda: init_state(-3), ValueError, "input_shape must be 1 or more"),
        (lambda: operator_norm(convolution, kernels()[0], (-3, -1, 10)), ValueError, "input_shape must be 1 or more"),
        (lambda: operator_norm(half, kernels()[0], SHAPE), TypeError, "layer must return float32.*found bfloat16"),
        (lambda: gain_step(half, kernels()[0], init_state(SHAPE)), TypeError, "leave dtype out"),
        (lambda: norm_with(tol=-1), ValueError, "tol must be 0 or more, found -1"),
        (lambda: norm_with(tol="small"), TypeError, "tol must be a number"),
        (lambda: jax.jit(lambda t: norm_with(tol=t))(1e-3), TypeError, "tol must be a number.*under jit it is static"),
        (lambda: norm_with(maxiter=0), ValueError, "maxiter must be at least 1"),
        (lambda: step_of(1j * kernels()[0], init_state(SHAPE)), TypeError, "state must be complex for a complex layer"),
        (lambda: step_of(kernels()[0], init_state(SHAPE, complex)), TypeError, "state must be real for a real layer"),
        (lambda: step_of(kernels()[0], None), TypeError, "state must be a GainState, found NoneType"),
        (lambda: upper_bound(relu, kernels()[0], SHAPE, 0.1), ValueError, "linear"),
        (lambda: upper_bound(convolution, kernels()[0], SHAPE), ValueError, "jax_enable_x64 allows less"),
        (lambda: upper_bound(convolution, kernels()[0], SHAPE, 1.0), ValueError, "failure must be a probability"),
        (lambda: upper_bound(convolution, kernels()[0], SHAPE, "few"), TypeError, "failure must be a number"),
        (lambda: step_with(tol=0), ValueError, "tol must be positive"),
        (lambda: step_with(missed=None), TypeError, "missed must be a number"),
        (lambda: step_with(missed=0), ValueError, "missed must be a probability"),
        (lambda: step_with(maxiter=-1), ValueError, "maxiter must be"),
        (lambda: step_with(maxiter=1.5), TypeError, "maxiter must be an integer"),
    ],
)
def test_what_is_wrong_is_one_clear_error(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- the evidence -----------------------------------------------------------------------------------------------------


def test_the_excess_is_the_least_number_that_the_evidence_allows():
    """So few starts miss that none will be seen; with a risk of a tenth they are, and never more than a tenth."""
    d = jnp.concatenate([jnp.array([1.0]), jnp.full(99, 0.9), jnp.full(100, 0.5)])

    def is_wrong(key):
        start = jax.random.normal(key, (200,))
        start = start / jnp.linalg.norm(start)
        begun = lanczos._begun(jnp.zeros((3, 200)), start, jnp.zeros(()))
        basis = lanczos._extended(lambda x: d * d * x, begun, jnp.asarray(2))
        excess = lanczos._excess(basis, lanczos._most(0.1, 200, jnp.float32))
        return jnp.sqrt(basis.theta2[0]) * (1 + excess) < 1

    wrong = jax.vmap(is_wrong)(jax.random.split(jax.random.key(0), 300)).sum()
    assert 0 < wrong <= 45  # a tenth of 300, and three standard deviations


def test_in_single_precision_the_evidence_keeps_its_digits():
    """Against the definition in double precision: least squares over polynomials, and to a thousandth of 1e-7."""
    d = np.r_[1, 0.995, np.linspace(0.98, 0.01, 298)]
    start = np.random.default_rng(0).standard_normal(300)
    start /= np.linalg.norm(start)
    for dtype, steps, value in ((np.float32, 16, 1.02), (np.float32, 40, 1.02), (np.float64, 40, 1.02)):
        with jax.enable_x64(dtype is np.float64):
            squares = jnp.asarray(d * d, dtype)
            begun = lanczos._begun(jnp.zeros((49, 300), dtype), jnp.asarray(start, dtype), jnp.zeros((), dtype))
            basis = lanczos._extended(lambda x: squares * x, begun, jnp.asarray(steps))
            c = lanczos._hidden(basis, jnp.asarray([value], dtype))[0]
        # an orthonormal basis of the polynomials of degree below the number of steps, times the start
        Q, _ = np.linalg.qr(np.polynomial.chebyshev.chebvander(2 * d * d - 1, steps - 1) * start[:, None])
        columns = (value - d * d)[:, None] * Q
        least = np.linalg.norm(start - columns @ np.linalg.lstsq(columns, start)[0])
        assert abs(float(c) / least - 1) < 1e-3, (dtype, steps)


def test_a_start_that_is_trusted_and_right_costs_one_step():
    counted = []

    def A(x):
        jax.debug.callback(lambda: counted.append(None))
        return jnp.linspace(1, 0.1, 60) * x

    how = lanczos.How("lanczos", "cg", 0, 1e-3, 100, None)
    sigma = lanczos.lanczos(A, A, jnp.eye(1, 60)[0], how)[0].sigma
    jax.effects_barrier()
    assert abs(sigma - 1) < 1e-6 and len(counted) <= 4  # the size, a step of two, and u


# --- the libraries of layers ------------------------------------------------------------------------------------------


def test_a_layer_of_equinox():
    eqx = pytest.importorskip("equinox", reason="Equinox is no dependency of the project")
    conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=jax.random.key(0))

    @eqx.filter_jit(donate="all-except-first")
    def step(conv, state):
        sigma, state = gain_step(lambda conv, x: conv(x), conv, state)
        return eqx.tree_at(lambda c: c.weight, conv, conv.weight / sigma), state

    divided, state = step(conv, init_state(SHAPE))
    assert HELD[0] <= true_gain(lambda conv, x: conv(x), divided, SHAPE) <= HELD[1]
    G = eqx.filter_grad(lambda conv: gain_step(lambda conv, x: conv(x), conv, state)[0])(conv)
    assert G.weight.any() and not G.bias.any()


def test_a_layer_of_flax():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is no dependency of the project")
    conv = nnx.Conv(3, 8, (3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0))

    @nnx.jit
    def step(conv, state):
        graph, params = nnx.split(conv)
        sigma, state = gain_step(lambda p, x: nnx.merge(graph, p)(x), params, state)
        conv.kernel[...] = conv.kernel[...] / sigma
        return state

    step(conv, init_state((10, 10, 3)))
    graph, params = nnx.split(conv)
    assert HELD[0] <= true_gain(lambda p, x: nnx.merge(graph, p)(x), params, (10, 10, 3)) <= HELD[1]


def test_the_state_is_a_pytree_of_two_arrays():
    state = init_state(SHAPE)
    assert isinstance(state, GainState) and [x.shape for x in jax.tree.leaves(state)] == [SHAPE, ()]
    assert abs(jnp.linalg.norm(state.v) - 1) < 1e-6 and jnp.isinf(state.excess)
