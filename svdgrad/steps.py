"""The two steps behind the map A → (σ, u, v), on plain tensors: find a triplet, solve its adjoint system.

What can be wrong with a matrix, a start or an option is checked here; operator.py checks functions, gap.py distances.
rule.py makes the two steps differentiable, compiled.py shows them to torch.compile, diagnosis.py uses them as they are.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .adjoint import LARGEST_ONLY, SOLVERS
from .adjoint.krylov import cg_of
from .certificate import check_missed
from .forward import FORWARDS, KNOWN, Ritz, Triplet
from .forward.found import check_entries
from .forward.lanczos import lanczos_of
from .gap import TieError, check_gap, values_near
from .matrices import check_not_meta, direction, root_of_scale, size_of
from .operator import Dense, Operator, Sparse, of_sparse_tensor
from .transforms import mapped_levels, refuse_mapping_by_autograd, refuse_tracing, transformed


class PhaseError(ValueError):
    """A loss of a complex triplet depends on the common phase of u and v, which A does not determine."""


#: up to this min(m, n) the eigenvectors of the Gram matrix cost less than two iterations with products, and beyond it
#: where A is so many times as long as wide: then most of their cost is the product AᴴA, which calculates at full speed
#: while the products of an iteration wait for memory. Measured on CPUs in both precisions: ``python -m benchmarks.run
#: --only auto`` prints the two
GRAM_UP_TO, LONG = 320, 16
#: the same on a GPU, where an iteration waits for its calls: on an H100 "gram" took about half the time of
#: "lanczos" or less up to this size, square and long, in both precisions, and at 4096 in float32 more (``make card``)
GRAM_UP_TO_ON_A_GPU = 2048


@dataclass(frozen=True)
class How:
    """How a triplet is found and its adjoint system solved: the options of ``singular_triplet``, "auto" resolved."""

    index: int
    forward: str
    adjoint: str
    tol: float | None = None
    maxiter: int | None = None
    missed: float | None = 1e-3


def choose(forward: str, adjoint: str, A: Tensor, index: int = 0) -> tuple[str, str]:
    """What "auto" means for a matrix: the only place where that is decided.

    The largest singular value is found from the Gram matrix of the smaller side while that is small or much the
    smaller, and always for a batch and under torch.compile; by Lanczos where it is not. Any other is found by the full
    SVD, since a Gram matrix costs it digits.
    """
    # not sorted(), which torch.compile cannot trace where sizes are symbols
    k, long = min(A.shape[-2:]), max(A.shape[-2:])
    small = GRAM_UP_TO_ON_A_GPU if A.is_cuda else GRAM_UP_TO
    if forward == "auto":
        if index % k != 0:
            forward = "svd"
        elif k <= small or long >= LONG * k or A.ndim > 2 or torch.compiler.is_compiling():
            forward = "gram"
        else:
            forward = "lanczos"
    if adjoint == "auto":
        # with all singular vectors at hand the adjoint is four products with a vector; with some, two products a step
        adjoint = "cg" if forward == "lanczos" else "spectral"
    return forward, adjoint


#: the precisions in which there is something to differentiate; the first two, and complex32, are computed in float32
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
)


def validate(
    A: Tensor,
    index: int,
    forward: str,
    adjoint: str,
    v0: Tensor | None,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> tuple[str, str]:
    """Raise an error for what cannot be, and tell what "auto" stands for."""
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor, found {type(A).__name__}: convert it with torch.as_tensor(A)")
    if isinstance(A, UninitializedParameter | UninitializedBuffer):
        raise ValueError("A must have entries, found a parameter without a shape: call its lazy module once before")
    check_not_meta("A", A)
    if A.is_quantized:
        raise TypeError(
            f"A must be floating point, found a quantized tensor, {A.dtype}: convert it with A.dequantize()"
        )
    if A.is_nested:
        raise TypeError(
            "A must be one dense tensor (..., m, n), found a nested tensor: call it for each of A.unbind(), or pad them"
        )
    if A.dtype not in DTYPES:
        reason = "eight bits hold no derivative" if A.is_floating_point() else "derivatives need real entries"
        raise TypeError(f"A must be floating point, found {A.dtype}: {reason}, try A.double()")
    if A.ndim < 2:
        raise ValueError(
            f"A must be a matrix (..., m, n), found shape {tuple(A.shape)}: make a vector a matrix with A[:, None]"
        )
    m, n = A.shape[-2:]
    if min(m, n) == 0:
        raise ValueError(
            f"A must have at least one row and one column, found shape {tuple(A.shape)}: an empty side has no triplet"
        )
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise TypeError(
            f"index must be an integer, found {index!r}: one triplet at a time, 0 the largest and -1 the smallest"
        )
    if not -min(m, n) <= index < min(m, n):
        raise ValueError(
            f"index must be from {-min(m, n)} to {min(m, n) - 1} for a matrix of shape {m}×{n}, found {index}"
        )
    for what, name, names in (("forward", forward, FORWARDS), ("adjoint", adjoint, SOLVERS)):
        if not isinstance(name, str) or name != "auto" and name not in names:
            raise ValueError(f"unknown {what} {name!r}: the names are 'auto', {', '.join(map(repr, names))}")
    check_stopping(tol, maxiter)
    if forward in ("svd", "gram") and not (tol is None and maxiter is None):
        raise ValueError(
            f"forward {forward!r} does not iterate, found tol = {tol} and maxiter = {maxiter}: only 'lanczos' takes "
            "them, and 'auto', which meets any tol where it does not iterate"
        )
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
    if v0 is not None:
        check_start(v0, A)
    if adjoint in LARGEST_ONLY and index % min(m, n) != 0:
        others = ", ".join(repr(name) for name in SOLVERS if name not in LARGEST_ONLY)
        raise ValueError(
            f"adjoint {adjoint!r} needs index 0, the largest singular value, found {index}: for others use {others}"
        )
    return forward, adjoint


def check_stopping(tol: float | None, maxiter: int | None) -> None:
    """Raise an error for a tolerance or a number of steps that stops no iteration."""
    if tol is not None:
        if isinstance(tol, bool) or not isinstance(tol, int | float | np.number):
            raise TypeError(f"tol must be a number, found {tol!r}: it is the residual to stop at, in units of σ")
        if not 0 <= tol < math.inf:
            raise ValueError(f"tol must be finite and not negative, found {tol}: it is the residual to stop at, over σ")
    if maxiter is not None:
        if isinstance(maxiter, bool) or not isinstance(maxiter, int | np.integer):
            raise TypeError(f"maxiter must be an integer, found {maxiter!r}: it counts steps")
        if maxiter < 1:
            raise ValueError(
                f"maxiter must be at least 1, found {maxiter}: it counts steps; without it as many are taken as needed"
            )


def check_start(v0: Tensor, A: Tensor) -> None:
    """Raise an error for a v0 that is not a vector like v for A, or one for each of a batch. Its numbers are checked in
    ``find_triplet``, since under vmap only there they can be.
    """
    if not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be a torch.Tensor, found {type(v0).__name__}: convert it with torch.as_tensor(v0)")
    check_not_meta("v0", v0)
    if v0.is_complex() and not A.is_complex():
        raise TypeError(f"v0 must be real for a real A, found {v0.dtype}: take its real part, v0.real")
    *batch, _, n = A.shape
    if v0.shape[-1:] != (n,):
        raise ValueError(f"v0 must have {n} entries, one for each column of A, found shape {tuple(v0.shape)}")
    extra = v0.ndim - 1 - len(batch)
    if extra > 0 or any(k not in (1, size) for k, size in zip(v0.shape[:-1], batch[-extra:])):
        raise ValueError(
            f"v0 must be one vector ({n},), or one for each matrix of a batch {tuple(batch)}, found shape "
            f"{tuple(v0.shape)}: for several starts of one matrix use A.expand({', '.join(map(str, v0.shape[:-1]))}, "
            "-1, -1), or torch.vmap"
        )


def check_range(sigma: Tensor, dtype: torch.dtype) -> None:
    """Raise an error where σ, computed in float32, is too large for float16; under transforms it is Inf instead."""
    if dtype not in (torch.float16, torch.complex32) or torch.compiler.is_compiling():
        return
    if transformed() or not sigma.numel():
        return
    if (largest := sigma.max().item()) > torch.finfo(torch.float16).max:
        raise ValueError(
            f"σ must be a number of the precision of A, found σ = {largest:.5g} for {dtype}, which ends at 65504: "
            "convert A first, with A.float(), or divide it by a number"
        )


def prepare(
    A: Tensor | Sparse,
    index: int,
    forward: str,
    adjoint: str,
    tol: float | None,
    maxiter: int | None,
    v0: Tensor | None,
    missed: float | None,
) -> tuple[Dense | Sparse, How]:
    """The operator of A in single precision or better, and how its triplet is found; an error for what cannot be."""
    if isinstance(A, Tensor) and (A.layout == torch.strided or A.is_nested):
        forward, adjoint = validate(A, index, forward, adjoint, v0, tol, maxiter, missed)
        X: Dense | Sparse = Dense(A.to(torch.promote_types(A.dtype, torch.float32)))
    elif isinstance(A, Sparse | Tensor):
        if isinstance(A, Tensor) and A.layout not in (torch.sparse_coo, torch.sparse_csr):
            raise TypeError(
                f"A must be one dense tensor (..., m, n), or sparse in COO or CSR layout, found layout {A.layout}: "
                "make it dense with A.to_dense(), or give products with it to operator_triplet"
            )
        check_stopping(tol, maxiter)
        check_missed(missed)
        forward, adjoint = validate_sparse(A, index, forward, adjoint, v0)
        dtype = torch.promote_types(A.dtype, torch.float32)
        X = A.at((A.values.to(dtype),)) if isinstance(A, Sparse) else of_sparse_tensor(A.to(dtype))
    else:
        raise TypeError(f"A must be a torch.Tensor, found {type(A).__name__}: convert it with torch.as_tensor(A)")
    return X, How(index, forward, adjoint, tol, maxiter, missed)


def validate_sparse(A: Tensor | Sparse, index: int, forward: str, adjoint: str, v0: Tensor | None) -> tuple[str, str]:
    """As ``validate``, for a sparse matrix: all that can be done with it is to multiply."""
    if not (A.dtype.is_floating_point or A.dtype.is_complex):
        raise TypeError(f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.double()")
    check_not_meta("A", A.values if isinstance(A, Sparse) else A)
    if isinstance(A, Tensor) and transformed() and (A.layout == torch.sparse_csr or mapped_levels(A)):
        raise NotImplementedError(
            "a transform of torch.func can neither map a sparse tensor nor read one in CSR layout, found layout "
            f"{A.layout}: take the triplet of svdgrad.operator.Sparse(rows, columns, shape, values), made outside, and "
            "transform by values"
        )
    if len(A.shape) != 2 or isinstance(A, Tensor) and A.layout == torch.sparse_coo and A.dense_dim() > 0:
        raise ValueError(
            f"a sparse A must be one matrix (m, n) of numbers, found shape {tuple(A.shape)}: call it once for each"
        )
    if 0 in A.shape:
        raise ValueError(
            f"A must have at least one row and one column, found shape {tuple(A.shape)}: an empty side has no triplet"
        )
    if index != 0:
        raise ValueError(
            f"index must be 0, the largest, for a sparse A, found {index}: for others make it dense with A.to_dense()"
        )
    for what, name, only in (("forward", forward, "lanczos"), ("adjoint", adjoint, "cg")):
        if name not in ("auto", only):
            raise ValueError(
                f"{what} must be 'auto' or {only!r} for a sparse A, which is multiplied with and not factorised, found "
                f"{name!r}: to use that, make it dense with A.to_dense()"
            )
    if isinstance(A, Sparse):
        A.check()
    if v0 is not None and not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be a torch.Tensor, found {type(v0).__name__}: convert it with torch.as_tensor(v0)")
    if v0 is not None:
        check_not_meta("v0", v0)
    if v0 is not None and v0.is_complex() and not A.dtype.is_complex:
        raise TypeError(f"v0 must be real for a real A, found {v0.dtype}: take its real part, v0.real")
    if v0 is not None and tuple(v0.shape) != tuple(A.shape[1:]):
        raise ValueError(f"v0 must have {A.shape[1]} entries, one for each column of A, found shape {tuple(v0.shape)}")
    return "lanczos", "cg"


def full_precision(leaves: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """Autocast switched off, where it is on."""
    kind = leaves[0].device.type if leaves else "cpu"
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def find_triplet(A: Operator, v0: Tensor | None, how: How) -> tuple[Tensor, ...]:
    """(σ, u, v, *known). The numbers are checked from here, and not before, since under vmap only here they can be."""
    refuse_tracing()
    if how.forward == "lanczos":
        refuse_mapping_by_autograd()
    if v0 is not None:
        v0 = direction(v0.to(torch.promote_types(v0.dtype, A.vector.dtype)))
        if not v0.isfinite().all():  # 0/0, or what was not finite before
            raise ValueError(
                "v0 must be finite and not zero: it fixes the sign, and is where an iteration starts; random numbers "
                "will do"
            )
    with full_precision(A.leaves):
        if isinstance(A, Dense):
            return _of_matrix(A.A, v0, how)
        triplet, known = lanczos_of(A.products(), A.shape, A.vector, v0, how.tol, how.maxiter, how.missed)
    return (*triplet, *known)


def _of_matrix(A: Tensor, v0: Tensor | None, how: How) -> tuple[Tensor, ...]:
    root, tiny = None, torch.finfo(A.dtype).tiny
    if how.forward != "gram":  # which sees in what it forms what is wrong with the entries
        largest = check_entries(A)
        if how.forward == "lanczos":  # the others see to subnormal numbers by themselves
            subnormal = largest < tiny if A.ndim == 2 else bool((A.abs().amax((-2, -1)) < tiny).any())
            if subnormal:
                root = root_of_scale(A)
                A = A * root[..., None, None] * root[..., None, None]
    triplet, known = FORWARDS[how.forward](A, how.index, v0, how.tol, how.maxiter, how.missed)
    if root is not None:
        S = known.S / root[..., None] / root[..., None]
        triplet, known = triplet._replace(sigma=triplet.sigma / root / root), known._replace(S=S)
    return (*triplet, *known)


def solve_adjoint(
    A: Operator, triplet: Triplet, phi: Tensor, psi: Tensor, how: How, role: str, known: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(p, q). A cotangent of zeros costs nothing, and asks for no gap: torch.func hands zeros to what a loss does not
    use. With the role "phase" nothing is solved, but the phase checked: here numbers can be read, under vmap too.
    """
    sigma, u, v = triplet
    if role == "phase":
        check_phase(u, v, phi, psi)
    if role == "phase" or role == "loss" and not (phi.any() or psi.any()):
        return torch.zeros_like(phi), torch.zeros_like(psi)
    left = KNOWN[how.forward](*known)
    with full_precision(A.leaves):
        # made once: those of a sparse matrix are sorted by rows and by columns first
        pair = None if isinstance(A, Dense) else A.products()
        if role != "again":
            check_normal(sigma)
            check_gap(*A.shape, sigma, values_near(A, sigma, left, pair))
        if pair is None:
            return SOLVERS[how.adjoint](A.leaves[0], triplet, phi, psi, left)
        assert isinstance(left, Ritz)
        return cg_of(pair, A.shape, triplet, phi, psi, left)


def along_u(sigma: Tensor, u: Tensor, xi: Tensor | None, phi: Tensor, p: Tensor) -> Tensor:
    """ξu + p, which the gradient (ξu + p)vᴴ + uqᴴ pairs with v (eq-gradient); for complex A with ξ + i Im(uᴴφ)/σ in
    place of ξ (eq-complex-gradient).

    The phase of u relative to v moves with A (eq-relative-phase), unseen by the constraints p ⟂ u and q ⟂ v.
    """
    if u.is_complex():
        xi = (0 if xi is None else xi) + 1j * vecdot(u, phi).imag / sigma
    return p if xi is None else torch.addcmul(p, xi.unsqueeze(-1), u)


def check_normal(sigma: Tensor) -> None:
    """Raise a TieError where σ is subnormal: it differs from zero by fewer digits than its dtype has."""
    if sigma.numel() == 0:
        return  # an empty batch
    tiny, least = torch.finfo(sigma.dtype).tiny, (sigma.amin() if sigma.ndim else sigma).item()
    if 0 < least < tiny:  # zero is told by the gap
        raise TieError(
            f"σ = {least:.1e} is below the smallest normal number of {str(sigma.dtype).removeprefix('torch.')}, "
            f"{tiny:.1e}, where digits are lost, and the derivatives of u and v, of the size of 1/σ, leave the range "
            "of numbers. Likely cause: weights that have decayed to nothing. A loss of σ alone has a gradient here; "
            "otherwise multiply A by a number, or use float64"
        )


def check_phase(u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> bool:
    """Raise a PhaseError for a loss that changes with the common phase of u and v: f(e^{iθ}u, e^{iθ}v) ≠ f(u, v)
    (eq-phase-blind); tell whether what passes may see it, so that ``keep_phase`` has something to keep.

    The slope Im(uᴴφ + vᴴψ) is zero for a loss that is blind to the phase, up to rounding. Of cotangents that are no
    rounding themselves that is some ε (‖φ‖ + ‖ψ‖). But a loss may be stationary at the triplet, as ‖A − σuvᴴ‖² is: then
    φ and ψ are differences of terms that cancel, and all that is left of them is rounding. How large the terms were
    they do not tell. What they tell is that independent errors of their size, alike in φ and ψ since the terms are the
    same, make a slope with a standard deviation of √(‖φ‖‖ψ‖/min(m, n)) or less. Up to three of these no error is
    raised. A loss of u alone, or of v alone, has one zero cotangent and is judged by the ε (‖φ‖ + ‖ψ‖). What is left
    unseen is a loss that sees the phase in u and v together; its gradient is right nevertheless, for the phase of the
    sign rule, which ``keep_phase`` keeps.
    """
    slope, a, b, _ = _phase_slope(u, v, phi, psi)
    slope = slope.abs()
    seen = slope > 1e3 * torch.finfo(u.dtype).eps * (a + b)
    if not seen.any():
        return False
    if (seen & (slope > 3 * (a * b / min(u.shape[-1], v.shape[-1])).sqrt())).any():
        worst = (slope / (a + b).clamp_min(torch.finfo(slope.dtype).tiny)).max().item()
        raise PhaseError(
            "the loss depends on the common phase of u and v, which is not determined by A: multiplying both by "
            "e^{iθ} changes it, "
            f"at a relative rate of {worst:.1e}. Likely cause: a real part, an imaginary part or a single entry of a "
            f"complex vector. "
            "Use moduli, inner products with the phase taken out, or products such as u vᴴ"
        )
    return True


def keep_phase(u: Tensor, v: Tensor, phi: Tensor, psi: Tensor, v0: Tensor | None) -> Tensor:
    """ψ − i Im(uᴴφ + vᴴψ) w/wᴴv: the cotangent of v where the common phase is kept as the sign rule has it, wᴴv > 0
    (eq-phase), with w = v0, or the unit vector at the largest entry of v.

    It adds what the loss gains by the turn that keeps wᴴv real, as forward mode does. Where the slope is rounding, as
    it is of a loss that is blind to the phase, ψ stays as it is.
    """
    slope, a, b, unit = _phase_slope(u, v, phi, psi)
    if v0 is None:
        w = torch.zeros_like(v).scatter(-1, v.detach().abs().argmax(-1, keepdim=True), 1)
    else:
        w = direction(v0.detach()).to(v)
    along = vecdot(v, w).real
    seen = (slope.abs() > 1e3 * torch.finfo(u.dtype).eps * (a + b)) & (along != 0)
    turn = torch.where(seen, slope / torch.where(along == 0, 1, along), 0) * unit
    return psi - 1j * turn.unsqueeze(-1) * w


def _phase_slope(u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Im(uᴴφ + vᴴψ), ‖φ‖ and ‖ψ‖ in units of the largest entry of φ and ψ, and that entry."""
    unit = size_of(phi.detach(), psi.detach())
    phi, psi = phi / unit, psi / unit
    a, b = (torch.linalg.vector_norm(x.detach(), dim=-1) for x in (phi, psi))
    slope: Tensor = (vecdot(u, phi) + vecdot(v, psi)).imag
    return slope, a, b, unit.squeeze(-1)
