"""What one step of a training leaves to the next: a value to carry, since in JAX a function keeps nothing."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .lanczos import white_noise
from .layer import as_shape
from .triplet import unit


class GainState(NamedTuple):
    """What one step hands to the next: a pytree, to be carried, mapped over and donated."""

    v: Array
    """the right singular vector, of length one, in the shape of an input"""
    excess: Array
    """δ for which the gain may exceed ‖A v‖(1 + δ) with the probability ``missed``"""


def init_state(input_shape: int | Sequence[int], dtype: Any = jnp.float32) -> GainState:
    """A state that knows nothing yet: noise, always the same.

    Parameters
    ----------
    input_shape : int or tuple of int
        The shape of one input, without the batch, in the order of the layer.
    dtype : dtype
        float32 or better, also for a layer in half precision; complex for a complex one.

    Raises
    ------
    TypeError
        ``dtype`` has fewer than 32 bits or is not floating point; the shape is not integers.
    ValueError
        The shape has no entries.

    >>> print(init_state((3, 16, 16)).v.shape)
    (3, 16, 16)
    """
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        raise TypeError(f"dtype must be floating point of 32 bits or more, found {jnp.dtype(dtype)}")
    shape = as_shape("input_shape", input_shape)
    v = unit(white_noise(2, math.prod(shape), dtype)).reshape(shape)
    return GainState(v, jnp.full((), jnp.inf, v.real.dtype))


def usable(state: GainState, dtype: Any) -> GainState:
    """The state, or that of ``init_state`` where it was lost; an error where it does not fit a layer of this dtype."""
    if not isinstance(state, GainState):
        raise TypeError(f"state must be a GainState, found {type(state).__name__}: begin with init_state(input_shape)")
    kind, given = ("complex" if jnp.issubdtype(x, jnp.complexfloating) else "real" for x in (dtype, state.v.dtype))
    if kind != given:
        raise TypeError(
            f"state must be {kind} for a {kind} layer, found {given}: begin with init_state(input_shape, jnp.{dtype})"
        )
    known = jnp.isfinite(state.v).all() & state.v.any() & ~jnp.isnan(state.excess)
    begun = init_state(state.v.shape, state.v.dtype)
    found: GainState = jax.tree.map(partial(jnp.where, known), state, begun)
    return found
