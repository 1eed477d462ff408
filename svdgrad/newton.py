"""Newton steps of differentiable operations, for what an autograd.Function cannot do: nested forward modes.

The chapter *One Newton step* derives the step, and why k of them make a triplet right to the order 2ᵏ − 1.
"""

import torch
from torch import Tensor
from torch.linalg import vecdot

from .forward import Triplet
from .matrices import saddle
from .products import direction, mv


def newton(A: Tensor, triplet: Triplet, v0: Tensor | None, steps: int) -> Triplet:
    """So many Newton steps; for complex A then the common phase of the sign rule, which no equation of the triplet
    fixes.
    """
    sigma, u, v = triplet
    start = v
    if A.is_complex():
        # a step forgets where it came from: to backward only rounding would come back, and pass for a loss that sees
        # the phase
        sigma, u, v = (x.detach() for x in (sigma, u, v))
    for _ in range(steps):
        sigma, u, v = _newton_step(A, sigma, u, v)
    if A.is_complex():
        along = anchor(v, start, v0)
        # not torch.sgn: in torch 2.13 reverse over forward over forward mode through it is an error
        turn = along.abs() / along
        u, v = u * turn, v * turn
    return Triplet(sigma, u, v)


def _newton_step(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Triplet:
    """One Newton step for the triplet, of differentiable operations (eq-newton-system, with the border weight σ).

    J [du; dv; λ; μ] = −F says A(v + dv) = σ(u + du + λu) and Aᴴ(u + du) = σ(v + dv + μv), with Re uᴴdu = Re vᴴdv = 0
    for vectors of length one; its last two rows ask for Im uᴴdu = Im vᴴdv = 0 as well. So if A is complex it is λ and μ
    = λ̄ that hold what the phase of u relative to v has to move by, i Im λ (eq-relative-phase), and Re λ is what is
    left for σ: σ ← σ(1 + Re λ), u ← (1 + i Im λ)(u + du), v ← v + dv, with the mean of λ and μ̄ in place of λ. The
    error is squared.
    """
    m = A.shape[-2]
    J = saddle(A, sigma, u, v, beta=sigma)
    lengths = sigma.unsqueeze(-1) * torch.stack([vecdot(u, u) - 1, vecdot(v, v) - 1], -1) / 2
    s = sigma.unsqueeze(-1)
    F = torch.cat([s * u - mv(A, v), s * v - mv(A.mH, u), lengths], -1)
    # not torch.linalg.solve: in torch 2.13 its second forward derivative under vmap is NaN from the second matrix on
    d = mv(torch.linalg.inv(J), -F)
    u, v, lam = u + d[..., :m], v + d[..., m:-2], (d[..., -2] + d[..., -1].conj()) / 2
    if A.is_complex():
        u = u * (1 + 1j * lam.imag.unsqueeze(-1))
    return Triplet(sigma * (1 + lam.real), u, v)


def anchor(x: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
    """What the sign rule makes positive for x = v: v0ᴴx, or the entry of x where v is largest in modulus (eq-phase)."""
    if v0 is None:
        return x.gather(-1, v.abs().argmax(-1, keepdim=True))
    along: Tensor = vecdot(direction(v0.detach()).to(v), x)
    return along.unsqueeze(-1)
