"""The k dominant singular triplets, and the matrix that they make: ``singular_triplets`` and ``low_rank``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName, How
from .forward import Method, Triplet
from .inputs import check_range, prepare_many
from .operator import Dense, Operator, Sparse
from .rule import differentiable_triplet, left_and_right
from .solve import Solve
from .steps import find_triplet, full_precision, value_and_cotangents


class Triplets(NamedTuple):
    """k singular triplets: A V = U diag σ, Aᴴ U = V diag σ, UᴴU = VᴴV = I."""

    sigma: Tensor
    """the k largest singular values, descending, shape (..., k)"""
    U: Tensor
    """the left singular vectors as columns, shape (..., m, k)"""
    V: Tensor
    """the right singular vectors as columns, shape (..., n, k)"""


class LowRank(NamedTuple):
    """The best approximation of rank k as three factors, A_k = U core Vᴴ."""

    U: Tensor
    """orthonormal columns, shape (..., m, k)"""
    core: Tensor
    """diag σ in value, shape (..., k, k); its derivatives have entries off the diagonal"""
    V: Tensor
    """orthonormal columns, shape (..., n, k)"""

    def dense(self) -> Tensor:
        """A_k (..., m, n)."""
        return self.U @ self.core @ self.V.mH


def singular_triplets(
    A: Tensor | Sparse,
    k: int,
    forward: ForwardName | Method = "auto",
    adjoint: AdjointName | Solver = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> Triplets:
    """The k dominant singular triplets of A, differentiable: A V = U S, Aᴴ U = V S, S = diag σ.

    For a loss with cotangents ξ, Φ, Ψ of σ, U, V the gradient has rank 2k,

        ∂L/∂A = (U M + P)Vᴴ + U Qᴴ,   P S − A Q = (I − UUᴴ)Φ,   Q S − AᴴP = (I − VVᴴ)Ψ,   P ⟂ U,  Q ⟂ V,

        Mᵢⱼ = (a + b)ᵢⱼ/(σⱼ − σᵢ) + (a − b)ᵢⱼ/(σᵢ + σⱼ) + ξᵢδᵢⱼ,   a = aherm UᴴΦ,  b = aherm VᴴΨ,

    where the first term of M is left out if its numerator is rounding. So a loss that no turn within a tie changes, of
    U Uᴴ, V Vᴴ, U Vᴴ or Σ f(σᵢ), has its gradient at any distance of the kept values, and at ties. Only the gap at the
    cut, σₖ − σₖ₊₁, has to be there.

    Rounding is meant in the precision of A. In half precision it hides numerators of a loss of U S Vᴴ at gaps of some
    percent; ``low_rank`` has none to hide. Under autocast the matrix products of a loss leave three digits in its
    cotangents, and the distances of the kept values divide that error. Calculate such a loss, and second derivatives of
    any, with autocast off.

    Parameters
    ----------
    A : Tensor, or Sparse
        As for ``singular_triplet``; with "lanczos", which a sparse A takes, one matrix (m, n).
    k : int
        How many, from 1 to min(m, n).
    forward : str, or Method
        "svd" (the full SVD), "gram" (eigenvectors of AᴴA or AAᴴ, and the full SVD where σₖ < σ₁/10), "lanczos" (block
        Lanczos, by products with A), or "auto": "gram" while one side is small or much the smaller
        (``svdgrad.auto.choose``), else "lanczos".
    adjoint : str, or Solver
        "spectral", in closed form, after "svd" and "gram"; "cg", k columns of conjugate gradients, after "lanczos";
        "auto" chooses.
    tol, maxiter, missed : float, int, float, optional
        For "lanczos", as for ``singular_triplet``: ‖AᴴU − VS‖ ≤ tol σ₁ for each of the k, and a value above σₖ has
        been missed with at most this probability.
    v0 : Tensor, optional
        Shape (n, j) or (..., n, j), any j from 1: columns for "lanczos" to start from, the first k of them, such as the
        V of a step before; "auto" takes them where it chooses "lanczos". They decide nothing, since the proof is asked
        for all the same, and are no part of the graph. Where A drifted by 1e-3 a step (600×400, σₖ₊₁ = 0.9 σₖ, k = 4),
        they saved 38% of the products in float32, or with tol=1e-6, and 21% in float64; where most steps go into the
        proof, with tol=1e-3, none.

    Returns
    -------
    Triplets
        Named tuple of ``sigma (..., k)``, ``U (..., m, k)`` and ``V (..., n, k)``, with the dtype and device of A. The
        entry of each column of V that is largest in modulus is positive.

    Raises
    ------
    TypeError, ValueError
        As ``singular_triplet`` for A and the options. k is not an integer, or not from 1 to min(m, n).
    TieError
        In backward, if the loss depends on vectors whose value equals σₖ₊₁ up to rounding, 16 ε σ₁, or 3 ε √(m + n) σ₁
        if that is more, or is zero; or if it depends on single vectors of kept values that are tied; and in any second
        derivative where kept values are tied. In forward mode, which does not know the loss, if all of the k are tied
        with σₖ₊₁.
    PhaseError
        In backward, if A is complex and the loss changes with the common phase of some uᵢ and vᵢ, as far as
        ``singular_triplet`` can tell: a loss that sees it in U and V together may pass, with the gradient at the phase
        of the sign rule.
    ConvergenceError
        "lanczos" ran out of steps.
    NotImplementedError
        A map of torch.autograd's own, as is_grads_batched=True.

    Warns
    -----
    NearTieWarning
        In backward, if fewer than two digits of the gradient can be right, since σₖ is close to σₖ₊₁, or since the loss
        depends on single vectors of kept values that are close; if a loss of U or V tells tied values apart, as that of
        U S Vᴴ does, whose gradient ``low_rank`` has; if a σ is exactly zero, as for ``singular_triplet``. In forward
        mode at a tie of kept values or near one, or where some of them equal σₖ₊₁ up to rounding: NaN is the tangent of
        these and their vectors, and the others have theirs. In a second derivative of a loss of U S Vᴴ near a tie,
        whose digits ``low_rank`` has. In reverse mode over forward mode, in nested forward modes and in
        third derivatives close to a tie of kept values; in reverse mode over reverse mode there, where the loss does
        not change with a turn of two vectors: it is taken to be blind to it, and may be stationary only.

    Notes
    -----
    Cost: forward one symmetric eigendecomposition of size min(m, n), or two products with k + 1 columns or more a step;
    backward four products with k columns, or two a step. A second derivative needs the kept values to be distinct. The
    vectors of a tie may be any basis of their space. Where the values are equal, but for 16 ε of themselves, a generic
    one is returned: in that of a diagonal matrix, along the axes, a loss of U S Vᴴ could not be told from one of U Vᴴ.
    Source: the book, chapter *More than one* (eq-outside, eq-inside).

    Examples
    --------
    >>> A = torch.diag(torch.tensor([3.0, 3.0, 1.0])).requires_grad_()
    >>> sigma, U, V = singular_triplets(A, 2)
    >>> (U @ U.mT)[0, 2].backward()  # σ₁ = σ₂, and the projector does not mind
    >>> A.grad.round(decimals=3) + 0.0
    tensor([[0.0000, 0.0000, 0.1250],
            [0.0000, 0.0000, 0.0000],
            [0.3750, 0.0000, 0.0000]])
    """
    sigma, U, V = _rows(A, False, k, forward, adjoint, tol, maxiter, v0, missed)
    return Triplets(sigma, U.mT, V.mT)


def low_rank(
    A: Tensor | Sparse,
    k: int,
    forward: ForwardName | Method = "auto",
    adjoint: AdjointName | Solver = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> LowRank:
    """The best approximation of A of rank k, as A_k = U core Vᴴ, differentiable at ties among the kept values too.

    The core is diag σ. Where σᵢ = σⱼ, the derivative of U S Vᴴ is in none of those of U, σ, V; the core carries it off
    its diagonal, with h = herm ∂L/∂core:

        Mᵢⱼ = hᵢⱼ + (a − b)ᵢⱼ/(σᵢ + σⱼ) + wᵢⱼ/(σⱼ − σᵢ),   w = a + b + [S, h].

    A loss of A_k, of U f(core) Uᴴ, or of anything else that (U Z, Zᴴ core Z, V Z) leaves as it is for every unitary Z,
    has w = 0, and nothing is divided by a small number.

    Arguments, errors, warnings and cost are those of ``singular_triplets``. Returns ``LowRank``: ``U (..., m, k)``,
    ``core (..., k, k)`` and ``V (..., n, k)``. Source: the book, chapter *More than one* (eq-core).

    >>> A = torch.diag(torch.tensor([3.0, 3.0, 1.0])).requires_grad_()
    >>> low_rank(A, 2).dense()[0, 1].backward()
    >>> A.grad.round(decimals=3) + 0.0
    tensor([[0., 1., 0.],
            [0., 0., 0.],
            [0., 0., 0.]])
    """
    core, U, V = _rows(A, True, k, forward, adjoint, tol, maxiter, v0, missed)
    return LowRank(U.mT, core, V.mT)


def _rows(A: Tensor | Sparse, core: bool, *request: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(σ, U, V), or (core, U, V), with vectors as rows, in the precision of A."""
    if torch.compiler.is_compiling():
        from .compiled import compiled_rows

        return compiled_rows(A, core, *request)
    return _differentiable_rows(A, core, *request)


def _differentiable_rows(A: Tensor | Sparse, core: bool, *request: Any) -> tuple[Tensor, Tensor, Tensor]:
    X, how, start = prepare_many(A, core, *request)
    with full_precision(X.leaves):
        found = rows_of(X, how, start, core)
    check_range(found[0].diagonal(dim1=-2, dim2=-1).real if core else found[0], A.dtype)
    return in_precision(found, A.dtype, core)


def in_precision(found: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype, core: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(σ, U, V) or (core, U, V) in this precision."""
    value, U, V = found
    return (value.to(dtype), U.to(dtype), V.to(dtype)) if core else Triplet(value, U, V).to(dtype)


def rows_of(X: Operator, how: How, v0: Tensor | None = None, core: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(σ, U, V) or (core, U, V); one triplet is found as ``singular_triplet`` finds it."""
    found = differentiable_triplet(X, v0, how)
    return found if how.k is not None else as_rows(*found, core)


def as_rows(sigma: Tensor, u: Tensor, v: Tensor, core: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One triplet as (σ, U, V) or (core, U, V)."""
    value = sigma[..., None, None].to(u.dtype) if core else sigma.unsqueeze(-1)
    return value, u.unsqueeze(-2), v.unsqueeze(-2)


def rank_2k_gradient(
    loss: Callable[[Triplets], Tensor],
    A: Tensor | Sparse,
    k: int,
    forward: ForwardName | Method = "auto",
    adjoint: AdjointName | Solver = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value of ``loss(triplets)`` and its gradient with respect to A as L Rᵀ, with no m×n array made.

    L = [U M + P, U] has the shape (m, 2k), R = [V, Q] the shape (n, 2k) (eq-outside, eq-inside). A is one real matrix;
    the other arguments, the errors and the warnings are those of ``singular_triplets``. What a loss makes of A apart
    from the triplets has no low rank: where A requires a gradient that is a ValueError.

    >>> A = torch.diag(torch.tensor([3.0, 3.0, 1.0]))
    >>> value, L, R = rank_2k_gradient(lambda t: (t.U @ t.U.mT)[0, 2], A, 2)
    >>> (L @ R.mT).round(decimals=3) + 0.0
    tensor([[0.0000, 0.0000, 0.1250],
            [0.0000, 0.0000, 0.0000],
            [0.3750, 0.0000, 0.0000]])
    """
    X, how, start = prepare_many(A, False, k, forward, adjoint, tol, maxiter, v0, missed)
    if len(A.shape) != 2 or A.dtype.is_complex:
        raise ValueError(f"rank_2k_gradient takes one real matrix (m, n), found {A.dtype} of shape {tuple(A.shape)}")
    if how.k is None:
        X, how = (
            Dense(X.A, rows=True) if isinstance(X, Dense) else X,
            How(0, how.forward, how.adjoint, 1),
        )
    X = X.at([x.detach() for x in X.leaves])
    sigma, U, V, *known = find_triplet(X, start, how)
    value, (xi, Phi, Psi) = value_and_cotangents(loss, Triplets(sigma, U.mT, V.mT), A)
    x, Q = left_and_right(X, Triplet(sigma, U, V), known, xi, Phi.mT, Psi.mT, None, how, Solve.forward)
    return value, torch.cat([x, U]).mT, torch.cat([V, Q]).mT
