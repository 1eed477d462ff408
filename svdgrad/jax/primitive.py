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
    axes: tuple[tuple[int | None, ...], ...] = ()

    def value(self, *leaves: Any) -> list[Any]:
        def f(*leaves: Any) -> list[Any]:
            return jax.tree.leaves(self.function(*self.static, *jax.tree.unflatten(self.tree, leaves)))

        for axes in self.axes:
            f = jax.vmap(f, axes)
        return f(*leaves)

    def both(self, leaves: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        """The value and its tangent, by the rule."""

        def f(leaves: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            primals, moves = (jax.tree.unflatten(self.tree, list(x)) for x in (leaves, tangents))
            value, move = self.rule(*self.static, primals, moves)
            return jax.tree.leaves(value), jax.tree.leaves(move)

        for axes in self.axes:
            f = jax.vmap(f, (axes, axes))
        return f(tuple(leaves), tuple(tangents))


with_rule = Primitive("svdgrad")
with_rule.multiple_results = True


def _shapes(*leaves: Any, what: Mapped) -> list[Any]:
    return list(jax.make_jaxpr(what.value)(*leaves).out_avals)


def _tangent(leaves: Any, tangents: Any, *, what: Mapped) -> Any:
    return what.both(leaves, [ad.instantiate_zeros(t) for t in tangents])


def _batched(leaves: Any, axes: Any, *, what: Mapped) -> Any:
    mapped = what._replace(axes=(*what.axes, tuple(axes)))
    out = with_rule.bind(*leaves, what=mapped)
    return out, [0] * len(out)


with_rule.def_impl(lambda *leaves, what: jax.jit(what.value)(*leaves))
with_rule.def_abstract_eval(_shapes)
ad.primitive_jvps[with_rule] = _tangent
batching.primitive_batchers[with_rule] = _batched
mlir.register_lowering(with_rule, mlir.lower_fun(lambda *leaves, what: what.value(*leaves), multiple_results=True))


def call(function: Callable[..., Any], rule: Callable[..., Any], static: tuple[Any, ...], *arguments: Any) -> Any:
    """function(*static, *arguments), with the derivative that rule(*static, arguments, tangents) says."""
    leaves, tree = jax.tree.flatten(arguments)
    out = jax.tree.structure(jax.eval_shape(lambda *x: function(*static, *x), *arguments))
    return jax.tree.unflatten(out, with_rule.bind(*leaves, what=Mapped(function, rule, static, tree)))
