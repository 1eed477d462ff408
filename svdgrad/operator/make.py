"""The operator of a function, after every check that its product with x = 0 allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..products import check_has_numbers
from ..transforms import is_tracked, mapped_levels, moves, sources, transformed, tree_flatten, unwrapped
from .function import LEAF, Function


def function(
    matvec: Callable[[Any, Tensor], Tensor],
    params: Any,
    like: Tensor,
    rmatvec: Callable[[Any, Tensor], Tensor] | None = None,
) -> Function:
    """The operator x ↦ matvec(params, x), x as ``like``, after every check that the product with x = 0 allows.

    Parameters of fewer than 32 bits are taken in single precision, and a Module stands for its parameters and buffers.
    """
    if isinstance(params, torch.nn.Module):
        matvec, rmatvec, params = of_module(matvec, rmatvec, params)
    elif isinstance(params, Iterator):
        raise TypeError(
            f"params must be tensors in tuples, lists or dicts, or a Module, found {type(params).__name__}, which can "
            "be read only once: pass tuple(layer.parameters()), or the layer itself"
        )
    parts, spec = tree_flatten(() if params is None else params)
    for x in parts:
        if isinstance(x, torch.nn.Module):
            raise TypeError(
                f"params must not hold a Module among other things, found {type(x).__name__}: pass the Module alone, "
                "or a dict of its parameters and buffers"
            )
        if isinstance(x, Tensor):
            check_has_numbers("params", x)
    leaves = [plain(x) for x in parts if isinstance(x, Tensor)]
    if parts and not any(x.is_floating_point() or x.is_complex() for x in leaves):
        raise TypeError(
            "params must hold a floating point tensor, for the triplet is differentiated by those, found "
            f"{', '.join(sorted({type(x).__name__ for x in parts}))}: pass the tensors that matvec multiplies with, "
            "or params=() where nothing is to be differentiated"
        )
    marked = tuple(LEAF if isinstance(x, Tensor) else x for x in parts)
    zero = unwrapped(torch.zeros(like.shape, dtype=like.dtype, device=like.device))
    return _checked(Function(matvec, rmatvec, marked, spec, zero, torch.Size(), tuple(leaves)))


def function_of_layer(
    product: Callable[[Tensor, Tensor], Tensor],
    adjoint: Callable[[Tensor, Tensor], Tensor] | None,
    weight: Tensor,
    zero: Tensor,
    out: Sequence[int],
) -> Function:
    """The same for x ↦ product(weight, x), of which all that is checked above is known."""
    _, spec = tree_flatten(weight)
    known = None if adjoint is None else (zero, zero)  # there is no graph to be walked
    return Function(product, adjoint, (LEAF,), spec, zero, torch.Size(out), (weight,), known)


def plain(x: Tensor) -> Tensor:
    """x in single precision or better, and a copy of what was made in inference mode, of which nothing can be saved."""
    x = x.float() if x.is_floating_point() and torch.finfo(x.dtype).bits < 32 else x
    return x.clone() if x.is_inference() else x


def of_module(matvec: Any, rmatvec: Any, module: torch.nn.Module) -> tuple[Any, Any, dict[str, Tensor]]:
    """matvec, rmatvec and params in which a dict of tensors stands for the module."""

    class Call(torch.nn.Module):
        def __init__(self, product: Any) -> None:
            super().__init__()
            self.module, self.product = module, product

        def forward(self, x: Tensor) -> Any:
            return self.product(self.module, x)

    # a module that occurs twice is one module, and a tensor that two modules share is one tensor: torch.func's own
    # handling of ties takes the former apart
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for prefix, part in Call(matvec).named_modules():
        for name, x in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            path = f"{prefix}.{name}"
            names[path] = first.setdefault(id(x), path)
            tensors[names[path]] = x

    def of(product: Any) -> Any:
        call = Call(product)
        return lambda params, x: torch.func.functional_call(
            call, {path: params[name] for path, name in names.items()}, (x,), tie_weights=False
        )

    return of(matvec), None if rmatvec is None else of(rmatvec), tensors


def _checked(A: Function) -> Function:
    """A with its shape and its graph, or an error for what would be wrong, or lost, without a word."""
    if transformed():  # where no number can be read: ``products`` does that later
        y = A.at([x.detach() for x in A.leaves]).first(A.zero)
        if is_tracked(y) or mapped_levels(y) - mapped_levels(A.zero, *A.leaves):
            raise ValueError(_ELSEWHERE)
        return replace(A, out=y.shape)
    probes = [x.detach().requires_grad_(x.requires_grad) for x in A.leaves]
    graph = x, y = A.at(probes).with_graph()
    if torch.is_grad_enabled():
        if moves(y):
            raise ValueError(_ELSEWHERE)
        origins = sources(y) - {id(x)}
        wanted = {id(leaf) for leaf in probes if leaf.requires_grad}
        if origins - wanted:
            raise ValueError(_ELSEWHERE)
        if wanted and not origins & wanted:
            raise ValueError(_NOWHERE)
        _check_bias(A.at(probes), y)
    return replace(A, out=y.shape, graph=graph)


def _check_bias(A: Function, y: Tensor) -> None:
    """At x = 0 a linear function is zero whatever the parameters are, and so are its derivatives by them.

    Rounding may leave digits of them, of a bias that cancels in several terms; the derivatives at another x are larger.
    """
    leaves = [leaf for leaf in A.leaves if leaf.requires_grad]
    if not leaves or not y.requires_grad:
        return
    weights = torch.linspace(1, 2, max(y.numel(), 1), dtype=y.real.dtype, device=y.device).to(y.dtype)[: y.numel()]

    def slope(y: Tensor) -> float:
        slopes = torch.autograd.grad(y, leaves, weights.reshape(y.shape), retain_graph=True, allow_unused=True)
        return max((vector_norm(slope).item() for slope in slopes if slope is not None), default=0.0)

    if not (at_zero := slope(y)):
        return
    n = A.zero.numel()
    unit = torch.linspace(1, 2, n, dtype=y.real.dtype, device=y.device).to(y.dtype).reshape(A.zero.shape)
    if not at_zero <= torch.finfo(y.dtype).eps ** 0.5 * slope(A.first(unit / vector_norm(unit))):
        raise ValueError(
            "matvec must be linear in x, found a parameter that matvec(params, 0) depends on, though it is 0 now: "
            "likely cause: a bias that is zero; leave it out"
        )


_ELSEWHERE = (
    "matvec must take what is differentiated from params, found a tensor from elsewhere that requires a gradient, "
    "which it would not get: pass it in params, as in operator_triplet(lambda layer, x: layer(x), layer, v0), or "
    "detach it"
)
_NOWHERE = (
    "the result of matvec must depend on params, which require a gradient, found no connection: likely causes: "
    "detach(), .data, item(), numpy or no_grad inside matvec, or params that it does not use"
)
