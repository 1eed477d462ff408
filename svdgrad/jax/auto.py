"""What "auto" means, and the errors for whatever can be seen to be wrong without a number of A."""

import math
import operator
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .triplet import How

FORWARDS = ("svd", "gram", "lanczos")
ADJOINTS = ("spectral", "cg")

#: "auto" takes all eigenvectors of the Gram matrix up to this min(m, n), since that is faster there on CPUs:
#: ``python -m benchmarks.run --only auto`` prints both
GRAM_UP_TO = 80


def as_matrix(A: Any) -> Array:
    """A as a floating-point array (..., m, n) with no empty side, or an error."""
    if A is None:
        raise TypeError("A must be an array, found None: likely cause: a function that returns nothing")
    X: Array = jnp.asarray(A)
    if X.ndim < 2:
        raise ValueError(
            f"A must be a matrix (..., m, n), found shape {X.shape}: make a vector a matrix with A[:, None]"
        )
    check_numbers(X)
    return X


def computed_in(dtype: Any) -> Any:
    """float32 for the half precisions, an error for fewer bits, every other dtype itself."""
    if jnp.finfo(dtype).bits < 16:
        raise TypeError(f"found {dtype}, of which no singular vector has a digit: convert to 16 bits or more")
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def is_sparse(A: Any) -> bool:
    """Whether A is a sparse matrix, of JAX or of another package."""
    return hasattr(A, "todense")


def check_numbers(A: Any) -> None:
    """Raise an error for a matrix without derivatives, or with an empty side."""
    if not jnp.issubdtype(A.dtype, jnp.inexact):
        raise TypeError(
            f"A must be floating point, found {A.dtype}: derivatives need real entries, try A.astype(float)"
        )
    if 0 in A.shape[-2:]:
        raise ValueError(
            f"A must have at least one row and one column, found shape {A.shape}: an empty side has no triplet"
        )


def as_numbers(A: Any) -> tuple[Any, Any]:
    """A, dense or sparse, and the same in single precision or better, or an error."""
    if is_sparse(A):
        return A, as_entries(A)
    A = as_matrix(A)
    return A, A.astype(computed_in(A.dtype))


def as_entries(A: Any) -> Any:
    """A sparse A as one BCOO matrix (m, n) of 32 bits or more, its padding zero, or an error."""
    from jax.experimental.sparse import BCOO  # not with the package: who has no sparse matrix need not wait for it

    if not isinstance(A, BCOO):
        raise TypeError(
            f"A must be a dense array or a BCOO matrix, found {type(A).__name__}: convert it, with A.to_bcoo() or "
            "BCOO.from_scipy_sparse(A), or give products with it to operator_triplet"
        )
    if A.ndim != 2 or A.n_sparse != 2:
        raise ValueError(
            f"a sparse A must be one matrix (m, n) of numbers, found shape {A.shape} with n_batch={A.n_batch} and "
            f"n_dense={A.n_dense}: call it once for each matrix, or through jax.vmap"
        )
    check_numbers(A)
    # an index type as short as int8 may not hold the sizes of A
    indices = A.indices.astype(jnp.int32) if jnp.iinfo(A.indices.dtype).bits < 32 else A.indices
    # an index out of range is padding: nothing, whatever number is beside it
    kept = (indices < jnp.array(A.shape, indices.dtype)).all(-1)
    data = jnp.where(kept, A.data, 0).astype(computed_in(A.dtype))
    return BCOO((data, indices), shape=A.shape)


def choose_sparse(
    A: Any, index: int, forward: str, adjoint: str, tol: float | None, maxiter: int | None, missed: float | None
) -> How:
    """As ``choose``, for a sparse matrix: all that can be done with it is to multiply."""
    index = as_integer("index", index)
    if index != 0:
        raise ValueError(
            f"index must be 0, the largest, for a sparse A, found {index}: for others make it dense with A.todense()"
        )
    for what, name, only in (("forward", forward, "lanczos"), ("adjoint", adjoint, "cg")):
        if name not in ("auto", only):
            raise ValueError(
                f"{what} must be 'auto' or {only!r} for a sparse A, which is multiplied with and not factorised, found "
                f"{name!r}: to use that, make it dense with A.todense()"
            )
    return How("lanczos", "cg", 0, *iteration(tol, maxiter, missed, min(A.shape)))


def choose(
    A: Any,
    index: int = 0,
    forward: str = "auto",
    adjoint: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> How:
    """The methods and their options for an A of this shape, dense or sparse."""
    if is_sparse(A):
        return choose_sparse(A, index, forward, adjoint, tol, maxiter, missed)
    m, n = A.shape[-2:]
    index = as_integer("index", index)
    if not -min(m, n) <= index < min(m, n):
        raise ValueError(
            f"index must be from {-min(m, n)} to {min(m, n) - 1} for a matrix of shape {m}×{n}, found {index}"
        )
    for what, name, names in (("forward", forward, FORWARDS), ("adjoint", adjoint, ADJOINTS)):
        if name not in ("auto", *names):
            raise ValueError(f"unknown {what} {name!r}: the names are 'auto', {', '.join(map(repr, names))}")
    asked, dominant = forward, index % min(m, n) == 0
    if forward == "auto":
        small = min(m, n) <= GRAM_UP_TO or A.ndim > 2
        forward = "svd" if not dominant else "gram" if small else "lanczos"
    adjoint = ("cg" if forward == "lanczos" else "spectral") if adjoint == "auto" else adjoint
    if forward == "lanczos" and adjoint == "spectral":
        raise ValueError(
            "adjoint 'spectral' needs all singular vectors, which forward 'lanczos' does not have: use adjoint 'cg'"
        )
    if not dominant and (forward, adjoint) != ("svd", "spectral"):
        name = "adjoint 'cg'" if forward == "svd" else f"forward {forward!r}"
        others = "use forward 'svd' and adjoint 'spectral'"
        raise ValueError(f"{name} needs index 0, the largest singular value, found {index}: {others}")
    for name, given, has in (("tol", tol, forward == "lanczos"), ("maxiter", maxiter, "cg" in adjoint)):
        if given is not None and not has and asked != "auto":
            raise ValueError(
                f"{name} is an option of an iteration, found it with forward {forward!r} and adjoint {adjoint!r}, "
                f"which have none: leave it out, or use forward 'lanczos'"
            )
    return How(forward, adjoint, index, *iteration(tol, maxiter, missed, min(m, n)))


def choose_several(
    A: Any, forward: str, adjoint: str, tol: float | None, maxiter: int | None, missed: float | None
) -> How:
    """The methods for k > 1 triplets: a Gram matrix costs the smaller ones digits, so "auto" leaves it to be asked
    for, and the full SVD is the default of a dense A.
    """
    pairs = {"svd": "spectral", "gram": "spectral", "lanczos": "cg"}
    how = choose(A, 0, forward, adjoint, tol, maxiter, missed)
    if forward == "auto" and not is_sparse(A):
        how = how._replace(forward="svd")
    only = pairs[how.forward]
    if adjoint not in ("auto", only):
        raise ValueError(
            f"adjoint must be 'auto' or {only!r} for k triplets after {how.forward!r}, found {adjoint!r}: the other "
            "serves one triplet"
        )
    return how._replace(adjoint=only)


def as_count(k: Any, m: int, n: int) -> int:
    """k, or an error for what counts no triplets of an m×n matrix."""
    count = as_integer("k", k)
    if not 1 <= count <= min(m, n):
        raise ValueError(f"k must be from 1 to {min(m, n)} for a matrix of shape {m}×{n}, found {count}")
    return count


def iteration(
    tol: float | None, maxiter: int | None, missed: float | None, size: int = 0
) -> tuple[float | None, int, float | None]:
    """The options of "lanczos" and "cg", or an error."""
    if tol is not None and not 0 <= (tol := as_number("tol", tol)) < math.inf:
        raise ValueError(f"tol must be 0 or more, found {tol}: it bounds the residual ‖Aᴴu − σv‖/σ")
    if missed is not None and not 0 < (missed := as_number("missed", missed)) <= 1:
        raise ValueError(
            f"missed must be a probability, above 0 and up to 1, found {missed}: None trusts v0 without a proof"
        )
    if maxiter is None:
        return tol, max(1000, size), missed
    maxiter = as_integer("maxiter", maxiter)
    if maxiter < 1:
        raise ValueError(f"maxiter must be at least 1, found {maxiter}")
    return tol, maxiter, missed


def as_integer(name: str, x: Any) -> int:
    try:
        if isinstance(x, bool):
            raise TypeError
        return operator.index(x)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, found {type(x).__name__}: under jit it is static, static_argnames={name!r}"
        ) from None


def as_number(name: str, x: Any) -> float:
    try:
        if isinstance(x, (bool, str)):
            raise TypeError
        return float(x)
    except TypeError:
        raise TypeError(
            f"{name} must be a number, found {type(x).__name__}: under jit it is static, static_argnames={name!r}"
        ) from None


def as_start(v0: Any, A: Array) -> Array | None:
    """v0 in the dtype of A, of shape (n,) or (..., n) as the batch asks, not differentiated."""
    if v0 is None:
        return None
    v0 = jnp.asarray(v0)
    n = A.shape[-1]
    if v0.shape[-1:] != (n,):
        raise ValueError(f"v0 must have {n} entries, one for each column of A, found shape {v0.shape}")
    if not _fits(v0.shape[:-1], A.shape[:-2]):
        raise ValueError(
            f"v0 must be one vector, or one for each matrix, found shape {v0.shape} for A of shape {A.shape}"
        )
    return _constant(v0, A)


def _fits(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Whether there is one for each matrix of a batch, or one for all."""
    return len(shape) <= len(batch) and all(s in (1, own) for s, own in zip(shape[::-1], batch[::-1]))


def _constant(v0: Array, A: Array) -> Array:
    """v0 in the dtype of A, not differentiated."""
    if v0.dtype == bool:
        raise TypeError("v0 must be numbers, found bool")
    if v0.dtype.kind == "c" and A.dtype.kind != "c":
        raise TypeError(f"v0 must be real for a real A, found {v0.dtype}: take its real part, v0.real")
    start: Array = lax.stop_gradient(v0).astype(A.dtype)
    return start


def as_starts(v0: Any, A: Any, forward: str, how: How) -> Array | None:
    """The columns of v0 as rows, for an iteration to start from, not differentiated; an error for what has not the
    shape (n, j), or (..., n, j) for the matrices of a batch.
    """
    if v0 is None:
        return None
    if forward != "auto" and how.forward != "lanczos":
        raise ValueError(
            f"forward {forward!r} does not iterate, found v0: only 'lanczos' starts from it, and 'auto' where it "
            "chooses that"
        )
    v0 = jnp.asarray(v0)
    columns = v0.ndim >= 2 and v0.shape[-2] == A.shape[-1] and v0.shape[-1] > 0
    if not columns or not _fits(v0.shape[:-2], A.shape[:-2]):
        raise ValueError(
            f"v0 must hold columns to start from, of shape ({A.shape[-1]}, j), or one such for each matrix of a batch, "
            f"found shape {v0.shape}: the V of a step before has it, and a vector is v0[:, None]"
        )
    rows = jnp.swapaxes(_constant(v0, A), -1, -2)
    return rows if how.forward == "lanczos" else None
