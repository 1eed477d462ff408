"""Solve K[p; q] = c with products by A and Aᴴ only (chapter *Without an SVD*)."""

from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..forward import Ritz, Triplet
from ..gap import tie, tied
from ..products import Map, mv, products, project, root_of_scale, size_of, times_both
from ..transforms import refuse_mapping_by_autograd
from .schur import not_dominant

#: steps between two looks at the residuals on a GPU, which a look makes wait; what has converged stands still meanwhile
CHECK_EVERY = 4


def cg(A: Tensor, triplet: Triplet, phi: Tensor, psi: Tensor, known: Any = None) -> tuple[Tensor, Tensor]:
    """(p, q) by conjugate gradients on the smaller side, (σ²I − AᴴA) q = Aᴴφ + σψ and q ⟂ v; then p = (φ + Aq)/σ
    (eq-schur).

    Where Ritz vectors are ``known`` from the forward method, they precondition it (eq-preconditioner).
    Cost: two products with A a step, about √(σ₁/2(σ₁ − σ₂)) · log(2/ε) steps or fewer without them, and with a loose
    u and v, whose residual is r, log(20/r) in place of log(2/ε).
    """
    m, n = A.shape[-2:]
    return cg_of(products(A), (m, n), triplet, phi, psi, known if isinstance(known, Ritz) else None)


def cg_of(
    pair: tuple[Map, Map], shape: tuple[int, int], triplet: Triplet, phi: Tensor, psi: Tensor, ritz: Ritz | None
) -> tuple[Tensor, Tensor]:
    """``cg`` for an operator of this shape by its two products."""
    (matvec, rmatvec), (m, n), (sigma, u, v) = pair, shape, triplet
    phi, psi = project(u, phi), project(v, psi)
    if m < n:
        q, p = schur_cg(rmatvec, matvec, Triplet(sigma, v, u), psi, phi, ritz)
    else:
        p, q = schur_cg(matvec, rmatvec, triplet, phi, psi, ritz)
    return project(u, p), project(v, q)  # a loose u is not orthogonal to what comes out


def schur_cg(
    matvec: Map, rmatvec: Map, triplet: Triplet, phi: Tensor, psi: Tensor, ritz: Ritz | None = None
) -> tuple[Tensor, Tensor]:
    """``cg`` on the side of v for an operator: products with A and Aᴴ, φ ⟂ u and ψ ⟂ v. Solves for vectors of size
    one.
    """
    refuse_mapping_by_autograd(phi, psi)
    sigma, _, v = triplet
    s = sigma.unsqueeze(-1)
    if v.shape[-1] == 1:  # nothing but zero is orthogonal to v, what the right-hand side holds is rounding
        return phi / s, torch.zeros_like(psi)
    size = size_of(phi, psi)
    phi, psi = phi / size, psi / size
    pair, unit = (matvec, rmatvec), s
    if not ((s > 1e-6) & (s < 1e6)).all():  # a direction may be 1/2gap as large as σ allows: change the unit
        root = root_of_scale(s.unsqueeze(-1)).unsqueeze(-1)
        pair, unit = times_both(pair, root), s * root * root
    try:
        q, Aq = _cg(*pair, _preconditioner(s, ritz), unit, v, phi, psi, _accuracy(s, ritz))
    except _NotDefinite as found:
        if ritz is None:
            raise not_dominant("cg", str(found)) from None
        raise tied(f"found while its adjoint system was solved: {found}") from None
    size = size / s  # neither 1/s alone nor the product with it leaves the range where p and q do not
    return (phi + Aq) * size, q * size


class _NotDefinite(Exception):
    """σ²I − AᴴA is not positive definite off v: σ is not the largest singular value, or not simple."""


def _accuracy(s: Tensor, ritz: Ritz | None) -> float | Tensor:
    """The relative residual to stop at: a tenth of that of u and v, whose errors the solution has anyway; 4ε or more.

    After few steps from a start that is trusted, that residual is large, and few Ritz vectors are there to precondition
    with: digits beyond those of u and v would cost many steps.
    """
    least: float = 4 * torch.finfo(s.dtype).eps
    if ritz is None or ritz.residual.ndim == 0:  # counts are on the CPU, and a number need not go to the device
        return least if ritz is None else max(least, 0.1 * ritz.residual.item())
    return (0.1 * ritz.residual).clamp_min(least).unsqueeze(-1).to(s)


def _preconditioner(s: Tensor, ritz: Ritz | None) -> Map:
    """r ↦ r + Σ (1/(1 − θᵢ²) − 1) wᵢ(wᵢᴴr) over the Ritz pairs but the first, θᵢ in units of σ (eq-preconditioner).

    Off v the exact inverse of I − AᴴA/σ² on the span of these Ritz vectors, and the identity off that.
    """
    if ritz is None:
        return torch.clone
    W, theta = ritz.W[..., 1:], ritz.S[..., 1 : ritz.W.shape[-1]] / s
    weight = 1 / ((1 - theta) * (1 + theta)).clamp_min(torch.finfo(theta.dtype).eps) - 1
    if W.ndim == 2:
        W_H, weighted = W.mH, W * weight
        return lambda r: torch.addmv(r, weighted, W_H @ r) if r.ndim == 1 else r + mv(weighted, mv(W_H, r))
    return lambda r: r + mv(W, weight * mv(W.mH, r))


def _cg(
    matvec: Map,
    rmatvec: Map,
    precondition: Map,
    s: Tensor,
    v: Tensor,
    phi: Tensor,
    psi: Tensor,
    accuracy: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """x and Ax/σ of (I − AᴴA/σ²)x = Aᴴφ/σ + ψ off v, by Hestenes and Stiefel's iteration.

    Stops where the residual, in the norm of the preconditioner, has fallen to ``accuracy``. The iteration's own
    residual strays from the true one, so that is looked at in the end, and if need be what is left is solved for once
    more.
    """
    # twice: of a matrix of rank one nothing is left off v but rounding, which may lie along v
    r = b = project(v, project(v, rmatvec(phi) / s + psi))
    x, Ax = torch.zeros_like(b), b.new_zeros(*b.shape[:-1], phi.shape[-1])
    stop = None
    iterate = _one_system if b.is_cpu and b.ndim == 1 else _many_systems
    for _ in range(3):
        z = precondition(r)
        rz = dot(r, z)
        stop = accuracy**2 * rz if stop is None else stop
        if not (rz > 16 * stop).any():
            break
        if not iterate(matvec, rmatvec, precondition, s, v, stop, x, Ax, r, z, rz):
            raise _NotDefinite("σ²I − AᴴA has negative curvature off v")
        r = project(v, b - x + rmatvec(Ax) / s)
    # at most 1/2gap as large as b; what is larger than a tie allows shows one to which the Ritz values, which see no
    # copies, are blind
    gap = tie(phi.shape[-1], psi.shape[-1], b.dtype)
    if (2 * gap * vector_norm(x, dim=-1) > vector_norm(b, dim=-1)).any():
        raise _NotDefinite(f"the solution is larger than a relative gap above {gap:.0e}, a tie up to rounding, allows")
    return x, Ax


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Re xᴴy, shape (..., 1)."""
    product: Tensor = vecdot(x, y).real.unsqueeze(-1)
    return product


def _one_system(
    matvec: Map, rmatvec: Map, precondition: Map, s: Tensor, v: Tensor, stop: Tensor, x: Tensor, Ax: Tensor, r: Tensor,
    d: Tensor, rz: Tensor,
) -> bool:  # fmt: skip
    """The steps for one system on a CPU, from x, Ax/σ, the residual r and the direction d, in place; whether all went
    well.

    There a number costs nothing to look at, and up to some thousand rows a call costs more than what it calculates.
    """
    d, sigma, square, least = d.clone(), s.item(), rz.item(), stop.item()
    for _ in range(_most(r)):
        if square <= least:
            break
        w = matvec(d) / sigma
        Md = torch.sub(d, rmatvec(w), alpha=1 / sigma)
        curvature = torch.vdot(d, Md).real.item()
        if not 0 < curvature < torch.inf:
            return False
        alpha = square / curvature
        x.add_(d, alpha=alpha)
        Ax.add_(w, alpha=alpha)
        # of a loose v, AᴴA makes something along v; where all else has shrunk, rounding of that would be most of ⟨r, z⟩
        r = torch.sub(r, Md, alpha=alpha)
        r = r.sub_(v * torch.vdot(v, r))
        z = precondition(r)
        square, previous = torch.vdot(r, z).real.item(), square
        d.mul_(square / previous).add_(z)
    return True


def _many_systems(
    matvec: Map, rmatvec: Map, precondition: Map, s: Tensor, v: Tensor, stop: Tensor, x: Tensor, Ax: Tensor, r: Tensor,
    d: Tensor, rz: Tensor,
) -> bool:  # fmt: skip
    """The same for a batch, of which what has converged stands still, and on a GPU, which a look at a number makes
    wait.
    """
    d, every, tiny = d.clone(), 1 if r.is_cpu else CHECK_EVERY, torch.finfo(s.dtype).tiny
    lowest = none = torch.zeros_like(s)
    for step in range(_most(r)):
        going = (rz > stop) & (lowest == 0)
        if step % every == 0 and not going.any():
            break
        w = matvec(d) / s
        Md = torch.addcdiv(d, rmatvec(w), s, value=-1)
        alpha = torch.where(going, rz / dot(d, Md), none)
        lowest = torch.minimum(lowest, alpha)
        x.addcmul_(alpha, d)
        Ax.addcmul_(alpha, w)
        r = project(v, torch.addcmul(r, alpha, Md, value=-1))
        z = precondition(r)
        rz, previous = dot(r, z), rz
        d.mul_(rz / (previous + tiny)).add_(z)
    return bool(((lowest == 0) & x.isfinite()).all())


def minres(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) from K[p; q] = c by the minimal residual method, projected off u and v in every step, for any simple σ.

    Cost: two products with A a step. K is indefinite for every index but the first, which MINRES does not mind.
    """
    refuse_mapping_by_autograd(phi, psi)
    m = A.shape[-2]

    def off_u_and_v(x: Tensor) -> Tensor:
        return torch.cat([project(u, x[..., :m]), project(v, x[..., m:])], -1)

    def apply(x: Tensor) -> Tensor:
        p, q = x[..., :m], x[..., m:]
        return sigma.unsqueeze(-1) * x - torch.cat([mv(A, q), mv(A.mH, p)], -1)

    c = torch.cat([phi, psi], -1)
    x = _minres(apply, off_u_and_v, off_u_and_v(c))
    # its short recurrences stray from the true residual, the further the more steps they take; one more round puts that
    # right
    x = x + _minres(apply, off_u_and_v, off_u_and_v(c - apply(x)))
    return x[..., :m], x[..., m:]


def _minres(apply: Map, off: Map, b: Tensor) -> Tensor:
    """Paige and Saunders' iteration on a batch: Lanczos vectors v, a QR factorisation updated by one rotation a step.

    ``off`` projects off the null space. It is applied to each new vector at its own size: applied to a product only, it
    would leave rounding of the size of the product, which outweighs the vector as that shrinks.
    """
    x = torch.zeros_like(b)
    gamma = vector_norm(b, dim=-1, keepdim=True)
    stop = torch.finfo(b.dtype).eps * gamma
    v_old, v = torch.zeros_like(b), b / torch.where(gamma == 0, 1, gamma)
    w_old, w = torch.zeros_like(b), torch.zeros_like(b)
    eta, c_old, c = gamma, torch.ones_like(gamma), torch.ones_like(gamma)
    s_old, s = torch.zeros_like(gamma), torch.zeros_like(gamma)
    for step in range(_most(b)):
        open_ = eta.abs() > stop
        if step % CHECK_EVERY == 0 and not open_.any():
            break
        z = apply(v)
        delta = vecdot(v, z).real.unsqueeze(-1)
        z = off(z - delta * v - gamma * v_old)
        gamma_new = vector_norm(z, dim=-1, keepdim=True)
        a0 = c * delta - c_old * s * gamma
        a1 = torch.hypot(a0, gamma_new)
        a2, a3 = s * delta + c_old * c * gamma, s_old * gamma
        safe = torch.where(a1 == 0, 1, a1)
        w_old, w = w, (v - a3 * w_old - a2 * w) / safe
        c_old, c, s_old, s = c, a0 / safe, s, gamma_new / safe
        x = torch.where(open_, x + c * eta * w, x)
        eta = -s * eta
        v_old, v, gamma = v, z / torch.where(gamma_new == 0, 1, gamma_new), gamma_new
    return x


def _most(b: Tensor) -> int:
    """More steps than rounding can make necessary for any of the project's matrix families."""
    return max(1000, 20 * b.shape[-1])
