"""Ways to find a singular triplet: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .matrices import mv


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


class FullSVD(NamedTuple):
    """The thin factors of A = U Σ Vᴴ: ``U (..., m, k)``, ``S (..., k)``, ``Vh (..., k, n)``, k = min(m, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class Ritz(NamedTuple):
    """What an iteration knows of the other triplets: approximate singular values ``S (k,)``, descending, and its cost."""

    S: Tensor
    steps: Tensor
    """steps of the iteration, each of two products with A, as a tensor of no dimensions"""
    residual: Tensor
    """‖Aᴴu − σv‖/σ at the last step"""


class ConvergenceError(ArithmeticError):
    """An iteration ran out of steps before its residual reached the tolerance."""


def svd(
    A: Tensor, index: int = 0, v0: Tensor | None = None, tol: float | None = None, maxiter: int | None = None
) -> tuple[Triplet, FullSVD]:
    """The triplet ``(σᵢ, uᵢ, vᵢ)`` read off the full SVD, and that SVD.

    Cost: one thin SVD, O(m n min(m, n)) operations.
    """
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    u, v = fix_sign(U[..., :, index], Vh[..., index, :].conj(), v0)
    # a clone, for an autograd.Function must not return a view of another of its outputs
    return Triplet(S[..., index].clone(), u, v), FullSVD(U, S, Vh)


def fix_sign(u: Tensor, v: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of the pairs (u, v)·c with c of modulus one, the one whose largest entry of v is positive, or with v0ᴴv > 0 if v0 is given.

    Both vectors are multiplied by the same number, so A v = σ u stays true.
    Without ``v0`` the choice jumps where the two largest entries of v tie in modulus; with ``v0`` it jumps where v0 ⟂ v.
    """
    if v0 is None:
        anchor = v.gather(-1, v.abs().argmax(-1, keepdim=True))
    else:
        anchor = torch.linalg.vecdot(v, v0.to(v)).conj().unsqueeze(-1)
    c = torch.where(anchor == 0, 1, torch.sgn(anchor).conj())
    return u * c, v * c


def lanczos(
    A: Tensor, index: int = 0, v0: Tensor | None = None, tol: float | None = None, maxiter: int | None = None
) -> tuple[Triplet, Ritz]:
    """The dominant triplet of one matrix by Golub and Kahan's bidiagonalisation: two products with A a step.

    Starts from ``v0``, or from a vector of seeded normal numbers, so that the same A gives the same answer.
    """
    start = torch.randn(A.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64) if v0 is None else v0
    (sigma, u, v), known = golub_kahan(lambda x: mv(A, x), lambda y: mv(A.mH, y), start.to(A), tol, maxiter)
    u, v = fix_sign(u, v, v0)
    return Triplet(sigma, u, v), known


def golub_kahan(
    matvec: Callable[[Tensor], Tensor],
    rmatvec: Callable[[Tensor], Tensor],
    v0: Tensor,
    tol: float | None = None,
    maxiter: int | None = None,
) -> tuple[Triplet, Ritz]:
    """The dominant triplet of the operator with products ``matvec`` (A x) and ``rmatvec`` (Aᴴ y), both on flat vectors.

    A V = U B and Aᴴ U = V Bᵀ + β v eᵀ with B upper bidiagonal and orthonormal U, V, one column more each step; the dominant
    triplet of the small B gives (σ, U x, V y), with residual ‖Aᴴu − σv‖ = β abs(x_k). Stops where that is at most ``tol`` σ,
    by default ten times the unit roundoff. Cost: two products a step; memory: the two bases. Both are kept orthogonal
    throughout, since without that copies of σ appear. Raises ConvergenceError after ``maxiter`` steps.
    """
    eps = torch.finfo(v0.dtype).eps
    tol = 10 * eps if tol is None else tol
    most = min(v0.numel(), 1000 if maxiter is None else maxiter)
    if most < 1:
        raise ValueError(f"maxiter must be at least 1, found {maxiter}")
    if not torch.isfinite(v0).all() or not v0.any():
        raise ValueError("v0 must be finite and not zero: it is the vector to start from; random numbers will do")
    v = _unit(v0)[0]
    u = beta = None
    U, V = Basis(), Basis()
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    for step in range(1, most + 1):
        V.append(v)
        u = U.orthogonalise(matvec(v) if u is None or beta is None else matvec(v) - beta * u)
        u, alpha = _unit(u)
        U.append(u)
        v, beta = _unit(V.orthogonalise(rmatvec(u) - alpha * v))
        alphas.append(alpha)
        betas.append(beta)
        # the small SVD costs more than a product at first: look every few steps, and at the last
        if step % 5 == 0 or step == most:
            B = torch.diag(torch.stack(alphas).double())
            B.diagonal(1).copy_(torch.stack(betas)[:-1])
            X, S, Yh = torch.linalg.svd(B.cpu())
            residual = (beta.double().cpu() * X[-1, 0].abs() / S[0]).item() if S[0] > 0 else 0.0
            if residual <= tol or step == v0.numel():
                sigma, x, y = S[0].to(alpha), X[:, 0].to(v0), Yh[0].conj().to(v0)
                (u, length), (v, _) = _unit(x @ U.rows()), _unit(y @ V.rows())
                if length == 0:  # A v = 0 says nothing of u: any unit vector will do
                    u = torch.eye(1, u.numel()).to(u)[0]
                return Triplet(sigma, u, v), Ritz(S.to(alpha), torch.tensor(step), torch.tensor(residual))
    raise ConvergenceError(
        f"Lanczos bidiagonalisation reached a residual of {residual:.1e} σ in {most} steps, where {tol:.1e} σ was wanted. "
        "Likely causes: σ₂ is close to σ₁, or v0 is nearly orthogonal to v. Raise maxiter, loosen tol, or start from another v0"
    )


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x/‖x‖ and ‖x‖, the square not formed, which would leave the range of float32 for entries of 1e±20; 0 stays 0."""
    largest = x.abs().max()
    x = x / torch.where(largest == 0, 1, largest)
    length = vector_norm(x)
    return x / torch.where(length == 0, 1, length), largest * length


class Basis:
    """Orthonormal vectors as the rows of one array, which doubles when it is full."""

    def __init__(self) -> None:
        self.array = torch.empty(0)
        self.size = 0

    def rows(self) -> Tensor:
        return self.array[: self.size]

    def append(self, x: Tensor) -> None:
        if self.size == len(self.array):
            larger = x.new_empty((max(16, 2 * self.size), x.numel()))
            if self.size:
                larger[: self.size] = self.rows()
            self.array = larger
        self.array[self.size] = x
        self.size += 1

    def orthogonalise(self, x: Tensor) -> Tensor:
        """x without its components along the basis, taken out twice, since once leaves a rest where x is almost in its span."""
        if self.size:
            Q = self.rows()
            for _ in range(2):
                x = x - (Q.conj() @ x) @ Q
        return x


#: name -> method(A, index, v0, tol, maxiter) -> (Triplet, what an adjoint solver may reuse)
FORWARDS: dict[str, Callable[..., tuple[Triplet, FullSVD | Ritz]]] = {"svd": svd, "lanczos": lanczos}

#: name -> what it leaves behind
KNOWN: dict[str, Callable[..., FullSVD | Ritz]] = {"svd": FullSVD, "lanczos": Ritz}
