"""The gain of a layer: σ of the linear map that it applies, and a number that σ does not exceed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..adjoint import SOLVERS
from ..auto import GRAM_UP_TO, How
from ..certificate import check_missed
from ..forward import Lanczos, Ritz, RitzBlock, Triplet
from ..forward.found import counts
from ..forward.lanczos import check_stopping
from ..inputs import check_range
from ..operator import Operator, plain
from ..products import length
from ..rule import differentiable_triplet
from ..steps import find_triplet, full_precision
from ..transforms import in_forward_mode, plain_mode, transformed
from ..triplet import spectral_norm as norm_of_matrix
from .affine import affine_operator, like
from .layer import LinearMap, check_weight, linear_map

#: up to so many inputs a layer's matrix is formed, which then costs a third of an iteration or less (measured on a CPU)
FORMED_UP_TO = 128
#: how far above σ a bound may lie: less takes more steps
CLOSE = 5e-3


@dataclass(frozen=True)
class Found:
    """A triplet that is there already, as a forward method: its derivative is all that is left to find."""

    triplet: Triplet
    left: Ritz

    name: ClassVar[str] = "found"
    largest_only: ClassVar[bool] = True
    leaves: ClassVar[type[Ritz]] = Ritz
    leaves_many: ClassVar[type[RitzBlock]] = RitzBlock

    def find(self, A: Operator, index: int, v0: Tensor | None) -> tuple[Triplet, Ritz]:
        # new tensors of the same numbers: what an autograd.Function returns holds its context, which holds this method,
        # and Python's collector does not see a circle through PyTorch
        return Triplet(*(x.detach() for x in self.triplet)), self.left

    def find_many(self, A: Operator, k: int, v0: Tensor | None) -> tuple[Triplet, RitzBlock]:
        raise NotImplementedError


def found(A: Operator, v0: Tensor | None, method: Lanczos) -> tuple[Triplet, Tensor]:
    """The triplet, differentiable in the leaves of A, and the excess: how far a missed value may lie above σ."""
    if transformed() or in_forward_mode():  # where only the rule itself reads numbers, and so takes what steps it needs
        method = replace(method, maxiter=None, best=False)
        return differentiable_triplet(A, v0, How(0, method, SOLVERS["cg"])), torch.tensor(method.resolution)
    plain = A.at([x.detach() for x in A.leaves])
    with torch.no_grad():
        sigma, u, v, *known = find_triplet(plain, v0, How(0, method, SOLVERS["cg"]))
    left = Ritz(*known)
    return differentiable_from(A, Triplet(sigma, u, v), left), left.excess


def differentiable_from(A: Operator, triplet: Triplet, left: Ritz) -> Triplet:
    """The triplet, differentiable in the leaves of A."""
    # of the other Ritz vectors none is kept: they would help second derivatives only, and a checkpoint that calculates
    # again, from a state that has moved on, must meet tensors of the same shapes
    first = left._replace(S=left.S[:1], W=left.W[:, :1])
    return differentiable_triplet(A, None, How(0, Found(triplet, first), SOLVERS["cg"]))


def recalled(A: Operator, v: Tensor) -> Triplet:
    """The triplet that v belongs to, found before for the same A: two products, and nothing to search."""
    with torch.no_grad():
        matvec, rmatvec = A.at([x.detach() for x in A.leaves]).products()
        v = v / length(v)
        image = matvec(v)
        sigma = length(image)
        size = sigma.clamp_min(torch.finfo(sigma.dtype).tiny)  # of a zero matrix
        u = image / size
        residual = length(rmatvec(u) - sigma * v) / size
        W = (v if len(u) >= len(v) else u).unsqueeze(1)
        left = Ritz(sigma.reshape(1), W, *counts(0, 2, residual.item(), 0.0, 0.0))
    return differentiable_from(A, Triplet(sigma, u, v), left)


def operator_norm(
    layer: nn.Module,
    input_shape: Sequence[int] | None = None,
    tol: float | None = None,
    missed: float = 1e-3,
    maxiter: int | None = None,
) -> Tensor:
    """The gain σ = max ‖A x‖/‖x‖ of a layer x ↦ A x + b, differentiable: dσ = uᵀ dA v.

    A is the matrix of the layer as it is called: with its stride, padding, padding mode, dilation and groups. For a
    convolution that is not the norm of the kernel as a matrix, which ``torch.nn.utils.parametrizations.spectral_norm``
    takes, and which can be three times too small for kernels of 3×3 (eq-flattened).

    Parameters
    ----------
    layer : Module
        Linear, Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, or any Module that is linear or affine in its
        input; the result is differentiable in all its parameters.
    input_shape : tuple of int, optional
        The shape of one input, without the batch: (channels, height, width) for Conv2d. The gain of all layers but
        Linear depends on it.
    tol : float, optional
        The iteration stops at a residual r = √tol, relative to σ: the relative error of σ is about r² over the relative
        gap to σ₂, and at most r (default: 1e-12 in double, 1e-8 in single precision). The gradient's error is r over
        the gap, and that of a second derivative r over its square.
    missed : float, optional
        The probability that a value above 1.001 σ may be missed.
    maxiter : int, optional
        The steps after which it gives up (default: 1000, or as many as the layer has inputs or outputs if fewer).

    Returns
    -------
    Tensor
        σ, of no dimensions, real, in the precision of the weight; float16 and bfloat16 are computed in float32.

    Raises
    ------
    TypeError
        ``layer`` is no Module; ``input_shape`` is not integers.
    ValueError
        ``input_shape`` is missing where the gain depends on it, or does not fit; the weight has another shape than the
        layer was made with; the gain is too large for float16; the layer is not affine (a ReLU,
        dropout in training), as far as four products show, near 0 and far from it; its output for a batch of one is no
        tensor with that batch first; a weight is NaN or Inf.
    ConvergenceError
        The iteration ran out of steps, as it may for a long signal, whose singular values lie close: loosen tol.

    Notes
    -----
    Cost: about 20 to 80 products with A and as many with Aᵀ, each on one image: as much as forward and backward for a
    batch of so many images. On a GPU PyTorch lets cuDNN keep only ten bits in convolutions of float32:
    ``torch.backends.cudnn.allow_tf32 = False`` gives the digits that tol asks for. A
    convolution that wraps around (padding_mode="circular") and keeps the size falls apart by a Fourier transform into a
    small matrix for each frequency, and of a layer with up to 128 inputs the matrix is formed.
    Of any other Module A x is (f(F x) − f(0))/F, with F a large power of two, so that b costs no digit of it. It is
    called with copies of its buffers, and so leaves its running statistics as they are.
    Source: the book, chapter *In training* (eq-gain).

    Examples
    --------
    >>> layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> abs(operator_norm(layer, (1, 8, 8)) - (1 + 2 * math.cos(math.pi / 9)) ** 2) < 1e-5
    tensor(True)
    """
    check_missed(missed)
    check_stopping(tol, maxiter)
    A = linear_map(layer, input_shape)
    if A is None:
        with plain_mode(), full_precision(tensors := [*layer.parameters(), *layer.buffers()]):
            X = affine_operator(layer, input_shape)
            triplet = differentiable_triplet(X, None, _how(X.vector, tol, missed, maxiter))
        first = like(tensors)
        check_range(triplet.sigma, first.dtype)
        return triplet.sigma.to(first.real.dtype)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    with plain_mode(), full_precision((weight,)):
        W = plain(weight)
        check_weight(A, W)
        small = small_matrix(A, W)
        if small is not None:
            sigma = norm_of_matrix(small)
        else:
            sigma = differentiable_triplet(A.operator(W), None, _how(W, tol, missed, maxiter)).sigma
    check_range(sigma, weight.dtype)
    return sigma.to(weight.real.dtype)


def _how(like: Tensor, tol: float | None, missed: float, maxiter: int | None) -> How:
    tol = (1e-12 if torch.finfo(like.dtype).bits == 64 else 1e-8) if tol is None else tol
    return How(0, Lanczos(math.sqrt(tol), maxiter, missed), SOLVERS["cg"])


def small_matrix(A: LinearMap, W: Tensor) -> Tensor | None:
    """A matrix that has the same largest singular value, and is small: a block of A, or A itself where it is small."""
    if A.circle is not None:
        blocks = A.circle.blocks(W)
        with torch.no_grad():  # of the norms only one is to be differentiated
            scale = blocks.abs().amax()  # or squares would leave the range of numbers
            unit = blocks / torch.where(scale > 0, scale, 1)
            squares = unit @ unit.mH if unit.shape[-2] <= unit.shape[-1] else unit.mH @ unit
            # under torch.func NaN is not seen before; whoever takes the block finds it
            largest = torch.linalg.eigvalsh(squares.nan_to_num())[:, -1].argmax()
        return blocks.index_select(0, largest.reshape(1))[0]
    if A.product is None:
        return W if min(W.shape) <= GRAM_UP_TO else None
    if A.size <= FORMED_UP_TO:
        return A.product(W, torch.eye(A.size, dtype=W.dtype, device=W.device).unflatten(1, A.input_shape)).flatten(1)
    return None


def upper_bound(layer: nn.Module, input_shape: Sequence[int] | None = None, failure: float = 1e-9) -> Tensor:
    """A number that the gain of a layer exceeds with a probability of at most ``failure``, at most 1% above the gain.

    The probability is that of the random start of the iteration, and so holds for every layer, whatever its weights
    are: of all starts there are, at most a part ``failure`` would have returned a number below σ. (The start is
    seeded, so it is always the same. Whoever chose a weight with that start in mind could hide a value from it.)
    Where a Fourier transform or a small matrix gives σ itself, the bound τ is σ and a few times its rounding error.
    That is above 1% only where the taps of a convolution all but cancel.

    Parameters as for ``operator_norm``: a Linear, Conv or ConvTranspose layer. Computed in float64, and returned in it,
    whatever the precision of the layer, since a rounded bound is none. Differentiable: as σ, times τ/σ but for
    rounding.

    Raises
    ------
    ValueError
        ``failure`` is below what rounding allows, some 1e-14 for a large layer, or not a probability; what
        ``operator_norm`` raises.
    TypeError
        A Module of another kind.

    Notes
    -----
    Cost: about that of ``operator_norm`` in float64. Source: the book, chapter *In training* (eq-above).

    >>> layer = nn.Linear(3, 2, bias=False)
    >>> 0 <= upper_bound(layer) - torch.linalg.matrix_norm(layer.weight.double(), 2) < 1e-12
    tensor(True)
    """
    A = linear_map(layer, input_shape)
    if A is None:
        raise TypeError(
            "upper_bound takes a Linear, Conv or ConvTranspose layer with PyTorch's own forward and without hooks, "
            f"found {type(layer).__name__}"
        )
    if not (isinstance(failure, float) and 0 < failure < 1):
        raise ValueError(f"failure must be a probability above 0 and below 1, found {failure!r}")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    with plain_mode(), full_precision((weight,)):
        W = plain(weight)
        W = W.to(torch.promote_types(W.dtype, torch.float64))
        eps = torch.finfo(W.dtype).eps
        check_weight(A, W)
        small = small_matrix(A, W)
        cancelled = 8 * eps * rounding_scale(A, W)
        if small is not None:
            return norm_of_matrix(small) * (1 + 8 * eps * sum(small.shape)) + cancelled
        X = A.operator(W)
        floor = math.sqrt(2 * min(X.shape) / math.pi) * eps
        if failure <= floor:
            raise ValueError(
                f"failure must be above {floor:.0e}, which is what rounding leaves for a layer of this size, found "
                f"{failure!r}"
            )
        method = Lanczos(1.0, None, failure, resolution=CLOSE, best=True)
        triplet, excess = found(X, None, method)
    return triplet.sigma * ((1 + excess.item()) * (1 + 8 * eps * sum(X.shape))) + cancelled


def rounding_scale(A: LinearMap, W: Tensor) -> Tensor | float:
    """What the rounding error of products with a convolution is relative to, which may be far above σ: taps cancel
    where they meet, in a Fourier transform or where the padding repeats a number.

    That is ‖|A|‖ times the number of taps, with |A| the matrix for the moduli of the taps, and ‖|A|‖² at most its
    largest row sum times its largest column sum.
    """
    if A.product is None:
        return 0.0
    with torch.no_grad():
        X = A.operator(W.abs().to(W.dtype))
        matvec, rmatvec = X.products()
        one = torch.ones(X.shape[1], dtype=W.dtype, device=W.device)
        rows, columns = matvec(one).abs().amax(), rmatvec(one.new_ones(X.shape[0])).abs().amax()
    return math.prod(W.shape[2:]) * rows.sqrt() * columns.sqrt()
