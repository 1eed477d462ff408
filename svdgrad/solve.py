"""The solution of the adjoint system as a function that is differentiable in turn, by the same solve."""

from collections.abc import Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from .auto import How
from .forward import Triplet
from .operator import Dense, Operator
from .steps import full_precision, solve_adjoint
from .transforms import one_by_one, to_front


def precisely(method: Any) -> Any:
    """The method with autocast switched off, where it is on: a backward pass may run inside it."""

    @wraps(method)
    def inner(ctx: Any, *cotangents: Any) -> Any:
        with full_precision(ctx.A.leaves):
            return method(ctx, *cotangents)

    return inner


#: roles in which nothing is solved
CHECKS = "phase", "values", "nested", "moves", "divided", "still"


class Solve(torch.autograd.Function):
    """(leaves, σ, u, v, φ, ψ) → (p, q), differentiable by the same solve.

    The pair (p, q) belongs to the square bordered system J [p; q; λ; μ] = [φ; ψ; 0; 0], J = [K, W; Wᴴ, 0], with λ = uᴴφ
    and μ = vᴴψ. A cotangent (p̄, q̄) is pulled back by J [y; z; α; γ] = [p̄; q̄; 0; 0], the same system; then φ̄ = y,
    ψ̄ = z, and what multiplies dJ is −(y, z, α, γ)(p, q, λ, μ)ᴴ. A tangent is pushed forward by J dx = dc − dJ x.
    ``role`` says what (φ, ψ) is, and decides what is checked: "loss", "tangent", "again" for the derivative of one of
    those ("reversed" in reverse mode over a tangent), "third" for the derivative of that. With the others nothing is
    solved, but something is checked: with "phase" the phase of the loss, with "values" what it makes of k values, whose
    cotangent stands last, with "nested d" their distances, for d derivatives, with "moves" those of the triplets that
    (φ, ψ) moves, for a second derivative, with "divided" whether the loss reads close values and their vectors, and
    with "still" also whether the loss with these cotangents stands still as two close vectors turn. With these and with
    "loss", ξ or h of a core may stand last, only to be looked at: no derivative takes it.
    """

    @staticmethod
    def forward(A: Operator, how: How, role: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        count = len(A.leaves)
        sigma, u, v, phi, psi, *known = tensors[count:]
        return solve_adjoint(A.at(tensors[:count]), Triplet(sigma, u, v), phi, psi, how, role, known)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.A, ctx.how, ctx.role, *tensors = inputs
        ctx.count = len(ctx.A.leaves)
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    @precisely
    def backward(ctx: Any, p_bar: Tensor, q_bar: Tensor) -> tuple[Any, ...]:
        leaves, (sigma, u, v, phi, psi, *known, p, q) = split(ctx)
        A, left = ctx.A.at(leaves), ctx.how.left(known)
        role = {"loss": "again", "tangent": "reversed"}.get(ctx.role, "third")
        y, z = Solve.apply(A, ctx.how, role, *leaves, sigma, u, v, p_bar, q_bar, *left)
        many = ctx.how.k is not None
        if many and ctx.role == "loss":
            Solve.apply(A, ctx.how, "still", *leaves, sigma, u, v, phi, psi, *known)
        lam, mu, alpha, gamma = (_against(x, y, many) for x, y in ((u, phi), (v, psi), (u, p_bar), (v, q_bar)))
        A_bar = A.pull((y, p), (q, z), ctx.needs_input_grad[3 : 3 + ctx.count])
        sigma_bar = -(vecdot(y, p) + vecdot(z, q)).real
        u_bar = -(_times(lam, y, many) + _times(alpha, p, many))
        v_bar = -(_times(mu, z, many) + _times(gamma, q, many))
        # where one matrix has met a batch of right-hand sides, autograd sums over them
        return None, None, None, *A_bar, sigma_bar, u_bar, v_bar, y, z, *(None,) * len(known)

    @staticmethod
    @precisely
    def jvp(ctx: Any, _A: None, _how: None, _role: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        leaves, (sigma, u, v, phi, psi, *known, p, q) = split(ctx)
        if ctx.role.split()[0] in CHECKS:
            return torch.zeros_like(p), torch.zeros_like(q)
        dleaves, (dsigma, du, dv, dphi, dpsi) = tangents[: ctx.count], tangents[ctx.count : ctx.count + 5]
        A, many, left = ctx.A.at(leaves), ctx.how.k is not None, ctx.how.left(known)
        top, bottom = torch.zeros_like(p), torch.zeros_like(q)
        if dphi is not None:
            top = top + dphi
        if dpsi is not None:
            bottom = bottom + dpsi
        if any(d is not None for d in dleaves):
            dA = A.push(dleaves)
            top, bottom = top + dA.mv(q), bottom + dA.rmv(p)
        if dsigma is not None:
            top, bottom = top - dsigma.unsqueeze(-1) * p, bottom - dsigma.unsqueeze(-1) * q
        if du is not None:
            top = top - _times(_against(phi, u, many), du, many)
        if dv is not None:
            bottom = bottom - _times(_against(psi, v, many), dv, many)
        role = "again" if ctx.role in ("loss", "tangent") else "third"
        if many and du is not None and dv is not None:  # of a loss of σ alone top and bottom are zero
            Solve.apply(A, ctx.how, "moves", *leaves, sigma, u, v, du, dv, *left)
        if many and ctx.role == "loss":
            Solve.apply(A, ctx.how, "divided", *leaves, sigma, u, v, phi, psi, *known)
        dp, dq = Solve.apply(A, ctx.how, role, *leaves, sigma, u, v, top, bottom, *left)
        if du is not None:
            dp = dp - _times(_against(p, du, many), u, many)
        if dv is not None:
            dq = dq - _times(_against(q, dv, many), v, many)
        return dp, dq

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], A: Operator, how: How, role: str, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        dims = in_dims[3:]
        if isinstance(A, Dense):
            # one matrix with a batch of right-hand sides stays one matrix: the solvers broadcast
            matrix, sigma, u, v, phi, psi, *known = tensors
            count = len(how.left(known))
            phi, psi, *also = to_front(info.batch_size, (phi, psi, *known[count:]), (*dims[4:6], *dims[6 + count :]))
            others, other_dims = (matrix, sigma, u, v, *known[:count]), (*dims[:4], *dims[6 : 6 + count])
            if any(dim is not None for dim in other_dims):
                others = to_front(info.batch_size, others, other_dims)
                extra = (phi.ndim - 1) - others[1].ndim
                others = tuple(x.reshape(x.shape[0], *(1,) * extra, *x.shape[1:]) for x in others)
            outputs = Solve.apply(A, how, role, *others[:4], phi, psi, *others[4:], *also)
        else:
            outputs = one_by_one(partial(Solve.apply, A, how, role), info.batch_size, tensors, dims)
        return outputs, (0, 0)


def _against(x: Tensor, y: Tensor, many: bool) -> Tensor:
    """yᴴx as what multiplies vectors, a number for one triplet; of rows yⱼᴴxᵢ at i, j."""
    return x @ y.mH if many else vecdot(y, x).unsqueeze(-1)


def _times(c: Tensor, x: Tensor, many: bool) -> Tensor:
    return c @ x if many else c * x


def split(ctx: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The leaves among the saved tensors, and what follows them."""
    saved = ctx.saved_tensors  # once: a checkpoint unpacks each tensor one time
    return saved[: ctx.count], saved[ctx.count :]
