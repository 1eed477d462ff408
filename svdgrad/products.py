"""Products with vectors, projections, and units: what iterations and formulas share."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .transforms import innermost, on_host, transformed

Map = Callable[[Tensor], Tensor]


def check_has_numbers(name: str, x: Tensor) -> None:
    """Raise an error for a tensor that has no numbers yet, with or without a shape."""
    if isinstance(x, UninitializedParameter | UninitializedBuffer):
        raise ValueError(
            f"{name} must have entries, found a parameter without a shape: call its lazy module once before"
        )
    if x.is_meta and type(innermost(x)) in (Tensor, torch.nn.Parameter):  # a subclass may hold numbers of its own
        raise ValueError(
            f"{name} must have numbers, found a tensor on the meta device, which has none: give it a device, and load "
            "or initialise its numbers, first"
        )


def mv(A: Tensor, x: Tensor) -> Tensor:
    """The product A x of a (batch of) matrices and vectors, shapes (..., m, n) and (..., n) -> (..., m)."""
    if A.ndim == 2:  # one matrix with several vectors is one product, and not one for each
        return A @ x if x.ndim == 1 else x @ A.mT
    y: Tensor = (A @ x[..., None])[..., 0]
    return y


def solve(M: Tensor, b: Tensor) -> Tensor:
    """M⁻¹ b of a (batch of) matrices and vectors, by LU."""
    x: Tensor = torch.linalg.solve(M, b.unsqueeze(-1))
    return x.squeeze(-1)


def least_squares(M: Tensor, b: Tensor) -> Tensor:
    """The x that minimises ‖Mx − b‖, the shortest where there are several; M has full rank, which gels takes for
    granted.
    """
    x: Tensor = torch.linalg.lstsq(M, b.unsqueeze(-1), driver="gels").solution
    return x.squeeze(-1)


def products(A: Tensor) -> tuple[Map, Map]:
    """x ↦ A x and y ↦ Aᴴ y for an iteration, which calls them again and again.

    A product with a vector is as fast as A is read from memory. On some processors PyTorch reads A with one thread; a
    batch of products of a row with a matrix it deals out to all. So one large matrix on a CPU is a batch of as many
    blocks of rows.
    """
    if A.is_complex():
        forth, transposed = _real_products(A.conj() if A.is_conj() else A)
        back: Map = lambda y: transposed(y.conj().resolve_conj()).conj()
        if A.is_conj():
            return lambda x: forth(x.conj().resolve_conj()).conj(), transposed
        return forth, back
    return _real_products(A)


def _real_products(A: Tensor) -> tuple[Map, Map]:
    """``products``, but with Aᵀ y for the second."""
    if A.mT.is_contiguous() and not A.is_contiguous():
        forth, back = _real_products(A.mT)
        return back, forth
    threads = torch.get_num_threads()
    k, left = divmod(A.shape[0], threads) if A.ndim == 2 else (0, 0)
    if threads == 1 or k == 0 or A.numel() < 2**16 or not (A.is_contiguous() and on_host(A)):
        return lambda x: mv(A, x), lambda y: mv(A.mT, y)
    A = A.detach()
    head = threads * k
    blocks, rest = A[:head].view(threads, k, -1), A[head:]
    turned = blocks.mT

    def matvec(x: Tensor) -> Tensor:
        if x.ndim > 1:
            return mv(A, x)
        y = torch.bmm(x.expand(threads, 1, -1), turned).view(-1)
        return torch.cat([y, rest @ x]) if left else y

    def rmatvec(y: Tensor) -> Tensor:
        if y.ndim > 1:
            return mv(A.mT, y)
        x = torch.bmm((y[:head] if left else y).view(threads, 1, k), blocks).sum((0, 1))
        return torch.addmv(x, rest.mT, y[head:]) if left else x

    return matvec, rmatvec


def row_products(A: Tensor) -> tuple[Map, Map]:
    """The rows x of X ↦ A x and the rows y of Y ↦ Aᴴ y, shapes (..., k, n) -> (..., k, m) and back.

    Of one large matrix on a CPU as blocks of rows: a batch of products with few rows, which PyTorch deals out to its
    threads.
    """
    m, n = A.shape[-2:]
    count = min(16, max(2, A.numel() * A.element_size() // 2**21))
    if A.ndim > 2 or A.numel() < 2**16 or m < count or not (A.is_contiguous() and on_host(A)) or A.is_complex():
        return (lambda X: X @ A.mT), (lambda Y: Y @ A.conj())
    A = A.detach()
    size = m // count
    head = count * size
    blocks, rest = A[:head].view(count, size, n), A[head:]
    turned = blocks.mT

    def mm(X: Tensor) -> Tensor:
        if X.ndim > 2:
            return X @ A.mT
        Y = torch.bmm(X.expand(count, *X.shape), turned).transpose(0, 1).reshape(len(X), head)
        return torch.cat([Y, X @ rest.mT], 1) if len(rest) else Y

    def rmm(Y: Tensor) -> Tensor:
        if Y.ndim > 2:
            return Y @ A
        X = torch.bmm(Y[:, :head].reshape(len(Y), count, size).transpose(0, 1), blocks).sum(0)
        return torch.addmm(X, Y[:, head:], rest) if len(rest) else X

    return mm, rmm


def times_both(pair: tuple[Map, Map], root: float | Tensor) -> tuple[Map, Map]:
    """The two products of root² A, for a root that is a power of two: half of it before each product, half after, so
    that no vector between leaves the range of numbers where neither A x nor root² A x does.
    """
    matvec, rmatvec = pair
    return (lambda x: matvec(x * root) * root), (lambda y: rmatvec(y * root) * root)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """The rank-one matrix x yᴴ, shapes (..., m) and (..., n) -> (..., m, n)."""
    return x.unsqueeze(-1) * y.conj().unsqueeze(-2)


def outer_sum(X: Sequence[Tensor], Y: Sequence[Tensor]) -> Tensor:
    """Σ xᵢ yᵢᴴ, one matrix a batch."""
    G = outer(X[0], Y[0])
    for x, y in zip(X[1:], Y[1:]):
        if transformed():  # which may map x and not G
            G = G + outer(x, y)
        else:  # into the first array: two more of m×n numbers would cost more than the arithmetic
            G.addcmul_(x.unsqueeze(-1), y.conj().unsqueeze(-2))
    return G


def project(u: Tensor, x: Tensor) -> Tensor:
    """(I − u uᴴ) x: the part of x orthogonal to the unit vector u."""
    return torch.addcmul(x, u, torch.linalg.vecdot(u, x).unsqueeze(-1), value=-1)


def extremes(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest of some real numbers, for a condition, NaN if one is; of few in one look."""
    if x.ndim == 0:
        number = x.item()
        return number, number
    if x.ndim == 1 and len(x) < 100 and not math.isnan(sum(numbers := x.tolist())):
        return min(numbers), max(numbers)
    least, most = x.aminmax()
    return least.item(), most.item()


def size_of(phi: Tensor, psi: Tensor) -> Tensor:
    """The largest modulus of an entry of (φ, ψ), shape (..., 1), to divide by: where all are zero, next to nothing."""
    size: Tensor = torch.linalg.vector_norm(torch.cat([phi, psi], -1), torch.inf, -1, keepdim=True)
    return size.clamp_min(torch.finfo(size.dtype).tiny)


def direction(v0: Tensor) -> Tensor:
    """v0 with a largest entry of modulus one, since of v0 only the direction counts."""
    return v0 / v0.abs().amax(-1, keepdim=True)


def root_of_scale(A: Tensor) -> Tensor:
    """A power of two r, shape (...), to be multiplied by twice: r² A has its largest entry between ½ and 2, exactly.

    Twice, since r² need not be a number, and since PyTorch's quotient of a complex and a subnormal number is NaN.
    """
    largest = A.abs().amax((-2, -1))
    half = torch.frexp(largest).exponent.div(2, rounding_mode="floor")
    return torch.ldexp(torch.ones_like(largest), -half)


def length(X: Tensor) -> Tensor:
    """‖xᵢ‖ of rows, also where squares of the entries leave the range of numbers."""
    largest = X.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    lengths: Tensor = torch.linalg.vector_norm(X / largest, dim=-1) * largest.squeeze(-1)
    return lengths
