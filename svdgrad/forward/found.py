"""What a forward method finds: a triplet, and what it knows of the other triplets."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Triplet(NamedTuple):
    """A singular triplet: A v = σ u and Aᴴ u = σ v with ‖u‖ = ‖v‖ = 1.

    For a batch of matrices ``(..., m, n)`` the shapes are ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``.
    Inside the package one may hold k triplets, with vectors as rows: ``(..., k)``, ``(..., k, m)`` and ``(..., k, n)``.
    """

    sigma: Tensor
    """σ, shape (...)"""
    u: Tensor
    """the left singular vector, shape (..., m)"""
    v: Tensor
    """the right singular vector, shape (..., n)"""

    def to(self, dtype: torch.dtype) -> "Triplet":
        """The triplet in this precision, σ as real numbers of it."""
        sigma, u, v = self
        if u.dtype == dtype:
            return self
        return Triplet(sigma.to(_REAL.get(dtype, dtype)), u.to(dtype), v.to(dtype))


# not dtype.to_real(), which torch.compile cannot trace
_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


class FullSVD(NamedTuple):
    """The thin factors of A = U Σ Vᴴ: ``U (..., m, k)``, ``S (..., k)``, ``Vh (..., k, n)``, k = min(m, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class GramVectors(NamedTuple):
    """The eigenvectors ``W (..., k, k)`` of AᴴA, or of AAᴴ if that is smaller, and the singular values ``S (..., k)``,
    descending.
    """

    S: Tensor
    W: Tensor


class Ritz(NamedTuple):
    """What an iteration knows of the other triplets: k approximate singular values, descending, their vectors, and its
    cost.

    ``S (k,)`` lie at or below the true ones; ``W (d, l)`` are orthonormal, right singular vectors or, for a wide
    matrix, left, of the first l of them only.
    """

    S: Tensor
    W: Tensor
    steps: Tensor
    """steps of the iteration, each of two products with A, as a tensor of no dimensions"""
    products: Tensor
    """products with A or Aᴴ, counted"""
    residual: Tensor
    """‖Aᴴu − σv‖/σ at the last step"""
    missed: Tensor
    """a bound for the probability that there is a singular value above σ(1 + ``resolution``)"""
    excess: Tensor
    """δ for which a value above σ(1 + δ) was missed with at most the probability asked for: ``resolution`` or less;
    more where ``best`` was returned after maxiter steps; infinite where no evidence was asked for
    """


def counts(steps: int, products: int, *measured: float) -> tuple[Tensor, ...]:
    """What an iteration counted, as tensors on the CPU, the last of ``Ritz`` and of ``RitzBlock``."""
    return *torch.tensor([steps, products], device="cpu"), *torch.tensor(measured, dtype=torch.float64, device="cpu")


class ConvergenceError(ArithmeticError):
    """An iteration ran out of steps before its residual reached the tolerance, or before it was improbable enough that
    it had missed a singular value above σ(1 + ``RESOLUTION``).
    """


def not_finite(steps: int) -> ValueError:
    """The error of an iteration that meets NaN or Inf."""
    return ValueError(
        f"the products must be finite, found NaN or Inf within {steps} step{'s' * (steps > 1)}: look into matvec, and "
        "the adjoint, for an overflow or a division by zero"
    )


def not_adjoint(found: str) -> ValueError:
    """The error of two products that do not belong together."""
    return ValueError(
        f"the two products are not those of a matrix and its transpose: {found}. Likely causes: a matvec that is not "
        "linear in x (a ReLU, a normalisation), that changes from call to call (dropout), or an rmatvec of another "
        "matrix"
    )


def check_entries(A: Tensor) -> float:
    """The largest modulus of a real or imaginary part of an entry, or an error for NaN and Inf."""
    # one pass over A, where isfinite and all take several: both show in the extremes
    entries = torch.view_as_real(A.conj() if A.is_conj() else A) if A.is_complex() else A
    largest = max(abs(x.item()) for x in entries.aminmax()) if A.numel() else 0.0
    if not math.isfinite(largest):
        bad = int((~torch.isfinite(A)).sum())
        raise ValueError(
            f"A must be finite, found {bad} NaN or Inf among {A.numel()} entries: look upstream for the first of them"
        )
    return largest


def fix_sign(u: Tensor, v: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of the pairs (u, v)·c with c of modulus one, the one whose largest entry of v is positive, or with v0ᴴv > 0 if v0
    is given.

    Both vectors are multiplied by the same number, so A v = σ u stays true (eq-phase).
    Without ``v0`` the choice jumps where the two largest entries of v tie in modulus; with ``v0`` it jumps where v0 ⟂
    v.
    """
    if v0 is None:
        anchor = v.gather(-1, v.abs().argmax(-1, keepdim=True))
    else:
        anchor = torch.linalg.vecdot(v, v0.to(v)).conj().unsqueeze(-1)
    c = torch.sgn(anchor).conj()
    if v0 is not None:  # which may be orthogonal to v; the largest entry of a unit vector is not zero
        c = torch.where(c == 0, 1, c)
    return u * c, v * c
