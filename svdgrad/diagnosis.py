"""What to expect of a gradient, before it is computed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName, name_of
from .copies import values_near
from .forward import Method, Ritz, RitzBlock
from .gap import expected_error, following, relative_cut, relative_gap
from .inputs import prepare, prepare_many
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
    """relative error to expect of the gradient of a loss of u or v: 4 ε/gap, or residual/gap where tol was loose"""
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
    k: int | None = None,
) -> Diagnosis:
    """Gap, condition number and expected error of the gradient at one matrix A (m, n), and cost and residual of its
    triplet.

    Arguments and errors are those of ``singular_triplet``. With k it is about ``singular_triplets(A, k)``: ``sigma`` is
    σₖ, ``gap`` the distance to σₖ₊₁, or to zero if there is none and m ≠ n; distances among the k do not count.

    With "lanczos" the gap is estimated from the iteration's
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
    if k is not None:
        if index != 0:
            raise ValueError(f"k asks for the k largest triplets, found index={index} beside it: leave it out")
        return _of_many(A, k, forward, adjoint, tol, maxiter, v0, missed)
    X, how, _ = prepare(A, index, forward, adjoint, tol, maxiter, v0, missed)
    if len(A.shape) != 2:
        raise ValueError(f"diagnose takes one matrix (m, n), found shape {tuple(A.shape)}: call it for each of a batch")
    X = X.at([x.detach() for x in X.leaves])
    sigma, u, v, *left = find_triplet(X, v0, how)
    known = how.forward.leaves(*left)
    with full_precision(X.leaves):
        gap = relative_gap(sigma, values_near(X, sigma, known)[0], *X.shape, u.is_complex())
        unit = torch.where(sigma > 0, sigma, 1)  # before squares, which may leave the range of numbers
        residual = max(vector_norm(x / unit).item() for x in (X.mv(v) - sigma * u, X.rmv(u) - sigma * v))
    steps = int(known.steps) if isinstance(known, Ritz) else 0
    return Diagnosis(
        sigma=sigma.item(),
        gap=gap,
        kappa=((sigma + known.S[0]) / (gap * known.S[0])).item() if gap else float("inf"),
        predicted_error=expected_error(gap, known.S.dtype, residual if steps else 0.0) if gap else float("inf"),
        steps=steps,
        products=int(known.products) if isinstance(known, Ritz) else 0,
        residual=residual,
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


def _of_many(
    A: Tensor | Sparse,
    k: int,
    forward: ForwardName | Method,
    adjoint: AdjointName | Solver,
    tol: float | None,
    maxiter: int | None,
    v0: Tensor | None,
    missed: float | None,
) -> Diagnosis:
    X, how, start = prepare_many(A, False, k, forward, adjoint, tol, maxiter, v0, missed)
    if how.k is None:
        return diagnose(A, 0, forward, adjoint, tol, maxiter, None, missed)
    if len(A.shape) != 2:
        raise ValueError(f"diagnose takes one matrix (m, n), found shape {tuple(A.shape)}: call it for each of a batch")
    X = X.at([x.detach() for x in X.leaves])
    sigma, U, V, *left = find_triplet(X, start, how)
    known = how.left(left)
    with full_precision(X.leaves):
        beyond = following(*X.shape, how.k, known.S)
        gap = relative_cut(sigma, beyond)
        s, top = sigma.unsqueeze(-1), torch.where(sigma[0] > 0, sigma[0], 1)
        residual = max((x / top).norm(dim=-1).max().item() for x in (X.mv(V) - s * U, X.rmv(U) - s * V))
    block = known if isinstance(known, RitzBlock) else None
    last, next_ = sigma[-1].item(), 0.0 if beyond is None else beyond.item()
    return Diagnosis(
        sigma=last,
        gap=gap,
        kappa=(last + next_) / (gap * sigma[0].item()) if gap else float("inf"),
        predicted_error=expected_error(gap, known.S.dtype, residual if block else 0.0) if gap else float("inf"),
        steps=int(block.steps) if block else 0,
        products=int(block.products) if block else 0,
        residual=residual,
        missed=block.missed.item() if block else 0.0,
        stopped=("the residuals reached the tolerance" if block else "direct method"),
        forward=how.forward.name,
        adjoint=name_of(how.adjoint),
    )
