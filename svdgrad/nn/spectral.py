"""``spectral_norm``: a parametrization that keeps the true gain of a layer at a bound."""

import math
import zlib
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.utils import parametrize

from ..certificate import check_missed
from ..forward import Lanczos
from ..forward.basis import noise
from ..forward.lanczos import check_stopping
from ..operator import plain
from ..products import length
from ..steps import full_precision
from ..transforms import exporting, in_forward_mode, plain_mode, transformed
from ..triplet import spectral_norm as norm_of_matrix
from .layer import LinearMap, check_weight, linear_map
from .norm import found, recalled, small_matrix

#: how far below the bound a gain may end: a value that exceeds σ by less than this part may be missed, and so the
#: weight is divided by as much more
SHORT = 3e-3
#: the least tol, in units of ε: rounding was seen to leave a gain up to four of them above the bound
ROUNDING = 32


def spectral_norm(
    layer: nn.Module,
    name: str = "weight",
    input_shape: Sequence[int] | None = None,
    bound: float = 1.0,
    tol: float = 1e-3,
    missed: float = 1e-3,
    soft: bool = False,
    maxiter: int | None = None,
) -> nn.Module:
    """Keep the gain of a layer at ``bound``: its weight W is replaced by W · bound/σ, with σ the gain of the layer.

    After every forward, in training and in evaluation,

        true gain ≤ bound · (1 + tol)   with probability 1 − missed,

    and true gain ≥ 0.997 bound, unless ``soft`` leaves a smaller gain, ``maxiter`` stops the iteration, tol exceeds
    0.003, or the weight is next to zero or in half precision. Taps of a convolution that all but cancel, where the
    padding repeats a number or a Fourier transform adds them, lose digits of the gain, and of both.

    ``torch.nn.utils.parametrizations.spectral_norm`` has the same form, and divides by the norm of the kernel as a
    matrix, from a step of power iteration; for a convolution that is another number than its gain.

    Parameters
    ----------
    layer : Module
        Linear, Conv1d to Conv3d, or ConvTranspose1d to ConvTranspose3d, with any stride, padding and padding mode,
        dilation, groups and output padding.
    name : str, optional
        The parameter that is multiplied by a number: the weight.
    input_shape : tuple of int, optional
        The shape of one input, without the batch. The gain of all layers but Linear depends on it.
    bound : float, optional
        The gain to keep.
    tol : float, optional
        By what part of it the gain may exceed the bound: at least 4e-6, in float64 7e-15. It says nothing of the other
        side, where 0.3% are allowed in any case: a smaller tol costs steps, and brings the gain no closer.
    missed : float, optional
        With what probability it may.
    soft : bool, optional
        Whether to shrink only what exceeds the bound, and leave a smaller gain as it is.
    maxiter : int, optional
        At most so many steps of the iteration at each forward, each of two products with an image. The promise holds
        for any number: a larger gain that so few steps cannot exclude is taken for the gain, so the true one ends below
        the bound.

    Returns
    -------
    Module
        The layer, with the parametrization registered: ``torch.nn.utils.parametrize.remove_parametrizations(layer,
        "weight")`` takes it away again, and leaves the weight as it then is; of a deep copy, it spoils the original.

    Raises
    ------
    TypeError
        The layer is none of these; ``name`` is no string; ``bound`` or ``tol`` is no number of Python.
    ValueError
        ``bound``, ``tol`` or ``missed`` is not positive, ``bound`` out of range, or ``tol`` below rounding;
        ``input_shape`` is missing, or does not fit; the layer has no parameter of this name, or one that is kept
        already; in forward, the weight holds NaN or Inf, or has another shape than the layer was made with.

    Notes
    -----
    State: the right singular vector of the last forward, in a buffer, from which the next starts. A weight that has not
    changed since costs two products, and a fingerprint of its numbers, by which that is told: for a large Linear layer
    as long as some ten products. A layer of few inputs is formed, and needs no state. The gradient is that of W/σ, σ
    included, from v as it is: its error, and that of a second derivative, is at most √tol over the gap, and a second
    derivative warns of it.
    The options of the layer are read now: after a change of its stride or padding, or of the shape of its input,
    register it again. The promise is that of the last parametrization of the weight: one that is registered later, on
    top of this, changes the gain again, and this one cannot see it.
    A weight is left as it is where σ, or σ/bound, is below 1e-31 (in float64 1e-292), as of zeros: its gain is below
    the bound. One on the meta device is returned as it is. float16 and bfloat16 weights are rounded after the division:
    add their roundoff to tol.
    Under torch.compile it runs outside the compiled region, so ``fullgraph=True`` is refused. torch.export keeps what
    the last forward found, σ = ‖A v‖ and what may exceed it: call the layer once before, for a weight that has changed
    since is exported without the promise.
    Source: the book, chapter *In training* (eq-held).

    Examples
    --------
    >>> layer = spectral_norm(nn.Conv2d(3, 8, 3, padding=1), input_shape=(3, 16, 16))
    >>> from svdgrad.nn import operator_norm
    >>> 0.997 < operator_norm(layer, (3, 16, 16)) < 1.001
    tensor(True)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, found {name!r}: the shape of an input is input_shape={name!r}")
    A = linear_map(layer, input_shape)
    if A is None:
        raise TypeError(
            "spectral_norm takes a Linear, Conv or ConvTranspose layer with PyTorch's own forward and without hooks, "
            f"found {type(layer).__name__}. Likely causes: another kind of Module; hooks, as of torch.nn.utils.prune; "
            "a subclass that overrides forward. Add a penalty on svdgrad.nn.operator_norm to the loss instead"
        )
    for what, value in (("bound", bound), ("tol", tol)):
        if not isinstance(value, Real):
            raise TypeError(f"{what} must be a number of Python, found {type(value).__name__}: take float({what})")
        if not 0 < value < math.inf:
            raise ValueError(f"{what} must be positive and finite, found {value!r}")
    check_missed(missed)
    check_stopping(None, maxiter)
    if missed is None:
        raise ValueError("missed must be a probability above 0 and up to 1, found None: the promise is made with it")
    kept = getattr(layer, "parametrizations", {})
    if name in kept and any(isinstance(x, SpectralNorm) for x in kept[name]):
        raise ValueError(
            f"the gain of this {type(layer).__name__} is kept already: remove_parametrizations first, for another bound"
        )
    weight = getattr(layer, name, None)
    if name != "weight" or not isinstance(weight, Tensor):
        raise ValueError(
            f"name must be that of the parameter that the gain belongs to, 'weight' in a {type(layer).__name__}, found "
            f"{name!r}"
        )
    single, most = torch.promote_types(weight.dtype, torch.float32), torch.finfo(weight.dtype).max
    if not least(single) <= bound <= most / (1 + tol):
        raise ValueError(
            f"bound must be a number between {least(single):.0e} and {most / (1 + tol):.4g} for a weight of "
            f"{weight.dtype}, found {bound!r}"
        )
    if not tol >= (rounding := ROUNDING * torch.finfo(single).eps):
        raise ValueError(
            f"tol must be at least {rounding:.0e} for a weight of {weight.dtype}, found {tol!r}: rounding alone may "
            "exceed a smaller one. Give a larger tol, or a layer of higher precision, where there is one"
        )
    parametrize.register_parametrization(layer, name, SpectralNorm(A, weight, bound, tol, missed, soft, maxiter))
    return layer


class SpectralNorm(nn.Module):
    """W ↦ W · bound/σ (eq-held); see ``spectral_norm``."""

    v: Tensor
    """the right singular vector, flat"""
    excess: Tensor
    """δ for which the gain may exceed ‖A v‖(1 + δ) with the probability ``missed``"""
    seen: Tensor
    """the fingerprints of the weight and options that both belong to, and of both"""

    def __init__(
        self, A: LinearMap, weight: Tensor, bound: float, tol: float, missed: float, soft: bool, maxiter: int | None
    ) -> None:
        super().__init__()
        self.A, self.bound, self.tol, self.soft = A, float(bound), float(tol), soft
        self.method = Lanczos(math.sqrt(tol), maxiter, missed, resolution=max(tol, SHORT), best=True)
        like = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        start = noise(A.size, like)
        self.register_buffer("v", start / vector_norm(start))
        self.register_buffer("excess", torch.full((), math.inf, dtype=like.real.dtype, device=like.device))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64, device=like.device))
        self.options = zlib.crc32(repr((A, self.method)).encode())

    def forward(self, weight: Tensor) -> Tensor:
        if weight.is_meta:  # no numbers, and nothing to divide by
            return weight
        if exporting():
            sigma = self._as_last_seen(weight)
        else:
            if torch.compiler.is_compiling():
                from ..compiled import refuse_transforms

                refuse_transforms()
            elif weight.is_inference():  # of which nothing could be saved for a derivative
                weight = weight.clone()
            sigma = _gain(self, weight)
        # what cannot be divided is left as it is, and is below the bound
        large = sigma.detach() >= least(sigma.dtype) * max(1.0, self.bound)
        # not times bound/σ, whose derivative bound/σ² may leave the range of numbers where that of W/σ does not
        divisor = torch.where(large, sigma, self.bound) / self.bound
        divisor = divisor.clamp(min=1.0) if self.soft else divisor
        # in the precision of σ: in half precision a small divisor would lose its digits
        return (weight.to(torch.promote_types(weight.dtype, torch.float32)) / divisor).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """``layer.weight = W`` sets the weight that is divided."""
        return weight

    def _as_last_seen(self, weight: Tensor) -> Tensor:
        """What ``_gain`` is for a weight that has not changed since, by operations that torch.export takes."""
        W = weight.to(torch.promote_types(weight.dtype, torch.float32))
        small = small_matrix(self.A, W)
        if small is not None:
            norm: Tensor = torch.linalg.matrix_norm(small, 2)
            return norm
        v = self.v.to(W)
        image: Tensor = W @ v if self.A.product is None else self.A.one(W, v.reshape(self.A.input_shape))
        return length(image.reshape(-1)) * self.margin(self.excess)

    def margin(self, excess: Tensor) -> Tensor:
        """What σ is multiplied by where the true gain may exceed it by more than is promised."""
        over: Tensor = (1 + excess) / (1 + self.tol)
        return over.clamp(min=1.0)

    def state(self) -> Tensor:
        """The fingerprint of v and excess."""
        return fingerprint(torch.cat([self.v, self.excess.reshape(1)]))

    def extra_repr(self) -> str:
        return f"bound={self.bound:g}, input_shape={self.A.input_shape}" + ", soft=True" * self.soft


def least(dtype: torch.dtype) -> float:
    """The smallest gain to divide by: below it products with small entries of a vector lose digits, or are zero."""
    return torch.finfo(dtype).tiny / torch.finfo(dtype).eps


def fingerprint(x: Tensor, seed: int = 0) -> Tensor:
    """A weighted sum of the bits of all numbers, in integers: the same on every device, and found without a wait.

    What differs has the same by chance only, as with any hash of 64 bits. A copy would tell as well, but takes memory,
    and a state that is loaded could not be told to belong to it.
    """
    x = (torch.view_as_real(x.detach()) if x.is_complex() else x.detach()).contiguous()
    x = x.clone() if x.storage_offset() * x.element_size() % 8 else x  # words begin at multiples of eight bytes
    data = x.reshape(-1).view(torch.uint8)
    words, rest = data[: len(data) // 8 * 8].view(torch.int64), data[len(data) // 8 * 8 :].to(torch.int64)
    full = len(words) // _BLOCK * _BLOCK
    first, second = _weights(2 * min(_BLOCK, max(len(words), len(rest))), x.device).view(2, -1)
    sums = []
    # on a CPU so many rows at once stay in the caches; on a GPU each piece costs calls. None is as large as a large x
    piece = 16 if x.is_cpu else 2048
    for rows in filter(torch.numel, (*words[:full].view(-1, _BLOCK).split(piece), words[full:][None], rest[None])):
        n = rows.shape[1]
        # the upper half of a word has a weight of its own: exponents stand there, and a multiple of 2⁵⁵ times a weight
        # is, modulo 2⁶⁴, nine bits of that
        sums.append((rows * first[:n]).sum(1) + ((rows >> 32) * second[:n]).sum(1))
    found = torch.cat(sums)
    return (found * _weights(len(found), x.device, 1)).sum() + seed


def _weights(count: int, device: torch.device, seed: int = 0) -> Tensor:
    """Odd integers that look random, the same on every device."""
    weights = (torch.arange(1, count + 1, device=device) + (seed << 32)) * _GOLDEN
    for factor in (_GOLDEN, -4658895280553007687):
        weights = (weights ^ (weights >> 29)) * factor
    return (weights ^ (weights >> 31)) | 1


_BLOCK = 4096
_GOLDEN = -7046029254386353131  # 2⁶⁴ over the golden ratio, odd, whose multiples spread evenly


def _gain(norm: SpectralNorm, weight: Tensor) -> Tensor:
    """σ of the layer, or more where a larger one cannot be excluded; differentiable, and a step of the state."""
    with plain_mode(), full_precision((weight,)):
        W = plain(weight)
        check_weight(norm.A, W)
        small = small_matrix(norm.A, W)
        if small is not None:
            return norm_of_matrix(small)
        A, v0 = norm.A.operator(W), norm.v.to(W)
        if transformed() or in_forward_mode():  # where no state can be kept
            triplet, excess = found(A, v0, norm.method)
            return triplet.sigma * norm.margin(excess.to(norm.excess))
        for name, buffer in norm.named_buffers():
            if buffer.is_inference():  # made, or copied, in inference mode, outside of which it cannot be written to
                setattr(norm, name, buffer.clone())
        ours = fingerprint(weight, norm.options)
        if torch.equal(ours, norm.seen[0]) and torch.equal(norm.state(), norm.seen[1]):
            return recalled(A, v0).sigma * norm.margin(norm.excess.clone())
        if not (v0.isfinite().all() and v0.any()):  # a state that was lost
            v0 = noise(norm.A.size, W)
        (sigma, _, v), excess = found(A, v0, norm.method)
        with torch.no_grad():
            norm.v.copy_(v)
            norm.excess.copy_(excess)
            norm.seen.copy_(torch.stack([ours, norm.state()]))
        return sigma * norm.margin(norm.excess.clone())
