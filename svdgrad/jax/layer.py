"""A layer as a linear map: its bias left aside, and its parameters in the precision that the norm is computed in."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .auto import computed_in
from .operators import HALF, as_arrays, operator_of, or_nan, probe, products_of
from .triplet import Products, unit

Layer = Callable[[Any, Array], Array]


def as_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Integers of 1 or more, or an error."""
    try:
        found = tuple(operator.index(n) for n in ([shape] if np.ndim(shape) == 0 else shape))
    except TypeError:
        raise TypeError(f"{name} must be integers, such as (32, 32), found {shape!r}: under jit it is static") from None
    if min(found, default=1) < 1:
        raise ValueError(f"{name} must be 1 or more along every axis, found {found}")
    return found


def widened(params: Any) -> tuple[Any, Any, Any]:
    """The parameters, those in half precision in float32, their common dtype, and its real one before that."""
    params = as_arrays(params)
    narrow = jnp.finfo(jnp.result_type(*numbers(params))).dtype
    wide = jax.tree.map(lambda x: x.astype(computed_in(x.dtype)) if is_inexact(x) else x, params)
    return wide, jnp.result_type(*numbers(wide)), narrow


def numbers(params: Any) -> list[Array]:
    """What is floating point among the parameters, or an error."""
    found = [x for x in jax.tree.leaves(params) if is_inexact(x)]
    if not found:
        raise TypeError("params must hold an array of floating point, found none: the weight of the layer is missing")
    return found


def is_inexact(x: Any) -> bool:
    return isinstance(x, Array) and bool(jnp.issubdtype(x.dtype, jnp.inexact))


def layer_operator(layer: Layer, params: Any, v0: Array) -> tuple[Products, Any, Array]:
    """The layer without its bias, on flat vectors."""
    at_zero = layer(params, jnp.zeros_like(v0))
    if not isinstance(at_zero, (Array, np.ndarray)):
        raise TypeError(f"layer must return one array, found {type(at_zero).__name__}")
    if at_zero.dtype != v0.dtype:
        raise TypeError(
            f"layer must return {v0.dtype} for parameters and an input of it, found {at_zero.dtype}: likely cause: a "
            "layer with a dtype of its own, as nnx.Conv(…, dtype=jnp.bfloat16): leave dtype out here"
        )
    # what can be seen without a number is seen of this map, but its values have the rounding of the bias; those of a
    # derivative have not
    v0 = products_of(lambda params, x: layer(params, x) - at_zero, params, v0)[2]

    def linear_part(params: Any, x: Array) -> Array:
        y: Array = jax.jvp(partial(layer, params), (jnp.zeros_like(x),), (x,))[1]
        return y

    held = lambda x: lax.stop_gradient(x) if isinstance(x, Array) else x
    fixed, bias, v = jax.tree.map(held, (params, at_zero, probe(v0)))
    along = linear_part(fixed, v)
    beside = layer(fixed, v) - bias - along
    v0 = or_nan(
        v0,
        jnp.abs(beside).max() > HALF * (jnp.abs(bias).max() + jnp.abs(along).max()),
        "layer must be affine in x, found layer(x) − layer(0) that is not its derivative along x: likely cause: it is "
        "not linear, as where it rounds x to integers",
    )
    products, everything, v0, _ = operator_of(linear_part, params, v0)
    return products, everything, unit(jnp.ravel(v0))


def rounded_up(x: Array, dtype: Any) -> Array:
    """x in this dtype, and the next number above where rounding to the nearest would lose some of it."""
    limits = jnp.finfo(dtype)
    if limits.bits >= jnp.finfo(x.dtype).bits:
        return x.astype(dtype)
    # XLA may leave out a conversion there and back, but not this
    near = lax.reduce_precision(x, limits.nexp, limits.nmant)
    narrow: Array = near.astype(dtype)
    fixed = lax.stop_gradient(narrow)
    above = jnp.nextafter(fixed, jnp.full_like(fixed, jnp.inf))
    return narrow + jnp.where(near < x, above - fixed, 0)
