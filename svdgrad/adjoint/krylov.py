"""Solve K[p; q] = c with products by A and Aᴴ only (chapter *Without an SVD*)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..forward import FullSVD, Gram, Ritz, Triplet
from ..matrices import Map, arrays, mv, products, project
from .schur import not_dominant

#: steps between two looks at the residuals on a GPU, which a look makes wait; what has converged stands still meanwhile
LOOK = 4


def cg(
    A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, phi: Tensor, psi: Tensor, known: FullSVD | Gram | Ritz | None = None
) -> tuple[Tensor, Tensor]:
    """(p, q) by conjugate gradients on the smaller side, (σ²I − AᴴA) q = Aᴴφ + σψ and q ⟂ v; then p = (φ + Aq)/σ (eq-schur).

    Where Ritz vectors are ``known`` from the forward method, they precondition it (eq-preconditioner).
    Cost: two products with A a step, about √(σ₁/2(σ₁ − σ₂)) · log(2/ε) steps or fewer without them.
    """
    ritz = known if isinstance(known, Ritz) else None
    matvec, rmatvec = products(A)
    if A.shape[-2] < A.shape[-1]:
        q, p = schur_cg(rmatvec, matvec, Triplet(sigma, v, u), psi, phi, ritz)
        return p, q
    return schur_cg(matvec, rmatvec, Triplet(sigma, u, v), phi, psi, ritz)


def schur_cg(
    matvec: Map, rmatvec: Map, triplet: Triplet, phi: Tensor, psi: Tensor, ritz: Ritz | None = None
) -> tuple[Tensor, Tensor]:
    """``cg`` on the side of v for an operator: products with A and Aᴴ, φ ⟂ u and ψ ⟂ v of size one."""
    sigma, _, v = triplet
    if v.shape[-1] == 1:  # nothing but zero is orthogonal to v, what the right-hand side holds is rounding
        return phi / sigma.unsqueeze(-1), torch.zeros_like(psi)
    s = sigma.unsqueeze(-1)
    b = rmatvec(phi) / s + psi
    maps = lambda x: matvec(x) / s, lambda y: rmatvec(y) / s, _preconditioner(s, ritz)
    q, Aq = _cg(*arrays(maps, b, v))
    return (phi + torch.as_tensor(Aq)) / s, torch.as_tensor(q) / s


def _preconditioner(s: Tensor, ritz: Ritz | None) -> Map:
    """r ↦ r + Σ (1/(1 − θᵢ²) − 1) wᵢ(wᵢᴴr) over the Ritz pairs but the first, θᵢ in units of σ (eq-preconditioner).

    The exact inverse of I − AᴴA/σ² on the span of the Ritz vectors, the identity off it.
    """
    if ritz is None:
        return lambda r: r
    W = ritz.W[..., 1:]
    theta = ritz.S[..., 1 : ritz.W.shape[-1]] / s
    weight = 1 / ((1 - theta) * (1 + theta)).clamp_min(torch.finfo(theta.dtype).eps) - 1
    return lambda r: r + mv(W, weight * mv(W.mH, r))


@np.errstate(all="ignore")  # as PyTorch: 0/0 is on its way to a member that stands still
def _cg(xp: Any, maps: Sequence[Callable[[Any], Any]], b: Any, v: Any) -> tuple[Any, Any]:
    """x and Ax of (I − AᴴA)x = b off v by Hestenes and Stiefel's iteration; of a batch, what has converged stands still.

    Stops where the residual, in the norm of the preconditioner, has fallen to 4ε. The iteration's own residual strays from
    the true one, so that is looked at in the end, and if need be what is left is solved for once more.
    """
    matvec, rmatvec, precondition = maps
    every = 1 if xp is np or b.is_cpu else LOOK
    eps, tiny = float(xp.finfo(b.dtype).eps), float(xp.finfo(b.dtype).tiny)

    def dot(x: Any, y: Any) -> Any:
        return (np.vecdot if xp is np else vecdot)(x, y)[..., None]

    def off(r: Any) -> Any:
        return r - v * dot(v, r)

    x, Ax, r = xp.zeros_like(b), None, off(b)
    stop = None
    for _ in range(3):
        z = d = off(precondition(r))
        rz = dot(r, z).real
        stop = (4 * eps) ** 2 * rz if stop is None else stop
        if not (rz > 16 * stop).any():
            break
        refused = rz < 0  # nobody yet
        for step in range(_most(b)):
            going = (rz > stop) & ~refused
            if step % every == 0 and not going.any():
                break
            w = matvec(d)
            Md = d - rmatvec(w)
            curvature = dot(d, Md).real
            refused = refused | (going & (curvature <= 0))
            alpha = rz * (going & ~refused) / xp.where(curvature > 0, curvature, xp.ones_like(rz))
            x = x + alpha * d
            r = off(r - alpha * Md)
            Ax = alpha * w if Ax is None else Ax + alpha * w
            z = off(precondition(r))
            rz, previous = dot(r, z).real, rz
            d = z + rz / (previous + tiny) * d
        if refused.any():
            raise not_dominant("cg", "σ²I − AᴴA has negative curvature off v")
        r = off(b - (x - rmatvec(Ax)))
    return x, matvec(x) if Ax is None else Ax


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

    c = torch.cat([phi, psi], -1)
    x = _minres(apply, off_u_and_v, off_u_and_v(c))
    # its short recurrences stray from the true residual, the further the more steps they take; one more round puts that right
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
        if step % LOOK == 0 and not open_.any():
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
