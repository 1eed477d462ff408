"""Matrices with prescribed singular values, and the bound that theory gives for each: shared by the tests of every
solver.
"""

from typing import NamedTuple

import numpy as np
import torch

from svdgrad import matrices
from svdgrad.lab import loss_vectors
from svdgrad.oracles import judge


class Family(NamedTuple):
    m: int
    n: int
    s: np.ndarray  # min(m, n) singular values, descending
    index: int = 0

    def matrix(self, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
        return matrices.with_singular_values(self.s, self.m, self.n, seed).to(dtype)

    def relative_gap(self) -> float:
        """The distance of σ to the nearest other singular value (to zero too, if m ≠ n), over the largest."""
        sigma, others = self.s[self.index], np.delete(self.s, self.index)
        distances = [*np.abs(sigma - others), *([sigma] if self.m != self.n else [])]
        return min(distances, default=sigma) / self.s[0]

    def bound(self, dtype) -> float:
        """50 ε σ₁/gap, ε the unit of the dtype: what every exact solver must keep."""
        return 50 * torch.finfo(dtype).eps / self.relative_gap()


def gapped(k: int, gap: float) -> np.ndarray:
    """1, 1 − gap, and a tail that falls evenly to 0.1."""
    return np.array([1.0, *np.linspace(1 - gap, 0.1, k - 1)])


SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (14, 14)}

FAMILIES = {
    **{shape: Family(m, n, 7 * gapped(min(m, n), 0.3)) for shape, (m, n) in SHAPES.items()},
    **{
        f"{shape}, gap {gap:g}": Family(m, n, gapped(min(m, n), gap))
        for shape, (m, n) in SHAPES.items()
        for gap in (1e-1, 1e-3)
    },
    **{
        f"{shape}, rank-deficient": Family(m, n, np.r_[3, 2, 1, np.zeros(min(m, n) - 3)])
        for shape, (m, n) in SHAPES.items()
    },
    "repeated tail": Family(12, 9, np.r_[3, np.ones(6), 0.5, 0.5]),
    "clustered tail": Family(9, 12, np.r_[3, 1 + 1e-9 * np.arange(8)[::-1]]),
    "one row": Family(1, 8, np.array([2.0])),
    "one column": Family(8, 1, np.array([2.0])),
    "one entry": Family(1, 1, np.array([2.0])),
    "times 1e15": Family(12, 9, 1e15 * gapped(9, 0.2)),
    "times 1e-15": Family(12, 9, 1e-15 * gapped(9, 0.2)),
}

#: gaps that float32 cannot resolve
NARROW = {
    f"{shape}, gap {gap:g}": Family(m, n, gapped(min(m, n), gap))
    for shape, (m, n) in SHAPES.items()
    for gap in (1e-5, 1e-7)
}

#: σ = 1 simple, everything else as bad as it gets: the matrices for which autograd through the SVD answers NaN
NAN_MATRICES = {
    "a 3×3 block inside an 8×6 matrix of zeros": np.pad(
        np.random.default_rng(3).standard_normal((3, 3)), ((0, 5), (0, 3))
    ),
    "diag(3, 1, 1)": np.diag([3.0, 1.0, 1.0]),
    "diag(3, 1, 1) padded to 4×3": np.pad(np.diag([3.0, 1.0, 1.0]), ((0, 1), (0, 0))),
    "I + e₁e₁ᵀ": np.eye(4) + np.outer(np.eye(4)[0], np.eye(4)[0]),
}


def problem(A: torch.Tensor, index: int = 0, seed: int = 1):
    """A loss for A and its gradient, with digits to spare: (ξ, φ, ψ, v of NumPy's SVD as the sign, gradient)."""
    extended, _ = judge()
    xi, phi, psi = loss_vectors(A, seed)
    v = np.linalg.svd(A.double().numpy(), full_matrices=False)[2][index]
    return xi, phi, psi, v, extended(A, xi, phi, psi, v, index)
