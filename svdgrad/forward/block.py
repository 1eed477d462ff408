"""The k dominant triplets by products alone: Golub and Kahan's bidiagonalisation with blocks (chapter *More than one*).

Vectors are rows: U (k, m), V (k, n); ``mm`` takes rows x to rows A x, ``rmm`` takes rows y to rows Aᴴ y.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..certificate import RESOLUTION, noise_beside
from ..products import Map
from .basis import noise, orthonormal, over, steps_to_go
from .evidence import chance, probe
from .found import ConvergenceError, Triplet, counts, fix_sign, not_adjoint, not_finite

#: a basis restarts where it takes more bytes than this, but not before it has some sixty rows and those it keeps
BYTES = 64e6


def block_size(k: int) -> int:
    """Columns of a block: k, one for the value after the cut, and more, whose combinations off the k found say together
    what one could say only after many more steps.
    """
    return k + 2 + k // 4


class RitzBlock(NamedTuple):
    """What a block iteration knows of all singular values and vectors, and its cost."""

    S: Tensor
    """(l,) approximate singular values, descending, at or below the true ones: k + 1 of them or more, if A has so
    many"""
    W: Tensor
    """(d, n) orthonormal rows, or (d, m) for a wide matrix: singular vectors of the smaller side, the first k those
    found, the others approximate, of values down to 0.8 σ_k"""
    steps: Tensor
    """steps of the iteration, each of a block product with A and one with Aᴴ, as a tensor of no dimensions"""
    products: Tensor
    """products of A or Aᴴ with one vector, counted"""
    residual: Tensor
    """the largest ‖Aᴴuᵢ − σᵢvᵢ‖/σ₁, i ≤ k"""
    missed: Tensor
    """a bound for the probability that one more singular value lies above σ_k(1 + ``RESOLUTION``)"""


def block_lanczos(
    mm: Map,
    rmm: Map,
    shape: tuple[int, int],
    like: Tensor,
    k: int,
    start: Tensor | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    missed: float | None = 1e-3,
) -> tuple[Triplet, RitzBlock]:
    """The k dominant singular triplets σ (k,), U (k, m), V (k, n) of an m×n operator, and what else is known.

    A Q = P T and Aᴴ P = Q Tᴴ + G (eq-block-bidiagonal), where Q and P have orthonormal columns, ``block_size(k)`` more
    in each step: so many copies of a multiple value can show. The singular value decomposition T = X S Yᴴ gives
    V = Q X and U = P Y, and the last block of G, the only one that is not zero, the residuals Aᴴ U − V S = G Y. Starts
    from the first k rows of ``start (any, n)``, with a little noise each, and from rows of noise; ``like`` has the
    dtype and device of all.

    Stops where the first k residuals are at most ``tol`` σ₁, by default ten times the unit roundoff, the next is small
    beside σ_k − σ_{k+1}, and the probability that a larger value was missed is at most ``missed``; None trusts the
    start. A large basis restarts from its best vectors. Of the signs of (uᵢ, vᵢ) the largest entry of vᵢ is positive.
    Cost: two products with a block a step, and what keeps Q and P orthonormal; memory: Q and P.
    Raises ConvergenceError after ``maxiter`` steps, and ValueError where a product is not finite, or the two are not
    adjoint, as far as the first two show.
    """
    m, n = shape
    most = 1000 if maxiter is None else maxiter
    if start is not None and not (start.isfinite().all() and start.any()):
        raise ValueError("v0 must be finite and not zero: it holds vectors to start from; random numbers will do")
    tol = 10 * torch.finfo(like.dtype).eps if tol is None else tol
    if m < n:
        mapped = start if start is None else mm(start[:k].to(like))
        V, U, sigma, ritz = _on_the_smaller_side(rmm, mm, n, m, like, k, mapped, tol, most, missed)
        ritz = ritz._replace(products=ritz.products + (0 if mapped is None else len(mapped)))
    else:
        U, V, sigma, ritz = _on_the_smaller_side(mm, rmm, m, n, like, k, start, tol, most, missed)
    return Triplet(sigma, *fix_sign(U, V)), ritz


def _on_the_smaller_side(
    mm: Map, rmm: Map, m: int, n: int, like: Tensor, k: int, start: Tensor | None, tol: float, most: int,
    missed: float | None,
) -> tuple[Tensor, Tensor, Tensor, RitzBlock]:  # fmt: skip
    """U, V, σ and the rest for m ≥ n."""
    eps = torch.finfo(like.dtype).eps
    beside = eps**0.5 if missed is None else noise_beside(max(tol, eps))
    first, amounts = _start(start, min(block_size(k), n), n, k, like, beside)
    space = _Space(mm, rmm, first, m, k)
    history: list[tuple[int, float]] = []
    look, fresh = 3, 1
    for step in range(1, most + 1):
        space.step()
        if step < look and step < most and not space.is_full():
            continue
        X, S, Y = space.small_svd(step)
        top, complete = S[0].item(), space.size == n
        residuals = space.residuals(Y)
        residual = residuals[:k].max().item()
        # the last thing asked for, in units of what is allowed; the value after the cut decides whether there is one
        worst, risk = over(residual, tol * top), 0.0 if complete else 1.0
        if not complete:
            worst = max(worst, over(residuals[k].item(), max(tol * top, (S[k - 1] - S[k]).item() / 2)))
        if not complete and worst <= 1:
            # is there one as large as σ_k? Where the next known is as large, or nearly: one a little larger than that?
            # What rounding leaves of zero is no value
            square = max(S[k - 1].item(), S[k].item() * (1 + RESOLUTION), 100 * eps * top) ** 2
            if space.first is not None:
                risk = chance(space.first, X, S[k:] ** 2, amounts, square, n, space.blocks - 1, eps)
            elif missed is not None:
                V = space.right(X[:, :k])
                risk, larger = probe(lambda x: space.rmm(space.mm(x)), V, square, missed, fresh)
                if larger is not None:
                    fresh += 1
                    space.begin(torch.cat([V, larger[None]]))
                    history.clear()
                    look = step + 3
                    continue
            worst = max(worst, 0.0 if missed is None else risk / missed)
        if worst <= 1:
            kept = max(k, int((S > 0.8 * S[k - 1]).sum())) if S[k - 1] > 0 else k
            W, U = space.right(X[:, :kept]), space.left(Y[:, :k])
            S = (S * space.unit).to(like.real)
            return U, W[:k], S[:k].clone(), RitzBlock(S, W, *counts(step, space.products, over(residual, top), risk))
        if space.is_full():
            space.restart(X, S, Y)
        look = step + steps_to_go(history, step, worst, 1)
    raise ConvergenceError(
        f"block Lanczos bidiagonalisation reached a residual of {over(residual, top):.1e} σ₁ in {most} steps, where "
        f"{tol:.1e} σ₁ was wanted, and missed a larger singular value with a probability of up to {risk:.1e}, where "
        f"missed={missed} was asked for. Likely causes: σ_k is close to the next values, or a loose tol, which leaves "
        "little evidence. Raise maxiter or missed, loosen tol, or take a k after which the values fall"
    )


class _Space:
    """Orthonormal rows Q and P with A Q = P T in columns, that is mm(Q) = T P in rows, and what rmm(P) has off Q."""

    def __init__(self, mm: Map, rmm: Map, first: Tensor, m: int, k: int) -> None:
        self._mm, self._rmm, self.unit, self.products = mm, rmm, 1.0, 0
        b, n = first.shape
        #: rows kept in a restart, and rows that fill the space
        self.kept = k + 3 * b
        few = self.kept + max(4 * b, 60 + 2 * k)
        self.limit = min(n, max(few, int(BYTES / ((m + n) * first.element_size()))))
        self.Q, self.P = first.new_empty((self.limit + b, n)), first.new_empty((self.limit + b, m))
        self.T = first.new_zeros((self.limit + b, self.limit + b))
        self.begin(first)
        #: the rows that the iteration started from, in terms of Q, as long as it is the Krylov space of these
        self.first: Tensor | None = _in_double(self.left_over)

    def begin(self, first: Tensor) -> None:
        self.size = self.blocks = self.width = 0
        self.first = None
        self.T.zero_()
        _, self.left_over, self.next = orthonormal(first, self.Q[:0])

    def mm(self, X: Tensor) -> Tensor:
        self.products += len(X)
        return self._mm(X) / self.unit if self.unit != 1 else self._mm(X)

    def rmm(self, Y: Tensor) -> Tensor:
        self.products += len(Y)
        return self._rmm(Y) / self.unit if self.unit != 1 else self._rmm(Y)

    def step(self) -> None:
        """Append the next rows to Q, their products to P, and find the rows after them."""
        old, new = self.size, self.size + len(self.next)
        self.Q[old:new] = self.next
        F = self.mm(self.next)
        if self.products == len(F):
            F = self._change_of_unit(F)
        self.T[old:new, :old], self.T[old:new, old:new], self.P[old:new] = orthonormal(
            F, self.P[:old], self.size if self.blocks == 0 else self.width
        )
        G = self.rmm(self.P[old:new])
        along, self.left_over, self.next = orthonormal(G, self.Q[:new], new - old)
        if self.products == 2 * len(F):
            _check_adjoint(self.T[:new, :new], along, vector_norm(G).item())
        self.size, self.blocks, self.width = new, self.blocks + 1, new - old
        n = self.Q.shape[1]
        if n - new < len(self.next):  # the last rows are what is left of the space
            fill = noise((n - new) * n, self.Q, seed=1).view(n - new, n)  # not what the start was made of
            self.next = orthonormal(fill, self.Q[:new])[2] if new < n else fill

    def _change_of_unit(self, F: Tensor) -> Tensor:
        largest = F.abs().max().item()
        if not math.isfinite(largest):
            raise not_finite(1)
        if not 1e-6 < largest < 1e6 and largest != 0:  # squares would leave the range of float32
            self.unit = largest
        return F / self.unit

    def is_full(self) -> bool:
        return self.size + len(self.next) > self.limit or self.size == self.Q.shape[1]

    def small_svd(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """X, S, Y of T = X S Yᴴ after so many ``steps``, on the host; of Y as many columns as may be kept, or all."""
        T = _in_double(self.T[: self.size, : self.size])
        if not T.isfinite().all():
            raise not_finite(steps)
        # takes half as long, with errors of (σ₁/σ)² roundings in double precision
        squares, X = torch.linalg.eigh(T @ T.mH)
        S, X, kept = squares.flip(0).clamp_min(0).sqrt(), X.flip(1), min(self.kept, self.size)
        if 4 * S[kept - 1] ** 2 * torch.finfo(self.T.dtype).eps > S[0] ** 2 * torch.finfo(S.dtype).eps:
            return X, S, T.mH @ X[:, :kept] / S[:kept]
        X, S, Yh = torch.linalg.svd(T)
        return X, S, Yh.mH

    def residuals(self, Y: Tensor) -> Tensor:
        """‖Aᴴuᵢ − σᵢvᵢ‖ for every i, in the unit of T; nothing is left of a whole space."""
        if self.size == self.Q.shape[1]:
            return Y.real.new_zeros(Y.shape[1])
        norms: Tensor = vector_norm(Y[-self.width :].mH @ _in_double(self.left_over), dim=1)
        return norms

    def right(self, X: Tensor) -> Tensor:
        V: Tensor = X.mH.to(self.Q) @ self.Q[: self.size]
        return V

    def left(self, Y: Tensor) -> Tensor:
        U: Tensor = Y.mH.to(self.P) @ self.P[: self.size]
        return U

    def restart(self, X: Tensor, S: Tensor, Y: Tensor) -> None:
        """Keep the best vectors."""
        kept = self.kept
        self.Q[:kept], self.P[:kept] = self.right(X[:, :kept]), self.left(Y[:, :kept])
        self.T.zero_()
        self.T.diagonal()[:kept] = S[:kept].to(self.T)
        self.size, self.blocks, self.first = kept, 0, None


def _start(start: Tensor | None, b: int, n: int, k: int, like: Tensor, beside: float) -> tuple[Tensor, Tensor]:
    """b rows of length about one, and the amount of noise in each, as a length: all of it, or ``beside`` the start.

    A start without any component along vᵢ would never find it; a little noise has one.
    """
    rows = noise(b * n, like).view(b, n) * b**0.5
    amounts = torch.ones(b, dtype=torch.float64, device="cpu")
    if start is not None:
        start = start[:k].to(like)
        largest = start.abs().amax(1, keepdim=True)
        given = largest.squeeze(1) > 0
        start = start[given] / largest[given]
        l = len(start)
        amounts[:l] = beside
        rows[:l] = start / vector_norm(start, dim=1, keepdim=True) + beside * rows[:l]
    return rows, amounts


def _in_double(x: Tensor) -> Tensor:
    return x.to("cpu", torch.complex128 if x.is_complex() else torch.float64)


def _check_adjoint(T: Tensor, along: Tensor, size: float) -> None:
    """PᴴA Q and (Aᴴ P)ᴴQ are the same for every linear A and its adjoint; the first products tell, at no further
    cost.
    """
    found, size = vector_norm(along - T.mH).item(), max(size, vector_norm(T).item())
    if not found <= torch.finfo(T.dtype).eps ** 0.5 * size:
        raise not_adjoint(f"yᵀ(Ax) and (Aᵀy)ᵀx differ by {found / size:.1e} of their size")
