"""The differentiable map A → (σ, u, v) in PyTorch: start reading here.

    A ──forward──▶ Triplet(sigma, u, v) ──loss──▶ (xi, phi, psi) ──adjoint solver──▶ (p, q) ──▶ ∂L/∂A = (ξu + p)vᴴ + uqᴴ

A method of ``svdgrad.forward`` finds the triplet, a solver of ``svdgrad.adjoint`` finds (p, q), on plain tensors and
with all that is to be looked at, in steps.py; this file ties the two steps into one ``torch.autograd.Function``.
"""

from typing import Any

import torch
from torch import Tensor

from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName
from .forward import Method, Triplet
from .inputs import check_range, prepare
from .operator import Sparse
from .rule import differentiable_triplet
from .steps import full_precision


def singular_triplet(
    A: Tensor | Sparse,
    index: int = 0,
    forward: ForwardName | Method = "auto",
    adjoint: AdjointName | Solver = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> Triplet:
    """The singular triplet (σ, u, v) of A, differentiable: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1.

    For a loss L with cotangents ξ = ∂L/∂σ, φ = ∂L/∂u, ψ = ∂L/∂v the gradient is

        ∂L/∂A = (ξu + p)vᴴ + uqᴴ,   where   K [p; q] = [(I − uuᴴ)φ; (I − vvᴴ)ψ],   K = [σI, −A; −Aᴴ, σI].

    It is finite and right whenever σ itself is simple; that other singular values coincide does not matter.

    Parameters
    ----------
    A : Tensor, or Sparse
        Shape (..., m, n), floating point, on any device. float16 and bfloat16 are computed in float32. Its entries, and
        the cotangents, may have any size at which σ and the gradient are normal numbers.
        One sparse matrix (m, n), in COO or CSR layout or as ``svdgrad.operator.Sparse``, has a gradient at its entries
        only, in its layout; it takes index 0, "lanczos" and "cg".
    index : int
        Which triplet, in descending order of σ; −1 is the smallest.
    forward : str
        How the triplet is found: "svd" (the full SVD), "gram" (eigenvectors of AᴴA or AAᴴ, whichever is smaller; index
        0),
        "lanczos" (products with A; index 0), or "auto": "svd" for another index than 0, else "gram" while one side is
        small or much the smaller (``svdgrad.auto.choose``), and "lanczos" where it is not.
    adjoint : str
        How the adjoint system is solved: a name in ``svdgrad.adjoint.SOLVERS``, or "auto": "spectral", in closed form,
        where the forward method knows all singular vectors, and "cg" after "lanczos".
    tol, maxiter : float, int, optional
        For "lanczos": it stops where ‖Aᴴu − σv‖ ≤ tol σ (default: ten times the unit roundoff), and raises a
        ConvergenceError after maxiter steps (default: min(m, n), where it ends for certain). "auto" takes them for the
        matrices for which it chooses "lanczos"; for others it needs neither. "svd" and "gram" refuse them. The adjoint
        of "cg" is solved to a tenth of the residual reached, since that decides the error of the gradient.
    v0 : Tensor, optional
        Shape (n,) or (..., n), fixes the sign, or phase: of all pairs c(u, v) with c of modulus one, that with v0ᴴv > 0
        is returned (eq-phase).
        Without it the entry of v that is largest in modulus is positive. "lanczos" also starts from it. A constant to
        all derivatives.
    missed : float, optional
        For "lanczos": it also goes on until the probability that it has missed a value above 1.001 σ is at most this;
        of two values that are closer, either may be returned. The proof asks for many of the steps of a start without
        v0, however loose tol is: at the default tol that costs a good v0 nothing in float64, and half as many steps
        again, or more, in float32. None trusts v0, at the risk of σ₂ for σ₁ where v0 is close to v₂, as after two
        values have changed places.

    Returns
    -------
    Triplet
        Named tuple of ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``, with the dtype and device of A.

    Raises
    ------
    TypeError
        A is not a floating point tensor, dense or sparse; index, tol, maxiter or v0 is of a type that it cannot have.
    ValueError
        A is not a matrix, has an empty side, or holds NaN or Inf; index, tol, maxiter or the shape of v0 is out of
        range; v0 is zero or not finite; an unknown name; tol or maxiter with a method that does not iterate; an index
        other than 0 with a solver that serves the largest singular value only. A is float16, and σ is above 65504, the
        largest number of float16; under torch.func and torch.compile it is Inf instead.
    TieError
        In backward, if the loss depends on u or v and σ equals another singular value up to rounding, by 16 ε σ₁, or 3
        ε √(m + n) σ₁ if that is more: then u and v are not functions of A, as far as can be seen. Zero counts as
        another value if m ≠ n or A is complex; for a real square A the sign of u is lost where σ is rounding. Also if σ
        is subnormal, where their derivatives, of the size of 1/σ, leave the range of numbers. The value, and the
        gradient of a loss of σ alone, are always given.
    PhaseError
        In backward, if A is complex and the loss changes with the common phase of u and v, which A does not determine
        (eq-phase-blind). Where that is by so little that it may be rounding of both cotangents, as it is for
        ‖A − σuvᴴ‖², there is no error: a loss that sees the phase in u and v together can pass for one. Its gradient is
        that at the phase described at v0, to which forward mode keeps, and what is nested in two of them.
    ConvergenceError
        "lanczos" ran out of steps; the message names what was reached, and what was not.
    NotImplementedError
        A map of torch.autograd's own (is_grads_batched=True, vectorize=True) for which numbers are to be read: in
        backward for u or v, in forward mode for any iteration. A tracer that hands out no numbers
        (torch.func.linearize, make_fx). A sparse tensor that torch.func maps, or in CSR layout under torch.func:
        ``svdgrad.operator.Sparse`` serves all transforms there.

    Warns
    -----
    NearTieWarning
        In backward, if the loss depends on u or v and σ is so close to another singular value that fewer than two
        digits of the gradient can be right. It names the gap and the error to expect. And if σ is exactly zero in a
        loss of σ and u or v, such as σ u, which then cannot be told from one of σ alone; under torch.func and
        torch.compile a loss of σ alone is warned of too.

    Notes
    -----
    Cost: forward one symmetric eigendecomposition of size min(m, n) ("gram") or two products with A a step ("lanczos");
    backward four products with a vector ("spectral") or two products with A a step ("cg"); and one rank-two update.
    A Krylov space holds one vector of a multiple σ: after "lanczos" a backward through u or v searches for another, for
    half as many products again as "cg" takes in float32, and a quarter in float64. It overlooks one in 100 of those
    that the loss, and so "cg", does not touch.
    The gradient grows like 1/(σ₁ − σ₂), and its relative error like ε σ₁/(σ₁ − σ₂), ε the unit roundoff.
    Backward is differentiable in turn. Source: the book, chapter *The adjoint system* (eq-adjoint-system, eq-gradient);
    for complex A the chapter *Complex matrices: a sign becomes a phase* (eq-complex-gradient).

    Examples
    --------
    >>> A = torch.tensor([[3.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> sigma, u, v = singular_triplet(A)
    >>> (sigma + u[1]).backward()
    >>> A.grad
    tensor([[1.0000, 0.1250],
            [0.3750, 0.0000]])
    """
    if torch.compiler.is_compiling():
        from .compiled import compiled_triplet

        return compiled_triplet(A, index, forward, adjoint, tol, maxiter, v0, missed)
    return _singular_triplet(A, index, forward, adjoint, tol, maxiter, v0, missed)


def _singular_triplet(A: Tensor | Sparse, *request: Any) -> Triplet:
    X, how, v0 = prepare(A, *request)
    with full_precision(X.leaves):  # not only what is calculated now: a forward mode differentiates it on the spot
        triplet = differentiable_triplet(X, v0, how)
    check_range(triplet.sigma, A.dtype)
    return triplet.to(A.dtype)


def spectral_norm(
    A: Tensor | Sparse,
    forward: ForwardName | Method = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> Tensor:
    """The largest singular value σ = ‖A‖₂, differentiable: ∂σ/∂A = u vᴴ, with no system to solve and no gap needed.

    Parameters, errors and cost are those of ``singular_triplet``; shapes (..., m, n) -> (...).
    Where σ₁ repeats, u vᴴ is one of many subgradients. Forward mode moves u and v along with σ, and raises a TieError
    there. Source: the book (eq-dsigma).

    >>> A = torch.eye(2, requires_grad=True)
    >>> spectral_norm(A).backward()
    >>> A.grad.trace()
    tensor(1.)
    """
    return singular_triplet(A, forward=forward, tol=tol, maxiter=maxiter, v0=v0, missed=missed).sigma
