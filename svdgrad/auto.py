"""What a call asks for: names become methods and solvers, "auto" is decided, and what cannot be is an error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .adjoint import SOLVERS
from .adjoint.solver import Solver
from .forward import FORWARDS, FullSVD, GramVectors, Lanczos, Method, Ritz
from .forward.block import RitzBlock

#: up to this min(m, n) the eigenvectors of the Gram matrix cost less than two iterations with products, and beyond it
#: where A is so many times as long as wide: then most of their cost is the product AᴴA, which calculates at full speed
#: while the products of an iteration wait for memory. Measured on CPUs in both precisions: ``python -m benchmarks.run
#: --only auto`` prints the two
GRAM_UP_TO, LONG = 320, 16
#: the same for k > 1 triplets, times k + 8: a block step costs more than a single one, the eigenvectors what they did
GRAM_UP_TO_FOR_MANY = 64
#: the same on a GPU, where an iteration waits for its calls: on an H100 "gram" took about half the time of
#: "lanczos" or less up to this size, square and long, in both precisions, and at 4096 in float32 more (``make card``)
GRAM_UP_TO_ON_A_GPU = 2048


ForwardName = Literal["auto", "svd", "gram", "lanczos"]
AdjointName = Literal[
    "auto",
    "direct",
    "bordered",
    "block-inversion",
    "mixed",
    "backward-substitution",
    "forward-substitution",
    "saddle",
    "deflated",
    "schur",
    "spectral",
    "doubling",
    "cg",
    "minres",
]


@dataclass(frozen=True)
class How:
    """How a triplet is found and its adjoint system solved: the options of ``singular_triplet``, "auto" resolved."""

    index: int
    forward: Method
    adjoint: Solver
    k: int | None = None
    """None for one triplet, else for the k largest, which come as rows: σ (..., k), U (..., k, m), V (..., k, n)"""
    core: bool = False
    """whether the loss of k triplets gets the core (eq-core) for σ, which has all that a derivative needs at a tie"""
    eps: float = 0.0
    """the rounding of the vectors that a loss of k triplets gets, and so of its cotangents"""

    def values(self, found: Tensor) -> Tensor:
        """σ, of what a derivative is taken of: the core has it on its diagonal."""
        return found.diagonal(dim1=-2, dim2=-1).real if self.core else found

    def left(self, known: Sequence[Tensor]) -> FullSVD | GramVectors | Ritz | RitzBlock:
        """What the forward method left behind: the first of ``known``, after which a cotangent may stand."""
        kind = self.forward.leaves if self.k is None else self.forward.leaves_many
        return kind(*known[: len(kind._fields)])


def choose(A: Tensor, index: int = 0, count: int = 1) -> str:
    """The forward method that "auto" means for ``count`` triplets of a matrix: the only place where that is decided.

    The largest singular value is found from the Gram matrix of the smaller side while that is small or much the
    smaller, and always for a batch and under torch.compile; by Lanczos where it is not. Any other is found by the full
    SVD, since a Gram matrix costs it digits.
    """
    # not sorted(), which torch.compile cannot trace where sizes are symbols
    k, long = min(A.shape[-2:]), max(A.shape[-2:])
    small = GRAM_UP_TO if count == 1 else GRAM_UP_TO_FOR_MANY * (count + 8)
    if A.is_cuda:
        small = max(small, GRAM_UP_TO_ON_A_GPU)
    if index % k != 0:
        return "svd"
    if k <= small or long >= LONG * k or A.ndim > 2 or torch.compiler.is_compiling():
        return "gram"
    return "lanczos"


def method(forward: Any, auto: str, tol: float | None, maxiter: int | None, missed: float | None) -> Method:
    """The forward method of this name, with those of the options that it has, or the method itself."""
    named = isinstance(forward, str)
    known = forward in ("auto", *FORWARDS) if named else callable(getattr(forward, "find", None))
    if not known or isinstance(forward, type):
        raise ValueError(
            f"unknown forward {forward!r}: the names are 'auto', {', '.join(map(repr, FORWARDS))}; a method is a value "
            "such as svdgrad.forward.Lanczos(tol=1e-6)"
        )
    name, options = auto if forward == "auto" else forward, (tol, maxiter, missed)
    if options == _DEFAULTS:
        chosen: Method = _AS_THEY_ARE[name] if named else forward
        return chosen
    given = zip(("tol", "maxiter", "missed"), options, _DEFAULTS)
    found = ", ".join(f"{option}={value}" for option, value, default in given if value != default)
    if not named:
        raise ValueError(f"a method carries its own options, found {found} beside {forward}: put them into it")
    iteration = Lanczos(*options)  # says what is wrong with them, also where "auto" needs none
    if name == iteration.name:
        return iteration
    if forward == "auto":
        return _AS_THEY_ARE[name]
    raise ValueError(
        f"forward {forward!r} does not iterate, found {found}: leave it out, or use 'lanczos' or 'auto', which take it"
    )


_AS_THEY_ARE: dict[str, Method] = {name: kind() for name, kind in FORWARDS.items()}
_DEFAULTS = Lanczos.tol, Lanczos.maxiter, Lanczos.missed


def solver(adjoint: Any, forward: Method) -> Solver:
    """The adjoint solver of this name, or the solver itself."""
    if isinstance(adjoint, Solver):
        return adjoint
    if adjoint == "auto":
        # with all singular vectors at hand the adjoint is four products with a vector; with some, two products a step
        return SOLVERS["cg" if forward.leaves is Ritz else "spectral"]
    if not isinstance(adjoint, str) or adjoint not in SOLVERS:
        raise ValueError(f"unknown adjoint {adjoint!r}: the names are 'auto', {', '.join(map(repr, SOLVERS))}")
    return SOLVERS[adjoint]


def name_of(adjoint: Solver) -> str:
    """What ``SOLVERS`` calls a solver."""
    return next((name for name, own in SOLVERS.items() if own == adjoint), "a solver of your own")
