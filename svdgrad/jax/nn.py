"""The gain of a layer in JAX: σ of the linear map that it applies, and a state from which the next step finds it."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .auto import as_integer, as_number, iteration
from .circular import circular_norm
from .lanczos import NOISE
from .layer import Layer, is_inexact, layer_operator, numbers, rounded_up, widened
from .operators import as_arrays
from .rule import find_triplet
from .state import GainState, init_state, usable
from .triplet import How, norm

__all__ = ["GainState", "circular_norm", "gain_step", "init_state", "operator_norm", "upper_bound"]

#: how far below the bound a gain may stay: a larger value could be missed by that much, so the weight is divided by it
SHORT = 3e-3
#: how far above σ a bound may lie: less takes more steps
CLOSE = 5e-3


def operator_norm(
    layer: Layer,
    params: Any,
    input_shape: int | Sequence[int],
    tol: float | None = None,
    missed: float | None = 1e-3,
    maxiter: int | None = None,
) -> Array:
    """The gain σ = max ‖A x‖/‖x‖ of a layer x ↦ A(params) x + b(params), differentiable in params: dσ = uᵀ dA v.

    Parameters
    ----------
    layer : callable
        ``layer(params, x)``, affine in one input x without a batch, of JAX operations, such as a convolution by
        ``jax.lax.conv_general_dilated``, or a layer of Equinox or Flax.
    params : pytree
        Its arrays are what the result is differentiated by; functions, names, integers and bools of Python are handed
        on as they are.
    input_shape : int or tuple of int
        The shape of one input, without the batch, in the order of the layer.
    tol : float, optional
        The relative error of σ to stop at: at a residual of √tol, since the error of σ is about its square (default:
        ten times the unit roundoff). The gradient's error is of the size of √tol over the gap to σ₂.
    missed, maxiter : float or None, int, optional
        As for ``svdgrad.jax.operator_triplet``.

    Returns
    -------
    Array
        σ, of no dimensions, real, in the precision of params; float16 and bfloat16 are computed in float32.

    Raises
    ------
    TypeError, ValueError
        What ``operator_triplet`` raises: a layer that is not affine, as one with a ReLU, cannot be transposed, or
        differs from its derivative, as one that rounds x to integers. The layer computes in another precision than that
        of its parameters.

    Notes
    -----
    As JAX cannot raise under jit, σ is NaN where a parameter is NaN or Inf, where numbers show that the layer is not
    affine, and where the iteration ran out of steps, as it may for a long signal, whose singular values lie close:
    loosen tol. Cost: some tens of products with A and as many with its transpose, for an input each; of these one each,
    and one call of the layer, to see that it is affine and JAX's transpose its adjoint. ``circular_norm`` needs
    none, for a convolution that wraps around. Source: the book (eq-operator-gradient).

    Examples
    --------
    >>> def layer(kernel, x):
    ...     return jax.lax.conv(x[None], kernel, (1, 1), "SAME")[0]
    >>> sigma = operator_norm(layer, jnp.ones((1, 1, 3, 3)), (1, 8, 8))
    >>> print(abs(sigma - (1 + 2 * math.cos(math.pi / 9)) ** 2) < 1e-5)
    True
    """
    wide, dtype, narrow = widened(params)
    v0 = init_state(input_shape, dtype).v
    tol = 10 * float(jnp.finfo(v0.dtype).eps) if tol is None else as_number("tol", tol)
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be 0 or more, found {tol}: it is the relative error of σ to stop at")
    how = How("lanczos", "cg", 0, *iteration(math.sqrt(tol), maxiter, missed))
    products, everything, start = layer_operator(layer, wide, v0)
    sigma: Array = find_triplet(products, how, everything, start)[0].sigma
    return sigma.astype(narrow)


def upper_bound(
    layer: Layer, params: Any, input_shape: int | Sequence[int], failure: float = 1e-9, maxiter: int = 128
) -> Array:
    """A number that the gain of a layer exceeds with a probability of at most ``failure``, whatever its weights are.

    The probability is that of the random start of the iteration: of all starts there are, at most a part ``failure``
    would have returned a number below σ. (The start is seeded, so it is always the same. Whoever chose a weight with
    that start in mind could hide a value from it.)

    Parameters
    ----------
    layer, params, input_shape
        As for ``operator_norm``. Computed in float64 where ``jax_enable_x64`` is set, and the layer is called with
        params and x of that precision.
    failure : float
        Static under jit, as ``maxiter``. The default needs ``jax_enable_x64``; in float32 give 1e-4 or more.
    maxiter : int
        After at most so many steps it returns the bound that is proved by then. Where they suffice, the bound lies at
        most 0.5% above the gain.

    Returns
    -------
    Array
        τ, of no dimensions, real, in the precision of the computation. Differentiable: as σ, times τ/σ.

    Raises
    ------
    TypeError
        ``failure`` is not a number, ``maxiter`` not an integer; what ``operator_norm`` raises.
    ValueError
        ``failure`` is below what rounding allows, some 1e-13 for a large layer in float64 and 1e-4 in float32, or not a
        probability; the layer is not affine.

    Notes
    -----
    NaN where a parameter is NaN or Inf, or numbers show that the layer is not affine. Numbers below the smallest normal
    one count as zero. Memory: a basis of ``maxiter`` vectors. Source: the book (eq-above).

    Examples
    --------
    >>> def layer(kernel, x):
    ...     return jax.lax.conv(x[None], kernel, (1, 1), "SAME")[0]
    >>> with jax.enable_x64(True):
    ...     tau = float(upper_bound(layer, jnp.ones((1, 1, 3, 3)), (1, 8, 8)))
    >>> print(1 < tau / (1 + 2 * math.cos(math.pi / 9)) ** 2 < 1.006)
    True
    """
    failure = as_number("failure", failure)
    params = as_arrays(params)
    dtype = jnp.promote_types(jnp.result_type(*numbers(params)), jnp.result_type(float))
    real = jnp.finfo(dtype).dtype
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, real)) if is_inexact(x) else x, params)
    v0 = init_state(input_shape, dtype).v
    eps = float(jnp.finfo(dtype).eps)
    floor = math.sqrt(2 * v0.size / math.pi) * eps / NOISE
    if not floor < failure < 1:
        raise ValueError(
            f"failure must be a probability below 1 and above {floor:.0e}, which is what rounding leaves for a layer "
            f"of this size in {real}, found {failure}: jax_enable_x64 allows less"
        )
    products, everything, start = layer_operator(layer, wide, v0)
    how = How("lanczos", "cg", 0, *iteration(1.0, maxiter, failure), CLOSE)
    (sigma, u, _), known = find_triplet(products, how, everything, start)
    assert known.excess is not None
    over = (1 + known.excess) * (1 + 8 * eps * (u.size + v0.size))
    bound: Array = sigma * lax.stop_gradient(over)
    return bound


def gain_step(
    layer: Layer, params: Any, state: GainState, tol: float = 1e-3, missed: float = 1e-3, maxiter: int = 48
) -> tuple[Array, GainState]:
    """The number σ to divide the weight of a layer by, to keep its gain at one, and the state for the next step.

        gain of the layer ≤ σ · (1 + tol)   with probability 1 − missed,

    whatever ``maxiter`` is: where so few steps cannot exclude a larger value, σ is larger. Where they suffice, some
    tens of them and more for more channels, σ is at most 1.003 times the gain.

    Parameters
    ----------
    layer, params
        As for ``operator_norm``. σ is differentiable in params; the state is a constant.
    state : GainState
        What the last step returned, or ``init_state(input_shape)``.
    tol, missed : float
        By what part of it the gain may exceed σ, and with what probability; static under jit, as ``maxiter``.
    maxiter : int
        At most so many steps, each a product with A and one with its transpose. With 0 the weight is taken for the one
        that the state belongs to, as in evaluation: one product, or Inf where the state knows nothing yet.

    Returns
    -------
    sigma : Array
        Of no dimensions, real, in the precision of params, in half precision the next number above: up to 0.8% more in
        bfloat16. The rounding of W/σ to half precision is not in the promise. A layer of zeros has 0, by which nothing
        can be divided: the soft form below can be used, or ``jnp.where(sigma > 0, sigma, 1)``.
    state : GainState
        With the shapes and dtypes of the one given: it can be the carry of ``lax.scan``, be mapped by ``vmap`` and be
        donated. It stays what it was where params hold NaN or Inf, and σ is NaN. One that was lost, of zeros or with
        NaN, is begun anew.

    Raises
    ------
    TypeError
        ``maxiter`` is not an integer, ``tol`` or ``missed`` not a number; the state is not a GainState, or not complex
        where the layer is, or only there; what ``operator_norm`` raises.
    ValueError
        ``tol`` or ``missed`` is not positive, ``missed`` above 1, ``maxiter`` negative; the layer is not affine.

    Notes
    -----
    Outside of ``jax.jit`` each call is compiled anew, in seconds. Cost of the look at the layer: as ``operator_norm``.
    Memory: a basis of ``maxiter`` vectors. Of a second derivative, the error is √tol over the gap.
    Source: the book (eq-hidden).

    Examples
    --------
    Training steps as a scan:

    >>> def layer(kernel, x):
    ...     return jax.lax.conv(x[None], kernel, (1, 1), "SAME")[0]
    >>> def train(carry, _):
    ...     kernel, state = carry
    ...     sigma, state = gain_step(layer, kernel, state)
    ...     return (kernel / sigma, state), sigma
    >>> carry = jnp.ones((1, 1, 3, 3)), init_state((1, 8, 8))
    >>> print(jax.lax.scan(train, carry, length=3)[1].round(2))
    [8.29 1.   1.  ]

    To keep the gain at another bound, multiply by bound/σ. The soft form shrinks only what exceeds the bound, and
    leaves a smaller gain as it is:

        kernel * (bound / sigma)
        kernel / jnp.maximum(sigma / bound, 1)                                      # soft

    Layers of one shape at once, ``vmap(partial(gain_step, layer))(kernels, states)``. A layer of Equinox is its own
    params; of Flax NNX, the state of its parameters is:

        sigma, state = gain_step(lambda conv, x: conv(x), conv, state)              # conv = eqx.nn.Conv2d(…)
        conv = eqx.tree_at(lambda c: c.weight, conv, conv.weight / sigma)

        graph, params = nnx.split(conv)                                             # conv = nnx.Conv(…)
        sigma, state = gain_step(lambda p, x: nnx.merge(graph, p)(x), params, state)
        conv.kernel[...] = conv.kernel[...] / sigma
    """
    tol, missed = as_number("tol", tol), as_number("missed", missed)
    if not 0 < tol < math.inf:
        raise ValueError(f"tol must be positive and finite, found {tol}: it is the part by which the gain may exceed σ")
    trusted = as_integer("maxiter", maxiter) == 0
    how = How("lanczos", "cg", 0, *iteration(math.sqrt(tol), maxiter + trusted, missed), max(tol, SHORT))
    wide, dtype, narrow = widened(params)
    state = lax.stop_gradient(usable(state, dtype))
    v0 = state.v.astype(dtype)
    products, everything, start = layer_operator(layer, wide, v0)
    if trusted:
        sigma, following = norm(products[0](everything, start)), state
    else:
        (sigma, _, v), known = find_triplet(products, how, everything, start)
        assert known.excess is not None
        found = GainState(v.reshape(v0.shape).astype(state.v.dtype), known.excess.astype(state.excess.dtype))
        following = jax.tree.map(partial(jnp.where, jnp.isfinite(sigma)), lax.stop_gradient(found), state)
    margin = jnp.maximum((1 + following.excess) / (1 + tol), 1)
    unknown = jnp.isinf(margin) & ~jnp.isnan(sigma)  # of a layer of zeros 0 · Inf would be NaN
    sigma = jnp.where(unknown, jnp.inf, sigma) * margin.astype(sigma.dtype)
    return rounded_up(sigma, narrow), following
