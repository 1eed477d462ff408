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
from .auto import How, name_of
from .forward import FORWARDS, Triplet
from .gap import check_zero
from .inputs import prepare, prepare_many
from .nn import spectral
from .operator import Dense
from .solve import Solve
from .steps import find_triplet, full_precision
from .transforms import in_forward_mode, lazy_conjugates, transformed
from .triplets import as_rows, in_precision


def _hide(owner: Any, *names: str) -> None:
    """Run these functions, with all that they call, outside the compiled region, as a clean break in it."""
    for name in names:
        hidden = torch.compiler.disable(getattr(owner, name), reason="svdgrad runs this outside the compiled region")
        setattr(owner, name, staticmethod(hidden) if isinstance(owner, type) else hidden)


# now, when torch.compile first meets svdgrad: to import the compiler earlier would cost everybody a second
_hide(triplet_module, "_singular_triplet")
_hide(operators, "_operator_triplets")
_hide(triplets, "_differentiable_rows")
_hide(spectral, "_gain")
_hide(rule._Triplet, "forward", "backward", "jvp", "vmap")
_hide(rule._PlainTriplet, "forward", "backward", "jvp")
_hide(Solve, "forward", "backward", "jvp", "vmap")


def refuse_transforms() -> None:
    """Keep torch.compile from tracing through a transform of torch.func, in which an opaque operation has no tangent.

    Raised while torch.compile traces, this makes it run the transform as it is; only ``fullgraph=True`` passes it on.
    """
    if transformed() or in_forward_mode():
        raise NotImplementedError(
            "svdgrad cannot be traced inside a transform of torch.func: leave out fullgraph=True, and the transform, "
            "or forward mode, runs outside the compiled region"
        )


def compiled_triplet(A: Any, *request: Any) -> Triplet:
    """``singular_triplet`` while torch.compile traces it."""
    refuse_transforms()
    if not _opaque(A, False, *request):
        return triplet_module._singular_triplet(A, *request)
    X, how, start = prepare(A, *request)
    sigma, u, v, *_ = triplet(X.leaves[0], None if start is None else start.detach(), how.index, *_named(how))
    return Triplet(sigma, u, v).to(A.dtype)


def compiled_rows(A: Any, core: bool, *request: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(σ, U, V), or (core, U, V), of ``singular_triplets`` and ``low_rank`` while torch.compile traces them."""
    refuse_transforms()
    if not _opaque(A, True, *request):
        return triplets._differentiable_rows(A, core, *request)
    X, how, _ = prepare_many(A, core, *request)
    value, U, V, *_ = triplet(X.leaves[0], None, 0, *_named(how))
    return in_precision((value, U, V) if how.k is not None else as_rows(value, U, V, core), A.dtype, core)


def _opaque(
    A: Any, many: bool, _: int, forward: Any, adjoint: Any, tol: Any, maxiter: Any, v0: Any, missed: Any
) -> bool:
    """Whether a call can stand in the graph as one opaque operation."""
    dense = isinstance(A, Tensor) and A.layout == torch.strided
    names = isinstance(forward, str) and forward != "lanczos" and isinstance(adjoint, str)
    return dense and names and (tol, maxiter, missed) == (None, None, 1e-3) and not (many and v0 is not None)


def _named(how: How) -> tuple[str, str, int | None, bool, float]:
    """What a ``How`` is made of, as an operation can take it."""
    return how.forward.name, name_of(how.adjoint), how.k, how.core, how.eps


@torch.library.custom_op("svdgrad::triplet", mutates_args=())
def triplet(
    A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str, k: int | None, core: bool, eps: float
) -> list[Tensor]:
    """[σ, u, v, *known], or [σ, U, V, *known] with vectors as rows, with diag σ for σ where the core is asked for."""
    how = How(index, FORWARDS[forward](), SOLVERS[adjoint], k, core, eps)
    with lazy_conjugates():
        found = find_triplet(_operator(A, k), v0, how)
        return [x.clone(memory_format=torch.contiguous_format) for x in found]


def _operator(A: Tensor, k: int | None) -> Dense:
    return Dense(A, rows=k is not None)


@triplet.register_fake
def _(
    A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str, k: int | None, core: bool, eps: float
) -> list[Tensor]:
    *batch, m, n = A.shape
    least, rows = torch.sym_min(m, n), [] if k is None else [k]
    S = A.real.new_empty((*batch, least))
    known = (
        [S, A.new_empty((*batch, least, least))]
        if forward == "gram"
        else [A.new_empty((*batch, m, least)), S, A.new_empty((*batch, least, n))]
    )
    values = A.new_empty((*batch, *rows, *rows)) if core else S.new_empty((*batch, *rows))
    return [values, A.new_empty((*batch, *rows, m)), A.new_empty((*batch, *rows, n)), *known]


@torch.library.custom_op("svdgrad::solve", mutates_args=())
def solve(
    A: Tensor,
    found: list[Tensor],
    bars: list[Tensor],
    v0: Tensor | None,
    forward: str,
    adjoint: str,
    k: int | None,
    core: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x and q of the gradient x vᴴ + u qᴴ, from what ``triplet`` found and the cotangents of its first three."""
    sigma, u, v, *known = found
    how = How(0, FORWARDS[forward](), SOLVERS[adjoint], k, core, eps)
    xi, phi, psi = bars
    step = Solve.forward
    with lazy_conjugates():
        x, q = rule.left_and_right(_operator(A, k), Triplet(sigma, u, v), known, xi, phi, psi, v0, how, step)
        check_zero(how.values(sigma), how.values(xi), phi, psi, k is not None)
        return x.contiguous(), q.contiguous()


@solve.register_fake
def _(A: Tensor, found: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(found[1]), torch.empty_like(found[2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    A, v0, _, *ctx.named = inputs
    # of v0 only the anchor of a complex phase is needed again: a clone, since the caller may overwrite v0 by then
    ctx.save_for_backward(A, v0.clone() if v0 is not None and A.is_complex() else None, *output)


def _backward(ctx: Any, bars: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    A, v0, *found = ctx.saved_tensors
    given = [torch.zeros_like(x) if bar is None else bar for x, bar in zip(found[:3], bars)]
    x, q = solve(A, found, given, v0, *ctx.named)
    _, u, v, *_ = found
    with full_precision((A,)):  # this product is traced, in the autocast of the caller
        return *_operator(A, ctx.named[2]).pull((x, u), (v, q)), *(None,) * 7


triplet.register_autograd(_backward, setup_context=_setup_context)
