"""A layer as a linear map x ↦ A(weight) x: its bias left aside, its options read once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..operator import Dense, Operator, function_of_layer
from ..transforms import transformed

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
KINDS = nn.Linear, *get_args(Convolution), *get_args(ConvTranspose)
Product = Callable[[Tensor, Tensor], Tensor]

#: up to so many channels the norms of all frequencies cost less than an iteration (measured on a CPU: at 8 channels of
#: 16×16 a sixth of it, at 64 of 32×32 as much)
FOURIER_UP_TO = 64

_FORTH: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BACK: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class LinearMap:
    """The matrix A(weight) of a layer, of which only the options are kept: it can be copied, and refers to no layer."""

    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    """of one input, without the batch"""
    output_shape: tuple[int, ...]
    product: Product | None = None
    """(weight, inputs with a batch) ↦ outputs; None for a Linear layer, whose matrix is its weight"""
    adjoint: Product | None = None
    """(weight, outputs) ↦ inputs, the product with Aᴴ, where that is a convolution too; else None"""
    circle: "Circle | None" = None
    """what a Fourier transform needs, where it takes the matrix apart"""

    @property
    def size(self) -> int:
        return math.prod(self.input_shape)

    def operator(self, weight: Tensor) -> Operator:
        """A(weight), for a weight in single precision or better."""
        if self.product is None:
            return Dense(weight)
        zero = torch.zeros(self.input_shape, dtype=weight.dtype, device=weight.device)
        back = None if self.adjoint is None else self.back
        return function_of_layer(self.one, back, weight, zero, self.output_shape)

    def one(self, weight: Tensor, x: Tensor) -> Tensor:
        assert self.product is not None
        return self.product(weight, x.unsqueeze(0)).squeeze(0)

    def back(self, weight: Tensor, y: Tensor) -> Tensor:
        assert self.adjoint is not None
        return self.adjoint(weight.conj(), y.unsqueeze(0)).squeeze(0)


@dataclass(frozen=True)
class Circle:
    """A convolution that wraps around and keeps the size: the Fourier transform makes A block diagonal.

    At the frequency ω = 2π(f₁/N₁, …) the block is H(ω) = Σₜ C[:, :, t] exp(−i ω·d t), with taps t and dilation d.
    """

    size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def blocks(self, weight: Tensor) -> Tensor:
        """H(ω), shape (frequencies · groups, out/groups, in/groups); of a real kernel half of the frequencies, since
        H(−ω) is the conjugate of H(ω).
        """
        H = weight.to(weight.dtype.to_complex())
        for axis, (n, step) in enumerate(zip(self.size, self.dilation)):
            half = axis == len(self.size) - 1 and not weight.is_complex()
            frequencies = torch.arange(n // 2 + 1 if half else n, device="cpu", dtype=torch.float64)
            taps = torch.arange(weight.shape[2 + axis], device="cpu", dtype=torch.float64) * step
            turns = torch.outer(taps, frequencies) % n / n  # in double precision: an angle of n turns keeps its digits
            waves = torch.polar(torch.ones_like(turns), -2 * math.pi * turns).to(H)
            H = torch.tensordot(H, waves, dims=([2], [0]))
        out, within = weight.shape[:2]
        return H.reshape(self.groups, out // self.groups, within, -1).permute(3, 0, 1, 2).flatten(0, 1)


def linear_map(layer: nn.Module, input_shape: Sequence[int] | None) -> LinearMap | None:
    """The map of a Linear, Conv or ConvTranspose layer; None for another Module, or one with a forward of its own."""
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a torch.nn.Module, found {type(layer).__name__}")
    for part in layer.modules():
        if isinstance(part, nn.modules.lazy.LazyModuleMixin) and part.has_uninitialized_params():
            raise ValueError(f"a {type(part).__name__} has no weight yet: call it once on an input")
    shape = as_shape(input_shape)
    for kind in KINDS:
        if isinstance(layer, kind) and not _is_its_own(layer, kind):
            break
    else:
        return None
    if isinstance(layer, nn.Linear):
        shape = (layer.in_features,) if shape is None else shape
        if shape[-1:] != (layer.in_features,):
            raise ValueError(f"input_shape of {layer} must end with {layer.in_features}, found {shape}")
        return LinearMap((layer.out_features, layer.in_features), (layer.in_features,), (layer.out_features,))
    assert isinstance(layer, Convolution | ConvTranspose)
    dims, channels = len(layer.kernel_size), layer.in_channels
    wanted = f"({channels}, {('length', 'height, width', 'depth, height, width')[dims - 1]})"
    if shape is None:
        raise ValueError(
            f"the gain of a {kind.__name__} depends on the size of its input: give input_shape={wanted}, without the "
            "batch"
        )
    if len(shape) != dims + 1 or shape[0] != channels or min(shape) < 1:
        raise ValueError(f"input_shape of a {kind.__name__} must be {wanted}, without the batch, found {shape}")
    product, kernel_shape = _product(layer), _kernel_shape(layer)
    try:
        with torch.no_grad():
            kernel, x = torch.zeros(kernel_shape, device="meta"), torch.zeros(1, *shape, device="meta")
            out = product(kernel, x)
        fits = out.numel() > 0
    except RuntimeError as error:
        raise ValueError(f"an input of shape {shape} does not fit {layer}: {error}") from None
    if not fits:
        raise ValueError(f"an input of shape {shape} does not fit {layer}: the output would be empty")
    size = tuple(out.shape[1:])
    adjoint, circle = _adjoint(layer, shape[1:], size[1:]), _circle(layer, shape, size[1:])
    return LinearMap(kernel_shape, shape, size, product, adjoint, circle)


def _is_its_own(layer: nn.Module, kind: type) -> bool:
    """Whether hooks, as those of pruning, or a forward or a part of it that was replaced, change what it applies."""
    own, every = vars(layer), nn.modules.module
    hooks = layer._forward_hooks, layer._forward_pre_hooks, every._global_forward_hooks, every._global_forward_pre_hooks
    parts = "forward", "_conv_forward", "_output_padding"
    return any(hooks) or any(
        name in own or getattr(type(layer), name, None) is not getattr(kind, name, None)
        for name in (*parts, "__call__")
    )


def check_weight(A: LinearMap, weight: Tensor) -> None:
    """Raise an error for a weight of another shape than that of A, or one that is not finite."""
    if weight.shape != A.weight_shape:
        raise ValueError(
            f"the weight must have the shape {A.weight_shape}, by the numbers of channels and the sizes that the layer "
            f"was made with, found {tuple(weight.shape)}: likely cause: it was replaced, as by pruning. Make a new "
            "layer of the weight's sizes"
        )
    check_finite(weight)


def check_finite(weight: Tensor) -> None:
    """Raise an error for NaN or Inf, where numbers can be read."""
    # a sum is cheap, and no finite number where one of its terms is none; of large numbers it may be infinite too
    if not transformed() and not weight.detach().sum().isfinite() and not weight.detach().isfinite().all():
        raise ValueError(
            "the weight of a layer must be finite, found NaN or Inf: look upstream for the first, as a loss that "
            "overflowed or too long a step"
        )


def as_shape(input_shape: Sequence[int] | None) -> tuple[int, ...] | None:
    if input_shape is None:
        return None
    try:
        return tuple(index(n) for n in ([input_shape] if isinstance(input_shape, int) else input_shape))
    except TypeError:
        raise TypeError(f"input_shape must be integers, such as (3, 32, 32), found {input_shape!r}") from None


def _kernel_shape(layer: Any) -> tuple[int, ...]:
    first, second = layer.out_channels, layer.in_channels
    if isinstance(layer, ConvTranspose):
        first, second = second, first
    return first, second // layer.groups, *layer.kernel_size


@dataclass(frozen=True)
class _Forth:
    """The product of a convolution."""

    padding: Any
    mode: str
    ends: tuple[int, ...]
    """padding before and after, last dimension first, for a padding mode other than zeros"""
    stride: Any
    dilation: Any
    groups: int

    def __call__(self, weight: Tensor, x: Tensor) -> Tensor:
        if self.mode != "zeros":
            x = F.pad(x, self.ends, mode=self.mode)
        padding = self.padding if self.mode == "zeros" else 0
        return _FORTH[x.ndim - 2](x, weight, None, self.stride, padding, self.dilation, self.groups)


@dataclass(frozen=True)
class _Back:
    """The product of a transposed convolution."""

    padding: Any
    output_padding: Any
    stride: Any
    dilation: Any
    groups: int

    def __call__(self, weight: Tensor, x: Tensor) -> Tensor:
        options = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return _BACK[x.ndim - 2](x, weight, None, *options)


def _product(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(layer, ConvTranspose):
        return _Back(layer.padding, layer.output_padding, layer.stride, layer.dilation, layer.groups)
    ends: list[int] = []
    for before, after in reversed(_padding(layer)):
        ends += [before, after]
    return _Forth(layer.padding, layer.padding_mode, tuple(ends), layer.stride, layer.dilation, layer.groups)


def _adjoint(layer: Any, size: tuple[int, ...], out: tuple[int, ...]) -> Product | None:
    """The convolution, or transposed one, with which autograd would pull back; None where the padding repeats numbers,
    is not the same at both ends, or does not tell the size.
    """
    ends = _padding(layer)
    if layer.padding_mode != "zeros" or any(before != after for before, after in ends):
        return None
    padding, stride, dilation = tuple(before for before, _ in ends), layer.stride, layer.dilation
    if isinstance(layer, ConvTranspose):
        if any(extra >= step for extra, step in zip(layer.output_padding, stride)):
            return None
        return _Forth(padding, "zeros", (), stride, dilation, layer.groups)
    reached = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, s, p, d, k in zip(out, stride, padding, dilation, layer.kernel_size)
    ]
    return _Back(padding, tuple(n - r for n, r in zip(size, reached)), stride, dilation, layer.groups)


def _padding(layer: Any) -> list[tuple[int, int]]:
    """Entries before and after, by dimension; "same" puts the odd one after, as PyTorch does."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in layer.padding]


def _circle(layer: Any, shape: tuple[int, ...], out: tuple[int, ...]) -> Circle | None:
    if isinstance(layer, ConvTranspose) or layer.padding_mode != "circular" or set(layer.stride) != {1}:
        return None
    # with another amount of padding the border counts twice, or not at all
    small = min(layer.in_channels, layer.out_channels) // layer.groups <= FOURIER_UP_TO
    return Circle(shape[1:], layer.dilation, layer.groups) if small and out == shape[1:] else None
