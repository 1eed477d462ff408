"""The two steps behind the map A → (σ, u, v), on plain tensors: find a triplet, solve its adjoint system.

Everything that can be wrong with an input is looked at here. triplet.py makes the two steps differentiable, compiled.py
shows them to torch.compile, operators.py and diagnosis.py use them as they are.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from .adjoint import LARGEST_ONLY, SOLVERS, assemble
from .certificate import check_missed
from .forward import FORWARDS, FullSVD, Gram, Ritz, Triplet, check_entries
from .gap import check_gap, values_near


class PhaseError(ValueError):
    """A loss of a complex triplet depends on the common phase of u and v, which A does not determine."""


#: up to this min(m, n) the eigenvectors of the Gram matrix cost less than two iterations with products, and beyond it
#: where A is so many times as long as wide: then most of their cost is the product AᴴA, which calculates at full speed
#: while the products of an iteration wait for memory. Measured on CPUs in both precisions: ``python -m benchmarks.run
#: --only auto`` prints the two
GRAM_UP_TO, LONG = 320, 16


def choose(forward: str, adjoint: str, A: Tensor, index: int = 0) -> tuple[str, str]:
    """What "auto" means for a matrix: the only place where that is decided.

    The largest singular value is found from the Gram matrix of the smaller side while that is small or much the
    smaller, and always for a batch and under torch.compile; by Lanczos where it is not. Any other is found by the full
    SVD, since a Gram matrix costs it digits.
    """
    k, long = sorted(A.shape[-2:])
    if forward == "auto":
        if index % k != 0:
            forward = "svd"
        elif k <= GRAM_UP_TO or long >= LONG * k or A.ndim > 2 or torch.compiler.is_compiling():
            forward = "gram"
        else:
            forward = "lanczos"
    if adjoint == "auto":
        # with all singular vectors at hand the adjoint is four products with a vector; with some, two products a step
        adjoint = "cg" if forward == "lanczos" else "spectral"
    return forward, adjoint


def validate(
    A: Tensor, index: int, forward: str, adjoint: str, v0: Tensor | None, missed: float | None = 1e-3
) -> tuple[str, str]:
    """Raise an error for what cannot be, and tell what "auto" stands for."""
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor, found {type(A).__name__}: convert it with torch.as_tensor(A)")
    if not (A.is_floating_point() or A.is_complex()):
        raise TypeError(f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.double()")
    if A.ndim < 2:
        raise ValueError(
            f"A must be a matrix (..., m, n), found shape {tuple(A.shape)}: make a vector a matrix with A[:, None]"
        )
    m, n = A.shape[-2:]
    if min(m, n) == 0:
        raise ValueError(
            f"A must have at least one row and one column, found shape {tuple(A.shape)}: an empty side has no triplet"
        )
    if not -min(m, n) <= index < min(m, n):
        raise ValueError(
            f"index must be from {-min(m, n)} to {min(m, n) - 1} for a matrix of shape {m}×{n}, found {index}"
        )
    for what, name, names in (("forward", forward, FORWARDS), ("adjoint", adjoint, SOLVERS)):
        if name != "auto" and name not in names:
            raise ValueError(f"unknown {what} {name!r}: the names are 'auto', {', '.join(map(repr, names))}")
    check_missed(missed)
    if forward in ("svd", "gram") and missed != 1e-3:
        raise ValueError(
            f"missed is the risk that an iteration may take, and forward {forward!r} has none, found missed={missed}: "
            "leave it out, or use forward 'lanczos'"
        )
    forward, adjoint = choose(forward, adjoint, A, index)
    if forward in ("gram", "lanczos") and index % min(m, n) != 0:
        raise ValueError(
            f"forward {forward!r} finds the largest singular value, found index {index}: use forward 'svd'"
        )
    if v0 is not None and v0.shape[-1:] != (n,):
        raise ValueError(f"v0 must have {n} entries, one for each column of A, found shape {tuple(v0.shape)}")
    if adjoint in LARGEST_ONLY and index % min(m, n) != 0:
        others = ", ".join(repr(name) for name in SOLVERS if name not in LARGEST_ONLY)
        raise ValueError(
            f"adjoint {adjoint!r} needs index 0, the largest singular value, found {index}: for others use {others}"
        )
    return forward, adjoint


def full_precision(A: Tensor) -> AbstractContextManager[Any]:
    """Autocast switched off, where it is on."""
    kind = A.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def find_triplet(
    A: Tensor,
    v0: Tensor | None,
    index: int,
    forward: str,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> tuple[Tensor, ...]:
    """(σ, u, v, *known). The entries are looked at from here, and not before, since under vmap only here they can
    be.
    """
    if forward != "gram":  # which sees it in what it forms
        check_entries(A)
    with full_precision(A):
        triplet, known = FORWARDS[forward](A, index, v0, tol, maxiter, missed)
    return (*triplet, *known)


def solve_adjoint(
    A: Tensor,
    sigma: Tensor,
    u: Tensor,
    v: Tensor,
    phi: Tensor,
    psi: Tensor,
    adjoint: str,
    role: str,
    known: FullSVD | Gram | Ritz,
) -> tuple[Tensor, Tensor]:
    """(p, q). A cotangent of zeros costs nothing, and asks for no gap: torch.func hands zeros to what a loss does not
    use.
    """
    if role == "loss" and not (phi.any() or psi.any()):
        return torch.zeros_like(phi), torch.zeros_like(psi)
    m, n = A.shape[-2:]
    if role != "again":
        check_gap(m, n, sigma, values_near(A, sigma, known))
    if role == "loss" and A.is_complex():
        check_phase(u, v, phi, psi)
    with full_precision(A):
        return SOLVERS[adjoint](A, Triplet(sigma, u, v), phi, psi, known)


def gradient(triplet: Triplet, xi: Tensor | None, phi: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """(ξu + p)vᴴ + uqᴴ (eq-gradient); for complex A with ξ + i Im(uᴴφ)/σ in place of ξ (eq-complex-gradient).

    The phase of u relative to v moves with A (eq-relative-phase), unseen by the constraints p ⟂ u and q ⟂ v.
    """
    if triplet.u.is_complex():
        xi = (0 if xi is None else xi) + 1j * vecdot(triplet.u, phi).imag / triplet.sigma
    return assemble(triplet, xi, p, q)


def check_phase(u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> None:
    """Raise a PhaseError for a loss that changes with the common phase of u and v: f(e^{iθ}u, e^{iθ}v) ≠ f(u, v)
    (eq-phase-blind).
    """
    slope = (vecdot(u, phi) + vecdot(v, psi)).imag.abs()
    size = torch.linalg.vector_norm(phi, dim=-1) + torch.linalg.vector_norm(psi, dim=-1)
    worst = (slope / size.clamp_min(torch.finfo(size.dtype).tiny)).max().item()
    if worst > 1e3 * torch.finfo(u.dtype).eps:
        raise PhaseError(
            "the loss depends on the common phase of u and v, which is not determined by A: multiplying both by "
            "e^{iθ} changes it, "
            f"at a relative rate of {worst:.1e}. Likely cause: a real part, an imaginary part or a single entry of a "
            f"complex vector. "
            "Use moduli, inner products with the phase taken out, or products such as u vᴴ"
        )
