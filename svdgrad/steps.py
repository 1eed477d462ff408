"""The two steps behind the map A → (σ, u, v), on plain tensors: find a triplet, solve its adjoint system.

rule.py makes the two steps differentiable, compiled.py shows them to torch.compile, diagnosis.py uses them as they are.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from .adjoint.columns import columns_cg
from .adjoint.krylov import cg_of
from .adjoint.spectral import spectral_rows
from .auto import How
from .copies import values_near
from .forward import FullSVD, GramVectors, Ritz, RitzBlock, Triplet
from .gap import (
    TieError,
    check_cut,
    check_gap,
    check_zero,
    following,
    near_tie,
    relative_cut,
    tie,
    tied_with_the_rest,
)
from .inside import (
    check_again,
    check_divided,
    check_forward,
    check_inside,
    check_still,
    check_values,
    in_generic_bases,
    off,
    turned,
    warn_of_lost,
)
from .operator import Dense, Operator, Sparse
from .phase import check_phase
from .products import direction, extremes
from .transforms import mapped_by_autograd, refuse_mapping_by_autograd, refuse_tracing


def full_precision(leaves: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """Autocast switched off, where it is on."""
    kind = leaves[0].device.type if leaves else "cpu"
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def find_triplet(A: Operator, v0: Tensor | None, how: How) -> tuple[Tensor, ...]:
    """(σ, u, v, *known), or (σ, U, V, *known) for k triplets, with diag σ for σ where the core is asked for.

    The numbers are checked from here, and not before, since under vmap only here they can be."""
    refuse_tracing()
    if how.forward.name == "lanczos":
        refuse_mapping_by_autograd()
    if how.k is not None:
        with full_precision(A.leaves):
            found, left = how.forward.find_many(A, how.k, v0)
        sigma, U, V = found if how.core else in_generic_bases(found)
        return (torch.diag_embed(sigma).to(U) if how.core else sigma, U, V, *left)
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
    use, and so does autograd to matrices of a batch. With the roles "phase", "values", "nested d", "moves", "divided"
    and "still" nothing is solved, but something checked: here numbers can be read, under vmap too. See ``Solve``.
    """
    sigma, u, v = triplet
    many = how.k is not None
    if role == "phase":
        check_phase(u, v, phi, psi)
    if role == "values":
        *known, xi = known
        check_cotangents(A, triplet, phi, psi, how, known, xi)
        check_zero(sigma, how.values(xi), phi, psi, many)
    left = how.left(known)
    known, also = known[: len(left)], known[len(left) :]  # what is only looked at: h of a core, or ξ
    seen = phi
    if also and how.core:
        seen = turned(u, sigma, also[0], phi)
    elif also and not many:
        check_zero(sigma, also[0], phi, psi, many)
    if role.startswith("nested"):
        from_zero = sigma.shape[-1] == min(A.shape) and (A.shape[0] != A.shape[1] or u.is_complex())
        check_again(sigma, *A.shape, power=1 + int(role.split()[1]), from_zero=from_zero)
    readable = not mapped_by_autograd(phi, psi)
    if role in ("phase", "values") or readable and not (seen.any() or psi.any() or phi.any()):
        return torch.zeros_like(phi), torch.zeros_like(psi)
    if readable and sigma.ndim > many:  # a batch, which only a matrix can be
        batch = phi.shape[: phi.ndim - 1 - many]
        wanted = torch.cat([x.flatten(len(batch)) != 0 for x in (phi, psi, seen)], -1).any(-1)
        if not wanted.all():
            X, *rest = (
                x.expand(*batch, *x.shape[sigma.ndim - many :])[wanted.to(x.device)]  # counts are on the CPU
                for x in (A.leaves[0], *triplet, *known)
            )
            # ξ and h come with the batch of φ
            rest += [x.expand(*batch, *x.shape[-1 - how.core :])[wanted] for x in also if many]
            found = solve_adjoint(A.at([X]), Triplet(*rest[:3]), phi[wanted], psi[wanted], how, role, rest[3:])
            p, q = (torch.zeros_like(x).index_put((wanted,), y) for x, y in zip((phi, psi), found))
            return p, q
    if role == "moves":
        check_again(sigma, *A.shape, power=0)
    if role in ("divided", "still") and also and not how.core:
        check_divided(sigma, also[0], phi, psi)
    if role == "still":
        check_still(sigma, u, v, seen, psi, how.eps)
    if role in ("moves", "divided", "still"):
        return torch.zeros_like(phi), torch.zeros_like(psi)
    if many:
        return _solve_many(A, triplet, phi, psi, seen, how, role, left)
    assert isinstance(left, FullSVD | GramVectors | Ritz)
    with full_precision(A.leaves):
        # made once: those of a sparse matrix are sorted by rows and by columns first
        pair = None if isinstance(A, Dense) else A.products()
        check_normal(sigma)
        residual = left.residual.max().item() if isinstance(left, Ritz) and left.residual.numel() else 0.0
        # for the derivative of a solve as well: with cotangents of zeros that solve did not come here
        S, left = values_near(A, sigma, left, pair) if role in ("loss", "tangent") else (left.S, left)
        check_gap(*A.shape, sigma, S, residual, u.is_complex())
        if pair is None:
            return how.adjoint(A.leaves[0], triplet, phi, psi, left)
        assert isinstance(left, Ritz)
        return cg_of(pair, A.shape, triplet, phi, psi, left)


def check_cotangents(
    A: Operator, triplet: Triplet, phi: Tensor, psi: Tensor, how: How, known: Sequence[Tensor], xi: Tensor
) -> None:
    """Warn of a loss of k triplets that tells tied values apart, or, of a core, raise an error where that turns a
    triplet that is tied with what is left out: between two such triplets φ + U[S, h] of the solve is zero.
    """
    sigma = triplet.sigma
    if not how.core:
        check_values(*triplet, xi, phi, psi)
        return
    m, n = A.shape
    beyond = following(m, n, sigma.shape[-1], how.left(known).S)
    if sigma.numel() and relative_cut(sigma, beyond) <= tie(m, n, sigma.dtype):
        turns = (xi - torch.diag_embed(xi.diagonal(dim1=-2, dim2=-1)) != 0).any(-1)
        check_cut(m, n, sigma, beyond, turns & tied_with_the_rest(m, n, sigma, beyond))


def _solve_many(
    A: Operator, triplet: Triplet, phi: Tensor, psi: Tensor, seen: Tensor, how: How, role: str, left: Any
) -> tuple[Tensor, Tensor]:
    """Rows P and Q of P S − A Q = (I − UUᴴ)Φ, Q S − AᴴP = (I − VVᴴ)Ψ, P ⟂ U, Q ⟂ V (eq-outside). ``seen`` is Φ with
    what a loss of the core adds to it along U.
    """
    sigma, U, V = triplet
    m, n = A.shape
    beyond = following(m, n, sigma.shape[-1], left.S)
    wanted = lost = None
    tiny, residual = torch.finfo(sigma.dtype).tiny, 0.0
    if isinstance(left, RitzBlock) and left.residual.numel() and role in ("loss", "tangent"):
        residual = left.residual.max().item()
    near = max(near_tie(m, n, sigma.dtype), 100 * residual)
    if relative_cut(sigma, beyond) < near or extremes(sigma)[0] < tiny:
        wanted = (seen != 0).any(-1) | (phi != 0).any(-1) | (psi != 0).any(-1)
        if role == "tangent":  # forward mode does not know what the loss reads: where some triplets have a derivative
            # they get theirs, and the tied ones NaN
            tied = wanted & tied_with_the_rest(m, n, sigma, beyond)
            if tied.any() and ((wanted & ~tied).any(-1) | ~tied.any(-1)).all():
                warn_of_lost()
                lost, wanted = tied, wanted & ~tied
                phi, psi = (x * wanted.unsqueeze(-1) for x in (phi, psi))
        check_normal(sigma.expand(wanted.shape)[wanted])
        check_cut(m, n, sigma, beyond, wanted, residual)
    if role == "loss":
        check_inside(sigma, U, V, seen, psi, how.eps)
    elif role == "tangent":
        check_forward(sigma, m, n)
    else:
        check_again(sigma, m, n, {"again": 0, "reversed": 2, "third": 3}[role])
    P, Q = _outside(A, triplet, phi, psi, left)
    if wanted is not None:  # 0/0 elsewhere
        P, Q = (x.where(wanted.unsqueeze(-1), 0) for x in (P, Q))
    if lost is not None:
        P, Q = (x.masked_fill(lost.unsqueeze(-1), torch.nan) for x in (P, Q))
    return P, Q


def _outside(A: Operator, triplet: Triplet, phi: Tensor, psi: Tensor, left: Any) -> tuple[Tensor, Tensor]:
    """The same, with nothing checked."""
    sigma, U, V = triplet
    s = sigma.unsqueeze(-1)
    if isinstance(left, RitzBlock):
        if sigma.ndim == 1:
            return columns_cg(*A.products(), A.shape, sigma, U, V, phi, psi, left)
        # a batch, which only a matrix can be: one by one
        batch = phi.shape[:-2]
        others = (x.expand(*batch, *x.shape[sigma.ndim - 1 :]) for x in (A.leaves[0], sigma, U, V, *left))
        solved = []
        for f, g, X, s, u, v, *known in zip(*(x.reshape(-1, *x.shape[len(batch) :]) for x in (phi, psi, *others))):
            pair = Dense(X, rows=True).products()
            solved.append(columns_cg(*pair, A.shape, s, u, v, f, g, RitzBlock(*known)))
        P, Q = (torch.stack(xs).reshape(*batch, *xs[0].shape) for xs in zip(*solved))
        return P, Q
    return spectral_rows(A.leaves[0], sigma, off(U, phi / s), off(V, psi / s), left)


def along_u(sigma: Tensor, u: Tensor, xi: Tensor | None, phi: Tensor, p: Tensor, alone: bool = True) -> Tensor:
    """ξu + p, which the gradient (ξu + p)vᴴ + uqᴴ pairs with v (eq-gradient); for one triplet of a complex A with
    ξ + i Im(uᴴφ)/σ in place of ξ (eq-complex-gradient). Of k triplets the rotation holds that.

    The phase of u relative to v moves with A (eq-relative-phase), unseen by the constraints p ⟂ u and q ⟂ v.
    """
    if alone and u.is_complex():  # at σ = 0 for a loss of no vector only
        xi = (0 if xi is None else xi) + 1j * (vecdot(u, phi).imag / torch.where(sigma > 0, sigma, 1))
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


def value_and_cotangents(loss: Any, found: Any, A: Tensor | Sparse) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value of a loss of a named tuple of tensors, and its cotangents, zeros for what it does not use; an error for
    a loss that depends on A besides, where A requires a gradient.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of a triplet, found {type(loss).__name__}")
    with torch.inference_mode(False), torch.enable_grad():
        leaves = type(found)(*((x.clone() if x.is_inference() else x).detach().requires_grad_() for x in found))
        value = loss(leaves)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex() or not value.requires_grad:
            what = (
                f"{value.dtype} of shape {tuple(value.shape)}{' without a graph' * (not value.requires_grad)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise TypeError(
                f"loss(triplet) must be one real number, as a tensor, and a function of the triplet, found {what}: "
                "end it with .sum(), and calculate with the sigma, u and v that it is given"
            )
        numbers = A.values if isinstance(A, Sparse) else A
        others = [numbers] if numbers.requires_grad else []
        bars = torch.autograd.grad(value, (*leaves, *others), allow_unused=True)
    if any(bar is not None for bar in bars[len(leaves) :]):
        raise ValueError(
            "loss must be a function of the triplet that it is given, found one that depends on A besides: that part "
            "of its gradient has no low rank. Likely cause: a residual such as A − σuvᵀ. Take the triplet from "
            "singular_triplet or singular_triplets, and call backward()"
        )
    return value.detach(), tuple(torch.zeros_like(x) if bar is None else bar for x, bar in zip(leaves, bars))
