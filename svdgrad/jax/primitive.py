"""A function with a tangent rule of its own, as a primitive.

``jax.custom_jvp`` is that too, but reverse mode through a ``lax.scan`` whose state changes forgets its rule: a second
derivative then goes through the loops of the function itself, and comes out wrong without a word. The rule of a
primitive stays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class Mapped(NamedTuple):
    """What is computed: ``function(*static, *arguments)`` on the leaves of its arguments, mapped over axes of them."""

    function: Callable[..., Any]
    rule: Callable[..., Any]
    static: tuple[Any, ...]
    tree: Any
    maps: tuple[tuple[tuple[int | None, ...], Any], ...] = ()
    """for each vmap, the axis of each leaf that it maps, and JAX's record of the mapped axis: name and size"""

    def value(self, *leaves: Any) -> list[Any]:
        def f(*leaves: Any) -> list[Any]:
            return jax.tree.leaves(self.function(*self.static, *jax.tree.unflatten(self.tree, leaves)))

        for axes, axis in self.maps:
            f = _vmap(f, axes, axis)
        return f(*leaves)

    def both(self, leaves: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        """The value and its tangent, by the rule."""

        def f(leaves: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            primals, moves = (jax.tree.unflatten(self.tree, list(x)) for x in (leaves, tangents))
            value, move = self.rule(*self.static, primals, moves)
            return jax.tree.leaves(value), jax.tree.leaves(move)

        for axes, axis in self.maps:
            f = _vmap(f, (axes, axes), axis)
        return f(tuple(leaves), tuple(tangents))


with_rule = Primitive("svdgrad")
with_rule.multiple_results = True


def _shapes(*leaves: Any, what: Mapped) -> list[Any]:
    return list(jax.make_jaxpr(what.value)(*leaves).out_avals)


def _tangent(leaves: Any, tangents: Any, *, what: Mapped) -> Any:
    return what.both(leaves, [ad.instantiate_zeros(t) for t in tangents])


def _vmap(f: Callable[..., Any], axes: Any, axis: Any) -> Callable[..., Any]:
    mapped: Callable[..., Any] = jax.vmap(
        f, axes, axis_name=axis.name, axis_size=axis.size, spmd_axis_name=axis.spmd_name
    )
    return mapped


def _batched(axis: Any, leaves: Any, axes: Any, *, what: Mapped) -> Any:
    if all(a is None for a in axes):
        out = with_rule.bind(*leaves, what=what)
        return out, [None] * len(out)
    mapped = what._replace(maps=(*what.maps, (tuple(axes), axis)))
    out = with_rule.bind(*leaves, what=mapped)
    return out, [0] * len(out)


with_rule.def_impl(lambda *leaves, what: jax.jit(what.value)(*leaves))
with_rule.def_abstract_eval(_shapes)
ad.primitive_jvps[with_rule] = _tangent
batching.fancy_primitive_batchers[with_rule] = _batched
mlir.register_lowering(with_rule, mlir.lower_fun(lambda *leaves, what: what.value(*leaves), multiple_results=True))


def call(function: Callable[..., Any], rule: Callable[..., Any], static: tuple[Any, ...], *arguments: Any) -> Any:
    """function(*static, *arguments), with the derivative that rule(*static, arguments, tangents) says."""
    leaves, tree = jax.tree.flatten(arguments)
    out = jax.tree.structure(jax.eval_shape(lambda *x: function(*static, *x), *arguments))
    return jax.tree.unflatten(out, with_rule.bind(*leaves, what=Mapped(function, rule, static, tree)))
