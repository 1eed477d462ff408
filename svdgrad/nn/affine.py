"""A Module that is affine in its input, as an operator: x ↦ A x of x ↦ A x + b, by calls of the Module alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..forward.basis import noise
from ..operator import Operator, of_module, plain
from ..operators import operator_of
from ..products import length
from ..transforms import transformed
from .layer import as_shape, check_finite


def affine_operator(layer: nn.Module, input_shape: Sequence[int] | None) -> Operator:
    """A of a Module x ↦ A x + b, an error for what is none; inputs in single precision or better."""
    shape = as_shape(input_shape)
    if shape is None or min(shape, default=1) < 1:
        raise ValueError(
            f"the gain of a {type(layer).__name__} depends on the size of its input: give input_shape, without the "
            "batch"
        )
    first = like([*layer.parameters(), *layer.buffers()])
    zero = torch.zeros(shape, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    outputs, _, held = of_module(one_output, None, layer)
    # buffers are copied: a call may count itself in them, or move a running mean
    params = {name: plain(p if isinstance(p, nn.Parameter) else p.clone()) for name, p in held.items()}
    for p in layer.parameters():
        check_finite(p)
    # so far from 0 a bias of 1/ε times A x adds a thousandth to its rounding error; a power of two itself adds none
    far = 1024 / torch.finfo(zero.dtype).eps
    if not transformed():
        with torch.no_grad():
            outputs(params, zero)  # a layer of ``spectral_norm`` then knows its σ, the same in all calls
            x = noise(zero.numel(), zero).reshape(shape) * zero.numel() ** 0.5  # entries of the size of one
            far = far_in_range(lambda x: outputs(params, x), x, far)
        check_affine(layer, held, x, far)

    def product(params: dict[str, Tensor], x: Tensor) -> Tensor:
        # two calls, and not one of a batch: what does not depend on x then cancels to the last digit
        y: Tensor = outputs(params, far * x) - outputs(params, torch.zeros_like(x))
        return y / far

    A, _ = operator_of(product, params, zero, None)
    return A


def one_output(layer: nn.Module, x: Tensor) -> Tensor:
    """f(x) for one x, by a batch of one; an error where the output is not one tensor with that batch first.

    What has a first dimension of one may still have lost its batch, as a mean over it has; but nothing is left out.
    """
    y = layer(x[None])
    if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != 1:
        raise ValueError(
            "the layer must return a tensor with the batch first, (1, …) for a batch of one, found "
            f"{f'the shape {tuple(y.shape)}' if isinstance(y, Tensor) else type(y).__name__} from a "
            f"{type(layer).__name__}: likely causes: a squeeze(), Flatten(0) or mean(0), which take the batch away; a "
            "transpose or permute that moves it; several outputs. Give the part of the network before it, or a Module "
            "that returns one output with the batch first"
        )
    if y.is_complex() and not x.is_complex():
        raise ValueError(
            f"the layer must return real numbers for a real input, found {y.dtype} from a {type(layer).__name__}: "
            "likely cause: a Fourier transform in it. Return torch.view_as_real of its output, which has the same gain"
        )
    return y[0]


def far_in_range(f: Callable[[Tensor], Tensor], x: Tensor, far: float) -> float:
    """``far``, or less, by powers of two, where a thousand times it would leave the range of numbers."""
    least = torch.finfo(x.dtype).tiny
    return next((s for k in range(40) if (s := far / 2 ** (8 * k)) > least and f(1024 * s * x).isfinite().all()), far)


def like(tensors: Sequence[Tensor]) -> Tensor:
    """The first of floating point, whose dtype and device the input has."""
    return next((x for x in tensors if has_digits(x)), torch.empty(0))


def check_affine(layer: nn.Module, tensors: dict[str, Tensor], x: Tensor, far: float) -> None:
    """f(Fx) − f(0) = F (f(x) − f(0)) for an affine f: not with a ReLU, with dropout, or with its input normalised.

    In double precision, since f(x) − f(0) loses the digits that f(0) has before those of A x. Where a layer takes
    numbers in its own precision only, in that one.
    """
    outputs, *_ = of_module(one_output, None, layer)

    def differences(real: torch.dtype) -> list[Tensor]:
        def digits(x: Tensor) -> Tensor:
            return x.detach().to(torch.promote_types(x.dtype, real) if has_digits(x) else x.dtype, copy=True)

        # not x: Python 3.12.1 would then lose that of the enclosing function, which the line below needs
        params = {name: digits(tensor) for name, tensor in tensors.items()}
        with torch.no_grad():
            at_zero, *others = (outputs(params, scale * digits(x)) for scale in (0, 1, far, -far))
            return [at_zero, *(y - at_zero for y in others)]

    try:
        at_zero, once, *away = differences(torch.float64)
    except (RuntimeError, TypeError):
        at_zero, once, *away = differences(torch.float32)
    rounding = 10 * torch.finfo(once.dtype).eps * size(at_zero)
    allowed = torch.finfo(x.dtype).eps ** 0.5 * size(once) + rounding
    if not all(size(y / scale - once) <= allowed for y, scale in zip(away, (far, -far))):
        raise ValueError(
            f"the layer must be affine in its input, x ↦ A x + b, found that {type(layer).__name__} is not: likely "
            "causes: a ReLU or a normalisation in it; dropout or BatchNorm in training; a hook that changes the weight "
            "at each call, as of torch.nn.utils.spectral_norm in training. Call layer.eval() for the last three; of a "
            "network the gain at a point is that of its Jacobian, by operator_triplet"
        )


def size(y: Tensor) -> Tensor:
    return length(y.reshape(-1))


def has_digits(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
