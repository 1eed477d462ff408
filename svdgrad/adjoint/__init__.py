"""One file for each way of solving the adjoint system

    K [p; q] = [(I − uuᴴ)φ; (I − vvᴴ)ψ],   K = [σI, −A; −Aᴴ, σI],   p ⟂ u, q ⟂ v.

``SOLVERS`` maps a name to ``solver(A, triplet, phi, psi, known=None) -> (p, q)``; every one is exact, up to rounding.
Each is a ``Solver``, which also says what has to be known of it. A new one is a file here and a line there.
``known`` is what the forward method left behind; those that cannot use it do without.
``ATTEMPTS`` holds the attempts of the notebook that the book grew from, in the same form; the flawed ones have their
repair in ``SOLVERS`` under the same name.
The files hold the formulas of the book for a right-hand side that is already projected and a matrix in units of σ; what
they share is here. "spectral" and "cg" take A as it is, without a copy, and so project and choose units by themselves.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..forward import Triplet
from ..products import outer_sum, project, size_of
from . import block_inversion, bordered, direct, mixed, substitution
from .deflated import deflated
from .doubling import doubling
from .krylov import cg, minres
from .saddle import saddle
from .schur import schur
from .solver import Solver
from .spectral import spectral

Formula = Callable[..., tuple[Tensor, Tensor]]


def _exact(formula: Formula) -> Formula:
    """What a solver needs around its formula: project, make the problem free of units, solve, project, scale back.

    The system is linear in (φ, ψ) and unchanged, but for a factor, under A → cA.
    Solving for A/σ and for a right-hand side of size one keeps float32 from over- and underflowing in σ², and gives
    a cotangent of size 1e-30 the same relative accuracy as one of size 1.
    """

    @wraps(formula)
    def solver(A: Tensor, triplet: Triplet, phi: Tensor, psi: Tensor, known: Any = None) -> tuple[Tensor, Tensor]:
        sigma, u, v = triplet
        size, unit = size_of(phi, psi), sigma[..., None]
        phi, psi = project(u, phi / size), project(v, psi / size)
        p, q = formula(A / unit[..., None], torch.ones_like(sigma), u, v, phi, psi)
        size = size / unit
        return project(u, p) * size, project(v, q) * size

    return solver


def assemble(triplet: Triplet, xi: Tensor | None, p: Tensor, q: Tensor) -> Tensor:
    """∂L/∂A = (ξu + p)vᴴ + uqᴴ, the gradient of L from the cotangent ξ of σ and the adjoint vectors (eq-gradient)."""
    _, u, v = triplet
    if xi is not None:
        p = torch.addcmul(p, xi.unsqueeze(-1), u)
    return outer_sum((p, u), (v, q))


def _as_written(formula: Formula) -> Formula:
    """An attempt of the notebook: nothing projected or scaled before, p and q projected after."""

    @wraps(formula)
    def attempt(A: Tensor, triplet: Triplet, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        sigma, u, v = triplet
        p, q = formula(A, sigma, u, v, phi, psi)
        return project(u, p), project(v, q)

    return attempt


#: name -> solver(A, triplet, phi, psi) -> (p, q), every one exact, with its facts: see ``Solver``
SOLVERS: dict[str, Solver] = {
    "direct": Solver(_exact(direct.direct), "K"),
    "bordered": Solver(_exact(bordered.bordered), "bordered"),
    "block-inversion": Solver(_exact(block_inversion.block_inversion), "deflated-P"),
    "mixed": Solver(_exact(mixed.mixed), "middle", largest_only=True),
    "backward-substitution": Solver(_exact(substitution.backward_substitution), "deflated-P"),
    "forward-substitution": Solver(_exact(substitution.forward_substitution), "middle", largest_only=True),
    "saddle": Solver(_exact(saddle), "saddle"),
    "deflated": Solver(_exact(deflated), "deflated"),
    "schur": Solver(_exact(schur), "deflated-Q", largest_only=True),
    "spectral": Solver(spectral),
    "doubling": Solver(_exact(doubling), "deflated-Q", largest_only=True),
    "cg": Solver(cg, "deflated-Q", largest_only=True, by_products=True),
    "minres": Solver(_exact(minres), "deflated", by_products=True),
}

#: name -> the notebook's attempt under that name: its equations and its steps, with the driver gels of a CUDA device.
#: Each docstring says what was kept and what was put right. Batches and complex matrices are more than it had.
ATTEMPTS: dict[str, Solver] = {
    "direct": Solver(_as_written(direct.attempt), "K"),
    "bordered": Solver(_as_written(bordered.attempt), "bordered"),
    "block-inversion": Solver(_as_written(block_inversion.attempt), "P"),
    "mixed": Solver(_as_written(mixed.attempt), "notebook-stack"),
    "backward-substitution": Solver(_as_written(substitution.backward_attempt), "notebook-stack"),
    "forward-substitution": Solver(_as_written(substitution.forward_attempt), "notebook-stack"),
}
