"""The norm of a convolution that wraps around: a Fourier transform takes its matrix apart, a frequency at a time."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .api import spectral_norm
from .auto import as_integer, computed_in
from .layer import as_shape
from .triplet import adjoint, divided, mm, or_one


def circular_norm(
    kernel: Any, spatial_shape: int | Sequence[int], dilation: int | Sequence[int] = 1, groups: int = 1
) -> Array:
    """The gain σ of a convolution that wraps around, with stride 1, differentiable: dσ = Re(uᴴ dA v).

    On images that are as large after it as before, its matrix A is block diagonal in the Fourier basis. The blocks are

        H(ω) = Σₜ C[:, :, t] exp(−i ω·d t)   at ω = 2π(f₁/N₁, f₂/N₂, …),   and so σ = max over ω of ‖H(ω)‖₂,

    with kernel C, taps t, dilation d, and images of N₁ × N₂ × …. That is no iteration, so it takes no start and no
    ``tol``, has no state to carry, and misses nothing.

    Parameters
    ----------
    kernel : array
        Shape ``(out, in/groups, *taps)`` with up to three axes of taps, real or complex, as in Equinox and PyTorch. One
        of Flax, ``(*taps, in/groups, out)``, is ``jnp.moveaxis(kernel, (-1, -2), (0, 1))``.
    spatial_shape : int or tuple of int
        The size of an image, without batch and channels. Static under jit, as all that follows.
    dilation : int or tuple of int
        From one tap to the next.
    groups : int
        Of channels, ``feature_group_count`` in Flax.

    Returns
    -------
    Array
        σ, of no dimensions, real, in the precision of the kernel; float16 and bfloat16 are computed in float32. The
        rounded σ may lie below the gain: before you divide by it, convert the kernel to float32.

    Raises
    ------
    TypeError
        The kernel is not floating point; a shape, the dilation or groups are not integers.
    ValueError
        The kernel has no axis of taps, or more than three, or an empty one; ``spatial_shape`` or ``dilation`` has
        another number of axes, or a number below 1; ``groups`` does not divide the channels of the output.

    Notes
    -----
    NaN where the kernel holds NaN or Inf; numbers below the smallest normal one count as zero. The gradient needs no
    gap; where two frequencies, but for ω and −ω, have the same norm, it is one of the subgradients.
    Cost: the eigenvalues of a Gram matrix of size min(out, in)/groups for each frequency, of which a real kernel has
    half: less than ``operator_norm`` takes for the same layer (measured on a CPU, for 8 to 128 channels). Memory: as
    many numbers as the kernel would have if it were as large as the image.
    Source: the book (eq-mirror-frequencies).

    Examples
    --------
    All but the constant image comes out of this box filter smaller:

    >>> print(circular_norm(jnp.ones((1, 1, 3, 3)), (8, 8)).round(4))
    9.0

    The layers ``eqx.nn.Conv2d(…, padding="SAME", padding_mode="CIRCULAR")`` and ``nnx.Conv(…, padding="CIRCULAR")``,
    held at a gain of one, the second only where it exceeds that:

        conv = eqx.tree_at(lambda c: c.weight, conv, conv.weight / circular_norm(conv.weight, (32, 32)))

        sigma = circular_norm(jnp.moveaxis(conv.kernel[...], (-1, -2), (0, 1)), (32, 32))
        conv.kernel[...] = conv.kernel[...] / jnp.maximum(sigma, 1)
    """
    kernel = jnp.asarray(kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.inexact):
        raise TypeError(f"kernel must be floating point, found {kernel.dtype}")
    if not 3 <= kernel.ndim <= 5 or kernel.size == 0:
        raise ValueError(
            f"kernel must be of shape (out, in, *taps) with one to three axes of taps, and not empty, found "
            f"{kernel.shape}"
        )
    dims = kernel.ndim - 2
    shape = as_shape("spatial_shape", spatial_shape)
    steps = as_shape("dilation", dims * (dilation,) if np.ndim(dilation) == 0 else dilation)
    for name, found, hint in (("spatial_shape", shape, ": leave the channels out"), ("dilation", steps, "")):
        if len(found) != dims:
            raise ValueError(f"{name} must have {dims} numbers, one for each axis of the taps, found {found}{hint}")
    groups = as_integer("groups", groups)
    if groups < 1 or kernel.shape[0] % groups:
        raise ValueError(f"groups must divide the {kernel.shape[0]} channels of the output, found {groups}")
    blocks = _blocks(kernel.astype(computed_in(kernel.dtype)), shape, steps, groups)
    sigma = spectral_norm(blocks[_largest(lax.stop_gradient(blocks))], "gram")
    return sigma.astype(jnp.finfo(kernel.dtype).dtype)


def _blocks(kernel: Array, shape: tuple[int, ...], steps: tuple[int, ...], groups: int) -> Array:
    """H(ω), shape (frequencies · groups, out/groups, in/groups); of a real kernel half of the frequencies, since H(−ω)
    is the conjugate of H(ω).
    """
    out, within, *taps = kernel.shape
    places = np.ix_(*(np.arange(k) * d % n for k, d, n in zip(taps, steps, shape)))
    image = jnp.zeros((out, within, *shape), kernel.dtype).at[:, :, *places].add(kernel)  # taps that meet are added
    transform = jnp.fft.fftn if kernel.dtype.kind == "c" else jnp.fft.rfftn
    H = transform(image, axes=range(2, image.ndim)).reshape(groups, out // groups, within, -1)
    return jnp.moveaxis(H, -1, 0).reshape(-1, out // groups, within)


def _largest(blocks: Array) -> Array:
    """The place of the block with the largest norm, by the smaller of its two Gram matrices."""
    size = jnp.abs(blocks).max()  # or squares would leave the range of numbers
    unit = divided(blocks, or_one(size))
    wide = blocks.shape[1] <= blocks.shape[2]
    squares = mm(unit, adjoint(unit)) if wide else mm(adjoint(unit), unit)
    return jnp.argmax(jnp.linalg.eigvalsh(squares, symmetrize_input=False)[:, -1])
