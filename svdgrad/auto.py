"""What a call asks for: names become methods and solvers, "auto" is decided, and what cannot be is an error."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .adjoint import SOLVERS
from .adjoint.solver import Solver
from .forward import FORWARDS, FullSVD, GramVectors, Lanczos, Method, Ritz
from .forward.block import RitzBlock
from .matrices import check_not_meta
from .operator import Dense, Sparse, of_sparse_tensor
from .transforms import mapped_levels, transformed

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
    """whether the loss sees the core (eq-core) and so, at a tie among the k, all that a derivative needs"""
    eps: float = 0.0
    """the rounding of the vectors that a loss of k triplets gets, and so of its cotangents"""

    def left(self, known: Sequence[Tensor]) -> FullSVD | GramVectors | Ritz | RitzBlock:
        """What the forward method left behind."""
        return (self.forward.leaves if self.k is None else self.forward.leaves_many)(*known)


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
    given = {"tol": tol, "maxiter": maxiter, "missed": missed}
    given = {option: value for option, value in given.items() if value != _DEFAULTS[option]}
    found = ", ".join(f"{option}={value}" for option, value in given.items())
    if not isinstance(forward, str):
        if not callable(getattr(forward, "find", None)) or isinstance(forward, type):
            raise ValueError(
                f"unknown forward {forward!r}: the names are 'auto', {', '.join(map(repr, FORWARDS))}; a method is a "
                "value such as svdgrad.forward.Lanczos(tol=1e-6)"
            )
        if given:
            raise ValueError(f"a method carries its own options, found {found} beside {forward}: put them into it")
        chosen: Method = forward
        return chosen
    if forward != "auto" and forward not in FORWARDS:
        raise ValueError(f"unknown forward {forward!r}: the names are 'auto', {', '.join(map(repr, FORWARDS))}")
    Lanczos(tol, maxiter, missed)  # says what is wrong with them, also where "auto" needs none
    name = auto if forward == "auto" else forward
    has = _OPTIONS[name]
    if forward != "auto" and given.keys() - has:
        raise ValueError(
            f"forward {forward!r} does not iterate, found {found}: only 'lanczos' takes that, and 'auto', which meets "
            "any tol, and takes no risk, where it does not iterate"
        )
    options: dict[str, Any] = {option: value for option, value in given.items() if option in has}
    return FORWARDS[name](**options)


#: the options of each method; not read off while torch.compile traces, which cannot follow ``fields``
_OPTIONS = {name: {field.name for field in fields(kind)} for name, kind in FORWARDS.items()}
_DEFAULTS = {field.name: field.default for field in fields(Lanczos)}


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


#: the precisions in which there is something to differentiate; the first two, and complex32, are computed in float32
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
)


def check_matrix(A: Tensor, index: int) -> None:
    """Raise an error for what has no such triplet."""
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor, found {type(A).__name__}: convert it with torch.as_tensor(A)")
    if isinstance(A, UninitializedParameter | UninitializedBuffer):
        raise ValueError("A must have entries, found a parameter without a shape: call its lazy module once before")
    check_not_meta("A", A)
    if A.is_quantized:
        raise TypeError(
            f"A must be floating point, found a quantized tensor, {A.dtype}: convert it with A.dequantize()"
        )
    if A.is_nested:
        raise TypeError(
            "A must be one dense tensor (..., m, n), found a nested tensor: call it for each of A.unbind(), or pad them"
        )
    if A.dtype not in DTYPES:
        reason = "eight bits hold no derivative" if A.is_floating_point() else "derivatives need real entries"
        raise TypeError(f"A must be floating point, found {A.dtype}: {reason}, try A.double()")
    if A.ndim < 2:
        raise ValueError(
            f"A must be a matrix (..., m, n), found shape {tuple(A.shape)}: make a vector a matrix with A[:, None]"
        )
    m, n = A.shape[-2:]
    if min(m, n) == 0:
        raise ValueError(
            f"A must have at least one row and one column, found shape {tuple(A.shape)}: an empty side has no triplet"
        )
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise TypeError(
            f"index must be an integer, found {index!r}: one triplet at a time, 0 the largest and -1 the smallest"
        )
    if not -min(m, n) <= index < min(m, n):
        raise ValueError(
            f"index must be from {-min(m, n)} to {min(m, n) - 1} for a matrix of shape {m}×{n}, found {index}"
        )


def check_index(how: How, k: int) -> None:
    """Raise an error for a method or a solver that serves the largest of k singular values only, asked for another."""
    if how.index % k == 0:
        return
    if how.forward.largest_only:
        raise ValueError(
            f"forward {how.forward.name!r} finds the largest singular value, found index {how.index}: use forward 'svd'"
        )
    if how.adjoint.largest_only:
        others = ", ".join(repr(name) for name, other in SOLVERS.items() if not other.largest_only)
        raise ValueError(
            f"adjoint {name_of(how.adjoint)!r} needs index 0, the largest singular value, found {how.index}: for "
            f"others use {others}"
        )


def check_start(v0: Tensor, A: Tensor) -> None:
    """Raise an error for a v0 that is not a vector like v for A, or one for each of a batch. Its numbers are checked in
    ``find_triplet``, since under vmap only there they can be.
    """
    if not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be a torch.Tensor, found {type(v0).__name__}: convert it with torch.as_tensor(v0)")
    check_not_meta("v0", v0)
    if v0.is_complex() and not A.is_complex():
        raise TypeError(f"v0 must be real for a real A, found {v0.dtype}: take its real part, v0.real")
    *batch, _, n = A.shape
    if v0.shape[-1:] != (n,):
        raise ValueError(f"v0 must have {n} entries, one for each column of A, found shape {tuple(v0.shape)}")
    extra = v0.ndim - 1 - len(batch)
    if extra > 0 or any(k not in (1, size) for k, size in zip(v0.shape[:-1], batch[-extra:])):
        raise ValueError(
            f"v0 must be one vector ({n},), or one for each matrix of a batch {tuple(batch)}, found shape "
            f"{tuple(v0.shape)}: for several starts of one matrix use A.expand({', '.join(map(str, v0.shape[:-1]))}, "
            "-1, -1), or torch.vmap"
        )


def check_range(sigma: Tensor, dtype: torch.dtype) -> None:
    """Raise an error where σ, computed in float32, is too large for float16; under transforms it is Inf instead."""
    if dtype not in (torch.float16, torch.complex32) or torch.compiler.is_compiling():
        return
    if transformed() or not sigma.numel():
        return
    if (largest := sigma.max().item()) > torch.finfo(torch.float16).max:
        raise ValueError(
            f"σ must be a number of the precision of A, found σ = {largest:.5g} for {dtype}, which ends at 65504: "
            "convert A first, with A.float(), or divide it by a number"
        )


def prepare(
    A: Tensor | Sparse,
    index: int,
    forward: ForwardName | Method,
    adjoint: AdjointName | Solver,
    tol: float | None,
    maxiter: int | None,
    v0: Tensor | None,
    missed: float | None,
) -> tuple[Dense | Sparse, How]:
    """The operator of A in single precision or better, and how its triplet is found; an error for what cannot be."""
    if not isinstance(A, Tensor | Sparse):
        raise TypeError(f"A must be a torch.Tensor, found {type(A).__name__}: convert it with torch.as_tensor(A)")
    if isinstance(A, Tensor) and (A.layout == torch.strided or A.is_nested):
        check_matrix(A, index)
        found = method(forward, choose(A, index), tol, maxiter, missed)
        how = How(index, found, solver(adjoint, found))
        check_index(how, min(A.shape[-2:]))
        if v0 is not None:
            check_start(v0, A)
        return Dense(A.to(torch.promote_types(A.dtype, torch.float32))), how
    if isinstance(A, Tensor) and A.layout not in (torch.sparse_coo, torch.sparse_csr):
        raise TypeError(
            f"A must be one dense tensor (..., m, n), or sparse in COO or CSR layout, found layout {A.layout}: "
            "make it dense with A.to_dense(), or give products with it to operator_triplet"
        )
    found = method(forward, "lanczos", tol, maxiter, missed)
    how = How(index, found, solver(adjoint, found))
    check_sparse(A, how, v0)
    dtype = torch.promote_types(A.dtype, torch.float32)
    return A.at((A.values.to(dtype),)) if isinstance(A, Sparse) else of_sparse_tensor(A.to(dtype)), how


def check_k(k: int, m: int, n: int) -> None:
    """Raise an error for what is no number of triplets of an m×n matrix."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k must be an integer, found {k!r}: it is how many triplets to find")
    if not 1 <= k <= min(m, n):
        raise ValueError(f"k must be from 1 to {min(m, n)} for a matrix of shape {m}×{n}, found {k}")


def prepare_many(
    A: Tensor | Sparse,
    k: int,
    forward: ForwardName | Method,
    adjoint: AdjointName | Solver,
    tol: float | None,
    maxiter: int | None,
    missed: float | None,
    core: bool,
) -> tuple[Dense | Sparse, How]:
    """As ``prepare``, for the k dominant triplets."""
    X, how = prepare(A, 0, forward, "auto", tol, maxiter, None, missed)
    if isinstance(X, Dense) and forward == "auto":
        check_k(k, *X.shape)
        found = method(forward, choose(X.A, 0, int(k)), tol, maxiter, missed)
        how = How(0, found, solver("auto", found))
    check_k(k, *X.shape)
    if k == 1:  # one vector, certified, with every method and solver
        return X, How(0, how.forward, solver(adjoint, how.forward))
    if adjoint != "auto" and solver(adjoint, how.forward) != how.adjoint:
        raise ValueError(
            f"adjoint must be 'auto' or {name_of(how.adjoint)!r} for k triplets after {how.forward.name!r}, found "
            f"{adjoint!r}: the other solvers serve one triplet"
        )
    if isinstance(X, Dense):
        X = Dense(X.A, rows=True)
    return X, How(0, how.forward, how.adjoint, int(k), core, torch.finfo(A.dtype).eps)


def check_sparse(A: Tensor | Sparse, how: How, v0: Tensor | None) -> None:
    """Raise an error for what cannot be had of a sparse matrix, with which all that can be done is to multiply."""
    if not (A.dtype.is_floating_point or A.dtype.is_complex):
        raise TypeError(f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.double()")
    check_not_meta("A", A.values if isinstance(A, Sparse) else A)
    if isinstance(A, Tensor) and transformed() and (A.layout == torch.sparse_csr or mapped_levels(A)):
        raise NotImplementedError(
            "a transform of torch.func can neither map a sparse tensor nor read one in CSR layout, found layout "
            f"{A.layout}: take the triplet of svdgrad.operator.Sparse(rows, columns, shape, values), made outside, and "
            "transform by values"
        )
    if len(A.shape) != 2 or isinstance(A, Tensor) and A.layout == torch.sparse_coo and A.dense_dim() > 0:
        raise ValueError(
            f"a sparse A must be one matrix (m, n) of numbers, found shape {tuple(A.shape)}: call it once for each"
        )
    if 0 in A.shape:
        raise ValueError(
            f"A must have at least one row and one column, found shape {tuple(A.shape)}: an empty side has no triplet"
        )
    if how.index != 0:
        raise ValueError(
            f"index must be 0, the largest, for a sparse A, found {how.index}: for others make it dense with "
            "A.to_dense()"
        )
    wanted = ("forward", how.forward.name, "lanczos"), ("adjoint", name_of(how.adjoint), "cg")
    for what, name, only in wanted:
        if name != only:
            raise ValueError(
                f"{what} must be 'auto' or {only!r} for a sparse A, which is multiplied with and not factorised, found "
                f"{name!r}: to use that, make it dense with A.to_dense()"
            )
    if isinstance(A, Sparse):
        A.check()
    if v0 is not None and not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be a torch.Tensor, found {type(v0).__name__}: convert it with torch.as_tensor(v0)")
    if v0 is not None:
        check_not_meta("v0", v0)
    if v0 is not None and v0.is_complex() and not A.dtype.is_complex:
        raise TypeError(f"v0 must be real for a real A, found {v0.dtype}: take its real part, v0.real")
    if v0 is not None and tuple(v0.shape) != tuple(A.shape[1:]):
        raise ValueError(f"v0 must have {A.shape[1]} entries, one for each column of A, found shape {tuple(v0.shape)}")
