"""What to expect of a gradient, before it is computed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName, name_of
from .copies import values_near
from .forward import Method, Ritz, RitzBlock
from .gap import expected_error, following, is_zero, relative_cut, relative_gap, tie
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
    """relative error to expect of the gradient of a loss of u or v: 4 ε/gap, or ε √(m + n)/4 over the gap if that is
    more, or residual/gap where tol was loose; infinite where the gradient is a TieError
    """
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
    if k is None:
        X, how, start = prepare(A, index, forward, adjoint, tol, maxiter, v0, missed)
    elif index == 0:
        X, how, start = prepare_many(A, False, k, forward, adjoint, tol, maxiter, v0, missed)
    else:
        raise ValueError(f"k asks for the k largest triplets, found index={index} beside it: leave it out")
    if len(A.shape) != 2:
        raise ValueError(f"diagnose takes one matrix (m, n), found shape {tuple(A.shape)}: call it for each of a batch")
    X = X.at([x.detach() for x in X.leaves])
    sigma, u, v, *left = find_triplet(X, start, how)
    known = how.left(left)
    with full_precision(X.leaves):
        if how.k is None:
            gap = relative_gap(sigma, values_near(X, sigma, known)[0], *X.shape, u.is_complex())
            last, other, unit = sigma, known.S[0], sigma
            none = is_zero(*X.shape, sigma, known.S)
        else:
            beyond = following(*X.shape, how.k, known.S)
            gap, none = relative_cut(sigma, beyond), False
            last, other, unit = sigma[-1], torch.zeros_like(sigma[0]) if beyond is None else beyond, sigma[0]
        s, unit = sigma.unsqueeze(-1), torch.where(unit > 0, unit, 1)  # before squares, which may leave the range
        residual = max(vector_norm(x / unit, dim=-1).max().item() for x in (X.mv(v) - s * u, X.rmv(u) - s * v))
    none = none or gap <= tie(*X.shape, known.S.dtype) or last.item() < torch.finfo(last.dtype).tiny
    iteration = known if isinstance(known, Ritz | RitzBlock) else None
    exhausted = isinstance(known, Ritz) and known.steps == min(X.shape)
    stopped = "the space is exhausted" if exhausted else "the residual reached the tolerance"
    return Diagnosis(
        sigma=last.item(),
        gap=gap,
        kappa=(last / known.S[0] + other / known.S[0]).item() / gap if gap else float("inf"),
        predicted_error=float("inf")
        if none
        else expected_error(gap, *X.shape, known.S.dtype, residual if iteration else 0.0),
        steps=int(iteration.steps) if iteration else 0,
        products=int(iteration.products) if iteration else 0,
        residual=residual,
        missed=iteration.missed.item() if iteration else 0.0,
        stopped=stopped if iteration else "direct method",
        forward=how.forward.name,
        adjoint=name_of(how.adjoint),
    )
