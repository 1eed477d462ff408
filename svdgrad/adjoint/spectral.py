"""Solve K[p; q] = c in the singular bases, when the whole SVD is known (chapter *The adjoint system*)."""

from typing import Any

import torch
from torch import Tensor

from ..forward import FullSVD, GramVectors, Triplet
from ..products import mv, project


def spectral(A: Tensor, triplet: Triplet, phi: Tensor, psi: Tensor, known: Any = None) -> tuple[Tensor, Tensor]:
    """p = U (σa + Σb)/d + (I − UUᴴ)φ/σ and q = V (Σa + σb)/d + (I − VVᴴ)ψ/σ (eq-spectral).

    Here a = Uᴴφ, b = Vᴴψ, dᵢ = (σ − σᵢ)(σ + σᵢ), and the entries that belong to σ itself are zero.
    Where only the singular vectors W of the smaller side are ``known``, (σ²I − AᴴA) q = Aᴴφ + σψ is solved in their
    basis, and p = (φ + Aq)/σ (eq-spectral-gram). Where neither is, this costs an SVD.

    A is taken as it is, without a copy, and φ and ψ in units of σ. So the right-hand side has the size of the solution,
    or less: both are normal numbers where the gradient is, and so is what lies between, where what A multiplies is
    divided by σ. Out of it p ⟂ u and q ⟂ v come by themselves.
    """
    sigma, u, v = triplet
    s = sigma.unsqueeze(-1)
    phi, psi = project(u, phi / s), project(v, psi / s)
    if isinstance(known, GramVectors):
        if A.shape[-2] < A.shape[-1]:
            q, p = _in_one_basis(A.mH, s, psi, phi, known)
            return p, q
        return _in_one_basis(A, s, phi, psi, known)
    U, S, Vh = known if isinstance(known, FullSVD) else torch.linalg.svd(A, full_matrices=False)
    # the one that is σ itself, where right-hand sides without u and v have rounding only
    own = (S - s).abs()
    own = own == own.amin(-1, keepdim=True)
    a, b, S = mv(U.mH, phi), mv(Vh, psi), S / s
    d = (1 - S) * (1 + S)
    x, y = (torch.where(own, 0, c / d) for c in (a + S * b, S * a + b))
    # the parts that A cannot reach; a square U has none, and what rounding leaves of it would be divided by σ
    p = mv(U, x) if U.shape[-2] == U.shape[-1] else mv(U, x - a) + phi
    q = mv(Vh.mH, y) if Vh.shape[-2] == Vh.shape[-1] else mv(Vh.mH, y - b) + psi
    return p, q


def spectral_rows(
    A: Tensor, sigma: Tensor, phi: Tensor, psi: Tensor, known: FullSVD | GramVectors
) -> tuple[Tensor, Tensor]:
    """The same for k triplets, by what is known of those left out: rows pᵢ and qᵢ, for rows φᵢ/σᵢ and ψᵢ/σᵢ off the k
    (eq-outside-closed).
    """
    k, s = sigma.shape[-1], sigma.unsqueeze(-1)
    if isinstance(known, GramVectors):
        if A.shape[-2] < A.shape[-1]:
            q, p = _rows_in_one_basis(A.mH, s, psi, phi, known, k)
            return p, q
        return _rows_in_one_basis(A, s, phi, psi, known, k)
    U, S, V = known.U[..., k:], known.S[..., None, k:] / s, known.Vh[..., k:, :].mH
    a, b = phi @ U.conj(), psi @ V.conj()
    d = (1 - S) * (1 + S)
    x, y = (a + S * b) / d, (S * a + b) / d
    p = x @ U.mT if A.shape[-2] <= A.shape[-1] else (x - a) @ U.mT + phi
    q = y @ V.mT if A.shape[-1] <= A.shape[-2] else (y - b) @ V.mT + psi
    return p, q


def _rows_in_one_basis(
    A: Tensor, s: Tensor, phi: Tensor, psi: Tensor, gram: GramVectors, k: int
) -> tuple[Tensor, Tensor]:
    W, S = gram.W[..., k:], gram.S[..., None, k:]
    r = (psi + (phi @ A.conj()) / s) @ W.conj()
    q = (r / ((s - S) / s * ((s + S) / s))) @ W.mT
    return phi + (q @ A.mT) / s, q


def _in_one_basis(A: Tensor, s: Tensor, phi: Tensor, psi: Tensor, gram: GramVectors) -> tuple[Tensor, Tensor]:
    W, S = gram.W[..., 1:], gram.S[..., 1:]
    r = mv(W.mH, torch.addcdiv(psi, mv(A.mH, phi), s))
    q = mv(W, r / ((s - S) / s * ((s + S) / s)))
    return torch.addcdiv(phi, mv(A, q), s), q
