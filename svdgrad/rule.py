"""The derivative of a singular triplet, once, for every operator and in both modes, to every order.

    A ──find──▶ (σ, u, v, what else is known) ──loss──▶ (ξ, φ, ψ) ──solve──▶ (p, q) ──▶ pulled back to the leaves of A

Two functions: the triplet of an operator, here, and the solution of its adjoint system, in solve.py. The derivative of
each is a solve of the same system and products with A, so that second derivatives need nothing new.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from .adjoint import SOLVERS
from .auto import How
from .forward import SVD, Ritz, RitzBlock, Triplet
from .gap import check_zero
from .inside import hermitian, rotation, turning
from .newton import anchor, newton
from .operator import Dense, Function, Operator, dense
from .phase import check_phase, keep_phase
from .solve import Solve, precisely, split
from .steps import along_u, check_cotangents, find_triplet
from .transforms import (
    in_forward_mode,
    mapped_by_autograd,
    nested_derivatives,
    one_by_one,
    refuse_mapping_by_autograd,
    to_front,
    transformed,
)


def differentiable_triplet(A: Operator, v0: Tensor | None, how: How) -> Triplet:
    """(σ, u, v) of A on flat vectors, differentiable in the leaves of A."""
    if v0 is not None:  # often the v of a step before, whose graph would live as long as this one
        v0 = v0.detach()
    if not transformed():
        return Triplet(*_PlainTriplet.apply(A, v0, how, *A.leaves))
    derivatives = nested_derivatives()
    steps = derivatives.bit_length()  # k with 2ᵏ > d: right to the order 2ᵏ − 1 (chapter *One Newton step*)
    if steps and not isinstance(A, Dense):  # a Newton step solves with the matrix
        A = Dense(dense(A), rows=how.k is not None)
        how = replace(how, forward=SVD(), adjoint=SOLVERS["spectral"])
    sigma, u, v, *known = _Triplet.apply(A, v0, how, *A.leaves)
    if not steps:
        return Triplet(sigma, u, v)
    if how.k is None:
        return newton(A.leaves[0], Triplet(sigma, u, v), v0, steps)
    # the k as a batch, each with its own Newton steps, which need σᵢ to be simple; the core is diagonal then
    sigma = how.values(sigma)
    Solve.apply(
        A, how, f"nested {derivatives}", *A.leaves, sigma, u, v, torch.zeros_like(u), torch.zeros_like(v), *known
    )
    matrices = A.leaves[0].unsqueeze(-3).expand(*sigma.shape, *A.shape)
    sigma, u, v = newton(matrices, Triplet(sigma, u, v), None, steps)
    return Triplet(torch.diag_embed(sigma).to(u.dtype) if how.core else sigma, u, v)


class _Triplet(torch.autograd.Function):
    """leaves of A → (σ, u, v, *known), where ``known`` is what the forward method leaves behind for the adjoint."""

    @staticmethod
    def forward(A: Operator, v0: Tensor | None, how: How, *leaves: Tensor) -> tuple[Tensor, ...]:
        return find_triplet(A.at(leaves), v0, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[3:])
        _Triplet.keep(ctx, inputs, output)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save for the derivatives what they need."""
        ctx.A, v0, ctx.how, *leaves = inputs
        ctx.set_materialize_grads(False)
        # of v0 only the anchor of a complex phase is needed again: a clone, since the caller may overwrite v0 by then
        keep = v0 is not None and output[1].is_complex() and ctx.how.k is None
        ctx.v0 = v0.detach().clone() if keep else None
        ctx.count = len(leaves)
        ctx.save_for_backward(*leaves, *output)
        ctx.save_for_forward(*leaves, *output)

    @staticmethod
    @precisely
    def backward(ctx: Any, xi: Tensor | None, phi: Tensor | None, psi: Tensor | None, *_: None) -> Any:
        leaves, (sigma, u, v, *known) = split(ctx)
        wanted, many = ctx.needs_input_grad[3:], ctx.how.k is not None
        A = ctx.A.at(leaves)
        if isinstance(A, Function) and not transformed():
            image = ctx.how.values(sigma).unsqueeze(-1) * u
            left = ctx.how.left(known)
            assert isinstance(left, Ritz | RitzBlock)
            A = replace(A, seen=(image.detach(), left.residual.item()))
        # whether this may itself be differentiated, or is mapped
        again = torch.is_grad_enabled() or in_forward_mode() or transformed()
        # of k triplets that needs more, the solve, which refuses a tie among them
        if phi is None and psi is None and not (many and (again or ctx.how.core)):
            if xi is None:
                return (None,) * (3 + ctx.count)
            # no cotangent for the vectors, no system to solve: this is why ∂σ/∂A needs no gap (eq-dsigma)
            if not isinstance(A, Dense) and mapped_by_autograd(xi):  # nothing that is mapped may go through a function
                if many:
                    refuse_mapping_by_autograd(xi)
                return None, None, None, *(G if G is None else xi * G for G in A.pull((u,), (v,), wanted))
            return None, None, None, *A.pull((xi.unsqueeze(-1) * u,), (v,), wanted)
        refuse_mapping_by_autograd(xi, phi, psi)
        given = [x for x in (phi, psi) if x is not None]
        phi = torch.zeros_like(u) if phi is None else phi
        psi = torch.zeros_like(v) if psi is None else psi
        step = Solve.apply if again else Solve.forward  # each function of its own costs as much as a small solve
        x, q = left_and_right(A, Triplet(sigma, u, v), known, xi, phi, psi, ctx.v0, ctx.how, step)
        if xi is not None and given and not again:
            check_zero(ctx.how.values(sigma), ctx.how.values(xi), phi, psi, many, read=True)
        return None, None, None, *A.pull((x, u), (v, q), wanted)

    @staticmethod
    @precisely
    def jvp(ctx: Any, _A: None, _v0: None, _how: None, *dleaves: Tensor | None) -> tuple[Tensor | None, ...]:
        leaves, (sigma, u, v, *known) = split(ctx)
        A = ctx.A.at(leaves)
        dA = A.push(dleaves)
        dA_v, dA_u = dA.mv(v), dA.rmv(u)
        sigma, none = ctx.how.values(sigma), (None,) * len(known)
        du, dv = Solve.apply(A, ctx.how, "tangent", *leaves, sigma, u, v, dA_v, dA_u, *known)
        if ctx.how.k is not None:
            dcore, left, right = turning(sigma, u, v, dA_v)
            lost = du.isnan().any(-1)  # of those tied with what is left out
            dcore = dcore.masked_fill(lost.unsqueeze(-1) | lost.unsqueeze(-2), torch.nan)
            du, dv = left.mT @ u + du, right.mT @ v + dv
            if u.is_complex():  # turn each common phase so that the largest entry of vᵢ stays real
                turn = -1j * anchor(dv, v, None).imag / anchor(v, v, None).real
                du, dv = du + turn * u, dv + turn * v
            dsigma = dcore if ctx.how.core else dcore.diagonal(dim1=-2, dim2=-1).real
            return dsigma, du, dv, *none
        dsigma = vecdot(u, dA_v)
        if u.is_complex():
            # turn the common phase so that the anchor of the sign rule stays real, then u relative to v
            # (eq-relative-phase)
            turn = -1j * anchor(dv, v, ctx.v0).imag / anchor(v, v, ctx.v0).real
            dv = dv + turn * v
            du = du + (turn + 1j * (dsigma.imag / torch.where(sigma > 0, sigma, 1)).unsqueeze(-1)) * u
        return dsigma.real, du, dv, *none

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], A: Operator, v0: Tensor | None, how: How, *leaves: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        dims = in_dims[1], *in_dims[3:]
        if isinstance(A, Dense):  # a batch of matrices is one operator
            matrix: Tensor
            matrix, v0 = to_front(info.batch_size, (leaves[0], v0), (dims[1], dims[0]))
            if v0 is not None:
                own = matrix.ndim - v0.ndim - (how.k is None)  # starts of k triplets are rows
                v0 = v0.reshape(v0.shape[0], *(1,) * own, *v0.shape[1:])
            outputs = _Triplet.apply(A, v0, how, matrix)
        else:
            call = lambda v0, *leaves: _Triplet.apply(A, v0, how, *leaves)
            outputs = one_by_one(call, info.batch_size, (v0, *leaves), dims)
        return outputs, (0,) * len(outputs)


class _PlainTriplet(torch.autograd.Function):
    """The same for plain PyTorch, where torch.func is not at work: leaves of A → (σ, u, v).

    A function whose context is set up apart from forward, and which returns all that it keeps, as torch.func wants,
    costs 40 µs more: at 64×32 a tenth of all.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _Triplet.forward(*inputs)
        _Triplet.keep(ctx, inputs, output)
        return output[:3]

    backward = _Triplet.backward

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor | None, ...] = _Triplet.jvp(ctx, *tangents)
        return found[:3]


def left_and_right(
    A: Operator,
    triplet: Triplet,
    known: Sequence[Tensor],
    xi: Tensor | None,
    phi: Tensor,
    psi: Tensor,
    v0: Tensor | None,
    how: How,
    step: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """x and q of the gradient x vᴴ + u qᴴ, rows for k triplets; ``step`` solves for (p, q)."""
    sigma, u, v = triplet
    h, many = None, how.k is not None
    if how.core:  # what σ was is the core, and ξ its cotangent
        h, xi, sigma = hermitian(torch.zeros_like(sigma) if xi is None else xi), None, how.values(sigma)
    of_values = xi if h is None else h
    if many and of_values is not None:
        if step is Solve.forward:
            check_cotangents(A, Triplet(sigma, u, v), phi, psi, how, known, of_values)
        else:
            step(A, how, "values", *A.leaves, sigma, u, v, phi, psi, *known, of_values)
    if u.is_complex():
        if step is Solve.forward:
            seen = check_phase(u, v, phi, psi)
        else:
            seen = True  # as far as can be known here, and kept as it is where it is not
            step(A, how, "phase", *A.leaves, sigma, u, v, phi, psi, *known)
        psi = keep_phase(u, v, phi, psi, v0) if seen else psi
    # what goes along is only looked at: h, which off U changes nothing, and ξ where only Solve can read numbers, under
    # a transform, or in a second derivative
    also = (h,) if h is not None else () if xi is None or step is Solve.forward else (xi,)
    try:
        p, q = step(A, how, "loss", *A.leaves, sigma, u, v, phi, psi, *known, *also)
    except ArithmeticError:  # a tie, or a larger value: where A has changed since, it is that
        if isinstance(A, Function):
            A.check_seen(A.mv(v))
        raise
    x = along_u(sigma, u, xi, phi, p, alone=not many)
    return x + rotation(sigma, u, v, h, phi, psi, how.eps).mT @ u if many else x, q
