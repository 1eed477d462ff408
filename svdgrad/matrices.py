"""Every matrix the book writes down, and its condition number in closed form.

The first half makes the matrices that the chapters differentiate, the second half those that they solve with.
Throughout, ``A`` is ``(..., m, n)``, ``sigma`` is ``(...)``, ``u`` is ``(..., m)`` and ``v`` is ``(..., n)``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .products import mv as mv  # the book takes these four from here
from .products import outer as outer
from .products import products as products
from .products import project as project

# --- matrices to differentiate ---------------------------------------------------------------------------------------


def gaussian(m: int = 64, n: int = 32, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """An m×n matrix of independent standard normal entries, the same on every machine for a given seed.

    >>> gaussian(2, 2)
    tensor([[ 0.1257, -0.1321],
            [ 0.6404,  0.1049]], dtype=torch.float64)
    """
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, n))).to(dtype)


def with_singular_values(s: Sequence[float] | np.ndarray, m: int, n: int, seed: int = 0) -> Tensor:
    """An m×n float64 matrix U diag(s) Vᵀ with random orthonormal U, V and the given min(m, n) singular values.

    >>> A = with_singular_values([3.0, 1.0], 4, 2)
    >>> torch.linalg.svdvals(A).round(decimals=9)
    tensor([3., 1.], dtype=torch.float64)
    """
    s = np.asarray(s, dtype=np.float64)
    k = min(m, n)
    if s.shape != (k,):
        raise ValueError(f"a matrix of shape {m}×{n} has {k} singular values, found {s.size}: give one value for each")
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.standard_normal((m, k)))
    V, _ = np.linalg.qr(rng.standard_normal((n, k)))
    return torch.from_numpy((U * s) @ V.T)


def elevation() -> Tensor:
    """A real matrix: 344×403 elevations in metres around Jacksboro, Tennessee, less their mean.

    The grid is sample data that ships with matplotlib (``jacksboro_fault_dem.npz``); rows run north to south,
    columns west to east.
    """
    from matplotlib.cbook import get_sample_data

    grid: Any = get_sample_data("jacksboro_fault_dem.npz")
    with grid:
        height = grid["elevation"].astype(np.float64)
    return torch.from_numpy(height - height.mean())


# --- matrices to solve with ------------------------------------------------------------------------------------------


def scaled_identity(sigma: Tensor, size: int, like: Tensor) -> Tensor:
    """σ I of the given size, with the dtype and device of ``like``."""
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return sigma[..., None, None] * eye


def K(A: Tensor, sigma: Tensor) -> Tensor:
    """K = [σI, −A; −Aᴴ, σI], the (m+n)×(m+n) matrix of the adjoint system."""
    m, n = A.shape[-2:]
    top = torch.cat([scaled_identity(sigma, m, A), -A], -1)
    bottom = torch.cat([-A.mH, scaled_identity(sigma, n, A)], -1)
    return torch.cat([top, bottom], -2)


def border(u: Tensor, v: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """W = β [u, 0; 0, v], the (m+n)×2 matrix of the two constraints uᴴp = 0 and vᴴq = 0."""
    beta = torch.as_tensor(beta, dtype=u.real.dtype, device=u.device)[..., None]
    left = torch.cat([beta * u, torch.zeros_like(v)], -1)
    right = torch.cat([torch.zeros_like(u), beta * v], -1)
    return torch.stack([left, right], -1)


def bordered(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """The bordered matrix [K; Wᴴ], (m+n+2)×(m+n): K with the two constraints, weighted by β, as further rows."""
    return torch.cat([K(A, sigma), border(u, v, beta).mH], -2)


def saddle(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """The square bordered matrix [K, W; Wᴴ, 0] of size m+n+2, also the Jacobian of Newton's method for the triplet."""
    W = border(u, v, beta)
    corner = torch.zeros((*W.shape[:-2], 2, 2), dtype=W.dtype, device=W.device)
    return torch.cat([torch.cat([K(A, sigma), W], -1), torch.cat([W.mH, corner], -1)], -2)


def misdeflated(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The notebook's L = K − σzzᴴ with z = [u; −v]: a second zero eigenvalue, in place of none."""
    z = torch.cat([u, -v], -1)
    return K(A, sigma) - sigma[..., None, None] * outer(z, z)


def deflated(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """K + σwwᴴ with w = [u; v]/√2: the null eigenvalue of K moved to σ."""
    w = torch.cat([u, v], -1) / 2**0.5
    return K(A, sigma) + sigma[..., None, None] * outer(w, w)


def P(A: Tensor, sigma: Tensor) -> Tensor:
    """P = σ²I − AAᴴ, m×m."""
    return scaled_identity(sigma**2, A.shape[-2], A) - A @ A.mH


def Q(A: Tensor, sigma: Tensor) -> Tensor:
    """Q = σ²I − AᴴA, n×n."""
    return P(A.mH, sigma)


def deflated_P(A: Tensor, sigma: Tensor, u: Tensor) -> Tensor:
    """P + σ²uuᴴ, m×m; with Aᴴ and v in place of A and u it is Q + σ²vvᴴ."""
    return P(A, sigma) + (sigma**2)[..., None, None] * outer(u, u)


def stack(A: Tensor, sigma: Tensor) -> Tensor:
    """The stack [σI; Aᴴ], (m+n)×m, of the indefinite least-squares problem whose normal matrix is P."""
    return torch.cat([scaled_identity(sigma, A.shape[-2], A), A.mH], -2)


def notebook_stack(A: Tensor, sigma: Tensor) -> Tensor:
    """The notebook's stack [Aᴴ; σ²I], (m+n)×m, whose normal matrix is AAᴴ + σ⁴I."""
    return torch.cat([A.mH, scaled_identity(sigma**2, A.shape[-2], A)], -2)


def indefinite_factors(A: Tensor, sigma: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Q₁, Q₂, R, M) with [σI; Aᴴ] = [Q₁; Q₂] R and M = Q₁ᴴQ₁ − Q₂ᴴQ₂ + ttᴴ, t = Ru/‖Ru‖ (eq-ils-qr,
    eq-ils-deflated).
    """
    m = A.shape[-2]
    Q, R = torch.linalg.qr(stack(A, sigma))
    Q1, Q2 = Q[..., :m, :], Q[..., m:, :]
    t = mv(R, u)
    t = t / torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    return Q1, Q2, R, Q1.mH @ Q1 - Q2.mH @ Q2 + outer(t, t)


#: name -> the matrix, from (A, sigma, u, v, beta); beta is the weight of a border, where there is one
MATRICES = {
    "K": lambda A, sigma, u, v, beta: K(A, sigma),
    "bordered": bordered,
    "saddle": saddle,
    "misdeflated": lambda A, sigma, u, v, beta: misdeflated(A, sigma, u, v),
    "deflated": lambda A, sigma, u, v, beta: deflated(A, sigma, u, v),
    "P": lambda A, sigma, u, v, beta: P(A, sigma),
    "Q": lambda A, sigma, u, v, beta: Q(A, sigma),
    "deflated-P": lambda A, sigma, u, v, beta: deflated_P(A, sigma, u),
    "deflated-Q": lambda A, sigma, u, v, beta: deflated_P(A.mH, sigma, v),
    "stack": lambda A, sigma, u, v, beta: stack(A, sigma),
    "middle": lambda A, sigma, u, v, beta: indefinite_factors(A, sigma, u)[-1],
    "notebook-stack": lambda A, sigma, u, v, beta: notebook_stack(A, sigma),
}


# --- singular values and condition numbers in closed form ------------------------------------------------------------


def predicted_singular_values(name: str, S: Tensor, m: int, n: int, index: int = 0, beta: float = 1.0) -> Tensor:
    """The singular values, in descending order, of one of the book's matrices, from those of A alone.

    Parameters: ``name`` is one of ``MATRICES``; ``S (min(m, n),)`` holds the singular values of the m×n matrix A,
    ``index`` says which of them is σ, ``beta`` is the border weight. Source: the chapter on condition numbers
    (eq-closed-forms).

    >>> predicted_singular_values("K", torch.tensor([3.0, 1.0]), 2, 2)
    tensor([6., 4., 2., 0.])
    """
    if name not in MATRICES:
        raise ValueError(f"no closed form under the name {name!r}: the names are {', '.join(map(repr, MATRICES))}")
    sigma = S[index]
    others = S[torch.arange(len(S), device=S.device) != index % len(S)]
    weight = torch.as_tensor(beta, dtype=S.dtype, device=S.device)
    length = torch.hypot(sigma, weight)
    # what A sends to zero: for matrices of size m + n, of size m (like P), and of size n (like Q)
    both, left, right = abs(m - n), m - len(S), n - len(S)
    rest = [sigma + others, (sigma - others).abs(), sigma.expand(both)]
    squared = (sigma - others).abs() * (sigma + others)
    values: dict[str, list[Tensor]] = {
        "K": [0 * sigma, 2 * sigma, *rest],
        "bordered": [weight, torch.hypot(2 * sigma, weight), *rest],
        # β²/(σ + √(σ² + β²)) is √(σ² + β²) − σ without the cancellation
        "saddle": [weight, weight, length + sigma, weight**2 / (length + sigma), *rest],
        "misdeflated": [0 * sigma, 0 * sigma, *rest],
        "deflated": [sigma, 2 * sigma, *rest],
        "P": [0 * sigma, squared, (sigma**2).expand(left)],
        "Q": [0 * sigma, squared, (sigma**2).expand(right)],
        "deflated-P": [sigma**2, squared, (sigma**2).expand(left)],
        "deflated-Q": [sigma**2, squared, (sigma**2).expand(right)],
        "stack": [torch.hypot(S, sigma), sigma.expand(left)],
        "middle": [torch.ones_like(sigma), squared / (sigma**2 + others**2), torch.ones_like(sigma).expand(left)],
        "notebook-stack": [torch.hypot(S, sigma**2), (sigma**2).expand(left)],
    }
    return torch.cat([x.reshape(-1) for x in values[name]]).sort(descending=True).values


def kappa(singular_values: Tensor) -> float:
    """The condition number κ₂: the largest singular value over the smallest, infinite if that is zero.

    >>> kappa(torch.tensor([6.0, 4.0, 2.0]))
    3.0
    """
    return (singular_values.max() / singular_values.min()).item()
