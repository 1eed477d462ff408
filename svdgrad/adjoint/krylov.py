"""Solve K[p; q] = c with products by A and Aᴴ only (chapter *Without an SVD*)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..forward import Triplet
from ..matrices import mv, project
from .schur import not_dominant, on_the_smaller_side

Map = Callable[[Tensor], Tensor]


@on_the_smaller_side
def cg(A: Tensor, sigma: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """q ⟂ v from (σ²I − AᴴA) q = Aᴴφ + σψ by conjugate gradients, projected off v in every step (eq-schur).

    Cost: two products with A a step, about √(σ₁/2(σ₁ − σ₂)) · log(2/ε) steps or fewer.
    """

    def apply(x: Tensor) -> Tensor:
        return sigma.unsqueeze(-1) ** 2 * x - mv(A.mH, mv(A, x))

    return _refined(_cg, apply, lambda x: project(v, x), r)


def schur_cg(matvec: Map, rmatvec: Map, triplet: Triplet, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """``cg`` for an operator: products with A and Aᵀ on flat vectors, φ and ψ already projected (eq-schur)."""
    sigma, u, v = triplet
    if u.numel() < v.numel():
        q, p = schur_cg(rmatvec, matvec, Triplet(sigma, v, u), psi, phi)
        return p, q
    # as for every solver: for A/σ, and a right-hand side of size one
    size = torch.maximum(phi.abs().max(), psi.abs().max())
    size = torch.where(size == 0, 1, size)
    phi, psi = phi / size, psi / size
    r = rmatvec(phi) / sigma + psi
    q = _refined(_cg, lambda x: x - rmatvec(matvec(x) / sigma) / sigma, lambda x: project(v, x), r)
    p = phi + matvec(q) / sigma
    return project(u, p) * (size / sigma), project(v, q) * (size / sigma)


def minres(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) from K[p; q] = c by the minimal residual method, projected off u and v in every step, for any simple σ.

    Cost: two products with A a step. K is indefinite for every index but the first, which MINRES does not mind.
    """
    m = A.shape[-2]

    def off_u_and_v(x: Tensor) -> Tensor:
        return torch.cat([project(u, x[..., :m]), project(v, x[..., m:])], -1)

    def apply(x: Tensor) -> Tensor:
        p, q = x[..., :m], x[..., m:]
        return sigma.unsqueeze(-1) * x - torch.cat([mv(A, q), mv(A.mH, p)], -1)

    x = _refined(_minres, apply, off_u_and_v, torch.cat([phi, psi], -1))
    return x[..., :m], x[..., m:]


def _refined(method: Callable[[Map, Map, Tensor], Tensor], apply: Map, off: Map, b: Tensor) -> Tensor:
    """Solve, then solve for what is left of the right-hand side: the iteration's own residual strays from the true one.

    ``off`` projects off the null space. It is applied to each new vector at its own size: applied to a product only, it
    would leave rounding of the size of the product, which outweighs the vector as that shrinks.
    """
    if b.shape[-1] == 1:  # nothing but zero is orthogonal to v, what b holds is rounding
        return torch.zeros_like(b)
    x = method(apply, off, off(b))
    for _ in range(2):
        x = x + method(apply, off, off(b - apply(x)))
    return x


def _cg(apply: Map, off: Map, b: Tensor) -> Tensor:
    """Hestenes and Stiefel's iteration on a batch; a member of the batch that has converged stands still."""
    x, r, d = torch.zeros_like(b), b, b
    rr = vecdot(r, r).real.unsqueeze(-1)
    stop = torch.finfo(b.dtype).eps ** 2 * rr
    for _ in range(_most(b)):
        open_ = rr > stop
        if not open_.any():
            return x
        w = apply(d)
        curvature = vecdot(d, w).real.unsqueeze(-1)
        if (open_ & (curvature <= 0)).any():
            raise not_dominant("cg", "σ²I − AᴴA has negative curvature off v")
        alpha = torch.where(open_, rr / torch.where(open_, curvature, 1), 0)
        x, r = x + alpha * d, off(r - alpha * w)
        rr, previous = vecdot(r, r).real.unsqueeze(-1), rr
        d = torch.where(open_, r + rr / torch.where(open_, previous, 1) * d, d)
    return x


def _minres(apply: Map, off: Map, b: Tensor) -> Tensor:
    """Paige and Saunders' iteration on a batch: Lanczos vectors v, a QR factorisation updated by one rotation a step."""
    x = torch.zeros_like(b)
    gamma = vector_norm(b, dim=-1, keepdim=True)
    stop = torch.finfo(b.dtype).eps * gamma
    v_old, v = torch.zeros_like(b), b / torch.where(gamma == 0, 1, gamma)
    w_old, w = torch.zeros_like(b), torch.zeros_like(b)
    eta, c_old, c = gamma, torch.ones_like(gamma), torch.ones_like(gamma)
    s_old, s = torch.zeros_like(gamma), torch.zeros_like(gamma)
    for _ in range(_most(b)):
        open_ = eta.abs() > stop
        if not open_.any():
            return x
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
