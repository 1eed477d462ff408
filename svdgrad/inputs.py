"""What a call may be given: every check of a matrix, an index, a start; then the operator, and how it is treated."""

import numpy as np
import torch
from torch import Tensor

from .adjoint import SOLVERS
from .adjoint.solver import Solver
from .auto import AdjointName, ForwardName, How, choose, method, name_of, solver
from .forward import Method
from .operator import Dense, Sparse, of_sparse_tensor
from .products import check_has_numbers
from .transforms import mapped_levels, transformed

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
    check_has_numbers("A", A)
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


def check_vectors(v0: Tensor, is_complex: bool) -> None:
    """Raise an error for a v0 without numbers, or with complex ones for a real A."""
    if not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be a torch.Tensor, found {type(v0).__name__}: convert it with torch.as_tensor(v0)")
    check_has_numbers("v0", v0)
    if v0.is_complex() and not is_complex:
        raise TypeError(f"v0 must be real for a real A, found {v0.dtype}: take its real part, v0.real")


def check_start(v0: Tensor, A: Tensor) -> None:
    """Raise an error for a v0 that is not a vector like v for A, or one for each of a batch. Its numbers are checked in
    ``find_triplet``, since under vmap only there they can be.
    """
    check_vectors(v0, A.is_complex())
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
    k: int | None = None,
) -> tuple[Dense | Sparse, How, Tensor | None]:
    """The operator of A in single precision or better, how its triplet, or k of them, are found, and v0; an error for
    what cannot be.
    """
    if not isinstance(A, Tensor | Sparse):
        likely = "convert it with torch.as_tensor(A)"
        if callable(A):
            likely = "of a layer take svdgrad.nn.operator_norm, of a function svdgrad.operator_triplet"
        raise TypeError(f"A must be a torch.Tensor, found {type(A).__name__}: {likely}")
    if isinstance(A, Tensor) and (A.layout == torch.strided or A.is_nested):
        check_matrix(A, index)
        if k is not None:
            check_k(k, *A.shape[-2:])
        found = method(forward, choose(A, index, 1 if k is None else int(k)), tol, maxiter, missed)
        how = How(index, found, solver(adjoint, found))
        check_index(how, min(A.shape[-2:]))
        if v0 is not None:
            check_start(v0, A)
        dtype = torch.promote_types(A.dtype, torch.float32)
        return Dense(A if A.dtype == dtype else A.to(dtype)), how, v0
    if isinstance(A, Tensor) and A.layout not in (torch.sparse_coo, torch.sparse_csr):
        raise TypeError(
            f"A must be one dense tensor (..., m, n), or sparse in COO or CSR layout, found layout {A.layout}: "
            "make it dense with A.to_dense(), or give products with it to operator_triplet"
        )
    found = method(forward, "lanczos", tol, maxiter, missed)
    how = How(index, found, solver(adjoint, found))
    check_sparse(A, how, v0)
    if k is not None:
        check_k(k, *A.shape)
    dtype = torch.promote_types(A.dtype, torch.float32)
    return A.at((A.values.to(dtype),)) if isinstance(A, Sparse) else of_sparse_tensor(A.to(dtype)), how, v0


def check_k(k: int, m: int, n: int) -> None:
    """Raise an error for what is no number of triplets of an m×n matrix."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k must be an integer, found {k!r}: it is how many triplets to find")
    if not 1 <= k <= min(m, n):
        raise ValueError(f"k must be from 1 to {min(m, n)} for a matrix of shape {m}×{n}, found {k}")


def prepare_many(
    A: Tensor | Sparse,
    core: bool,
    k: int,
    forward: ForwardName | Method,
    adjoint: AdjointName | Solver,
    tol: float | None,
    maxiter: int | None,
    v0: Tensor | None,
    missed: float | None,
) -> tuple[Dense | Sparse, How, Tensor | None]:
    """As ``prepare``, for the k dominant triplets, and the rows to start from."""
    if k is None:  # for prepare, one triplet
        check_k(k, 1, 1)
    X, how, _ = prepare(A, 0, forward, "auto", tol, maxiter, None, missed, k)
    start = None if v0 is None else _rows_to_start_from(v0, X, forward, how)
    if k == 1 and start is None:  # one vector, certified, with every method and solver
        return X, How(0, how.forward, solver(adjoint, how.forward)), None
    if adjoint != "auto" and solver(adjoint, how.forward) != how.adjoint:
        raise ValueError(
            f"adjoint must be 'auto' or {name_of(how.adjoint)!r} for k triplets after {how.forward.name!r}, found "
            f"{adjoint!r}: the other solvers serve one triplet"
        )
    if isinstance(X, Dense):
        X = Dense(X.A, rows=True)
    return X, How(0, how.forward, how.adjoint, int(k), core, torch.finfo(A.dtype).eps), start


def _rows_to_start_from(v0: Tensor, A: Dense | Sparse, forward: ForwardName | Method, how: How) -> Tensor | None:
    """The columns of v0 as rows, where there is an iteration to start; an error for what is no such columns."""
    if forward != "auto" and how.forward.name != "lanczos":
        raise ValueError(
            f"forward {how.forward.name!r} does not iterate, found v0: only 'lanczos' starts from it, and 'auto' where "
            "it chooses that"
        )
    check_vectors(v0, A.vector.is_complex())
    batch, n = A.A.shape[:-2] if isinstance(A, Dense) else (), A.shape[1]
    fits = v0.ndim >= 2 and v0.shape[-2] == n and v0.shape[-1] > 0 and v0.ndim - 2 <= len(batch)
    if not fits or any(size not in (1, own) for size, own in zip(v0.shape[:-2][::-1], batch[::-1])):
        raise ValueError(
            f"v0 must hold columns to start from, of shape ({n}, j), or one such for each matrix of a batch "
            f"{tuple(batch)}, found shape {tuple(v0.shape)}: the V of a step before has it, and a vector is v0[:, None]"
        )
    return v0.mT if how.forward.name == "lanczos" else None


def check_sparse(A: Tensor | Sparse, how: How, v0: Tensor | None) -> None:
    """Raise an error for what cannot be had of a sparse matrix, with which all that can be done is to multiply."""
    if not (A.dtype.is_floating_point or A.dtype.is_complex):
        raise TypeError(f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.double()")
    check_has_numbers("A", A.values if isinstance(A, Sparse) else A)
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
    if v0 is None:
        return
    check_vectors(v0, A.dtype.is_complex)
    if tuple(v0.shape) != tuple(A.shape[1:]):
        raise ValueError(f"v0 must have {A.shape[1]} entries, one for each column of A, found shape {tuple(v0.shape)}")
