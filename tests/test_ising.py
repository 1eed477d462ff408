"""The ground state of a chain of spins by products alone: its second derivatives against perturbation theory."""

import torch
from torch.func import grad, hessian, jacfwd

import svdgrad

SITES = 8


def flipped(x, site):
    """σₓ at one site: the state with that spin turned over."""
    return x.reshape(2**site, 2, -1).flip(1).reshape(-1)


def alignment():
    """The diagonal of −Σ σ_z σ_z over neighbours on a ring, one number for each of 2⁸ states."""
    states = torch.arange(2**SITES)
    spins = 1 - 2 * torch.stack([(states >> site) & 1 for site in range(SITES)])
    return -(spins * spins.roll(1, 0)).sum(0).double()


def energies_removed(field, x):
    """(c − H) x for H = −Σ σ_z σ_z − h Σ σₓ, with c so large that its largest singular value is c − E₀."""
    H_x = alignment() * x - field * sum(flipped(x, site) for site in range(SITES))
    return SHIFT * x - H_x


SHIFT = 30.0
START = torch.ones(2**SITES, dtype=torch.float64)  # has the symmetry of the ground state at h > 0, all of one sign


def ground(field):
    return svdgrad.operator_triplet(energies_removed, field, START)


def energy(field):
    return SHIFT - ground(field).sigma


def perturbation_theory(field):
    """E₀″ = −2 Σ ⟨n|V|0⟩²/(Eₙ − E₀) and χ = Σ ⟨n|V|0⟩²/(Eₙ − E₀)², from all states of the formed matrix."""
    V = -sum(torch.stack([flipped(e, site) for e in torch.eye(2**SITES, dtype=torch.float64)]) for site in range(SITES))
    E, states = torch.linalg.eigh(torch.diag(alignment()) + field * V)
    elements = (states.T @ V @ states[:, 0])[1:]
    gaps = E[1:] - E[0]
    return -2 * (elements**2 / gaps).sum(), (elements**2 / gaps**2).sum()


def test_energy_curvature_and_fidelity_susceptibility():
    for h in (1.0, 1.5):
        field = torch.tensor(h, dtype=torch.float64)
        curvature, susceptibility = perturbation_theory(field)
        assert abs(hessian(energy)(field) / curvature - 1) <= 1e-6
        assert abs(grad(grad(energy))(field) / curvature - 1) <= 1e-6
        here = ground(field).v

        def overlap(other):
            return (ground(other).v @ here) ** 2

        assert abs(-grad(grad(overlap))(field) / 2 / susceptibility - 1) <= 1e-6
        assert abs(jacfwd(lambda h: ground(h).v)(field).square().sum() / susceptibility - 1) <= 1e-6
