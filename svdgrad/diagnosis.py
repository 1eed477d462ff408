"""What to expect of a gradient, before it is computed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName, name_of, prepare
from .forward import Method, Ritz
from .gap import expected_error, relative_gap, values_near
from .operator import Sparse
from .steps import find_triplet, full_precision


class Diagnosis(NamedTuple):
    """What ``diagnose`` found; printed, one line a field."""

    sigma: float
    """the singular value in question"""
    gap: float
    """distance of σ to the nearest other singular value, and to zero if m ≠ n, over σ₁"""
    kappa: float
    """condition number (σ + σ₁)/(gap σ₁) of the adjoint system with its null vector deflated"""
    predicted_error: float
    """relative error to expect of the gradient of a loss of u or v, 4 ε/gap"""
    steps: int
    """steps of the iteration; zero for a direct method"""
    products: int
    """products with A or Aᴴ that found the triplet; zero for a direct method"""
    residual: float
    """max(‖Av − σu‖, ‖Aᴴu − σv‖)/σ"""
    missed: float
    """a bound for the probability that there is a singular value above 1.001 σ; zero for a direct method"""
    stopped: str
    """why the forward method stopped"""
    forward: str
    """the forward method"""
    adjoint: str
    """the solver that would be used"""

    def __str__(self) -> str:
        lines = (
            (name, f"{value:.3g}" if isinstance(value, float) else str(value)) for name, value in self._asdict().items()
        )
        return "\n".join(f"{name:<16} {value}" for name, value in lines)


def diagnose(
    A: Tensor | Sparse,
    index: int = 0,
    forward: ForwardName | Method = "auto",
    adjoint: AdjointName | Solver = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    missed: float | None = 1e-3,
) -> Diagnosis:
    """Gap, condition number and expected error of the gradient at one matrix A (m, n), and cost and residual of its
    triplet.

    Arguments and errors are those of ``singular_triplet``. With "lanczos" the gap is estimated from the iteration's
    second Ritz value, and from a search for a value near σ that the iteration cannot see. Both lie at or below σ₂, so
    the estimate is never too small. Cost: that of the forward method, and some ten steps for the search.

    >>> print(diagnose(torch.diag(torch.tensor([3.0, 2.0], dtype=torch.float64))))
    sigma            3
    gap              0.333
    kappa            6
    predicted_error  2.66e-15
    steps            0
    products         0
    residual         0
    missed           0
    stopped          direct method
    forward          gram
    adjoint          spectral
    """
    X, how = prepare(A, index, forward, adjoint, tol, maxiter, v0, missed)
    if len(A.shape) != 2:
        raise ValueError(f"diagnose takes one matrix (m, n), found shape {tuple(A.shape)}: call it for each of a batch")
    X = X.at([x.detach() for x in X.leaves])
    sigma, u, v, *left = find_triplet(X, v0, how)
    known = how.forward.leaves(*left)
    with full_precision(X.leaves):
        gap = relative_gap(sigma, values_near(X, sigma, known), *X.shape)
    residual = torch.maximum(vector_norm(X.mv(v) - sigma * u), vector_norm(X.rmv(u) - sigma * v))
    residual = residual / torch.where(sigma > 0, sigma, 1)
    steps = int(known.steps) if isinstance(known, Ritz) else 0
    return Diagnosis(
        sigma=sigma.item(),
        gap=gap,
        kappa=((sigma + known.S[0]) / (gap * known.S[0])).item() if gap else float("inf"),
        predicted_error=expected_error(gap, known.S.dtype) if gap else float("inf"),
        steps=steps,
        products=int(known.products) if isinstance(known, Ritz) else 0,
        residual=residual.item(),
        missed=known.missed.item() if isinstance(known, Ritz) else 0.0,
        stopped=_why(known, min(X.shape)) if isinstance(known, Ritz) else "direct method",
        forward=how.forward.name,
        adjoint=name_of(how.adjoint),
    )


def _why(known: Ritz, size: int) -> str:
    """Why Lanczos's iteration stopped."""
    if known.steps == size:
        return "the space is exhausted"
    return "the residual reached the tolerance"
