"""The map A → (σ, u, v) for torch.compile, which cannot trace an autograd.Function that has a rule for forward mode.

The two steps of steps.py, each declared as one opaque operation, so that a compiled caller has no graph break.
Reverse mode, once; whoever needs more calls ``singular_triplet`` outside the compiled region.
"""

from typing import Any

import torch
from torch import Tensor

from .forward import FullSVD, Triplet
from .steps import find, gradient
from .steps import solve as solve_adjoint


@torch.library.custom_op("svdgrad::triplet", mutates_args=())
def triplet(
    A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(σ, u, v, U, S, Vᴴ)."""
    if forward != "svd":
        raise ValueError(f"under torch.compile the forward method is 'svd', found {forward!r}: call it outside the compiled region")
    sigma, u, v, U, S, Vh = (x.contiguous() for x in find(A, v0, index, forward))
    return sigma, u, v, U, S, Vh


@triplet.register_fake
def _(A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str) -> tuple[Tensor, ...]:
    *batch, m, n = A.shape
    k = min(m, n)
    S = A.real.new_empty((*batch, k))
    return S.new_empty(batch), A.new_empty((*batch, m)), A.new_empty((*batch, n)), A.new_empty((*batch, m, k)), S, A.new_empty((*batch, k, n))


@torch.library.custom_op("svdgrad::solve", mutates_args=())
def solve(
    A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor, adjoint: str, U: Tensor, S: Tensor, Vh: Tensor
) -> tuple[Tensor, Tensor]:
    """(p, q)."""
    p, q = solve_adjoint(A, sigma, u, v, phi, psi, adjoint, "loss", FullSVD(U, S, Vh))
    return p.contiguous(), q.contiguous()


@solve.register_fake
def _(
    A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor, adjoint: str, U: Tensor, S: Tensor, Vh: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    A, *_, ctx.adjoint = inputs
    ctx.save_for_backward(A, *output)


def _backward(ctx: Any, xi: Tensor | None, phi: Tensor, psi: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    A, sigma, u, v, U, S, Vh = ctx.saved_tensors
    p, q = solve(A, sigma, u, v, phi, psi, ctx.adjoint, U, S, Vh)
    return gradient(Triplet(sigma, u, v), xi, phi, p, q), None, None, None, None


triplet.register_autograd(_backward, setup_context=_setup_context)
