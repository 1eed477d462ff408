"""The map A → (σ, u, v) for torch.compile, which cannot trace an autograd.Function that has a rule for forward mode.

The two steps of steps.py, each declared as one opaque operation, so that a compiled caller has no graph break: by the
full SVD or the Gram matrix, in reverse mode, once. All else leaves the compiled region and runs as it does outside.
"""

from typing import Any

import torch
from torch import Tensor

from . import operators, rule, triplets
from . import triplet as triplet_module
from .adjoint import SOLVERS
from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName, How, name_of
from .forward import FORWARDS, Method, Triplet
from .inputs import prepare
from .nn import spectral
from .operator import Dense
from .phase import check_phase, keep_phase
from .products import outer_sum
from .steps import along_u, find_triplet, solve_adjoint
from .transforms import in_forward_mode, transformed


def _hide(owner: Any, *names: str) -> None:
    """Run these functions, with all that they call, outside the compiled region, as a clean break in it."""
    for name in names:
        hidden = torch.compiler.disable(getattr(owner, name), reason="svdgrad runs this outside the compiled region")
        setattr(owner, name, staticmethod(hidden) if isinstance(owner, type) else hidden)


# now, when torch.compile first meets svdgrad: to import the compiler earlier would cost everybody a second
_hide(triplet_module, "_singular_triplet")
_hide(operators, "_operator_triplet", "_operator_triplets")
_hide(triplets, "_differentiable_rows")
_hide(spectral, "_gain")
_hide(rule._Triplet, "forward", "backward", "jvp", "vmap")
_hide(rule._PlainTriplet, "forward", "backward", "jvp")
_hide(rule._Solve, "forward", "backward", "jvp", "vmap")


def refuse_transforms() -> None:
    """Keep torch.compile from tracing through a transform of torch.func, in which an opaque operation has no tangent.

    Raised while torch.compile traces, this makes it run the transform as it is; only ``fullgraph=True`` passes it on.
    """
    if transformed() or in_forward_mode():
        raise NotImplementedError(
            "svdgrad cannot be traced inside a transform of torch.func: leave out fullgraph=True, and the transform, "
            "or forward mode, runs outside the compiled region"
        )


def compiled_triplet(
    A: Any,
    index: int,
    forward: ForwardName | Method,
    adjoint: AdjointName | Solver,
    tol: float | None,
    maxiter: int | None,
    v0: Tensor | None,
    missed: float | None,
) -> Triplet:
    """``singular_triplet`` while torch.compile traces it."""
    refuse_transforms()
    if (
        not isinstance(A, Tensor)
        or A.layout != torch.strided
        or forward == "lanczos"
        or not isinstance(forward, str)
        or not isinstance(adjoint, str)
        or (tol, maxiter, missed) != (None, None, 1e-3)
    ):
        return triplet_module._singular_triplet(A, index, forward, adjoint, tol, maxiter, v0, missed)
    X, how = prepare(A, index, forward, adjoint, tol, maxiter, v0, missed)
    start = None if v0 is None else v0.detach()
    sigma, u, v, *_ = triplet(X.leaves[0], start, index, how.forward.name, name_of(how.adjoint))
    return Triplet(sigma, u, v).to(A.dtype)


@torch.library.custom_op("svdgrad::triplet", mutates_args=())
def triplet(A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str) -> list[Tensor]:
    """[σ, u, v, *known]."""
    found = find_triplet(Dense(A), v0, How(index, FORWARDS[forward](), SOLVERS[adjoint]))
    return [x.clone(memory_format=torch.contiguous_format) for x in found]


@triplet.register_fake
def _(A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str) -> list[Tensor]:
    *batch, m, n = A.shape
    k = torch.sym_min(m, n)
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
    how = How(0, FORWARDS[forward](), SOLVERS[adjoint])
    if A.is_complex() and check_phase(u, v, phi, psi):
        psi = keep_phase(u, v, phi, psi, v0)
    p, q = solve_adjoint(Dense(A), Triplet(sigma, u, v), phi, psi, how, "loss", known)
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
    # of v0 only the anchor of a complex phase is needed again: a clone, since the caller may overwrite v0 by then
    ctx.save_for_backward(A, v0.clone() if v0 is not None and A.is_complex() else None, *output)


def _backward(ctx: Any, bars: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    A, v0, sigma, u, v, *known = ctx.saved_tensors
    xi, phi, psi = (torch.zeros_like(x) if bar is None else bar for x, bar in zip((sigma, u, v), bars))
    p, q = solve(A, sigma, u, v, phi, psi, v0, ctx.adjoint, ctx.forward, known)
    return outer_sum((along_u(sigma, u, xi, phi, p), u), (v, q)), None, None, None, None


triplet.register_autograd(_backward, setup_context=_setup_context)
