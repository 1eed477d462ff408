"""The two steps behind the map A → (σ, u, v), on plain tensors: find a triplet, solve its adjoint system.

rule.py makes the two steps differentiable, compiled.py shows them to torch.compile, diagnosis.py uses them as they are.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from .adjoint.krylov import cg_of
from .auto import How
from .forward import Ritz, Triplet
from .gap import TieError, check_gap, values_near
from .matrices import direction
from .operator import Dense, Operator
from .phase import check_phase


def full_precision(leaves: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """Autocast switched off, where it is on."""
    kind = leaves[0].device.type if leaves else "cpu"
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def find_triplet(A: Operator, v0: Tensor | None, how: How) -> tuple[Tensor, ...]:
    """(σ, u, v, *known). The numbers are checked from here, and not before, since under vmap only here they can be."""
    if v0 is not None:
        v0 = direction(v0.to(torch.promote_types(v0.dtype, A.vector.dtype)))
        if not v0.isfinite().all():  # 0/0, or what was not finite before
            raise ValueError(
                "v0 must be finite and not zero: it fixes the sign, and is where an iteration starts; random numbers "
                "will do"
            )
    with full_precision(A.leaves):
        triplet, known = how.forward.find(A, how.index, v0)
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
    left = how.forward.leaves(*known)
    with full_precision(A.leaves):
        # made once: those of a sparse matrix are sorted by rows and by columns first
        pair = None if isinstance(A, Dense) else A.products()
        if role != "again":
            check_normal(sigma)
            check_gap(*A.shape, sigma, values_near(A, sigma, left, pair))
        if pair is None:
            return how.adjoint(A.leaves[0], triplet, phi, psi, left)
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
