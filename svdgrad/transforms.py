"""What PyTorch's own transforms ask of a rule: torch.func's levels, vmap, nested forward modes, torch.compile.

Every private name of torch.func and of autograd is used here, and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

tree_flatten, tree_unflatten = pytree.tree_flatten, pytree.tree_unflatten


def plain_mode() -> AbstractContextManager[Any]:
    """Inference mode switched off, where it is on: nothing is recorded in it, and the adjoint of a function is what
    autograd records.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def exporting() -> bool:
    """Whether torch.export traces. ``torch.compiler.is_exporting`` says so of torch.compile too in PyTorch 2.11."""
    return torch.compiler._is_exporting_flag


def transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return bool(torch._C._are_functorch_transforms_active())


def on_host(x: Tensor) -> bool:
    """Whether x is on a CPU, and nothing of what is done to it is recorded, or mapped, or only pretended."""
    if type(x) not in (Tensor, torch.nn.Parameter) or not x.is_cpu or torch.compiler.is_compiling():
        return False
    mapped = transformed() or in_forward_mode()
    return not (mapped or x.requires_grad and torch.is_grad_enabled())


def lazy_conjugates() -> AbstractContextManager[Any]:
    """Inside an operation of its own, x.conj() and its like mean what they say.

    The first call of a compiled function runs such operations without what applies the conjugate bit of a tensor, and a
    complex A.mH passes for A.mT in most of them.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.Conjugate, torch._C.DispatchKey.Negative):
        excluded = excluded - torch._C.DispatchKeySet(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def in_forward_mode() -> bool:
    """Whether a level of forward mode is open, plain or of torch.func."""
    return forward_ad._current_level >= 0


def moves(x: Tensor) -> bool:
    """Whether x carries a tangent."""
    return in_forward_mode() and forward_ad.unpack_dual(x).tangent is not None


def mapped_by_autograd(*xs: Tensor | None) -> bool:
    """Whether one of them is a batch made by ``is_grads_batched=True`` or ``vectorize=True``, whose numbers cannot be
    read.
    """
    return any(torch._C._functorch.is_legacy_batchedtensor(x) for x in xs if x is not None)


def refuse_mapping_by_autograd(*xs: Tensor | None) -> None:
    """Raise an error for what is mapped so, or for anything inside such a map."""
    if mapped_by_autograd(*xs) if xs else torch._C._dispatch_tls_is_dispatch_key_included("VmapMode"):
        raise NotImplementedError(
            "is_grads_batched=True and vectorize=True, of torch.autograd and torch.autograd.functional, batch a "
            "derivative so that no number can be read in it, and an iteration and the check of the gap read some: use "
            "torch.func.jacrev or torch.func.jacfwd, or torch.func.vmap over torch.func.vjp"
        )


def refuse_tracing() -> None:
    """Raise an error where what is done to numbers is written down, and no number can be read."""
    mode = torch._C._TorchDispatchModeKey
    if any(torch._C._get_dispatch_mode(key) is not None for key in (mode.FAKE, mode.PROXY)):
        raise NotImplementedError(
            "svdgrad reads numbers to know when to stop, and a tracer (torch.func.linearize, make_fx, FakeTensorMode) "
            "hands it none: use torch.func.jvp or torch.func.vjp in place of linearize, torch.compile in place of the "
            "others"
        )


def nested_derivatives() -> int:
    """0, unless torch.func's forward modes (jvp, jacfwd) are nested: then how many derivatives are under way.

    PyTorch drops the outer tangent inside the jvp of an autograd.Function, in silence: of what comes out only the value
    is sure to be right.
    """
    from torch._functorch.pyfunctorch import TransformType, retrieve_all_functorch_interpreters

    kinds = [level.key() for level in retrieve_all_functorch_interpreters()]
    if kinds.count(TransformType.Jvp) < 2:
        return 0
    return kinds.count(TransformType.Jvp) + kinds.count(TransformType.Grad)


def pull_back(f: Callable[..., Tensor], *primals: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """f(*primals), and what takes a cotangent of it to those of the primals."""
    value, back, *_ = torch.func.vjp(f, *primals)
    return value, back


def to_front(size: int, tensors: Sequence[Any], dims: Sequence[int | None]) -> tuple[Any, ...]:
    """Each tensor with the dimension that vmap maps in front; a tensor without one is expanded, None stays None."""
    return tuple(
        x if x is None else x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims)
    )


def one_by_one(
    call: Callable[..., tuple[Tensor, ...]], size: int, inputs: Sequence[Any], dims: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Each output of the calls that a vmap over ``dims`` stands for, as one tensor, along a first dimension.

    Of Ritz pairs, whose number differs from call to call, as many are kept as all calls have.
    """
    calls = [call(*(x if dim is None else x.select(dim, k) for x, dim in zip(inputs, dims))) for k in range(size)]
    return tuple(stack_what_all_have(xs) for xs in zip(*calls))


def stack_what_all_have(xs: Sequence[Tensor]) -> Tensor:
    """The tensors along a new first dimension, each cut to the shape that all have."""
    shape = [min(sizes) for sizes in zip(*(x.shape for x in xs))]
    return torch.stack([x[tuple(slice(size) for size in shape)] for x in xs])


def tangent(f: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """How f(*primals) moves along the tangents."""
    y: Tensor
    if transformed():
        _, y, *_ = torch.func.jvp(f, tuple(primals), tuple(tangents))
        return y
    # forward modes of PyTorch do not nest, reverse modes do: the pull-back is linear, and is pulled back in turn
    value, back = pull_back(f, *primals)
    _, forth, *_ = torch.func.vjp(back, torch.zeros_like(value))
    (y,) = forth(tuple(tangents))
    return y


def alive(x: Tensor) -> Tensor:
    """x without the wrapper of a transform that has ended, as in the function that ``torch.func.vjp`` returns."""
    plain: Tensor = torch._C._functorch.unwrap_if_dead(x)
    return plain


def layers(x: Tensor) -> Iterator[Tensor]:
    """x, and what is inside each wrapper of the transforms at work, down to the tensor inside all."""
    yield x
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
        yield x


def innermost(x: Tensor) -> Tensor:
    """The tensor inside all wrappers of the transforms at work."""
    *_, plain = layers(x)
    return plain


def unwrapped(x: Tensor) -> Tensor:
    """A constant x without the wrappers that it got from transforms at work; a constant cannot be mapped."""
    if mapped_levels(x):
        raise ValueError("the pattern of a sparse matrix must be the same for all that vmap maps over, found it mapped")
    return innermost(x)


def is_tracked(y: Tensor) -> bool:
    """Whether a derivative is asked of y, in either mode, at any level of torch.func."""
    return any(x.requires_grad or moves(x) for x in layers(y))


def mapped_levels(*ys: Tensor) -> set[int]:
    """The levels of vmap at which one of them is mapped."""
    functorch = torch._C._functorch
    return {functorch.maybe_get_level(x) for y in ys for x in layers(y) if functorch.is_batchedtensor(x)}


def sources(y: Tensor) -> set[int]:
    """The ids of the tensors at which the graph of y begins."""
    found: set[int] = set()
    seen: set[Any] = set()
    nodes = [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where a graph begins: an AccumulateGrad
            found.add(id(node.variable))
        nodes.extend(following for following, _ in node.next_functions)
    return found
