"""What everybody is asked: f(A) = ξσ + φ·u + ψ·v at a Gaussian matrix, and the answer."""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from svdgrad import matrices, oracles
from svdgrad.lab import loss_vectors


class Problem(NamedTuple):
    """Every number is a float32 number, held in float64, so that one answer judges both precisions."""

    A: Tensor
    xi: Tensor
    phi: Tensor
    psi: Tensor
    v: Tensor
    """tells the sign: of (u, v) and (−u, −v) that one is meant whose right vector has a positive product with it"""
    sigma: float
    gap: float
    """(σ₁ − σ₂)/σ₁"""

    def arguments(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A, ξ, φ, ψ, v in a precision."""
        return tuple(x.to(dtype) for x in self[:5])

    def bound(self, dtype: torch.dtype) -> float:
        """50 ε σ₁/gap: the error that a sound method stays below."""
        return 50 * torch.finfo(dtype).eps / self.gap


class Truth(NamedTuple):
    value: float
    gradient: np.ndarray
    judge: str


@cache
def problem(m: int, n: int) -> Problem:
    """The wide problem is the tall one transposed: one answer for both."""
    if m < n:
        A, xi, phi, psi, v, sigma, gap = problem(n, m)
        u = A @ v / sigma
        return Problem(A.mT.contiguous(), xi, psi, phi, u, sigma, gap)
    A = matrices.gaussian(m, n, dtype=torch.float32).double()
    xi, phi, psi = loss_vectors(A.float())
    # ARPACK, in float64: nothing of the package
    _, S, Vh = scipy.sparse.linalg.svds(A.numpy(), k=2, tol=0, rng=np.random.default_rng(2))
    sigma, other = float(S.max()), float(S.min())
    v = torch.from_numpy(Vh[S.argmax()].copy())
    return Problem(A, xi.double(), phi.double(), psi.double(), v, sigma, (sigma - other) / sigma)


@cache
def truth(m: int, n: int, exact: bool | str = True) -> Truth:
    """Forty digits, or, where that takes too long, a float64 answer good enough to judge float32 by.

    ``exact`` may name one of ``oracles.JUDGES``; True is the best that is here.
    """
    if m < n:
        value, gradient, judge = truth(n, m, exact)
        return Truth(value, gradient.T, judge)
    A, xi, phi, psi, v, *_ = problem(m, n)
    if exact:
        judge_of, called = oracles.judge() if exact is True else oracles.JUDGES[exact]
        value = float(oracles.value(A, xi, phi, psi, v))
        return Truth(value, judge_of(A, xi, phi, psi, v), called)
    numbers = (x.numpy() for x in (A, xi, phi, psi, v))
    return Truth(*_in_float64(*numbers), "float64 (ARPACK's triplet, a dense solve on the side of v)")


def _in_float64(A: np.ndarray, xi: Any, phi: np.ndarray, psi: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray]:
    """(σ²I − AᵀA + σ²vvᵀ) q = Aᵀφ + σψ, with φ ⟂ u and ψ ⟂ v; p = (φ + Aq)/σ. Of the package, only the formula."""
    w = A @ v
    sigma = math.sqrt(w @ w)
    u = w / sigma
    value = float(xi * sigma + phi @ u + psi @ v)
    phi, psi = phi - (phi @ u) * u, psi - (psi @ v) * v
    M = sigma**2 * (np.eye(len(v)) + np.outer(v, v)) - A.T @ A
    q = np.linalg.solve(M, A.T @ phi + sigma * psi)
    q -= (q @ v) * v
    p = (phi + A @ q) / sigma
    p -= (p @ u) * u
    return value, np.outer(xi * u + p, v) + np.outer(u, q)
