"""The differentiable map A → (σ, u, v) in PyTorch: start reading here.

    A ──forward──▶ Triplet(sigma, u, v) ──loss──▶ (xi, phi, psi) ──adjoint solver──▶ (p, q) ──▶ ∂L/∂A = (ξu + p)vᴴ + uqᴴ

A method of ``svdgrad.forward`` finds the triplet, a solver of ``svdgrad.adjoint`` finds (p, q); this file ties the two
into one ``torch.autograd.Function``.
"""

import warnings

import torch
from torch import Tensor
from torch.linalg import vecdot

from .adjoint import LARGEST_ONLY, SOLVERS, assemble
from .forward import FORWARDS, FullSVD, Triplet
from .matrices import outer


class TieError(ArithmeticError):
    """A gradient through u or v was asked for, and σ equals another singular value (or zero, if m ≠ n) up to rounding."""


class NearTieWarning(UserWarning):
    """A gradient through u or v has fewer than two digits, since σ is close to another singular value."""


def singular_triplet(
    A: Tensor, index: int = 0, forward: str = "auto", adjoint: str = "auto", v0: Tensor | None = None
) -> Triplet:
    """The singular triplet (σ, u, v) of A, differentiable: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1.

    For a loss L with cotangents ξ = ∂L/∂σ, φ = ∂L/∂u, ψ = ∂L/∂v the gradient is

        ∂L/∂A = (ξu + p)vᴴ + uqᴴ,   where   K [p; q] = [(I − uuᴴ)φ; (I − vvᴴ)ψ],   K = [σI, −A; −Aᴴ, σI].

    It is finite and right whenever σ itself is simple; that other singular values coincide does not matter.

    Parameters
    ----------
    A : Tensor
        Shape (..., m, n), floating point, on any device. float16 and bfloat16 are computed in float32.
    index : int
        Which triplet, in descending order of σ; −1 is the smallest.
    forward : str
        How the triplet is found: "svd" (the full SVD), or "auto", which chooses.
    adjoint : str
        How the adjoint system is solved: a name in ``svdgrad.adjoint.SOLVERS``, or "auto", which chooses "spectral" where
        the forward method knows the whole SVD.
    v0 : Tensor, optional
        Shape (n,) or (..., n), fixes the sign: of the two pairs ±(u, v) the one with v0ᴴv > 0 is returned. Without it the
        entry of v that is largest in modulus is positive.

    Returns
    -------
    Triplet
        Named tuple of ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``, with the dtype and device of A.

    Raises
    ------
    TypeError
        A is not a floating point tensor.
    ValueError
        A is not a matrix, has an empty side, or holds NaN or Inf; index is out of range; an unknown name; an index other
        than 0 with a solver that serves the largest singular value only.
    TieError
        In backward, if the loss depends on u or v and σ equals another singular value up to rounding: then u and v are
        not functions of A. The value, and the gradient of a loss of σ alone, are always given.

    Warns
    -----
    NearTieWarning
        In backward, if the loss depends on u or v and σ is so close to another singular value that fewer than two digits
        of the gradient can be right. It names the gap and the error to expect.

    Notes
    -----
    Cost: one thin SVD forward; four products with a vector and a rank-two update backward ("spectral").
    The gradient grows like 1/(σ₁ − σ₂), and its relative error like ε σ₁/(σ₁ − σ₂), ε the unit roundoff.
    Backward is differentiable in turn. Source: the book, chapter *The adjoint system* (eq-adjoint-system, eq-gradient).

    Examples
    --------
    >>> A = torch.tensor([[3.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> sigma, u, v = singular_triplet(A)
    >>> (sigma + u[1]).backward()
    >>> A.grad
    tensor([[1.0000, 0.1250],
            [0.3750, 0.0000]])
    """
    forward = "svd" if forward == "auto" else forward
    adjoint = "spectral" if adjoint == "auto" else adjoint
    _validate(A, index, forward, adjoint)
    work = torch.promote_types(A.dtype, torch.float32)
    sigma, u, v, *_ = _SingularTriplet.apply(A.to(work), v0, index, forward, adjoint)
    return Triplet(sigma.to(A.real.dtype), u.to(A.dtype), v.to(A.dtype))


def spectral_norm(A: Tensor, forward: str = "auto") -> Tensor:
    """The largest singular value σ = ‖A‖₂, differentiable: ∂σ/∂A = u vᴴ, with no system to solve and no gap needed.

    Parameters, errors and cost are those of ``singular_triplet``; shapes (..., m, n) -> (...).
    Where σ₁ repeats, u vᴴ is one of many subgradients. Source: the book (eq-dsigma).

    >>> A = torch.eye(2, requires_grad=True)
    >>> spectral_norm(A).backward()
    >>> A.grad.trace()
    tensor(1.)
    """
    return singular_triplet(A, forward=forward).sigma


class _SingularTriplet(torch.autograd.Function):
    """A → (σ, u, v, *known), where ``known`` is what the forward method leaves behind for the adjoint solver."""

    @staticmethod
    def forward(A, v0, index, forward, adjoint):
        triplet, svd = FORWARDS[forward](A, index, v0)
        return (*triplet, *svd)

    @staticmethod
    def setup_context(ctx, inputs, output):
        A, _, _, _, ctx.adjoint = inputs
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(A, *output)

    @staticmethod
    def backward(ctx, xi, phi, psi, *_):
        A, sigma, u, v, *svd = ctx.saved_tensors
        if phi is None and psi is None:
            # no cotangent for the vectors, no system to solve: this is why ∂σ/∂A needs no gap (eq-dsigma)
            return None if xi is None else outer(xi.unsqueeze(-1) * u, v), None, None, None, None
        _look_at_the_gap(A, sigma, svd[1])
        phi = torch.zeros_like(u) if phi is None else phi
        psi = torch.zeros_like(v) if psi is None else psi
        p, q = _AdjointSolve.apply(A, sigma, u, v, phi, psi, ctx.adjoint, *svd)
        return assemble(Triplet(sigma, u, v), xi, p, q), None, None, None, None


class _AdjointSolve(torch.autograd.Function):
    """(A, σ, u, v, φ, ψ) → (p, q), differentiable by the same solve, so that second derivatives need nothing new.

    The pair (p, q) belongs to the square bordered system J [p; q; λ; μ] = [φ; ψ; 0; 0], J = [K, W; Wᴴ, 0], with λ = uᴴφ and
    μ = vᴴψ. A cotangent (p̄, q̄) is pulled back by J [y; z; α; γ] = [p̄; q̄; 0; 0], the same system; then φ̄ = y, ψ̄ = z, and
    what multiplies dJ is −(y, z, α, γ)(p, q, λ, μ)ᴴ.
    """

    @staticmethod
    def forward(A, sigma, u, v, phi, psi, adjoint, *svd):
        known = {"svd": FullSVD(*svd)} if adjoint == "spectral" else {}
        return SOLVERS[adjoint](A, Triplet(sigma, u, v), phi, psi, **known)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.adjoint = inputs[:7]
        ctx.svd = inputs[7:]
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, p_bar, q_bar):
        A, sigma, u, v, phi, psi, p, q = ctx.saved_tensors
        y, z = _AdjointSolve.apply(A, sigma, u, v, p_bar, q_bar, ctx.adjoint, *ctx.svd)
        lam, mu = vecdot(phi, u).unsqueeze(-1), vecdot(psi, v).unsqueeze(-1)
        alpha, gamma = vecdot(p_bar, u).unsqueeze(-1), vecdot(q_bar, v).unsqueeze(-1)
        A_bar = outer(y, q) + outer(p, z)
        sigma_bar = -(vecdot(y, p) + vecdot(z, q)).real
        return (A_bar, sigma_bar, -(y * lam + p * alpha), -(z * mu + q * gamma), y, z) + (None,) * (1 + len(ctx.svd))


def relative_gap(sigma: Tensor, S: Tensor, m: int, n: int) -> Tensor:
    """The distance from σ to the nearest other singular value, and to zero if m ≠ n, over σ₁; shape (...)."""
    distance = (S - sigma.unsqueeze(-1)).abs()
    own = torch.nn.functional.one_hot(distance.argmin(-1), S.shape[-1]).bool()
    nearest = torch.where(own, torch.inf, distance).amin(-1)
    if m != n:
        nearest = torch.minimum(nearest, sigma)
    return torch.minimum(nearest, S[..., 0]) / S[..., 0]


def _look_at_the_gap(A: Tensor, sigma: Tensor, S: Tensor) -> None:
    """Raise a TieError or warn, once for a batch, by its smallest gap."""
    m, n = A.shape[-2:]
    gap = relative_gap(sigma.detach(), S, m, n).min().item()
    eps = torch.finfo(S.dtype).eps
    # LAPACK's singular values are right to a few ε σ₁: what is closer than this cannot be told apart
    if not gap > 8 * eps * (m + n) ** 0.5:
        raise TieError(
            f"u and v have no derivative where σ is not simple; found a relative gap of {gap:.1e}, which is a tie up to rounding. "
            "Likely causes: an orthogonal or zero matrix, a symmetry, an initialisation with equal singular values. "
            "A loss of σ alone has a gradient here; otherwise perturb A, or use the subspace of the tied values"
        )
    if (expected := 4 * eps / gap) > 1e-2:
        warnings.warn(
            f"σ is close to another singular value: relative gap {gap:.1e}, so a relative error of about {expected:.0e} is to be "
            f"expected in the gradient with {str(S.dtype).removeprefix('torch.')}, by any method",
            NearTieWarning,
            stacklevel=3,
        )


def _validate(A: Tensor, index: int, forward: str, adjoint: str) -> None:
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor, found {type(A).__name__}: convert it with torch.as_tensor(A)")
    if not (A.is_floating_point() or A.is_complex()):
        raise TypeError(f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.double()")
    if A.ndim < 2:
        raise ValueError(f"A must be a matrix (..., m, n), found shape {tuple(A.shape)}: make a vector a matrix with A[:, None]")
    m, n = A.shape[-2:]
    if min(m, n) == 0:
        raise ValueError(f"A must have at least one row and one column, found shape {tuple(A.shape)}: an empty side has no triplet")
    if not -min(m, n) <= index < min(m, n):
        raise ValueError(f"index must be from {-min(m, n)} to {min(m, n) - 1} for a matrix of shape {m}×{n}, found {index}")
    for what, name, names in (("forward", forward, FORWARDS), ("adjoint", adjoint, SOLVERS)):
        if name not in names:
            raise ValueError(f"unknown {what} {name!r}: the names are 'auto', {', '.join(map(repr, names))}")
    if adjoint in LARGEST_ONLY and index % min(m, n) != 0:
        others = ", ".join(repr(name) for name in SOLVERS if name not in LARGEST_ONLY)
        raise ValueError(f"adjoint {adjoint!r} needs index 0, the largest singular value, found {index}: for others use {others}")
    if not torch.isfinite(A).all():
        bad = int((~torch.isfinite(A)).sum())
        raise ValueError(f"A must be finite, found {bad} NaN or Inf among {A.numel()} entries: look upstream for the first of them")
