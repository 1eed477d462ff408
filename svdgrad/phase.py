"""The common phase of u and v of a complex matrix, which A does not determine: who sees it, and how it is kept."""

import torch
from torch import Tensor
from torch.linalg import vecdot

from .products import direction, size_of


class PhaseError(ValueError):
    """A loss of a complex triplet depends on the common phase of u and v, which A does not determine."""


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
            "Use moduli, products such as u vᴴ, or vectors with the phase taken out: u z̄/|z| and v z̄/|z| with z = wᴴv "
            "for a fixed w"
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
    seen = slope.detach().abs() > 1e3 * torch.finfo(u.dtype).eps * (a + b)
    slope = torch.where(seen, slope, slope - slope.detach())  # what is zero now may have a derivative
    turn = torch.where(along != 0, slope / torch.where(along == 0, 1, along), 0) * unit
    return psi - 1j * turn.unsqueeze(-1) * w


def _phase_slope(u: Tensor, v: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Im(uᴴφ + vᴴψ), ‖φ‖ and ‖ψ‖ in units of the largest entry of φ and ψ, and that entry."""
    unit = size_of(phi.detach(), psi.detach())
    phi, psi = phi / unit, psi / unit
    a, b = (torch.linalg.vector_norm(x.detach(), dim=-1) for x in (phi, psi))
    slope: Tensor = (vecdot(u, phi) + vecdot(v, psi)).imag
    return slope, a, b, unit.squeeze(-1)
