"""The k dominant triplets by products alone, and the adjoint of that by products alone."""

import math

import numpy as np
import pytest
import torch

from svdgrad.adjoint.columns import columns_cg
from svdgrad.adjoint.spectral import spectral_rows
from svdgrad.certificate import RESOLUTION
from svdgrad.forward import ConvergenceError, FullSVD, block
from svdgrad.forward.basis import orthonormal
from svdgrad.forward.block import block_lanczos
from svdgrad.forward.evidence import chance
from svdgrad.gap import TieError
from svdgrad.inside import off

REAL = [torch.float32, torch.float64]
DTYPES = [*REAL, torch.complex64, torch.complex128]
SHAPES = [(64, 32), (32, 64), (48, 48)]


# --- matrices ---------------------------------------------------------------------------------------------------------


def columns_closed(sigma, U, S, V, k, Phi, Psi):
    """The adjoint by all singular vectors, given as rows."""
    s = sigma.unsqueeze(-1)
    Phi, Psi = off(U[..., :k, :], Phi / s), off(V[..., :k, :], Psi / s)
    A = torch.empty(*Phi.shape[:-2], Phi.shape[-1], Psi.shape[-1])  # of which the shape alone is read
    return spectral_rows(A, sigma, Phi, Psi, FullSVD(U.mT, S, V.conj()))


def unitary(m, k, dtype, generator):
    double = torch.promote_types(dtype, torch.float64)
    return torch.linalg.qr(torch.randn(m, k, dtype=double, generator=generator))[0]


def with_values(s, m, n, dtype=torch.float64, seed=0):
    """U diag(s) Vᴴ with random factors, and V by rows."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (unitary(size, len(s), dtype, generator) for size in (m, n))
    return ((U * torch.as_tensor(s, dtype=U.dtype)) @ V.mH).to(dtype), V.mT.to(dtype)


def with_bulk(first, size, highest=0.9):
    """Given values, and the others evenly below."""
    return np.r_[first, np.linspace(highest, 0.05, size - len(first))]


def random(m, n, dtype=torch.float64, seed=0):
    return torch.randn(m, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Products:
    """The two products on rows, counted."""

    def __init__(self, A):
        self.A, self.count = A, 0

    def mm(self, X):
        self.count += len(X)
        return X @ self.A.mT

    def rmm(self, Y):
        self.count += len(Y)
        return Y @ self.A.conj()


def find(A, k, **options):
    by = Products(A)
    (sigma, U, V), ritz = block_lanczos(by.mm, by.rmm, tuple(A.shape), A[:1], k, **options)
    assert ritz.products == by.count
    return sigma, U, V, ritz


def double(*xs):
    return [x.to(torch.promote_types(x.dtype, torch.float64)) for x in xs]


def residual(A, sigma, U, V):
    """The largest of ‖Avᵢ − σᵢuᵢ‖ and ‖Aᴴuᵢ − σᵢvᵢ‖, over σ₁, in double precision."""
    A, sigma, U, V = double(A, sigma, U, V)
    left, right = V @ A.mT - U * sigma[:, None], U @ A.conj() - V * sigma[:, None]
    return (max(left.norm(dim=1).max(), right.norm(dim=1).max()) / sigma[0].clamp_min(1e-300)).item()


def not_orthonormal(*rows):
    return max((X.conj() @ X.mT - torch.eye(len(X), dtype=X.dtype)).abs().max().item() for X in double(*rows))


def bound(A):
    """Ten units for the residual, and what the products and a small singular value decomposition round."""
    return (10 + 2 * max(A.shape) ** 0.5) * torch.finfo(A.dtype).eps


def check(A, k, sigma, U, V, times=1):
    exact = torch.linalg.svdvals(*double(A))[:k]
    assert sigma.shape == (k,) and U.shape == (k, A.shape[0]) and V.shape == (k, A.shape[1])
    assert U.dtype == V.dtype == A.dtype and sigma.dtype == A.real.dtype
    assert residual(A, sigma, U, V) <= 2 * times * bound(A)  # of whole spaces of 32 rows 48 ε was seen, 11 ε as a rule
    assert not_orthonormal(U, V) <= bound(A)
    assert (sigma.double() - exact).abs().max() <= bound(A) * max(exact[0], 1e-300)
    assert (sigma.diff() <= 0).all()
    largest = V.gather(1, V.abs().argmax(1, keepdim=True))
    assert (largest.real > 0).all() and (largest.imag.abs().max() if A.is_complex() else 0) <= bound(A)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_vectors_of_zero_are_orthonormal_along_the_axes_too(rank, dtype):
    """What a QR factorisation makes of zeros are the first axes, which were there already."""
    A = torch.zeros(200, 150, dtype=dtype)
    A.diagonal()[:rank] = torch.arange(rank, 0, -1)
    sigma, U, V, _ = find(A, 6)
    check(A, 6, sigma, U, V)
    _, R, Q = orthonormal(torch.zeros(3, 10, dtype=dtype), torch.eye(10, dtype=dtype)[:4])
    assert not_orthonormal(torch.cat([torch.eye(10, dtype=dtype)[:4], Q])) <= bound(A) and not R.any()


# --- the triplets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 4, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_dominant_triplets_of_a_random_matrix(shape, k, dtype):
    A = random(*shape, dtype)
    sigma, U, V, ritz = find(A, k)
    check(A, k, sigma, U, V)
    assert len(ritz.S) > k and torch.equal(ritz.S[:k], sigma) and ritz.missed <= 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-4])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_part_of_the_space_is_enough(k, gap, dtype):
    A, _ = with_values(with_bulk(np.linspace(1, 0.9, k), 300, 0.9 - gap), 400, 300, dtype)
    sigma, U, V, ritz = find(A, k)
    check(A, k, sigma, U, V)
    assert len(ritz.S) < 300 or k == 16  # whose blocks of 22 fill the space in 14 steps
    assert ritz.residual <= 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (2, 7), (7, 2), (3, 3), (6, 4)], ids=str)
def test_every_k_of_a_small_matrix(shape, dtype):
    A = random(*shape, dtype)
    for k in range(1, min(shape) + 1):
        sigma, U, V, ritz = find(A, k)
        check(A, k, sigma, U, V)
        assert ritz.missed == 0 and len(ritz.S) == min(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (7, 7), (80, 60), (60, 80), (80, 80)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_vectors_of_zero_are_orthonormal_too(shape, rank, dtype):
    A = with_values(np.r_[[1, 0.5, 0.2][:rank], np.zeros(min(shape) - rank)], *shape, dtype)[0]
    for k in {1, 5, min(shape)}:
        sigma, U, V, ritz = find(A, k)
        check(A, k, sigma, U, V)
        assert k < min(shape) or ritz.missed == 0


def test_zeros_are_not_sought_for_long():
    """Values that are rounding need no evidence: it would take the whole space."""
    for dtype in DTYPES:
        A = with_values(np.r_[1, 0.5, 0.2, np.zeros(197)], 300, 200, dtype)[0]
        assert len(find(A, 5)[3].S) < 30  # three blocks of eight


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_units_do_not_matter(dtype, unit, monkeypatch):
    sizes, orthonormal = [], block.orthonormal
    spy = lambda W, *others: sizes.append(W.abs().max().item()) or orthonormal(W, *others)
    monkeypatch.setattr(block, "orthonormal", spy)
    A, _ = with_values(with_bulk([1, 0.98, 0.96], 90), 100, 90, dtype)
    sigma, U, V, ritz = find(A * unit, 3)
    wanted = find(A, 3)
    assert (sigma / unit - wanted[0]).abs().max() <= bound(A) and ritz.steps == wanted[3].steps
    assert (U - wanted[1]).norm() + (V - wanted[2]).norm() <= 100 * bound(A)  # over a gap of 2e-2
    assert (ritz.S[:4] / unit - wanted[3].S[:4]).abs().max() <= bound(A)
    assert 1e-6 < min(sizes) and max(sizes) < 1e6  # whose squares are numbers of any precision


def test_values_far_below_the_largest_keep_their_digits():
    """In AᴴA a value of 1e-9 would be lost; here the error of its vectors is that of the matrix, rounded."""
    A, V0 = with_values(np.r_[1, 1e-4, 1e-9, np.linspace(1e-10, 1e-12, 57)], 70, 60)
    sigma, U, V, _ = find(A, 3)
    check(A, 3, sigma, U, V)
    assert (1 - abs(V[2] @ V0[2])).item() ** 0.5 <= 50 * 2.2e-16 / 1e-9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_known_of_the_other_vectors(dtype):
    for shape in ((300, 200), (200, 300)):
        A, _ = with_values(with_bulk(np.linspace(1, 0.97, 4), 200, 0.95), *shape, dtype)
        sigma, U, V, ritz = find(A, 4)
        found = V if shape[0] > shape[1] else U
        assert (ritz.W[:4].abs() - found.abs()).abs().max() <= bound(A)  # but for the sign
        assert not_orthonormal(ritz.W) <= bound(A)
        assert len(ritz.W) == int((ritz.S > 0.8 * sigma[3]).sum())
        assert (ritz.S.double() <= torch.linalg.svdvals(*double(A))[: len(ritz.S)] + bound(A)).all()


# --- copies, and what is missed ---------------------------------------------------------------------------------------

#: the first values, and k: copies inside the set, at the cut, and through it
COPIES = {
    "double": ([1, 1], 2),
    "double at the cut": ([1, 1], 1),
    "triple": ([1, 1, 1], 3),
    "triple at the cut": ([1, 1, 1], 2),
    "double after a simple one": ([1, 0.95, 0.95], 3),
    "double at the cut after a simple one": ([1, 0.95, 0.95], 2),
    "fourfold": ([1] * 4, 4),
    "one copy more than k": ([1] * 5, 4),
    "two double ones": ([1, 1, 0.95, 0.95], 4),
    "through the cut": ([1, 1, 0.95, 0.95, 0.95], 4),
}
TOLS = (None, 1e-8, 1e-4, 1e-2)


def count_missed(name, seeds):
    """Runs in which one of the first k values, or the one after them, is not what it should be."""
    first, k = COPIES[name]
    missed = 0
    for seed in seeds:
        dtype = DTYPES[seed % 4]
        tol = TOLS[seed // 4 % 4] or None
        if tol == 1e-8 and dtype in (torch.float32, torch.complex64):
            tol = 1e-5
        A, _ = with_values(with_bulk(first, 70), *[(80, 70), (70, 80), (70, 70)][seed % 3], dtype, seed)
        sigma, _, _, ritz = find(A, k, tol=tol)
        known = torch.as_tensor(first)[: k + 1]
        missed += bool((ritz.S[: len(known)] - known).abs().max() > 1e-2)
    return missed


@pytest.mark.parametrize("name", COPIES)
def test_no_copy_is_missed(name):
    assert count_missed(name, range(6)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", COPIES)
def test_no_copy_is_missed_in_1000_runs(name):
    assert count_missed(name, range(1000, 1100)) == 0


#: values, and the vectors to start from; the second and later ones are wrong
STARTS = {
    "random": ([1, 0.997, 0.994, 0.991], 2, None),
    "the second": ([1, 0.998], 1, [1]),
    "the third and fourth": ([1, 0.997, 0.994, 0.991], 2, [2, 3]),
    "the first and third": ([1, 0.997, 0.994, 0.991], 2, [0, 2]),
    "not the fourth, but the fifth": ([1, 0.99, 0.98, 0.97, 0.967, 0.965], 4, [0, 1, 2, 4]),
}


def count_wrong(name, seeds, missed, dtype=torch.float64, tol=3e-2):
    """Runs that return, without a word, k values of which not all belong to the largest, by the resolution."""
    first, k, rows = STARTS[name]
    s, wrong = torch.as_tensor(with_bulk(first, 60)), 0
    for seed in seeds:
        A, V = with_values(s, *[(60, 60), (60, 70), (70, 60)][seed % 3], dtype, seed)
        sigma = find(A, k, start=None if rows is None else V[rows], tol=tol, missed=missed)[0]
        wrong += int((s > (1 + RESOLUTION) * sigma[-1].item()).sum()) >= k
    return wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("name", STARTS)
def test_no_larger_value_is_missed(name, dtype):
    assert count_wrong(name, range(20), 1e-3, dtype) == 0


@pytest.mark.slow
@pytest.mark.parametrize("missed", [0.3, 0.03, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", STARTS)
def test_the_risk_is_at_most_what_was_asked_for(name, dtype, missed):
    runs = 1000
    assert count_wrong(name, range(runs), missed, dtype) <= runs * missed + 2 * math.sqrt(runs * missed)


def test_without_evidence_values_are_missed():
    """The tests above can fail."""
    assert count_wrong("random", range(60), None) >= 5


def test_the_gap_at_the_cut_is_known():
    """Where the start is right, the k values are at once; the value after the cut has to be found all the same."""
    for seed in range(10):
        A, V = with_values(with_bulk([1, 0.9, 0.88], 400, 0.87), 400, 400, seed=seed)
        sigma, _, _, ritz = find(A, 2, start=V[:2], tol=1e-3, missed=None)
        assert 0.02 <= sigma[1] - ritz.S[2] + 1e-5 <= 2 * 0.02


def test_a_start_that_is_right_costs_less():
    A, V = with_values(with_bulk(np.linspace(1, 0.95, 4), 200), 300, 200)
    cold, warm = (find(A, 4, tol=1e-3, start=x)[3] for x in (None, V[:4]))
    assert warm.steps < cold.steps and warm.missed <= 1e-3
    sigma, U, V, ritz = find(A.mT.contiguous(), 4, start=find(A, 4)[1])
    check(A.mT, 4, sigma, U, V)


# --- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_bounded_basis_restarts(k, dtype, monkeypatch):
    monkeypatch.setattr(block, "BYTES", 0)
    A, _ = with_values(with_bulk(np.linspace(1, 0.95, k), 400, 0.94), 400, 450, dtype)
    sigma, U, V, ritz = find(A, k)
    check(A, k, sigma, U, V, 2)  # each restart rounds once more
    b = block.block_size(k)
    rows = ritz.products / 2 - k  # of all blocks
    assert len(ritz.S) <= k + 3 * b + max(4 * b, 60 + 2 * k)
    assert k == 1 or dtype in (torch.float32, torch.complex64) or rows > 1.5 * len(ritz.S)  # there were restarts


@pytest.mark.parametrize("n", [93, 94, 99, 101])
def test_a_space_a_little_larger_than_the_basis(n, monkeypatch):
    monkeypatch.setattr(block, "BYTES", 0)
    A, _ = with_values(np.linspace(1, 0.95, n), n, n)
    check(A, 4, *find(A, 4, missed=None)[:3])


def test_after_restarts_fresh_noise_finds_what_was_missed(monkeypatch):
    """From a start that is blind to v₁, by the time that rounding has brought it back, 0.995 has converged."""
    monkeypatch.setattr(block, "BYTES", 0)
    A, V = with_values(np.r_[1, 0.995, np.linspace(0.99, 0.05, 398)], 400, 400)
    noise = block.noise

    def blind_at_first(size, like, seed=0):
        x = noise(size, like, seed)
        return x if seed > 0 else (x.view(-1, 400) - x.view(-1, 400) @ torch.outer(V[0], V[0])).flatten()

    monkeypatch.setattr(block, "noise", blind_at_first)
    sigma, _, _, ritz = find(A, 1, tol=1e-3, missed=None)
    assert sigma < 0.996
    sigma, _, _, ritz = find(A, 1, tol=1e-3)
    assert sigma > 0.999 and ritz.steps < 60


# --- errors -----------------------------------------------------------------------------------------------------------


def test_products_that_are_not_finite():
    A = random(30, 20)
    A[3, 4] = torch.nan
    with pytest.raises(ValueError, match="products must be finite"):
        find(A, 2)
    A[3, 4] = torch.inf
    with pytest.raises(ValueError, match="products must be finite"):
        find(A, 2)
    by, calls = Products(random(300, 200)), []

    def breaks(X):
        calls.append(1)
        return by.mm(X) * (torch.nan if len(calls) == 4 else 1)

    with pytest.raises(ValueError, match="products must be finite"):
        block_lanczos(breaks, by.rmm, (300, 200), by.A[:1], 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_that_are_not_adjoint(shape):
    A, B = Products(random(*shape)), Products(random(*shape, seed=1))
    with pytest.raises(ValueError, match="not those of a matrix and its transpose"):
        block_lanczos(A.mm, B.rmm, shape, A.A[:1], 3)
    with pytest.raises(ValueError, match="not those of a matrix and its transpose"):
        block_lanczos(lambda X: A.mm(X).relu(), A.rmm, shape, A.A[:1], 3)


def test_too_few_steps():
    A = random(300, 200)
    with pytest.raises(ConvergenceError, match="residual of .* in 3 steps"):
        find(A, 4, maxiter=3)
    with pytest.raises(ConvergenceError, match="probability of up to"):
        find(A, 4, maxiter=3, tol=1.0, missed=1e-9)


def test_starts_that_say_nothing():
    A = random(30, 20)
    for start in (torch.zeros(2, 20), torch.full((2, 20), torch.nan)):
        with pytest.raises(ValueError, match="v0 must be finite and not zero"):
            find(A, 2, start=start)
    A = with_values([1, 0.9, 0.5], 20, 30)[0]  # a start in the null space of a wide matrix
    x = random(2, 30)
    Vh = torch.linalg.svd(A, full_matrices=False)[2][:3]
    x -= x @ Vh.mT @ Vh
    sigma, U, V, _ = find(A, 2, start=x)
    check(A, 2, sigma, U, V)


def test_the_same_matrix_gives_the_same_bits():
    A = random(60, 50)
    torch.manual_seed(1)
    first = find(A, 3)
    torch.manual_seed(2)
    assert all(torch.equal(x, y) for x, y in zip(first[:3], find(A.clone(), 3)[:3]))


# --- the adjoint ------------------------------------------------------------------------------------------------------


def from_numpy(A, k):
    """σ, U, V and all thin factors, by rows, from LAPACK in double precision, in the precision of A."""
    U, S, Vh = np.linalg.svd(double(A)[0].numpy(), full_matrices=False)
    U, S, V = torch.from_numpy(U.T.copy()).to(A), torch.from_numpy(S).to(A.real), torch.from_numpy(Vh.conj()).to(A)
    return S[:k], U[:k], V[:k], (U, S, V)


def solved(A, sigma, U, V, Phi, Psi):
    """(P, Q) by least squares with the whole system of each row, and P ⟂ U, Q ⟂ V, in double precision."""
    A, sigma, U, V, Phi, Psi = (x.numpy() for x in double(A, sigma, U, V, Phi, Psi))
    (m, n), P, Q = A.shape, np.empty_like(Phi), np.empty_like(Psi)
    for i, s in enumerate(sigma):
        K = np.block([[s * np.eye(m), -A], [-A.conj().T, s * np.eye(n)]])
        C = np.block([[s * U.conj(), np.zeros((len(U), n))], [np.zeros((len(U), m)), s * V.conj()]])
        c = np.r_[Phi[i] - U.T @ (U.conj() @ Phi[i]), Psi[i] - V.T @ (V.conj() @ Psi[i]), np.zeros(2 * len(U))]
        x = np.linalg.lstsq(np.r_[K, C], c, rcond=None)[0]
        P[i], Q[i] = x[:m], x[m:]
    return torch.from_numpy(P), torch.from_numpy(Q)


def problem(m, n, k, gap, dtype, inside=None, seed=0):
    """A matrix with this gap at the cut, and cotangents of its vectors."""
    inside = np.linspace(1, 0.9, k) if inside is None else inside
    rest = np.linspace(inside[-1] - gap, 0.05, min(m, n) - k)
    A, _ = with_values(np.r_[inside, rest], m, n, dtype, seed)
    return A, random(k, m, dtype, seed + 1), random(k, n, dtype, seed + 2)


def error(found, wanted):
    """The largest of the errors of the rows, each over its length."""
    return max(((x - y).norm(dim=1) / y.norm(dim=1)).max().item() for x, y in zip(double(*found), wanted))


def both(A, k, Phi, Psi, ritz=None):
    sigma, U, V, (U_all, S_all, V_all) = from_numpy(A, k)
    by = Products(A)
    yield columns_closed(sigma, U_all, S_all, V_all, k, Phi, Psi)
    yield columns_cg(by.mm, by.rmm, tuple(A.shape), sigma, U, V, Phi, Psi, ritz)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("shape", [(24, 14), (14, 24), (18, 18)], ids=str)
def test_the_adjoint_solves_its_system(shape, gap, dtype):
    if gap == 1e-6 and dtype in (torch.float32, torch.complex64):
        gap = 3e-5
    for k in (1, 3):
        A, Phi, Psi = problem(*shape, k, gap, dtype)
        wanted = solved(A, *from_numpy(A, k)[:3], Phi, Psi)
        for found in both(A, k, Phi, Psi):
            assert error(found, wanted) <= 50 * torch.finfo(dtype).eps / gap


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)], ids=str)
def test_values_far_below_the_largest_have_the_error_that_is_foretold(shape, dtype):
    """A step of the iteration makes what it leaves along U and V (σ₁/σₖ)² times as large, unless it is taken off."""
    eps = torch.finfo(dtype).eps
    last = eps**0.5 / 3
    A, _ = with_values(np.r_[1, 0.9, last, last * np.linspace(0.6, 0, min(shape) - 3)], *shape, dtype)
    Phi, Psi = random(3, shape[0], dtype, 1), random(3, shape[1], dtype, 2)
    wanted = solved(A, *from_numpy(A, 3)[:3], Phi, Psi)
    for found in both(A, 3, Phi, Psi):
        assert error(found, wanted) <= 30 * 4 * eps / (0.4 * last)  # expected_error, within the factor that it names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)], ids=str)
def test_gaps_inside_do_not_matter(shape, dtype):
    """Exact ties, and values that only rounding tells apart."""
    for inside in ([1, 1, 1], [1, 0.9, 0.9], [1, 1 - 1e-9, 1 - 2e-9]):
        A, Phi, Psi = problem(*shape, 3, 0.1, dtype, np.array(inside))
        wanted = solved(A, *from_numpy(A, 3)[:3], Phi, Psi)
        for found in both(A, 3, Phi, Psi):
            assert error(found, wanted) <= 500 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (200, 200)], ids=str)
def test_what_the_forward_iteration_knows_saves_steps(shape, dtype):
    gap, k = 1e-2, 4
    A, Phi, Psi = problem(*shape, k, gap, dtype)
    sigma, U, V, ritz = find(A, k)
    # the closed form serves other U and V of the same spaces: their rows are these, but for signs
    *_, all_of_them = from_numpy(A, k)
    sign = torch.linalg.vecdot(all_of_them[2][:k], V).unsqueeze(1)
    wanted = columns_closed(sigma, *all_of_them, k, Phi * sign.conj(), Psi * sign.conj())
    wanted = [x * sign for x in wanted]
    counts = []
    for known in (None, ritz):
        by = Products(A)
        found = columns_cg(by.mm, by.rmm, shape, sigma, U, V, Phi, Psi, known)
        assert error(found, double(*wanted)) <= 50 * torch.finfo(dtype).eps / gap
        counts.append(by.count)
    assert counts[1] < 0.8 * counts[0]


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)], ids=str)
def test_many_cotangents_at_once_and_rows_of_zeros(shape):
    A, _, _ = problem(*shape, 3, 0.1, torch.float64)
    Phi, Psi = (random(4, 3 * size, seed=5).view(4, 3, size) for size in shape)
    Phi[1], Psi[1], Phi[2, 1], Psi[2, 1], Phi[3] = 0, 0, 0, 0, 0
    sigma, U, V, (U_all, S_all, V_all) = from_numpy(A, 3)
    P, Q = columns_closed(sigma, U_all, S_all, V_all, 3, Phi, Psi)
    by, zero = Products(A), Products(A)
    for x, y in zip(columns_cg(by.mm, by.rmm, shape, sigma, U, V, Phi, Psi), (P, Q)):
        assert (x - y).abs().max() <= 500 * 2.2e-16 * y.abs().max()
    assert not P[1].any() and not Q[2, 1].any()
    one = [columns_cg(zero.mm, zero.rmm, shape, sigma, U, V, *x)[0] for x in ((Phi[1], Psi[1]), (Phi[0], Psi[0]))]
    assert not one[0].any() and zero.count < by.count
    zero.count = 0
    columns_cg(zero.mm, zero.rmm, shape, sigma, U, V, Phi[1], Psi[1])
    assert zero.count == 0


def test_what_has_converged_is_left_out():
    """Three rows that are done in a step or two, since they lie along singular vectors, cost next to nothing."""
    A, Phi, Psi = problem(300, 200, 4, 1e-2, torch.float64)
    sigma, U, V, (U_all, _, V_all) = from_numpy(A, 4)
    Phi[:3], Psi[:3] = U_all[10:13], V_all[10:13]
    counts = []
    for rows in (slice(0, 4), slice(3, 4)):
        by = Products(A)
        Phi[: rows.start], Psi[: rows.start] = 0, 0
        columns_cg(by.mm, by.rmm, (300, 200), sigma, U, V, Phi, Psi)
        counts.append(by.count)
    assert counts[0] <= counts[1] + 60


def test_a_batch_in_closed_form():
    A = random(6, 30).view(6, 6, 5)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    U, V = U.mT, Vh.conj()
    Phi, Psi = random(6, 12, seed=1).view(6, 2, 6), random(6, 10, seed=2).view(6, 2, 5)
    P, Q = columns_closed(S[:, :2], U, S, V, 2, Phi, Psi)
    for i in range(6):
        gap = (S[i, 1] - S[i, 2]) / S[i, 0]
        wanted = solved(A[i], S[i, :2], U[i, :2], V[i, :2], Phi[i], Psi[i])
        assert error((P[i], Q[i]), wanted) <= 50 * 2.2e-16 / gap


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 4), (4, 1)], ids=str)
def test_all_triplets_leave_the_remainder_or_nothing(shape):
    A, k = random(*shape), min(shape)
    Phi, Psi = random(k, shape[0], seed=1), random(k, shape[1], seed=2)
    sigma, U, V, _ = from_numpy(A, k)
    off = [Phi - Phi @ U.mT @ U, Psi - Psi @ V.mT @ V]
    for found in both(A, k, Phi, Psi):
        for x, y in zip(found, off):
            assert (x - y / sigma[:, None]).abs().max() <= 500 * 2.2e-16 / sigma[-1]


@pytest.mark.parametrize("unit", [1e-30, 1e30])
@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_the_adjoint_has_no_units(unit, size):
    A, Phi, Psi = problem(30, 20, 3, 0.1, torch.float32)
    wanted = list(both(A, 3, Phi, Psi))
    for x, y in zip(both(A * unit, 3, Phi * size, Psi * size), wanted):
        scaled = [v.double() * unit / size for v in x]
        assert error(scaled, double(*y)) <= 1000 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)], ids=str)
def test_a_tie_at_the_cut_is_an_error(shape, dtype):
    A, Phi, Psi = problem(*shape, 3, 0.0, dtype, np.array([1, 0.9, 0.9]))
    sigma, U, V, _ = from_numpy(A, 3)
    by = Products(A)
    with pytest.raises(TieError, match="σ_k equals the next"):
        columns_cg(by.mm, by.rmm, shape, sigma, U, V, Phi, Psi)
    sigma, U, V, ritz = find(A, 3)
    with pytest.raises(TieError, match="σ_k equals the next"):
        columns_cg(by.mm, by.rmm, shape, sigma, U, V, Phi, Psi, ritz)
    A, _ = with_values(np.r_[1, 0.5, np.zeros(min(shape) - 2)], *shape, dtype)  # zero, of which there are more
    with pytest.raises(TieError, match="σ_k equals the next"):
        list(both(A, 3, Phi, Psi))


def test_vectors_that_are_not_the_dominant_ones():
    A, Phi, Psi = problem(30, 20, 3, 0.1, torch.float64)
    _, _, _, (U, S, V) = from_numpy(A, 3)
    by = Products(A)
    with pytest.raises(TieError, match="negative curvature"):
        columns_cg(by.mm, by.rmm, (30, 20), S[1:4], U[1:4], V[1:4], Phi, Psi)


@pytest.mark.parametrize(
    ("k", "b", "dtype"),
    [(1, 3, torch.float64), (1, 4, torch.float64), (2, 4, torch.float64), (1, 3, torch.complex128)],
    ids=str,
)
def test_a_risk_as_small_is_found_as_seldom_where_a_value_is_missed(k, b, dtype):
    """Random blocks, of which k triplets are taken for all that was found, and two steps of each combination. One of k
    values is missed, so that this one has a k-th of the risk.

    A product of the bounds of single combinations does not do: it is below 0.1 in more than a fourth of the starts.
    """
    n, draws = 120, 1500
    values = torch.tensor([*range(k + 1, 0, -1), *[0.9] * 58, *[0.5] * 60])[:n].double()
    generator = torch.Generator().manual_seed(b)
    risks = []
    for _ in range(draws):
        start = torch.randn(b, n, dtype=dtype, generator=generator) / n**0.5  # along the singular vectors
        Q, R = torch.linalg.qr(start.mT, mode="complete")
        risk = chance(R[:b].mT, Q.mT, values[k:] ** 2, torch.ones(b), 1.0, n, 2, 2.0**-52)
        risks.append(risk)
    for small in (0.1, 0.03, 0.01):
        often = sum(risk <= small for risk in risks) / draws
        assert often <= small / k + 3 * (small / k / draws) ** 0.5, small
    assert min(risks) < 0.03  # it is no empty promise
