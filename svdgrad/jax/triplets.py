"""The public functions of the k dominant triplets."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .api import for_each_matrix, products_with, singular_triplet
from .auto import as_count, as_numbers, as_starts, choose_several
from .inside import separate, watched
from .several import Operator, find_spaces
from .triplet import How, LowRank, Triplets


def singular_triplets(
    A: Any,
    k: int,
    forward: str = "auto",
    adjoint: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Any = None,
    missed: float | None = 1e-3,
) -> Triplets:
    """The k dominant singular triplets (σ, U, V) of A, differentiable: A V = U diag(σ), AᴴU = V diag(σ).

    With S = diag(σ), C = UᴴdA V, and the projections P_U = I − UUᴴ, P_V = I − VVᴴ off all k vectors, along a change dA

        dσ = Re diag C,   dU = U (X⁺ + X⁻)/2 + dU₊,   dV = V (X⁺ − X⁻)/2 + dV₊,
        X⁺ᵢⱼ = (C + Cᴴ)ᵢⱼ/(σⱼ − σᵢ),   X⁻ᵢⱼ = (C − Cᴴ)ᵢⱼ/(σᵢ + σⱼ),
        dU₊S − A dV₊ = P_U dA V,   dV₊S − AᴴdU₊ = P_V dAᴴU.

    Only the gap at the cut, σₖ − σₖ₊₁, makes the last line ill-conditioned. Close values inside the set enter X⁺ alone,
    and a loss that is blind to a rotation of their vectors, as those of UUᴴ, VVᴴ, UVᴴ and Σf(σᵢ) are, has a gradient
    that is right at any distance, zero included. One of A_k = U S Vᴴ is blind too, but at a tie its gradient is not to
    be had from the cotangents of U, σ and V, and is NaN: see ``low_rank``.

    A in half precision has results in half precision, and so has the loss cotangents that are rounded to two digits or
    three. What that makes of a numerator of X⁺ counts as rounding, and no distance divides it.

    Parameters
    ----------
    A : array, or BCOO
        Shape (..., m, n), floating point, real or complex. float16 and bfloat16 are computed in float32. Of one sparse
        matrix (m, n) the gradient is one of its entries; it takes "lanczos" and "cg".
    k : int
        How many triplets, from 1 to min(m, n). Static under jit, as all that follows.
    forward : str
        "svd" (the full SVD), "gram" (eigenvectors of AᴴA or AAᴴ, whichever is smaller, at the price of digits of the
        smaller triplets, (σ₁/σₖ)² in all), "lanczos" (block Lanczos, by products with A), or "auto": "svd", and
        "lanczos" for a sparse A. With k = 1 as ``singular_triplet``.
    adjoint : str
        How the systems for dU₊ and dV₊ are solved: "spectral" (in closed form, from all singular vectors) after "svd"
        and "gram", "cg" (k columns of conjugate gradients) after "lanczos"; "auto" chooses. With k = 1 all that
        ``singular_triplet`` takes.
    tol, maxiter, missed : float, int, float or None, optional
        For "lanczos", as for ``singular_triplet``: ‖AᴴU − VS‖ ≤ tol σ₁ for each of the k, and a value above σₖ has
        been missed with at most this probability, for which a vector of fresh noise goes the same way after the blocks.
    v0 : array, optional
        Shape (n, j) or (..., n, j): columns for "lanczos" to start from, the first k of them, such as the V of a step
        before. They decide nothing, since the proof is asked for all the same.

    Returns
    -------
    Triplets
        Named tuple of ``sigma (..., k)``, descending, ``U (..., m, k)`` and ``V (..., n, k)``, with the dtype of A. The
        entry of each column of V that is largest in modulus is positive. Those of values that are equal, but for 16ε of
        themselves, are a generic basis of their space.

    Raises
    ------
    TypeError
        k is not an integer; otherwise as ``singular_triplet``.
    ValueError
        k is below 1 or above min(m, n); v0 has another shape; otherwise as ``singular_triplet``.

    Notes
    -----
    What depends on values cannot raise under jit, so it gives NaN, in jit and out of it. NaN is the derivative of those
    columns of U and V that are tied at the cut: where σᵢ equals σₖ₊₁ up to rounding, 16ε σ₁ or 3ε√(m+n) σ₁, whichever
    is more, or zero, if m ≠ n. That of σ is finite there. NaN is the gradient of a loss that reads vectors, and a σᵢ of
    exactly zero among such ties. One that reads nothing but σᵢuᵢ of zeros, as at A = 0, cannot be told from one of σ
    alone, and its gradient is the subgradient of that. NaN is a gradient at a tie inside the set, if the loss sees
    which of the tied vectors is which, or if it sees vectors, and tied values not alike, as that of A_k does. Forward
    mode sees no loss, and neither does the derivative of a gradient by weights of the loss alone: X⁺ is zero in ties,
    right for all losses that are blind to a rotation in them, but for one of A_k, which wants ``low_rank``; close to a
    tie such a loss loses digits, ε σ₁/(σᵢ − σⱼ). Second derivatives want distinct values too, and near a tie those of a
    loss of U S Vᴴ lose ε (σ₁/(σᵢ − σⱼ))²; or ``low_rank``. With both they have a relative error of ε (σ₁/σₖ)² where k =
    min(m, n), unless A is real and square.

    A numerator of X⁺ counts as rounding up to 4ε times the cotangents of the columns that it belongs to; in half
    precision up to 0.8ε times those entries of them that meet in it, with which real ones are lost at gaps of some
    percent, and at a tie up to 4ε of them, where terms may cancel, with which one in ten losses in bfloat16 passes for
    one that is blind: there calculate the loss in float32, of a float32 A. Where the cotangents are rounding
    themselves, as those of ‖A − U S Vᴴ‖² are, nothing tells that of them: at a tie a NaN that ``low_rank`` does not
    give. For complex A, JAX's gradient is the conjugate of PyTorch's, and the phases are held as said above.

    Memory with "lanczos": a basis of ten blocks, of k + 2 + k/4 vectors of both sides, or of 60 vectors, whichever is
    more; where that would be all of the smaller side, A is formed, by products. Cost: one SVD or symmetric
    eigendecomposition, or two products with a block a step; for each tangent or cotangent two products of an m×n
    matrix, and four of the singular vectors left out, with k columns, or two a step of conjugate gradients.
    Source: the book, chapter *In JAX* (eq-tangent-factors, eq-tangent-turn).

    Examples
    --------
    >>> A = jnp.diag(jnp.array([3.0, 3.0, 1.0]))
    >>> def projector(A):
    ...     sigma, U, V = singular_triplets(A, 2)
    ...     return (U @ U.T)[0, 2]
    >>> print(jax.grad(projector)(A).round(6) + 0.0)
    [[0.    0.    0.125]
     [0.    0.    0.   ]
     [0.375 0.    0.   ]]
    """
    A, X = as_numbers(A)
    k = as_count(k, *X.shape[-2:])
    if k == 1 and v0 is None:
        sigma, u, v = singular_triplet(A, 0, forward, adjoint, tol, maxiter, None, missed)
        return Triplets(sigma[..., None], u[..., None], v[..., None])
    how = choose_several(X, forward, adjoint, tol, maxiter, missed)
    sigma, U, V = _separate_triplets(how, k, A.dtype, X, as_starts(v0, X, forward, how))
    return Triplets(sigma.astype(jnp.finfo(A.dtype).dtype), U.astype(A.dtype), V.astype(A.dtype))


def low_rank(
    A: Any,
    k: int,
    forward: str = "auto",
    adjoint: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Any = None,
    missed: float | None = 1e-3,
) -> LowRank:
    """The best approximation of rank k as U core Vᴴ, differentiable through any tie of the k values kept.

    In value core is diag(σ), and U and V are those of ``singular_triplets``, but for the basis of a tie. The derivative
    is that of a factorisation A V = U core, AᴴU = V core with a core that is Hermitian and not diagonal: along dA

        UᴴdU + VᴴdV = 0,   dcore = herm(UᴴdA V),
        dU core − A dV = dA V − U dcore,   dV core − AᴴdU = dAᴴU − V dcore.

    So U and V turn no more than their spaces do, and no distance of two kept values is ever divided by. Every loss that
    depends on U Z, ZᴴcoreZ, V Z in the same way for all unitary Z has the right derivatives, of all orders and in both
    modes, at values that are as close as they like: A_k, UUᴴ, VVᴴ, UVᴴ, U f(core) Uᴴ, tr f(core). A loss that sees a
    column of U by itself is not one of these, and wants ``singular_triplets``.

    Its parameters, its errors and its cost are those of ``singular_triplets``; shapes (..., m, n) -> (..., m, k),
    (..., k, k), (..., n, k). Its derivatives are NaN at a tie at the cut, those of core excepted, and so is a gradient
    of A_k where a kept value is exactly zero, unless A is real, square and kept whole. One exception: where the
    gradient of a loss reads nothing but diag(core), as that of A₁ at A = 0 does, it cannot be told from a loss of the
    values alone, and is a subgradient. Second derivatives have a relative error of ε (σ₁/σₖ)² where k = min(m, n),
    unless A is real and square. Source: the book, chapter *In JAX* (eq-tangent-factors).

    >>> A = jnp.diag(jnp.array([3.0, 3.0, 1.0]))
    >>> print(jax.grad(lambda A: low_rank(A, 2).dense()[0, 1])(A))
    [[0. 1. 0.]
     [0. 0. 0.]
     [0. 0. 0.]]
    """
    A, X = as_numbers(A)
    k = as_count(k, *X.shape[-2:])
    if k == 1 and v0 is None:
        sigma, u, v = singular_triplet(A, 0, forward, adjoint, tol, maxiter, None, missed)
        return LowRank(u[..., None], sigma.astype(u.dtype)[..., None, None], v[..., None])
    how = choose_several(X, forward, adjoint, tol, maxiter, missed)
    spaces = _joint_spaces(how, k, X, as_starts(v0, X, forward, how))
    return LowRank(*(x.astype(A.dtype) for x in spaces))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _separate_triplets(how: How, k: int, dtype: Any, A: Any, v0: Array | None) -> Triplets:
    each = lambda *x: separate(_spaces(how, k, *x), dtype)
    return Triplets(*for_each_matrix(each, "(j,n)", "(k),(m,k),(n,k)", A, v0))


@partial(jax.jit, static_argnums=(0, 1))
def _joint_spaces(how: How, k: int, A: Any, v0: Array | None) -> LowRank:
    return LowRank(*for_each_matrix(lambda *x: watched(_spaces(how, k, *x)), "(j,n)", "(m,k),(k,k),(n,k)", A, v0))


def _spaces(how: How, k: int, A: Any, v0: Array | None = None) -> LowRank:
    m, n = A.shape
    return find_spaces(Operator(products_with(A), m, n, A.dtype), how, k, A, v0)[0]
