"""Ways to find a singular triplet: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from .certificate import NOISE, RESOLUTION, allowed, check_missed, hidden, probability
from .matrices import Map, mv, products, root_of_scale


class Triplet(NamedTuple):
    """A singular triplet: A v = σ u and Aᴴ u = σ v with ‖u‖ = ‖v‖ = 1.

    For a batch of matrices ``(..., m, n)`` the shapes are ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``.
    """

    sigma: Tensor
    """σ, shape (...)"""
    u: Tensor
    """the left singular vector, shape (..., m)"""
    v: Tensor
    """the right singular vector, shape (..., n)"""

    def to(self, dtype: torch.dtype) -> "Triplet":
        """The triplet in this precision, σ as real numbers of it."""
        sigma, u, v = self
        return Triplet(sigma.to(_REAL.get(dtype, dtype)), u.to(dtype), v.to(dtype))


# not dtype.to_real(), which torch.compile cannot trace
_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


class FullSVD(NamedTuple):
    """The thin factors of A = U Σ Vᴴ: ``U (..., m, k)``, ``S (..., k)``, ``Vh (..., k, n)``, k = min(m, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class Gram(NamedTuple):
    """The eigenvectors ``W (..., k, k)`` of AᴴA, or of AAᴴ if that is smaller, and the singular values ``S (..., k)``,
    descending.
    """

    S: Tensor
    W: Tensor


class Ritz(NamedTuple):
    """What an iteration knows of the other triplets: k approximate singular values, descending, their vectors, and its
    cost.

    ``S (k,)`` lie at or below the true ones; ``W (d, l)`` are orthonormal, right singular vectors or, for a wide
    matrix, left, of the first l of them only.
    """

    S: Tensor
    W: Tensor
    steps: Tensor
    """steps of the iteration, each of two products with A, as a tensor of no dimensions"""
    residual: Tensor
    """‖Aᴴu − σv‖/σ at the last step"""
    missed: Tensor
    """a bound for the probability that there is a singular value above σ(1 + ``RESOLUTION``)"""


def check_entries(A: Tensor) -> float:
    """The largest modulus of a real or imaginary part of an entry, or an error for NaN and Inf."""
    # one pass over A, where isfinite and all take several: both show in the extremes
    entries = torch.view_as_real(A.conj() if A.is_conj() else A) if A.is_complex() else A
    largest = max(abs(x.item()) for x in entries.aminmax()) if A.numel() else 0.0
    if not math.isfinite(largest):
        bad = int((~torch.isfinite(A)).sum())
        raise ValueError(
            f"A must be finite, found {bad} NaN or Inf among {A.numel()} entries: look upstream for the first of them"
        )
    return largest


class ConvergenceError(ArithmeticError):
    """An iteration ran out of steps before its residual reached the tolerance, or before it was improbable enough that
    it had missed a larger singular value.
    """


def svd(
    A: Tensor,
    index: int = 0,
    v0: Tensor | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> tuple[Triplet, FullSVD]:
    """The triplet ``(σᵢ, uᵢ, vᵢ)`` read off the full SVD, and that SVD.

    Cost: one thin SVD, O(m n min(m, n)) operations.
    """
    # on CUDA PyTorch's default is Jacobi's method: on an H100 its gradients were up to 36 times less exact than those
    # by gesvd (book/records/speed-cuda-2026-11-28.json)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False, driver="gesvd" if A.is_cuda else None)
    u, v = fix_sign(U[..., :, index], Vh[..., index, :].conj(), v0)
    # a clone, for an autograd.Function must not return a view of another of its outputs
    return Triplet(S[..., index].clone(), u, v), FullSVD(U, S, Vh)


def fix_sign(u: Tensor, v: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of the pairs (u, v)·c with c of modulus one, the one whose largest entry of v is positive, or with v0ᴴv > 0 if v0
    is given.

    Both vectors are multiplied by the same number, so A v = σ u stays true (eq-phase).
    Without ``v0`` the choice jumps where the two largest entries of v tie in modulus; with ``v0`` it jumps where v0 ⟂
    v.
    """
    if v0 is None:
        anchor = v.gather(-1, v.abs().argmax(-1, keepdim=True))
    else:
        anchor = torch.linalg.vecdot(v, v0.to(v)).conj().unsqueeze(-1)
    if v.is_complex():
        c = torch.where(anchor == 0, 1, torch.sgn(anchor).conj())
    else:
        c = torch.ones_like(anchor).copysign(anchor)
    return u * c, v * c


def gram(
    A: Tensor,
    index: int = 0,
    v0: Tensor | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> tuple[Triplet, Gram]:
    """The dominant triplet from the eigenvectors of the Gram matrix of the smaller side: AᴴA W = W S² (eq-gram).

    A Gram matrix squares the condition number, so small singular values lose digits; the largest loses none.
    Cost: one product of A with itself and one symmetric eigendecomposition of size min(m, n).
    """
    if A.shape[-2] < A.shape[-1]:
        (sigma, v, u), known = _gram(A.mH)
    else:
        (sigma, u, v), known = _gram(A)
    return Triplet(sigma, *fix_sign(u, v, v0)), known


def _gram(A: Tensor) -> tuple[Triplet, Gram]:
    """``gram`` for a tall matrix, the sign left open."""
    G = -(A.mH @ A)  # eigh sorts upwards, so that of −G comes with the largest σ first
    if G.numel() == 0:
        return Triplet(A.real.new_empty(A.shape[:-2]), A[..., 0], A[..., 0, :]), Gram(A.real[..., 0, :], G)
    # squares leave the range of float32 for entries beyond 1e±19: look once, and only then change the unit
    longest = G.diagonal(dim1=-2, dim2=-1).real.amin(-1)
    largest, smallest = (-x.item() for x in longest.aminmax())
    if not (1e-30 < smallest and largest < 1e30):
        check_entries(A)
        root = root_of_scale(A)
        if (root != 1).any():
            (sigma, u, v), (S, W) = _gram(A * root[..., None, None] * root[..., None, None])
            return Triplet(sigma / root / root, u, v), Gram(S / root.unsqueeze(-1) / root.unsqueeze(-1), W)
    minus_S2, W = torch.linalg.eigh(G)
    v = W[..., 0]
    u = mv(A, v)
    sigma = vector_norm(u, dim=-1)
    if smallest == 0:  # A v = 0, for a zero matrix only, says nothing of u: any unit vector will do
        zero = sigma == 0
        u[..., 0] += zero
        u = u / (sigma + zero).unsqueeze(-1)
    else:
        u = u / sigma.unsqueeze(-1)
    return Triplet(sigma, u, v), Gram(minus_S2.neg_().clamp_min_(0).sqrt_(), W)


def lanczos(
    A: Tensor,
    index: int = 0,
    v0: Tensor | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> tuple[Triplet, Ritz]:
    """The dominant triplet by Golub and Kahan's bidiagonalisation: two products with A a step. A batch is a loop.

    Starts from ``v0`` with some noise, or from noise alone, which is seeded, so that the same A gives the same answer.
    A wide matrix is transposed. Takes up to min(m, n) steps unless told otherwise; then the space is exhausted, and the
    answer is there in any case.
    """
    maxiter = min(A.shape[-2:]) if maxiter is None else maxiter
    if A.ndim > 2:
        return _one_by_one(A, v0, tol, maxiter, missed)
    return lanczos_of(products(A), (A.shape[0], A.shape[1]), A[:1], v0, tol, maxiter, missed)


def lanczos_of(
    pair: tuple[Map, Map],
    shape: tuple[int, int],
    like: Tensor,
    v0: Tensor | None,
    tol: float | None,
    maxiter: int | None,
    missed: float | None,
) -> tuple[Triplet, Ritz]:
    """``lanczos`` for an operator of this shape by its two products; ``like`` has the dtype and device of its
    vectors.
    """
    (matvec, rmatvec), (m, n) = pair, shape
    wide = m < n
    start = v0 if v0 is None else v0.to(like)
    if wide and start is not None and start.any():
        start = matvec(start)
        start = start if start.any() else None  # a v0 in the null space of A says nothing
    random = start is None
    if start is None:
        start = noise(min(m, n), like)
    if wide:
        (sigma, v, u), ritz = golub_kahan(rmatvec, matvec, start, tol, maxiter, missed, random)
    else:
        (sigma, u, v), ritz = golub_kahan(matvec, rmatvec, start, tol, maxiter, missed, random)
    return Triplet(sigma, *fix_sign(u, v, v0)), ritz


def _one_by_one(
    A: Tensor, v0: Tensor | None, tol: float | None, maxiter: int | None, missed: float | None
) -> tuple[Triplet, Ritz]:
    """``lanczos`` for each matrix of a batch; of the Ritz pairs as many are kept as all of them have."""
    *batch, m, n = A.shape
    if 0 in batch:
        real = A.real.new_empty
        known = Ritz(real((*batch, 1)), A.new_empty((*batch, min(m, n), 1)), real(batch), real(batch), real(batch))
        return Triplet(real(batch), A.new_empty((*batch, m)), A.new_empty((*batch, n))), known
    matrices = A.reshape(-1, m, n)
    starts = [None] * len(matrices) if v0 is None else list(v0.expand(*batch, n).reshape(-1, n))
    triplets, left = zip(*(lanczos(X, 0, x, tol, maxiter, missed) for X, x in zip(matrices, starts)))
    k, l = (min(sizes) for sizes in zip(*((*ritz.S.shape, ritz.W.shape[1]) for ritz in left)))
    left = tuple(ritz._replace(S=ritz.S[:k], W=ritz.W[:, :l]) for ritz in left)
    together = [[torch.stack(xs).reshape(*batch, *xs[0].shape) for xs in zip(*tuples)] for tuples in (triplets, left)]
    return Triplet(*together[0]), Ritz(*together[1])


def golub_kahan(
    matvec: Callable[[Tensor], Tensor],
    rmatvec: Callable[[Tensor], Tensor],
    v0: Tensor,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
    random: bool = False,
) -> tuple[Triplet, Ritz]:
    """The dominant triplet of the operator with products ``matvec`` (A x) and ``rmatvec`` (Aᴴ y), both on flat vectors.

    A V = U B and Aᴴ U = V Bᵀ + β v eᵀ with B upper bidiagonal (eq-bidiagonal), one column more each step. Of that V
    alone is formed, with the tridiagonal T = BᵀB of AᴴA V = V T + αβ v eᵀ, α the last entry of B (eq-tridiagonal). The
    dominant eigenpair (θ², y) of the small T gives v = V y and u = A v/σ, with residual ‖Aᴴu − σv‖ = αβ abs(y_k)/θ
    (eq-ritz-residual). Stops where that is at most ``tol`` σ, by default ten times the unit roundoff, and the
    probability that a larger value was missed is at most ``missed`` (eq-missed). For that it starts from v0 and a
    twentieth of noise, or from v0 alone if that is ``random``; with ``missed`` None from v0 and next to no noise. V is
    kept orthonormal, since without that copies of σ appear. Cost: two products a step, and one; memory: the basis V.
    Raises ConvergenceError after ``maxiter`` steps, and ValueError where a product is not finite, or not linear, as far
    as the first two show.
    """
    eps = torch.finfo(v0.dtype).eps
    tol = 10 * eps if tol is None else tol
    check_missed(missed)
    size, is_complex = v0.numel(), v0.is_complex()
    most = min(size, 1000 if maxiter is None else maxiter)
    if most < 1:
        raise ValueError(f"maxiter must be at least 1, found {maxiter}")
    start, amount = _start(v0, missed, random)
    first = matvec(start)
    largest = first.abs().max().item()
    if not math.isfinite(largest):
        raise _not_finite(1)
    if not 1e-6 < largest < 1e6 and largest != 0:  # fourth powers would leave the range of float32: change the unit
        (sigma, u, v), known = golub_kahan(
            lambda x: matvec(x) / largest, lambda y: rmatvec(y) / largest, v0, tol, maxiter, missed, random
        )
        return Triplet(sigma * largest, u, v), known._replace(S=known.S * largest)
    w = rmatvec(first)
    _check_adjoint(start, first, w, eps)
    V = Basis(start)
    alphas: list[float | Tensor] = []
    betas: list[float | Tensor] = []
    history: list[tuple[int, float]] = []
    enough = math.inf if missed is None else allowed(missed, size, amount, is_complex)
    look = 5
    for step in range(1, most + 1):
        if step > 1:
            w = rmatvec(matvec(V.last()))
        alpha, beta = V.extend(w)
        alphas.append(alpha)
        betas.append(beta)
        # the small problem costs as much as some products: look where both conditions are expected to hold
        if step >= look or step == most:
            diagonal, off = numbers(alphas + betas).split(step)
            if not (diagonal + off).isfinite().all():
                raise _not_finite(step)
            squares, Y = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off[:-1], -1))
            square = squares[-1].item()
            residual = abs(off[-1].item() * Y[-1, -1].item()) / square if square > 0 else 0.0
            share = 0.0
            if 0 < square and step < size:  # else A is zero, or the space exhausted, and nothing can be missed
                # rounding leaves in every vector about ε/√size of any other
                share = hidden(diagonal.tolist(), off.tolist(), square * (1 + RESOLUTION) ** 2) + eps / size**0.5
            if step == size or (residual <= tol and share <= enough):
                squares, Y = squares.flip(-1).clamp_min(0), Y.flip(-1)
                if square <= 0:  # of V only the first row is not zero, and any eigenvector of T = 0 will do
                    Y = torch.eye(step, dtype=Y.dtype, device=Y.device)
                # a Ritz vector helps the adjoint by 1/(1 − θ²), θ in units of σ: below five it saves no step
                W = V.rows(step).mT @ Y[:, : max(1, int((squares > 0.8 * square).sum()))].to(v0)
                v = W[:, 0] / vector_norm(W[:, 0])
                u = matvec(v)
                length = vector_norm(u)
                # a zero matrix says nothing of u: any unit vector will do
                u = u / length if length > 0 else torch.eye(1, u.numel(), dtype=u.dtype, device=u.device)[0]
                S = squares.sqrt().to(v0.real)
                return Triplet(S[0].clone(), u, v), Ritz(
                    S, W, *_on_host(step, residual, probability(share, size, amount, is_complex))
                )
            look = step + _steps_to_go(history, step, max(residual, tol * share / enough), tol)
    if residual <= tol:
        raise ConvergenceError(
            f"Lanczos bidiagonalisation reached the residual that was wanted, {tol:.1e} σ, in {most} steps, but a "
            f"larger singular value may have been missed with a probability of "
            f"{probability(share, size, amount, is_complex):.1e}, where missed={missed:g} was asked for. Likely cause: "
            "a loose tol. Raise maxiter or missed, or trust v0 with missed=None"
        )
    raise ConvergenceError(
        f"Lanczos bidiagonalisation reached a residual of {residual:.1e} σ in {most} steps, where {tol:.1e} σ was "
        "wanted. Likely causes: σ₂ is close to σ₁, or v0 is nearly orthogonal to v. Raise maxiter, loosen tol, or "
        "start from another v0"
    )


def _start(v0: Tensor, missed: float | None, random: bool) -> tuple[Tensor, float]:
    """The vector of length one to start from, and the amount of noise in it, as a length."""
    largest = v0.abs().max()
    if not 0 < largest < torch.inf:
        raise ValueError("v0 must be finite and not zero: it is the vector to start from; random numbers will do")
    v0 = v0 / largest
    if random:
        return v0 / vector_norm(v0), 1.0
    # were v0 without any component along v, no number of steps would find it: a little noise has one
    length = torch.finfo(v0.dtype).eps ** 0.5 if missed is None else NOISE
    start = v0 / vector_norm(v0) + length * noise(v0.numel(), v0)
    return start / vector_norm(start), length / vector_norm(start).item()


def _not_finite(steps: int) -> ValueError:
    return ValueError(
        f"the products must be finite, found NaN or Inf within {steps} step{'s' * (steps > 1)}: look into matvec, and "
        f"the adjoint, "
        "for an overflow or a division by zero"
    )


def _check_adjoint(v: Tensor, Av: Tensor, AAv: Tensor, eps: float) -> None:
    """‖Av‖² = ⟨Aᴴ(Av), v⟩ for every linear A and its adjoint; the first products tell, at no further cost."""
    square, back = vector_norm(Av).item() ** 2, vecdot(AAv, v).item()
    if not abs(square - back) <= eps**0.5 * max(square, vector_norm(AAv).item()):
        raise ValueError(
            f"the two products are not those of a matrix and its transpose: found (Av)ᵀ(Av) = {square:.3g} and "
            f"(Aᵀ(Av))ᵀv = {back.real:.3g}. Likely causes: a matvec that is not linear in x (a ReLU, a normalisation), "
            "that changes from call to call (dropout), or an rmatvec of another matrix"
        )


def _steps_to_go(history: list[tuple[int, float]], step: int, residual: float, tol: float) -> int:
    """From 2 to step/4 + 3: as many as the residual needs at the rate at which it fell since the last look."""
    most = step // 4 + 3
    history.append((step, residual))
    if len(history) < 2 or not 0 < residual < history[-2][1] or tol <= 0:
        return most
    rate = math.log(history[-2][1] / residual) / (step - history[-2][0])
    return max(2, min(most, math.ceil(math.log(residual / tol) / rate)))


def numbers(xs: list[Any]) -> Tensor:
    """In float64 on the CPU, whatever they were; from a GPU in one piece."""
    if isinstance(xs[0], Tensor):
        return torch.stack(xs).double().cpu()
    return torch.tensor(xs, dtype=torch.float64, device="cpu")


def _on_host(steps: int, residual: float, missed: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(steps, device="cpu"), *torch.tensor([residual, missed], dtype=torch.float64, device="cpu")


def noise(size: int, like: Tensor, seed: int = 0) -> Tensor:
    """Seeded normal numbers, real or complex, of length about one, the same on every device."""
    dtype = torch.complex128 if like.is_complex() else torch.float64
    generator = torch.Generator("cpu").manual_seed(seed)  # devices named, since another may be the default
    return torch.randn(size, generator=generator, dtype=dtype, device="cpu").div_(size**0.5).to(like)


class Basis:
    """Orthonormal vectors as the rows of one tensor, which doubles when it is full: ``first`` after those ``before``
    it.
    """

    def __init__(self, first: Tensor, before: Tensor | None = None) -> None:
        self.size = 1 if before is None else len(before) + 1
        # memory is taken as rows are written: a first megabyte is free, and spares most from being moved
        self.array = first.new_empty((max(16, 2 * self.size, 2**18 // first.numel()), first.numel()))
        if before is not None:
            self.array[: len(before)] = before
        self.array[self.size - 1] = first

    def rows(self, size: int | None = None) -> Tensor:
        return self.array[: size or self.size]

    def last(self) -> Tensor:
        return self.array[self.size - 1]

    def extend(self, w: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Append w without its components along the rows, at length one; (its component along the last row, that
        length).

        In exact arithmetic AᴴA v has components along the last two rows only. They are taken off first, so that what is
        left of the others is taken off a vector of its own size. Where that is small, it is rounding for the most part,
        and needs a second round. On a GPU it always gets one, since to look at the length would make the GPU wait, and
        the two stay there; on a CPU they are Python's numbers, with which the calls that follow cost half.
        """
        rows = self.rows()
        w, along = _off(rows[-2:], w)
        w, _ = _off(rows, w)
        alpha: Any = along[-1].real
        length: Any = vector_norm(w)
        if w.is_cpu:
            alpha, length = alpha.item(), length.item()
        if not w.is_cpu or length < 0.1 * abs(alpha):
            w, _ = _off(rows, w)
            length = vector_norm(w).item() if w.is_cpu else vector_norm(w)
        if self.size == len(self.array):
            rows, self.array = self.array, w.new_empty((2 * self.size, w.numel()))
            self.array[: self.size] = rows
        torch.div(w, length + 1e-37, out=self.array[self.size])  # a vector of zeros stays one
        self.size += 1
        return alpha, length


def _off(rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    along = torch.mv(rows, w.conj()).conj()
    return torch.addmv(w, rows.mT, along, alpha=-1), along


#: name -> method(A, index, v0, tol, maxiter, missed) -> (Triplet, what an adjoint solver may reuse)
FORWARDS: dict[str, Callable[..., tuple[Triplet, FullSVD | Gram | Ritz]]] = {
    "svd": svd,
    "gram": gram,
    "lanczos": lanczos,
}

#: name -> what it leaves behind
KNOWN: dict[str, Callable[..., FullSVD | Gram | Ritz]] = {"svd": FullSVD, "gram": Gram, "lanczos": Ritz}
