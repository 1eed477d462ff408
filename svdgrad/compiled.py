"""The map A → (σ, u, v) for torch.compile, which cannot trace an autograd.Function that has a rule for forward mode.

The two steps of steps.py, each declared as one opaque operation, so that a compiled caller has no graph break.
Reverse mode, once; whoever needs more calls ``singular_triplet`` outside the compiled region.
"""

from typing import Any

import torch
from torch import Tensor

from .forward import KNOWN, Triplet
from .steps import check_phase, find_triplet, gradient, keep_phase, solve_adjoint


@torch.library.custom_op("svdgrad::triplet", mutates_args=())
def triplet(A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str) -> list[Tensor]:
    """[σ, u, v, *known]."""
    if forward == "lanczos":
        raise ValueError(
            "under torch.compile the forward method is 'svd' or 'gram', found 'lanczos': call it outside the compiled "
            "region"
        )
    return [x.clone(memory_format=torch.contiguous_format) for x in find_triplet(A, v0, index, forward)]


@triplet.register_fake
def _(A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str) -> list[Tensor]:
    *batch, m, n = A.shape
    k = min(m, n)
    S = A.real.new_empty((*batch, k))
    known = (
        [S, A.new_empty((*batch, k, k))]
        if forward == "gram"
        else [A.new_empty((*batch, m, k)), S, A.new_empty((*batch, k, n))]
    )
    return [S.new_empty(batch), A.new_empty((*batch, m)), A.new_empty((*batch, n)), *known]


@torch.library.custom_op("svdgrad::solve", mutates_args=())
def solve(
    A: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    phi: Tensor,
    psi: Tensor,
    v0: Tensor | None,
    adjoint: str,
    forward: str,
    known: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """(p, q)."""
    if A.is_complex() and check_phase(u, v, phi, psi):
        psi = keep_phase(u, v, phi, psi, v0)
    p, q = solve_adjoint(A, sigma, u, v, phi, psi, adjoint, "loss", KNOWN[forward](*known))
    return p.contiguous(), q.contiguous()


@solve.register_fake
def _(
    A: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    phi: Tensor,
    psi: Tensor,
    v0: Tensor | None,
    adjoint: str,
    forward: str,
    known: list[Tensor],
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    A, v0, *_, ctx.forward, ctx.adjoint = inputs
    ctx.save_for_backward(A, v0, *output)


def _backward(ctx: Any, bars: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    A, v0, sigma, u, v, *known = ctx.saved_tensors
    xi, phi, psi = (torch.zeros_like(x) if bar is None else bar for x, bar in zip((sigma, u, v), bars))
    p, q = solve(A, sigma, u, v, phi, psi, v0, ctx.adjoint, ctx.forward, known)
    return gradient(Triplet(sigma, u, v), xi, phi, p, q), None, None, None, None


triplet.register_autograd(_backward, setup_context=_setup_context)
