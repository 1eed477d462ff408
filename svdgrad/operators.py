"""Matrices that are never formed: the triplet of a linear function x ↦ A(θ) x, and a gradient as two rank-one terms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adjoint import assemble
from .certificate import check_missed
from .forward import Triplet
from .matrices import check_not_meta
from .operator import Sparse, function
from .rule import differentiable_triplet
from .steps import How, check_stopping, find_triplet, full_precision, prepare, solve_adjoint
from .transforms import plain_mode, refuse_tracing

MatVec = Callable[[Any, Tensor], Tensor]


def operator_triplet(
    matvec: MatVec,
    params: Any,
    v0: Tensor,
    tol: float | None = None,
    maxiter: int | None = None,
    rmatvec: MatVec | None = None,
    missed: float | None = 1e-3,
) -> Triplet:
    """The dominant triplet (σ, u, v) of x ↦ matvec(params, x), differentiable in ``params`` as that of a matrix is.

    With p, q from the adjoint system, the cotangent of the parameters θ is the gradient with respect to θ of

        Re ⟨ξu + p, A(θ) v⟩ + Re ⟨u, A(θ) q⟩,   with u, v, p, q held fixed,

    so A needs neither be formed nor transposed by hand: Aᴴ y is the derivative of Re ⟨y, matvec(params, x)⟩ with
    respect to x. Every transform of torch.func, forward mode and every order of derivative are served.

    Parameters
    ----------
    matvec : callable
        ``matvec(params, x)``, linear in x, of PyTorch operations; x of the shape of v0, the result of any shape, both
        of one dtype.
    params : tensor, or tuple, list, dict of tensors, nested as you like, or a Module
        What the result is differentiated by: all that ``matvec`` reads and that requires a gradient. A Module stands
        for its parameters and buffers, as in ``operator_triplet(lambda layer, x: layer(x), layer, v0)``; () says that
        nothing is to be differentiated.
    v0 : Tensor
        The vector to start from, real or complex, of any shape; it also fixes the sign, or phase, v0ᴴv > 0. A constant
        to all derivatives. float16 and bfloat16, of v0 and params, are computed in float32.
    tol, maxiter : float, int, optional
        The iteration stops where ‖Aᴴu − σv‖ ≤ tol σ (default: ten times the unit roundoff), and gives up after maxiter
        steps (default: 1000).
    missed : float, optional
        It also goes on until the probability that it has missed a value above 1.001 σ is at most this; None trusts v0,
        as for ``singular_triplet``.
    rmatvec : callable, optional
        ``rmatvec(params, y)`` = Aᴴ y for the iterations, where that is faster than the derivative of ``matvec``.

    Returns
    -------
    Triplet
        ``sigma ()``, ``u`` in the shape of matvec's result, ``v`` in the shape of v0.

    Raises
    ------
    TypeError
        v0 is not a floating point tensor; the result of matvec is not a tensor of the same dtype; params hold no
        floating point tensor, are a generator, or hold a Module among other things.
    ValueError
        v0 is zero or not finite; params hold NaN or Inf; matvec is not linear, as far as its first products show;
        matvec reads a tensor that requires a gradient from elsewhere than params, or depends on no part of params; it
        changes from call to call, as far as A v shows, which the call and backward both compute. Unseen is a change
        that A v shows by less than √ε σ, or only in a second derivative, or in a backward under torch.func.
    NotImplementedError
        In a map of torch.autograd's own (is_grads_batched=True, vectorize=True) for more than the gradient of σ, and
        where a tracer hands out no numbers (torch.func.linearize, make_fx).
    ConvergenceError
        The iteration ran out of steps. The message names what was reached, and what was not.
    TieError, PhaseError, NearTieWarning
        In backward, as for ``singular_triplet``; the gap is an estimate from the iteration's other Ritz values.

    Notes
    -----
    Cost: two products a step forward, two a step of conjugate gradients for each cotangent or tangent, and one backward
    pass through two products for θ. Memory: O(k min(m, n) + m + n) for k steps, never m×n; but where forward modes of
    torch.func are nested in one another the matrix is formed. vmap is a loop.
    Source: the book (eq-operator-gradient).

    Examples
    --------
    >>> d = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    >>> sigma, u, v = operator_triplet(lambda d, x: d * x, d, torch.ones(3))
    >>> sigma.backward()
    >>> d.grad.round(decimals=3) + 0.0
    tensor([1., 0., 0.])
    """
    if torch.compiler.is_compiling():
        from .compiled import refuse_transforms

        refuse_transforms()
    return _operator_triplet(matvec, params, v0, tol, maxiter, rmatvec, missed)


def _operator_triplet(
    matvec: MatVec,
    params: Any,
    v0: Tensor,
    tol: float | None,
    maxiter: int | None,
    rmatvec: MatVec | None,
    missed: float | None,
) -> Triplet:
    if not (isinstance(v0, Tensor) and (v0.is_floating_point() or v0.is_complex())):
        found = getattr(v0, "dtype", type(v0).__name__)
        raise TypeError(
            f"v0 must be a floating point tensor, real or complex, found {found}: it is where to start from"
        )
    if not callable(matvec):
        raise TypeError(f"matvec must be a function of (params, x), found {type(matvec).__name__}")
    if v0.numel() == 0:
        raise ValueError(f"v0 must have at least one entry, found shape {tuple(v0.shape)}")
    check_not_meta("v0", v0)
    refuse_tracing()
    check_stopping(tol, maxiter)
    check_missed(missed)
    with plain_mode(), full_precision((v0,)):
        start = v0.detach().to(torch.promote_types(v0.dtype, torch.float32))
        start = start.clone() if start.is_inference() else start
        A = function(matvec, params, start, rmatvec)
        how = How(0, "lanczos", "cg", tol, maxiter, missed)
        sigma, u, v = differentiable_triplet(A, start.reshape(-1), how)
    return Triplet(sigma, u.reshape(A.out), v.reshape(v0.shape)).to(v0.dtype)


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
    A: Tensor | Sparse,
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
    if not callable(loss):
        raise TypeError(f"loss must be a function of a triplet, found {type(loss).__name__}")
    X, how = prepare(A, index, forward, adjoint, tol, maxiter, v0, missed)
    if len(A.shape) != 2 or A.dtype.is_complex:
        raise ValueError(f"rank_two_gradient takes one real matrix (m, n), found {A.dtype} of shape {tuple(A.shape)}")
    X = X.at([x.detach() for x in X.leaves])
    sigma, u, v, *known = find_triplet(X, v0, how)
    with torch.inference_mode(False), torch.enable_grad():
        sigma, u, v = (x.clone() if x.is_inference() else x for x in (sigma, u, v))
        leaves = Triplet(*(x.detach().requires_grad_() for x in (sigma, u, v)))
        value = loss(leaves)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex() or not value.requires_grad:
            found = (
                f"{value.dtype} of shape {tuple(value.shape)}{' without a graph' * (not value.requires_grad)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise TypeError(
                f"loss(triplet) must be one real number, as a tensor, and a function of the triplet, found {found}: "
                "end it with .sum(), and calculate with the sigma, u and v that it is given"
            )
        bars = torch.autograd.grad(value, leaves, allow_unused=True)
    xi, phi, psi = (torch.zeros_like(x) if bar is None else bar for x, bar in zip(leaves, bars))
    p, q = solve_adjoint(X, Triplet(sigma, u, v), phi, psi, how, "loss", known)
    return value.detach(), RankTwo(u, v, p, q, xi)
