"""Matrices that are never formed: the triplet of a linear function x ↦ A(θ) x, and a gradient as two rank-one terms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adjoint import SOLVERS, assemble
from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName, How
from .forward import Lanczos, Method, Triplet
from .inputs import check_k, prepare
from .operator import Function, Sparse, function
from .products import check_has_numbers
from .steps import find_triplet, full_precision, solve_adjoint, value_and_cotangents
from .transforms import plain_mode, refuse_tracing
from .triplets import Triplets, rows_of

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
        steps (default: 1000). The adjoint is solved to a tenth of the residual reached, since that decides the error of
        the gradient.
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
    sigma, U, V = operator_triplets(matvec, params, v0, 1, tol, maxiter, rmatvec, missed)
    return Triplet(sigma[0], U[..., 0], V[..., 0])


def operator_triplets(
    matvec: MatVec,
    params: Any,
    v0: Tensor,
    k: int,
    tol: float | None = None,
    maxiter: int | None = None,
    rmatvec: MatVec | None = None,
    missed: float | None = 1e-3,
) -> Triplets:
    """The k dominant triplets of x ↦ matvec(params, x), differentiable in ``params`` as those of a matrix are.

    The arguments are those of ``operator_triplet``, and k; errors and warnings also those of ``singular_triplets``. v0
    tells the shape and the dtype of x, and is one of the vectors that the iteration starts from.
    Returns ``sigma (k,)``, ``U (*out, k)`` and ``V (*v0.shape, k)``, where matvec's result has the shape ``out``.
    Cost: two products with k + 2 + k/4 vectors a step, each by a call of matvec. Source: the book (eq-outside).

    >>> d = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    >>> operator_triplets(lambda d, x: d * x, d, torch.ones(3), 2).sigma.sum().backward()
    >>> d.grad.round(decimals=3) + 0.0
    tensor([1., 0., 1.])
    """
    if torch.compiler.is_compiling():
        from .compiled import refuse_transforms

        refuse_transforms()
    return _operator_triplets(matvec, rmatvec, params, v0, k, tol, maxiter, missed)


def _operator_triplets(
    matvec: MatVec, rmatvec: MatVec | None, params: Any, v0: Tensor, k: int, *stopping: Any
) -> Triplets:
    check_function(matvec, v0)
    with plain_mode(), full_precision((v0,)):
        A, start = operator_of(matvec, params, v0, rmatvec)
        check_k(k, *A.shape)
        many = None if k == 1 else int(k)
        how = How(0, Lanczos(*stopping), SOLVERS["cg"], many, eps=torch.finfo(v0.dtype).eps)
        sigma, U, V = rows_of(A, how, start.reshape(-1) if k == 1 else start.reshape(1, -1))
    U, V = U.mT.reshape(*A.out, -1), V.mT.reshape(*v0.shape, -1)
    return Triplets(*Triplet(sigma, U, V).to(v0.dtype))


def check_function(matvec: MatVec, v0: Tensor) -> None:
    """Raise an error for what is no function, or nothing to start from."""
    if not (isinstance(v0, Tensor) and (v0.is_floating_point() or v0.is_complex())):
        found = getattr(v0, "dtype", type(v0).__name__)
        raise TypeError(
            f"v0 must be a floating point tensor, real or complex, found {found}: it is where to start from"
        )
    if not callable(matvec):
        raise TypeError(f"matvec must be a function of (params, x), found {type(matvec).__name__}")
    check_has_numbers("v0", v0)
    if v0.numel() == 0:
        raise ValueError(f"v0 must have at least one entry, found shape {tuple(v0.shape)}")
    refuse_tracing()


def operator_of(matvec: MatVec, params: Any, v0: Tensor, rmatvec: MatVec | None) -> tuple[Function, Tensor]:
    """The operator, and v0 in single precision or better."""
    start = v0.detach().to(torch.promote_types(v0.dtype, torch.float32))
    start = start.clone() if start.is_inference() else start
    return function(matvec, params, start, rmatvec), start


class RankTwo(NamedTuple):
    """The gradient (ξu + p)vᵀ + uqᵀ as its five parts: m + n numbers twice, in place of m·n (eq-gradient)."""

    u: Tensor
    """the left singular vector, shape (m,)"""
    v: Tensor
    """the right singular vector, shape (n,)"""
    p: Tensor
    """the first half of the solution of the adjoint system, p ⟂ u, shape (m,)"""
    q: Tensor
    """its second half, q ⟂ v, shape (n,)"""
    xi: Tensor
    """the derivative of the loss with respect to σ, shape ()"""

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
    forward: ForwardName | Method = "auto",
    adjoint: AdjointName | Solver = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> tuple[Tensor, RankTwo]:
    """The value of ``loss(triplet)`` and its gradient with respect to A as (u, v, p, q, ξ), with no m×n array made.

    A is one real matrix (m, n); the other arguments, the errors and the warnings are those of ``singular_triplet``.
    What a loss makes of A apart from the triplet has no low rank: where A requires a gradient that is a ValueError.

    >>> A = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> value, G = rank_two_gradient(lambda t: t.sigma + t.u[1], A)
    >>> G.dense()
    tensor([[1.0000, 0.1250],
            [0.3750, 0.0000]])
    """
    X, how, _ = prepare(A, index, forward, adjoint, tol, maxiter, v0, missed)
    if len(A.shape) != 2 or A.dtype.is_complex:
        raise ValueError(f"rank_two_gradient takes one real matrix (m, n), found {A.dtype} of shape {tuple(A.shape)}")
    X = X.at([x.detach() for x in X.leaves])
    sigma, u, v, *known = find_triplet(X, v0, how)
    value, (xi, phi, psi) = value_and_cotangents(loss, Triplet(sigma, u, v), A)
    p, q = solve_adjoint(X, Triplet(sigma, u, v), phi, psi, how, "loss", known)
    return value, RankTwo(u, v, p, q, xi)
