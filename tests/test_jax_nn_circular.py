"""A convolution that wraps around, in JAX: its norm by frequencies against its matrix, which NumPy forms by shifts."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from torch import nn

import svdgrad.nn
from svdgrad.jax.nn import circular_norm, operator_norm

#: shape of the kernel, spatial shape, dilation, groups
CASES = {
    "1d, even": ((3, 2, 4), (7,), 1, 1),
    "2d": ((4, 3, 3, 3), (6, 5), 1, 1),
    "2d, dilation and groups": ((6, 2, 3, 2), (6, 7), (2, 3), 2),
    "2d, depthwise": ((4, 1, 3, 3), (4, 4), 1, 4),
    "3d, even": ((2, 3, 2, 2, 2), (4, 3, 2), 1, 1),
    "a kernel wider than the image": ((2, 3, 5, 3), (3, 4), (1, 2), 1),
    "one pixel": ((3, 4, 3, 3), (1, 1), 1, 1),
}


def drawn(name, kind=float, seed=0):
    shape, spatial, dilation, groups = CASES[name]
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if kind is complex else 0)
    return kernel, spatial, dilation, groups


def formed(kernel, spatial, dilation=1, groups=1):
    """y[x] = Σ C[t] input[x + d t], a sum of shifts of the image, for each pair of channels that are connected."""
    (out, within), taps, size = kernel.shape[:2], kernel.shape[2:], math.prod(spatial)
    steps = np.broadcast_to(dilation, len(taps))
    pixels = np.eye(size).reshape(size, *spatial)
    A = np.zeros((out, size, groups * within, size), kernel.dtype)
    for t in np.ndindex(*taps):
        shift = np.roll(pixels, steps * t, axis=range(1, len(taps) + 1)).reshape(size, size)
        for o in range(out):
            first = o // (out // groups) * within
            for c in range(within):
                A[o, :, first + c] += kernel[(o, c, *t)] * shift
    return A.reshape(out * size, -1)


def slope(kernel, spatial, dilation, groups):
    """σ of the matrix by NumPy's SVD, and its derivative uᴴ dA v along every entry of the kernel.

    A circle has two vectors for nearly each of its values, and the same derivative along a real kernel for both.
    """
    U, S, Vh = np.linalg.svd(formed(kernel, spatial, dilation, groups))
    u, v, truth = U[:, 0], Vh[0].conj(), np.zeros_like(kernel)
    for entry in np.ndindex(*kernel.shape):
        one = np.zeros_like(kernel)
        one[entry] = 1
        truth[entry] = u.conj() @ formed(one, spatial, dilation, groups) @ v
    return S[0], truth


@pytest.mark.parametrize("name", CASES)
def test_norm_and_gradient_are_those_of_the_formed_matrix(name):
    kernel, spatial, dilation, groups = drawn(name)
    sigma, truth = slope(kernel, spatial, dilation, groups)
    with jax.enable_x64(True):
        value, G = jax.jit(jax.value_and_grad(lambda K: circular_norm(K, spatial, dilation, groups)))(kernel)
    assert value.shape == () and value.dtype == jnp.float64
    assert abs(float(value) / sigma - 1) < 1e-13
    assert np.linalg.norm(np.asarray(G) - truth) < 1e-7 * np.linalg.norm(truth)


def test_a_complex_kernel_has_all_its_frequencies():
    kernel, *rest = drawn("2d, dilation and groups", complex)
    sigma, truth = slope(kernel, *rest)
    with jax.enable_x64(True):
        value, G = jax.value_and_grad(circular_norm)(jnp.asarray(kernel), *rest)
    assert value.dtype == jnp.float64 and abs(float(value) / sigma - 1) < 1e-13
    # JAX's gradient of a real number is ∂/∂Re − i ∂/∂Im: for σ, which moves by Re(uᴴ dA v), uᴴ dA v itself
    assert np.linalg.norm(np.asarray(G) - truth) < 1e-7 * np.linalg.norm(truth)


def test_it_is_the_norm_of_the_layer_in_either_framework_at_either_end():
    """An even kernel has one entry more on one side; which one turns the output by a pixel, and no more."""
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, (3, 2), padding="same", dilation=(2, 1), groups=2, padding_mode="circular")
    kernel, truth = jnp.asarray(theirs.weight.detach().numpy()), svdgrad.nn.operator_norm(theirs, (4, 7, 6)).item()
    for ends in ((0, 1), (1, 0)):

        def layer(kernel, x, ends=ends):
            x = jnp.pad(x, ((0, 0), (2, 2), ends), mode="wrap")[None]
            return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", None, (2, 1), feature_group_count=2)[0]

        assert abs(operator_norm(layer, kernel, (4, 7, 6)) / truth - 1) < 1e-5
    assert abs(circular_norm(kernel, (7, 6), (2, 1), 2) / truth - 1) < 1e-5


def test_more_channels_than_the_gram_matrix_is_chosen_for():
    kernel = np.random.default_rng(0).standard_normal((90, 85, 2)).astype(np.float32)
    assert abs(circular_norm(kernel, (3,)) / np.linalg.norm(formed(kernel, (3,)), 2) - 1) < 1e-5


def test_kernels_side_by_side_and_through_a_scan():
    kernels = np.random.default_rng(0).standard_normal((3, 4, 2, 3, 3)).astype(np.float32)
    norms = jax.jit(jax.vmap(lambda K: circular_norm(K, (5, 6))))(kernels)
    assert np.allclose(norms, [np.linalg.norm(formed(K, (5, 6)), 2) for K in kernels], rtol=1e-5, atol=0)

    def step(kernel, _):
        kernel = kernel - 0.1 * jax.grad(circular_norm)(kernel, (5, 6))
        kernel = kernel / circular_norm(kernel, (5, 6))
        return kernel, kernel

    used = jax.jit(lambda K: lax.scan(step, K, length=4)[1])(kernels[0])
    assert np.allclose([np.linalg.norm(formed(np.asarray(K), (5, 6)), 2) for K in used], 1, rtol=1e-5, atol=0)
    assert np.linalg.norm(used[-1] - used[0]) > 0.1


def test_second_derivatives_are_differences_of_first():
    kernel, *rest = drawn("2d")
    along = np.random.default_rng(1).standard_normal(kernel.shape)
    h = 1e-5
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda K: circular_norm(K, *rest)))
        ours = jax.jvp(gradient, (jnp.asarray(kernel),), (jnp.asarray(along),))[1]
        difference = (gradient(kernel + h * along) - gradient(kernel - h * along)) / (2 * h)
    assert np.linalg.norm(ours - difference) < 1e-7 * np.linalg.norm(difference)


def test_only_what_exceeds_the_bound_shrinks():
    def soft(kernel, bound):
        return kernel / jnp.maximum(circular_norm(kernel, (5, 6)) / bound, 1)

    kernel = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
    sigma = np.linalg.norm(formed(kernel, (5, 6)), 2)
    assert (soft(kernel, 1.01 * sigma) == kernel).all() and not soft(0 * kernel, 1.0).any()
    shrunk = np.linalg.norm(formed(np.asarray(soft(kernel, 0.5 * sigma)), (5, 6)), 2)
    assert abs(shrunk / (0.5 * sigma) - 1) < 1e-5
    assert (jax.grad(lambda K: soft(K, 1.0).sum())(0 * kernel) == 1).all()


def test_one_number_for_one_axis_and_numbers_of_numpy():
    kernel = np.ones((1, 1, 3), np.float32)
    calls = (5,), ((5,), (1,)), (np.int64(5), np.int64(1), np.int64(1)), (np.array([5]),)
    assert all(abs(circular_norm(kernel, *call) - 3) < 1e-6 for call in calls)


def test_half_precision_a_wide_range_and_what_is_not_finite():
    kernel = jnp.asarray(drawn("2d")[0], jnp.bfloat16)
    wide = circular_norm(kernel.astype(jnp.float32), (6, 5))
    assert circular_norm(kernel, (6, 5)) == wide.astype(jnp.bfloat16)
    # a difference, which a constant image does not show; the squares are 0 and Inf in single precision
    for scale in (1e-25, 1e25):
        assert abs(circular_norm(scale * jnp.array([[[1.0, -1.0]]]), (4,)) / scale - 2) < 1e-6
    for bad in (jnp.nan, jnp.inf):
        assert jnp.isnan(circular_norm(kernel.at[0, 0, 0, 0].set(bad), (6, 5)))


CALL = partial(circular_norm, np.ones((4, 2, 3, 3), np.float32))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: circular_norm(np.ones((2, 2, 3), int), (5,)), TypeError, "must be floating point, found int"),
        (lambda: circular_norm(np.ones((4, 2)), ()), ValueError, r"must be of shape \(out, in, \*taps\)"),
        (lambda: circular_norm(np.ones((0, 2, 3)), (5,)), ValueError, r"found \(0, 2, 3\)"),
        (lambda: CALL((5,)), ValueError, "spatial_shape must have 2 numbers, one for each axis of the taps"),
        (lambda: CALL((2, 8, 8)), ValueError, r"found \(2, 8, 8\): leave the channels out"),
        (lambda: CALL((5, 0)), ValueError, "spatial_shape must be 1 or more"),
        (lambda: CALL((5, 5.0)), TypeError, "spatial_shape must be integers"),
        (lambda: CALL((5, 5), (1, 2, 3)), ValueError, "dilation must have 2 numbers"),
        (lambda: CALL((5, 5), 0), ValueError, "dilation must be 1 or more"),
        (lambda: CALL((5, 5), 1, 3), ValueError, "groups must divide the 4 channels of the output, found 3"),
        (lambda: CALL((5, 5), 1, 0), ValueError, "groups must divide"),
        (lambda: CALL((5, 5), 1, 1.0), TypeError, "groups must be an integer"),
        (lambda: jax.jit(circular_norm)(np.ones((2, 2, 3)), (5,)), TypeError, "under jit it is static"),
    ],
)
def test_what_is_wrong_is_one_clear_error(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- the libraries of layers ------------------------------------------------------------------------------------------


def gain_of(layer, params, shape):
    """By the formed matrix, a row of it for each number of an input."""
    at_zero = layer(params, jnp.zeros(shape))
    rows = jax.vmap(lambda x: (layer(params, x) - at_zero).ravel())(jnp.eye(math.prod(shape)).reshape(-1, *shape))
    return np.linalg.norm(np.asarray(rows), 2)


def test_a_layer_of_equinox():
    eqx = pytest.importorskip("equinox", reason="Equinox is no dependency of the project")
    options = {"padding": "SAME", "padding_mode": "CIRCULAR", "dilation": 2, "groups": 2}
    conv = eqx.nn.Conv2d(4, 6, (3, 2), **options, key=jax.random.key(0))
    truth = gain_of(lambda conv, x: conv(x), conv, (4, 7, 6))
    assert abs(circular_norm(conv.weight, (7, 6), conv.dilation, conv.groups) / truth - 1) < 1e-5


def test_a_layer_of_flax():
    nnx = pytest.importorskip("flax.nnx", reason="Flax is no dependency of the project")
    options = {"padding": "CIRCULAR", "kernel_dilation": 2, "feature_group_count": 2}
    conv = nnx.Conv(4, 6, (3, 2), **options, rngs=nnx.Rngs(0))
    graph, params = nnx.split(conv)
    truth = gain_of(lambda p, x: nnx.merge(graph, p)(x), params, (7, 6, 4))
    kernel = jnp.moveaxis(conv.kernel[...], (-1, -2), (0, 1))
    assert abs(circular_norm(kernel, (7, 6), 2, 2) / truth - 1) < 1e-5
