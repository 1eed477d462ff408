"""Matrices that are never formed: the triplet of a linear function x ↦ A(θ) x, and a gradient as two rank-one terms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .adjoint import assemble
from .adjoint.krylov import schur_cg
from .forward import KNOWN, Triplet, fix_sign, golub_kahan
from .gap import check_gap, largest_unseen, with_value
from .matrices import project
from .steps import find_triplet, solve_adjoint, validate

MatVec = Callable[[Any, Tensor], Tensor]


def operator_triplet(
    matvec: MatVec,
    params: Any,
    v0: Tensor,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> Triplet:
    """The dominant triplet (σ, u, v) of x ↦ matvec(params, x), differentiable in ``params``.

    With p, q from the adjoint system, the cotangent of the parameters θ is the gradient with respect to θ of

        ⟨ξu + p, A(θ) v⟩ + ⟨u, A(θ) q⟩,   with u, v, p, q held fixed,

    so A needs neither be formed nor transposed by hand: Aᵀ y is the derivative of ⟨y, matvec(params, x)⟩ with respect
    to x.

    Parameters
    ----------
    matvec : callable
        ``matvec(params, x)``, linear in x, of PyTorch operations; x of the shape of v0, the result of any shape.
    params : tensor, or tuple, list, dict of tensors, nested as you like
        What the result is differentiated by. Tensors that ``matvec`` takes from elsewhere count as constants.
    v0 : Tensor
        The vector to start from, real, of any shape; it also fixes the sign, ⟨v0, v⟩ > 0.
    tol, maxiter : float, int, optional
        The iteration stops where ‖Aᵀu − σv‖ ≤ tol σ (default: ten times the unit roundoff), and gives up after maxiter
        steps (default: 1000).
    missed : float, optional
        It also goes on until the probability that it has missed a value above 1.001 σ is at most this; None trusts v0,
        as for ``singular_triplet``.

    Returns
    -------
    Triplet
        ``sigma ()``, ``u`` in the shape of matvec's result, ``v`` in the shape of v0.

    Raises
    ------
    TypeError
        v0 is not a real floating point tensor.
    ValueError
        v0 is zero or not finite; params hold NaN or Inf; matvec is not linear, as far as its first product shows.
    ConvergenceError
        The iteration ran out of steps. The message names what was reached, and what was not.
    TieError, NearTieWarning
        In backward, as for ``singular_triplet``; the gap is an estimate from the iteration's other Ritz values.

    Notes
    -----
    Cost: two products a step forward, two a step of conjugate gradients backward, and one backward pass through two
    products for θ. Memory: O(kn + m) for k steps, never m×n. Differentiable once, in reverse mode.
    Source: the book (eq-operator-gradient).

    Examples
    --------
    >>> d = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    >>> sigma, u, v = operator_triplet(lambda d, x: d * x, d, torch.ones(3))
    >>> sigma.backward()
    >>> d.grad.round(decimals=3) + 0.0
    tensor([1., 0., 0.])
    """
    if not (isinstance(v0, Tensor) and v0.is_floating_point()):
        raise TypeError(f"v0 must be a real floating point tensor, found {getattr(v0, 'dtype', type(v0).__name__)}")
    leaves, spec = pytree.tree_flatten(params)
    sigma, u, v, *_ = _OperatorTriplet.apply(matvec, spec, v0.detach(), tol, maxiter, missed, *leaves)
    return Triplet(sigma, u, v)


class _OperatorTriplet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        matvec: MatVec,
        spec: Any,
        v0: Tensor,
        tol: float | None,
        maxiter: int | None,
        missed: float | None,
        *leaves: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        A = _Operator(matvec, pytree.tree_unflatten(leaves, spec), v0)
        (sigma, u, v), known = golub_kahan(A.product, A.transposed, v0.reshape(-1), tol, maxiter, missed)
        u, v = fix_sign(u, v, v0.reshape(-1))
        ctx.matvec, ctx.spec, ctx.known = matvec, spec, known
        ctx.set_materialize_grads(False)
        # tensors are saved as PyTorch wants, which notices if they are changed in place; other leaves as they are
        ctx.others = [None if isinstance(x, Tensor) else x for x in leaves]
        ctx.save_for_backward(sigma, u, v, v0, *(x if isinstance(x, Tensor) else None for x in leaves))
        return sigma, u.reshape(A.shape), v.reshape(v0.shape)

    @staticmethod
    def backward(ctx: Any, xi: Tensor | None, phi: Tensor | None, psi: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "operator_triplet is differentiable once, and a second derivative was asked for (create_graph=True): "
                "form the matrix and use singular_triplet, which is differentiable any number of times"
            )
        sigma, u, v, v0, *tensors = ctx.saved_tensors
        leaves = [
            other if x is None else x.detach().requires_grad_(x.requires_grad) for x, other in zip(tensors, ctx.others)
        ]
        params = pytree.tree_unflatten(leaves, ctx.spec)
        p, q = torch.zeros_like(u), torch.zeros_like(v)
        if phi is not None or psi is not None:
            phi = torch.zeros_like(u) if phi is None else phi.reshape(-1)
            psi = torch.zeros_like(v) if psi is None else psi.reshape(-1)
            A = _Operator(ctx.matvec, pytree.tree_unflatten([_detached(x) for x in leaves], ctx.spec), v0)
            unseen = largest_unseen(A.product, A.transposed, sigma, ctx.known)
            check_gap(u.numel(), v.numel(), sigma, with_value(ctx.known.S, unseen))
            phi, psi = project(u, phi), project(v, psi)
            p, q = schur_cg(A.product, A.transposed, Triplet(sigma, u, v), phi, psi, ctx.known)
            p, q = project(u, p), project(v, q)  # a loose u is not orthogonal to what comes out
        left = p if xi is None else xi * u + p
        with torch.enable_grad():
            f = (left * ctx.matvec(params, v.reshape(v0.shape)).reshape(-1)).sum()
            f = f + (u * ctx.matvec(params, q.reshape(v0.shape)).reshape(-1)).sum()
        wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        found = iter(torch.autograd.grad(f, wanted, allow_unused=True))
        return (None,) * 6 + tuple(next(found) if isinstance(x, Tensor) and x.requires_grad else None for x in leaves)


class _Operator:
    """Products with A and Aᵀ on flat vectors. The graph of one product is kept and walked backwards for every Aᵀ y."""

    def __init__(self, matvec: MatVec, params: Any, v0: Tensor) -> None:
        self.matvec, self.params, self.like = matvec, params, v0
        self.x = torch.zeros_like(v0).requires_grad_()
        with torch.enable_grad():
            self.y = matvec(params, self.x)
        if not torch.isfinite(self.y).all():
            raise ValueError(
                "matvec(params, 0) must be 0, found NaN or Inf: likely cause: they are in params; look upstream for "
                "the first"
            )
        if self.y.detach().any():
            raise ValueError(
                "matvec must be linear in x, found matvec(params, 0) ≠ 0: likely cause: a bias; leave it out"
            )
        self.shape = self.y.shape

    def product(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.matvec(self.params, x.reshape(self.like.shape)).reshape(-1)

    def transposed(self, y: Tensor) -> Tensor:
        if not self.y.requires_grad:  # a matvec that does not depend on x at all
            return torch.zeros_like(self.like).reshape(-1)
        x: Tensor = torch.autograd.grad(self.y, self.x, y.reshape(self.shape), retain_graph=True)[0]
        return x.reshape(-1)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


class RankTwo(NamedTuple):
    """The gradient (ξu + p)vᵀ + uqᵀ as its five parts: m + n numbers twice, in place of m·n (eq-gradient)."""

    u: Tensor
    v: Tensor
    p: Tensor
    q: Tensor
    xi: Tensor

    def dense(self) -> Tensor:
        """The m×n matrix."""
        return assemble(Triplet(self.xi, self.u, self.v), self.xi, self.p, self.q)

    def factors(self) -> tuple[Tensor, Tensor]:
        """L (m, 2) and R (n, 2) with L Rᵀ the gradient."""
        return torch.stack([self.xi * self.u + self.p, self.u], -1), torch.stack([self.v, self.q], -1)


def rank_two_gradient(
    loss: Callable[[Triplet], Tensor],
    A: Tensor,
    index: int = 0,
    forward: str = "auto",
    adjoint: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> tuple[Tensor, RankTwo]:
    """The value of ``loss(triplet)`` and its gradient with respect to A as (u, v, p, q, ξ), with no m×n array made.

    A is one real matrix (m, n); the other arguments, the errors and the warnings are those of ``singular_triplet``.

    >>> A = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> value, G = rank_two_gradient(lambda t: t.sigma + t.u[1], A)
    >>> G.dense()
    tensor([[1.0000, 0.1250],
            [0.3750, 0.0000]])
    """
    forward, adjoint = validate(A, index, forward, adjoint, v0, missed)
    if A.ndim != 2 or A.is_complex():
        raise ValueError(f"rank_two_gradient takes one real matrix (m, n), found {A.dtype} of shape {tuple(A.shape)}")
    A = A.detach().to(torch.promote_types(A.dtype, torch.float32))
    sigma, u, v, *known = find_triplet(A, v0, index, forward, tol, maxiter, missed)
    leaves = Triplet(*(x.detach().requires_grad_() for x in (sigma, u, v)))
    value = loss(leaves)
    bars = torch.autograd.grad(value, leaves, allow_unused=True)
    xi, phi, psi = (torch.zeros_like(x) if bar is None else bar for x, bar in zip(leaves, bars))
    p, q = solve_adjoint(A, sigma, u, v, phi, psi, adjoint, "loss", KNOWN[forward](*known))
    return value.detach(), RankTwo(u, v, p, q, xi)
