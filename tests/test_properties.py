"""What holds for every matrix: properties checked on generated shapes, spectra, scales, layouts, dtypes and batches.

HYPOTHESIS_PROFILE=nightly generates more than 2,000 matrices; the default, "quick", a few seconds' worth. Both are
derandomised. Every generated matrix has prescribed singular values, of which the one asked for is simple, at a known
relative gap.
"""

import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from svdgrad import Triplet, matrices, singular_triplet, spectral_norm
from svdgrad.adjoint import SOLVERS
from svdgrad.oracles import extended
from svdgrad.products import mv, outer

always = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=60, **always)
settings.register_profile("nightly", max_examples=300, **always)
settings.register_profile("brief", max_examples=20, **always)  # for tools/mutants.py
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

REAL = {torch.float32: 30, torch.float64: 150}  # the largest power of ten by which a matrix is scaled
SMALLEST_GAP = {torch.float32: -2, torch.float64: -6}  # its power of ten; the bound of 50 ε/gap stays below 1e-3
seeds = st.integers(0, 10**6)


# --- what is generated ------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    A: Tensor
    """(..., m, n), all matrices with the same singular values"""
    index: int
    gap: float
    """relative, as in ``Family.relative_gap``"""

    def bound(self) -> float:
        """50 ε σ₁/gap"""
        return 50 * eps(self.A) / self.gap


def eps(A: Tensor) -> float:
    return torch.finfo(A.dtype).eps


@st.composite
def spectra(draw, k: int, gap: float, index: int):
    """k singular values, descending, with 1 at the index, and all others at least ``gap`` away from it."""

    def values(first: float, last: float, count: int) -> np.ndarray:
        kind = draw(st.sampled_from(["apart", "equal", "clustered", "last"])) if count else "apart"
        return {
            "apart": np.linspace(first, last, count),
            "equal": np.full(count, first),
            "clustered": first + np.sign(last - first) * 1e-9 * np.arange(count),
            "last": np.full(count, last),
        }[kind]

    return np.r_[values(1 + gap, 2 + gap, index)[::-1], 1, values(1 - gap, 0, k - 1 - index)]


def in_layout(A: Tensor, layout: str) -> Tensor:
    """The same numbers, in another order in memory."""
    if layout == "transposed":
        return A.mT.contiguous().mT
    if layout == "strided":
        wide = A.new_full((*A.shape[:-2], 2 * A.shape[-2], 3 * A.shape[-1]), torch.nan)
        wide[..., ::2, 1::3] = A
        return wide[..., ::2, 1::3]
    if layout == "expanded":
        return A.expand(2, *A.shape)
    return A.contiguous()


@st.composite
def cases(draw, dtypes=tuple(REAL), batches=((),), indices=None, scaled=True) -> Case:
    m, n = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    m, n = draw(st.sampled_from([(m, n), (n, m), (m, m)]))
    k, dtype = min(m, n), draw(st.sampled_from(dtypes))
    real = dtype.to_real()
    gap = 10.0 ** draw(st.floats(SMALLEST_GAP[real], -0.5))
    index = draw(st.integers(0, k - 1)) if indices is None else indices
    s = draw(spectra(k, gap, index))
    batch, seed = draw(st.sampled_from(batches)), draw(seeds)
    members = [_matrix(s, m, n, seed + i, dtype.is_complex) for i in range(int(np.prod(batch)))]
    A = torch.stack(members) if members else torch.zeros(0, m, n)
    scale = 10.0 ** draw(st.integers(-REAL[real], REAL[real])) if scaled else 1.0
    layouts = ["contiguous", "transposed", "strided"] + (["expanded"] if batch else [])
    A = in_layout((scale * A).to(dtype).reshape(*batch, m, n), draw(st.sampled_from(layouts)))
    return Case(A, index - draw(st.sampled_from([0, k])), gap / s[0])


def _matrix(s, m: int, n: int, seed: int, is_complex: bool) -> Tensor:
    if not is_complex:
        return matrices.with_singular_values(s, m, n, seed)
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((r, len(s))) + 1j * rng.standard_normal((r, len(s))))[0] for r in (m, n))
    return torch.from_numpy((U * s) @ V.conj().T)


def solvers(case: Case) -> list[str]:
    """Those that serve the case's index."""
    largest = case.index in (0, -min(case.A.shape[-2:]))
    return ["auto", *(name for name in SOLVERS if largest or not SOLVERS[name].largest_only)]


def cotangents(t: Triplet, seed: int) -> Triplet:
    """Random ξ, φ, ψ; for complex u, v with Im(uᴴφ + vᴴψ) = 0, as for every loss blind to their phase."""
    rng = np.random.default_rng(seed)

    def normal(x):
        parts = torch.from_numpy(rng.standard_normal((2, *x.shape)))
        return (torch.complex(*parts) if x.is_complex() else parts[0]).to(x.dtype)

    xi, phi, psi = (normal(x) for x in t)
    if t.u.is_complex():
        slope = (torch.linalg.vecdot(t.u, phi) + torch.linalg.vecdot(t.v, psi)).imag
        psi = psi - 1j * slope.unsqueeze(-1) * t.v
    return Triplet(xi, phi, psi)


def pullback(A: Tensor, bars, v0=None, **how) -> tuple[Triplet, Tensor]:
    """The triplet and the gradient; A is taken in the layout that it has."""
    A = A.detach().requires_grad_()
    t = singular_triplet(A, v0=v0, **how)
    (G,) = torch.autograd.grad(t, A, bars)
    return Triplet(*(x.detach() for x in t)), G


def norm(G: Tensor) -> Tensor:
    """Frobenius, in double precision, where squares of 1e±150 neither over- nor underflow."""
    G = G.to(torch.promote_types(G.dtype, torch.float64))
    largest = G.abs().amax((-2, -1), keepdim=True)
    return (torch.linalg.matrix_norm(G / torch.where(largest == 0, 1, largest), keepdim=True) * largest)[..., 0, 0]


# --- the gradient of a simple triplet ---------------------------------------------------------------------------------


@given(cases(), seeds, st.data())
def test_the_gradient_is_that_of_extended_precision(case, seed, data):
    adjoint = data.draw(st.sampled_from(solvers(case)))
    bars = cotangents(singular_triplet(case.A, case.index), seed)
    t, G = pullback(case.A, bars, index=case.index, adjoint=adjoint)
    truth = torch.from_numpy(extended(case.A, *bars, t.v, case.index))
    assert norm(G.double() - truth) <= case.bound() * norm(truth)


@given(cases(), seeds, st.data())
def test_structure_of_the_gradient(case, seed, data):
    """⟨G, A⟩ = ξσ, rank two, nothing outside of u and v; the input stays, a second call gives the same bits."""
    how = {"index": case.index, "adjoint": data.draw(st.sampled_from(solvers(case)))}
    before, bars = case.A.clone(), cotangents(singular_triplet(case.A, case.index), seed)
    t, G = pullback(case.A, bars, **how)
    again = pullback(case.A, bars, **how)
    assert all(torch.equal(a, b) for a, b in zip((*t, G), (*again[0], again[1])))
    assert torch.equal(case.A, before)

    scale, size = case.A.double().abs().max(), norm(G)
    A, G, (sigma, u, v) = case.A.double() / scale, G.double() / size, (x.double() for x in t)
    sigma, xi = sigma / scale, bars.sigma.double() / size
    assert abs((G * A).sum() - xi * sigma) <= 50 * eps(case.A) * torch.linalg.matrix_norm(A, 2)
    outside = G - outer(u, mv(G.T, u)) - outer(mv(G, v), v) + (u @ G @ v) * outer(u, v)
    assert norm(outside) <= 10 * eps(case.A)
    assert torch.linalg.svdvals(G)[2:].sum() <= 10 * eps(case.A)


@given(cases(), seeds, st.integers(-30, 30), st.data())
def test_homogeneous_in_the_cotangent(case, seed, power, data):
    """A cotangent c times as large gives a gradient c times as large, for c from 1e-30 to 1e30."""
    adjoint = data.draw(st.sampled_from(solvers(case)))
    A = case.A / case.A.abs().max()  # so that c, and nothing else, comes near the ends of float32's range
    bars = cotangents(singular_triplet(A, case.index), seed)
    c = 10.0**power
    _, G = pullback(A, bars, index=case.index, adjoint=adjoint)
    _, G_c = pullback(A, Triplet(*(c * bar for bar in bars)), index=case.index, adjoint=adjoint)
    assert norm(G_c.double() / c - G.double()) <= case.bound() * norm(G)


@given(cases(scaled=False), seeds, st.data())
def test_scaling_the_matrix_scales_the_answer(case, seed, data):
    """A → cA: σ → cσ, u and v stay, ∂L/∂σ-part stays, and the part from u and v is divided by c."""
    adjoint = data.draw(st.sampled_from(solvers(case)))
    c = 10.0 ** data.draw(st.integers(-REAL[case.A.dtype], REAL[case.A.dtype]))
    t = singular_triplet(case.A, case.index)
    bars = cotangents(t, seed)
    _, G = pullback(case.A, bars, v0=t.v, index=case.index, adjoint=adjoint)
    t_c, G_c = pullback(c * case.A, bars._replace(sigma=bars.sigma / c), v0=t.v, index=case.index, adjoint=adjoint)
    s_1 = torch.linalg.matrix_norm(case.A.double(), 2)
    assert abs(t_c.sigma.double() / c - t.sigma) <= 50 * eps(case.A) * s_1
    assert max((t_c.u - t.u).norm(), (t_c.v - t.v).norm()) <= case.bound()
    assert norm(c * G_c.double() - G.double()) <= case.bound() * norm(G)


@given(cases(), seeds, st.data())
def test_transposing_swaps_u_and_v(case, seed, data):
    how = {"index": case.index, "adjoint": data.draw(st.sampled_from(solvers(case)))}
    t = singular_triplet(case.A, case.index)
    xi, phi, psi = cotangents(t, seed)
    _, G = pullback(case.A, (xi, phi, psi), v0=t.v, **how)
    t_T, G_T = pullback(case.A.T, (xi, psi, phi), v0=t.u, **how)
    assert abs(t_T.sigma - t.sigma) <= 50 * eps(case.A) * t.sigma / case.gap
    assert max((t_T.u - t.v).norm(), (t_T.v - t.u).norm()) <= case.bound()
    assert norm(G_T.double().T - G.double()) <= case.bound() * norm(G)


# --- batches, dtypes, conventions -------------------------------------------------------------------------------------

BATCHES = [(), (1,), (3,), (2, 2), (0,), (2, 0)]


@given(cases(batches=BATCHES, dtypes=[*REAL, torch.complex64, torch.complex128]), seeds, st.data())
def test_a_batch_is_its_members(case, seed, data):
    how = {"index": case.index, "adjoint": data.draw(st.sampled_from(solvers(case)))}
    shape = case.A.shape
    bars = cotangents(singular_triplet(case.A, case.index), seed)
    t, G = pullback(case.A, bars, **how)
    assert (t.sigma.shape, t.u.shape, t.v.shape, G.shape) == (shape[:-2], shape[:-1], (*shape[:-2], shape[-1]), shape)
    assert t.sigma.dtype == case.A.real.dtype and {t.u.dtype, t.v.dtype, G.dtype} == {case.A.dtype}
    for i in np.ndindex(shape[:-2]):
        alone, G_alone = pullback(case.A[i], [bar[i] for bar in bars], v0=t.v[i], **how)
        assert norm(G[i] - G_alone) <= case.bound() * norm(G_alone)
        assert abs(t.sigma[i] - alone.sigma) <= 50 * eps(case.A) * alone.sigma / case.gap


@given(cases(dtypes=[*REAL, torch.complex64, torch.complex128], batches=[(), (2,)]), seeds)
def test_the_equations_and_the_sign(case, seed):
    """A v = σ u, Aᴴ u = σ v, unit length; the largest entry of v is positive, or v0ᴴv is."""
    sigma, u, v = singular_triplet(case.A, case.index)
    scale = case.A.abs().amax((-2, -1))
    A, ratio = case.A / scale[..., None, None], (sigma / scale).unsqueeze(-1)
    rounding = 50 * eps(A) * torch.linalg.matrix_norm(A, 2).max()
    assert (mv(A, v) - ratio * u).norm(dim=-1).max() <= rounding
    assert (mv(A.mH, u) - ratio * v).norm(dim=-1).max() <= rounding
    for x in (u, v):
        assert (x.norm(dim=-1) - 1).abs().max() <= rounding

    largest = v.gather(-1, v.abs().argmax(-1, keepdim=True))
    assert (largest.real > 0).all()
    v0 = torch.from_numpy(np.random.default_rng(seed).standard_normal(A.shape[-1])).to(A)
    product = torch.linalg.vecdot(v0.expand_as(v), singular_triplet(case.A, case.index, v0=v0).v)
    assert (product.real > 0).all()
    if A.is_complex():
        assert max(largest.imag.abs().max(), product.imag.abs().max() / v0.norm()) <= 50 * eps(A)


@given(cases(dtypes=[torch.float32], scaled=False), st.sampled_from([torch.float16, torch.bfloat16]), seeds)
def test_half_precision_is_single_precision_rounded(case, half, seed):
    A = (2 * case.A).to(half)
    S = torch.linalg.svdvals(A.double())
    others = torch.cat(
        [(S - S[case.index]).abs().sort().values[1:], S[case.index :][:1] if A.shape[0] != A.shape[1] else S[:0]]
    )
    if others.numel() and others.min() < 1e-3 * S[0]:
        return  # rounded to half precision, this matrix has lost its gap
    bars = cotangents(singular_triplet(A, case.index), seed)
    t, G = pullback(A, bars, index=case.index)
    t_single, G_single = pullback(A.float(), [bar.float() for bar in bars], index=case.index)
    assert all(torch.equal(a, b.to(half)) for a, b in zip((*t, G), (*t_single, G_single)))


# --- complex ----------------------------------------------------------------------------------------------------------


def gauge_invariant(t: Triplet, weights) -> Tensor:
    """A loss that e^{iθ}(u, v) does not change."""
    xi, M, w = weights
    return xi * t.sigma + (t.u.conj() @ M @ t.v).real + (t.u.abs() ** 2 * w).sum()


def reference(A: Tensor, index: int) -> Triplet:
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    return Triplet(S[index], U[:, index], Vh[index].conj())


@given(cases(dtypes=[torch.complex64, torch.complex128]), seeds, st.data())
def test_the_complex_gradient_answers_directional_differences(case, seed, data):
    """df = Re⟨G, dA⟩, with df from central differences in complex128; complex64 gives the gradient of complex128."""
    adjoint = data.draw(st.sampled_from(solvers(case)))
    m, n = case.A.shape
    rng = np.random.default_rng(seed)
    M, E = (torch.complex(*torch.from_numpy(rng.standard_normal((2, m, n)))) for _ in range(2))
    weights = (torch.tensor(rng.standard_normal()), M, torch.from_numpy(rng.standard_normal(m)))

    def gradient(A):
        A = A.detach().requires_grad_()
        t = singular_triplet(A, case.index, adjoint=adjoint)
        return torch.autograd.grad(gauge_invariant(t, [w.to(A if w.is_complex() else A.real) for w in weights]), A)[0]

    A = case.A / case.A.abs().max()  # scales have tests of their own
    G = gradient(A.to(torch.complex128))
    assert norm(gradient(A) - G) <= case.bound() * norm(G)

    A, E = A.to(torch.complex128), E / E.norm()
    gap = case.gap * torch.linalg.matrix_norm(A, 2).item()
    # where truncation, (h/gap)², balances rounding, ε/(gap h), in units of the largest derivative possible
    h = (2.2e-16 / case.gap) ** (1 / 3)
    right, left = (gauge_invariant(reference(A + x * E, case.index), weights).item() for x in (h * gap, -h * gap))
    largest = (weights[0].abs() + 2 * M.norm() + 2 * weights[2].abs().max()).item() / gap
    assert abs((G.conj() * E).sum().real.item() - (right - left) / (2 * h * gap)) <= 50 * h**2 * largest


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 8), (1, 1)], ids=str)
def test_a_complex_row_or_column(shape, name):
    """Nothing is orthogonal to the shorter vector, what is left of it is rounding; every solver agrees with saddle."""
    for seed in range(20):
        A = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, *shape)))
        A = torch.complex(*A)
        ones, gradients = torch.ones(shape, dtype=A.dtype), []
        for adjoint in (name, "saddle"):
            X = A.clone().requires_grad_()
            _, u, v = singular_triplet(X, adjoint=adjoint)
            (u.conj() @ ones @ v).abs().backward()
            gradients.append(X.grad)
        # with one entry the loss is constant, and its gradient rounding
        assert norm(gradients[0] - gradients[1]) <= 50 * eps(A) * max(norm(gradients[1]), 1 / A.norm())


# --- the norm alone, at any matrix ------------------------------------------------------------------------------------


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(list(REAL)),
    st.integers(0, 12),
    st.integers(0, 12),
    seeds,
    st.data(),
)
def test_the_gradient_of_the_norm_is_a_subgradient_even_at_ties(m, n, dtype, ties, zeros, seed, data):
    """⟨G, A⟩ = ‖A‖₂ and the nuclear norm of G is at most 1, which is what makes G a subgradient (eq-dual-pairing)."""
    s = np.linspace(1, 0.1, min(m, n))
    s[: ties + 1], s[len(s) - min(zeros, len(s)) :] = 1, 0  # down to the zero matrix
    scale = 10.0 ** data.draw(st.integers(-REAL[dtype], REAL[dtype]))
    A = (scale * matrices.with_singular_values(s, m, n, seed)).to(dtype).requires_grad_()
    value = spectral_norm(A)
    (G,) = torch.autograd.grad(value, A)
    G, A = G.double(), A.detach().double() / scale
    exact = torch.linalg.matrix_norm(A, 2)
    assert abs(value.double() / scale - exact) <= 50 * eps(value) * exact
    assert abs((G * A).sum() - exact) <= 50 * eps(value) * exact
    assert torch.linalg.svdvals(G).sum() <= 1 + 50 * eps(value)
