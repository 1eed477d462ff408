"""The numerator rule: of how the loss changes with a turn of two kept vectors, what is rounding is zero (chapter *More
than one*), however close the values are that it is divided by.

Vectors are rows here, as in inside.py.
"""

from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .products import extremes, length
from .transforms import to_front, transformed


def antihermitian(X: Tensor) -> Tensor:
    """(X − Xᴴ)/2."""
    return (X - X.mH) / 2


def along(U: Tensor, Phi: Tensor) -> Tensor:
    """UᴴΦ of rows, uᵢᴴφⱼ at i, j."""
    return U.conj() @ Phi.mT


def lengths(X: Tensor, Y: Tensor) -> Tensor:
    """‖xᵢ‖ + ‖yᵢ‖ of rows."""
    found: Tensor = vector_norm(X, dim=-1) + vector_norm(Y, dim=-1)
    if not transformed() and found.numel():  # where numbers can be read: one look costs less than units for all rows
        least, most = extremes(found)
        if torch.finfo(found.dtype).tiny ** 0.4 < least and most < torch.finfo(found.dtype).max ** 0.4:
            return found
    return length(X) + length(Y)


def spaces(sigma: Tensor) -> Tensor:
    """σⱼ − σᵢ at i, j."""
    return sigma.unsqueeze(-2) - sigma.unsqueeze(-1)


def numerators(U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a + b and a − b, with a = aherm UᴴΦ and b = aherm VᴴΨ, and ‖φᵢ‖ + ‖φⱼ‖ + ‖ψᵢ‖ + ‖ψⱼ‖ at i, j.

    (a + b)ᵢⱼ is how fast the loss changes as the triplets i and j turn into each other.
    """
    C, D = along(U, Phi), along(V, Psi)
    size = lengths(Phi, Psi)
    return antihermitian(C + D), antihermitian(C - D), size.unsqueeze(-1) + size.unsqueeze(-2)


def rounding(U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor, size: Tensor, eps: float) -> Tensor:
    """How large rounding alone may make a numerator, at i, j, with ``size`` of ``numerators`` (the numerator rule).

    The sums make it up to 1.2 ε ``size``, ε that of their precision, so that 4 ε ``size`` counts as rounding.
    Cotangents that come in half precision, of which ``eps`` is the rounding, have an error of their own in each entry:
    together up to 0.4 ε ‖uᵢ ∘ φⱼ‖, the product taken entry by entry, which for long vectors is far less; more where
    they are sums of terms that cancel. Of that twice as much counts as rounding, and no more: at gaps of some percent
    real numerators are as small.
    """
    own = torch.finfo(size.dtype).eps
    if eps <= own:
        return 4 * own * size
    return 4 * own * size + 0.8 * eps * by_entries(U, V, Phi, Psi, size)


def by_entries(U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor, size: Tensor) -> Tensor:
    """‖uᵢ ∘ φⱼ‖ + ‖uⱼ ∘ φᵢ‖ and the same of V and Ψ, at i, j, the products taken entry by entry."""
    unit = size.diagonal(dim1=-2, dim2=-1) / 2
    unit = torch.where(unit > 0, unit, 1)
    entries = sum((X.abs() ** 2 @ (Y / unit.unsqueeze(-1)).abs().mT ** 2).sqrt() for X, Y in ((U, Phi), (V, Psi)))
    entries = entries * unit.unsqueeze(-2)
    return entries + entries.mT


def far(sigma: Tensor) -> Tensor:
    """Whether σᵢ and σⱼ differ by more than ε^⅓ σ₁: then a second derivative by reverse mode over reverse mode keeps
    its digits, also for a loss that is blind to the turn.
    """
    distant: Tensor = spaces(sigma).abs() > torch.finfo(sigma.dtype).eps ** (1 / 3) * sigma[..., :1, None]
    return distant


class Numerator(torch.autograd.Function):
    """W as it is, with the numerator rule for its tangent, which is rounding for a loss that is blind to the turn.

    In reverse mode there is no such rule: what cancels has been added up before it could be told from rounding.
    """

    @staticmethod
    def forward(W: Tensor, U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor, eps: float) -> Tensor:
        return W.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, W_bar: Tensor) -> tuple[Any, ...]:
        return W_bar, *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, dW: Tensor, *tangents: Tensor) -> Tensor:
        _, *tensors = ctx.saved_tensors
        U, V, Phi, Psi = (length(x).unsqueeze(-1) for x in tensors)
        dU, dV, dPhi, dPsi = (length(x).unsqueeze(-1) for x in tangents[:4])
        size = dU @ Phi.mT + U @ dPhi.mT + dV @ Psi.mT + V @ dPsi.mT
        return torch.where(dW.abs() > 4 * ctx.eps * (size + size.mT), dW, 0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, eps = inputs
        return Numerator.apply(*to_front(info.batch_size, tensors, in_dims[:5]), eps), 0
