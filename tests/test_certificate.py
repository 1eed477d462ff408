"""No larger singular value is missed without a word: the certificate of the Lanczos iteration, and what it promises."""

import itertools
import math

import numpy as np
import pytest
import torch

import svdgrad
from svdgrad import matrices
from svdgrad.certificate import RESOLUTION, allowed, hidden, noise_beside, probability
from svdgrad.forward import lanczos

DTYPES = [torch.float32, torch.float64]


# --- starts that hide the answer --------------------------------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x)


def rotations(rng, m, n):
    """Orthonormal columns, as many as the smaller side has, on either side."""
    return (np.linalg.qr(rng.standard_normal((size, min(m, n))))[0] for size in (m, n))


def of_norm_one(rng, m, n):
    A = rng.standard_normal((m, n))
    return A / np.linalg.norm(A, 2)


def blocks(seed, lead=0.003, dirt=0.0):
    """Two blocks, the start in the one that has just lost the lead."""
    rng = np.random.default_rng(seed)
    B, C = of_norm_one(rng, 60, 50), (1 + lead) * of_norm_one(rng, 60, 50)
    A = np.zeros((120, 100))
    A[:60, :50], A[60:, 50:] = B, C
    v0 = unit(np.linalg.svd(B)[2][0] + dirt * unit(rng.standard_normal(50)))
    return A, np.r_[v0, np.zeros(50)]


def second(seed, gap, dirt=0.0):
    """The start is the second right singular vector, or near it; every second matrix is wide."""
    rng = np.random.default_rng(seed)
    m, n = (90, 80) if seed % 2 else (80, 90)
    U, V = rotations(rng, m, n)
    s = np.r_[1, 1 - gap, np.linspace(0.8, 0.05, 78)]
    return (U * s) @ V.T, unit(V[:, 1] + dirt * unit(rng.standard_normal(n)))


def convolution(seed):
    """Second differences of an image with zeros around, from a start of ones; random signs of the pixels."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(5, 12, 2)
    D_a, D_b = (2 * np.eye(k) - np.eye(k, k=1) - np.eye(k, k=-1) for k in (a, b))
    x, y = rng.uniform(0.5, 1.5, 2)
    signs = rng.choice([-1.0, 1.0], a * b)
    return signs[:, None] * (x * np.kron(D_a, np.eye(b)) + y * np.kron(np.eye(a), D_b)) * signs, signs


def moved(seed):
    """A Gaussian matrix that has moved by one percent since its singular vector was found: the start is right."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((80, 80))
    return A + 0.01 * rng.standard_normal((80, 80)), np.linalg.svd(A)[2][0]


def mirror(seed):
    """A matrix that maps even vectors to even ones and odd ones to odd ones; v is odd, the start is even."""
    rng = np.random.default_rng(seed)
    half = np.eye(45) / 2**0.5
    even, odd = (np.vstack([half, sign * half[::-1]]) for sign in (1, -1))
    A = even @ of_norm_one(rng, 45, 45) @ even.T + 1.01 * odd @ of_norm_one(rng, 45, 45) @ odd.T
    return A, even @ rng.standard_normal(45)


STARTS = {
    "two blocks, 0.3% apart": blocks,
    "two blocks, 0.3% apart, near it": lambda seed: blocks(seed, dirt=0.3),
    "the second, 1e-1 apart": lambda seed: second(seed, 1e-1),
    "the second, 1e-2 apart": lambda seed: second(seed, 1e-2),
    "the second, 1e-3 apart": lambda seed: second(seed, 1e-3),
    "near the second, 1e-3 apart": lambda seed: second(seed, 1e-3, dirt=0.3),
    "convolution from ones": convolution,
    "moved by 1%": moved,
    "even, where v is odd": mirror,
}


def count_wrong(start, dtype, tols, seeds, missed=1e-3, to_complex=False):
    """For each tolerance the number of runs that return, without a word, a value nearer to σ₂ than to σ₁."""
    wrong = dict.fromkeys(tols, 0)
    for seed in seeds:
        A, v0 = (torch.from_numpy(x) for x in start(seed))
        S = torch.linalg.svdvals(A)
        if to_complex:  # phases of rows and columns change no singular value
            rows, columns = (torch.polar(torch.ones(k), torch.rand(k) * 6.28).to(torch.complex128) for k in A.shape)
            A, v0 = rows[:, None] * A * columns, columns.conj() * v0
            A, v0 = A.to(torch.complex64 if dtype is torch.float32 else torch.complex128), v0
        else:
            A = A.to(dtype)
        for tol in tols:
            sigma = lanczos(A, v0=v0.to(A), tol=tol, missed=missed)[0].sigma
            wrong[tol] += bool(sigma < (S[0] + S[1]) / 2)
    return wrong


TOLS = (None, 1e-4, 1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_start_that_hides_the_answer_does_not_hide_it(start, dtype):
    """Of 25 runs none; 1e-3 promises 0.025."""
    assert set(count_wrong(start, dtype, TOLS, range(25)).values()) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_of_3000_starts_that_hide_the_answer_at_most_3_do(start, dtype):
    """What missed=1e-3 promises, at every tolerance."""
    assert max(count_wrong(start, dtype, TOLS, range(3000)).values()) <= 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["the second, 1e-2 apart", "two blocks, 0.3% apart", "even, where v is odd"])
def test_complex_starts_too(name, dtype):
    torch.manual_seed(0)
    assert set(count_wrong(STARTS[name], dtype, TOLS, range(10), to_complex=True).values()) == {0}


def test_without_evidence_they_do():
    """The table above can fail: from v0 alone nearly all of these runs return σ₂."""
    wrong = count_wrong(STARTS["the second, 1e-2 apart"], torch.float32, TOLS, range(10), missed=None)
    assert wrong[1e-4] >= 8 and wrong[1e-2] == 10


@pytest.mark.parametrize("missed", [0.3, 0.03])
def test_the_risk_that_is_taken_is_the_risk_that_was_asked_for(missed):
    """In both directions: never more, and not much less, or the proof would cost steps for nothing."""
    runs, start = 600, lambda seed: second(seed, 2e-3)
    wrong = count_wrong(start, torch.float64, (1e-2,), range(runs), missed=missed)[1e-2] / runs
    assert missed / 20 <= wrong <= missed + 2 * math.sqrt(missed / runs)


def test_the_two_blocks_of_the_chapter():
    torch.manual_seed(0)
    B, C = (torch.randn(170, 170) for _ in "ab")
    B, C = (M / torch.linalg.matrix_norm(M.double(), 2).float() for M in (B, C))
    v0 = torch.cat([torch.linalg.svd(B).Vh[0], torch.zeros(170)])
    A = torch.block_diag(B, 1.003 * C).requires_grad_()
    for sigma in (
        svdgrad.singular_triplet(A, v0=v0).sigma,
        svdgrad.spectral_norm(A, v0=v0),
        svdgrad.operator_triplet(lambda A, x: A @ x, A, v0).sigma,
        svdgrad.rank_two_gradient(lambda t: t.sigma, A.detach(), v0=v0)[0],
    ):
        assert abs(sigma - 1.003) <= 1e-5
    assert abs(svdgrad.singular_triplet(A, v0=v0, missed=None).sigma - 1) <= 1e-5


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [1e-2, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_at_the_default_tolerance_a_right_start_pays_nothing_for_it(dtype, moved):
    """The noise is too little to cost the residual a step, and enough for a proof by then."""
    more = []
    for seed in range(5):
        A, A0 = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 300, 300)))
        A0 = A0.to(dtype) if dtype is torch.float64 else torch.complex(A0, A0.T.contiguous())
        v0 = lanczos(A0)[0].v
        steps = [lanczos(A0 + moved * A, v0=v0, missed=missed)[1].steps.item() for missed in (1e-3, None)]
        more.append(steps[0] - steps[1])
    assert np.mean(more) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_the_default_tolerance_a_start_without_v0_pays_nothing(dtype):
    for seed in range(3):
        A = matrices.gaussian(300, 200, seed=seed, dtype=dtype)
        assert lanczos(A)[1].steps == lanczos(A, missed=None)[1].steps


def test_in_single_precision_a_right_start_costs_no_more_than_none():
    A = matrices.gaussian(300, 300, dtype=torch.float32)
    v0 = lanczos(A + 0.01 * matrices.gaussian(300, 300, seed=1, dtype=torch.float32))[0].v
    assert lanczos(A, v0=v0)[1].steps <= lanczos(A)[1].steps


def test_a_smaller_risk_costs_more_steps_and_is_kept():
    A, v0 = (torch.from_numpy(x) for x in moved(0))
    steps = []
    for missed in (1.0, 1e-1, 1e-3, 1e-6):
        known = lanczos(A, v0=v0, tol=1e-2, missed=missed)[1]
        assert known.missed <= missed
        steps.append(known.steps.item())
    assert steps == sorted(steps) and steps[0] < steps[-1]


# --- the formulas -----------------------------------------------------------------------------------------------------


def bases(dtype, steps=6):
    """M, an orthonormal basis of its Krylov space with one vector more, and T, by QR in place of a recurrence."""
    A = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 30, 20)))
    A = A[0] if dtype is torch.float64 else torch.complex(*A)
    M, x = A.mH @ A / 50, torch.linspace(1, 2, 20).to(dtype)
    V = [x / x.norm()]
    for _ in range(steps):
        V.append(torch.linalg.qr(torch.stack([*V, M @ V[-1]], 1))[0][:, -1])
    V = torch.stack(V, 1)
    T = (V.mH @ M @ V)[:, :steps]
    return M, V, T.diagonal().real.tolist(), T.diagonal(-1).abs().tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_no_vector_of_a_larger_value_has_more_of_the_start(dtype):
    """⟨w, v₁⟩ is the bound times the part of w that lies in the basis; with all of w in it, it is the bound."""
    M, V, diagonal, off = bases(dtype)
    values, W = torch.linalg.eigh(M)
    top = torch.linalg.eigvalsh(V[:, :6].mH @ M @ V[:, :6])[-1].item()
    seen = 0
    for value, w in zip(values.tolist(), W.T):
        if value > top:
            share = hidden(diagonal, off, value)
            inside = (V.mH @ w).norm()
            assert abs(abs(torch.vdot(w, V[:, 0])) / inside - share) <= 1e-10 * share and inside < 1
            seen += 1
    assert seen == 1
    assert hidden(diagonal, off, 0.9 * top) == 1.0
    assert hidden([2.0, 1.0], [0.0, 0.5], 3.0) == 0.0  # an exhausted space
    # by hand: T = 0, β = 1 and λ = 2 give π = 1, 2, 3 (Chebyshev's polynomials of the second kind at 1)
    assert hidden([0.0, 0.0], [1.0, 1.0], 2.0) == pytest.approx(14**-0.5)


@pytest.mark.parametrize("excess", [1e-3, 1e-2, 0.3])
def test_nothing_better_can_be_said_from_the_same_numbers(excess):
    """Every T goes on to a matrix that has the value, and of whose vector the start has just that share."""
    _, _, diagonal, off = bases(torch.float64)
    T = np.diag(diagonal) + np.diag(off[:-1], 1) + np.diag(off[:-1], -1)
    value = (1 + excess) * np.linalg.eigvalsh(T)[-1]
    # one more row, whose last entry makes the value an eigenvalue
    row = np.zeros(len(T))
    row[-1] = off[-1]
    last = value - row @ np.linalg.solve(value * np.eye(len(T)) - T, row)
    values, W = np.linalg.eigh(np.block([[T, row[:, None]], [row, last]]))
    i = np.argmin(abs(values - value))
    assert values[i] == pytest.approx(value, rel=1e-12)
    assert abs(W[0, i]) == pytest.approx(hidden(diagonal, off, value), rel=1e-8)


def without_what_was_found(A, v0, noise, tol):
    """σ when the residual is small, and when Lanczos from the noise off the Ritz vector says that nothing is left.

    What it says of a share of the start it says of the rest of the start, which has less of w: ⟨w, v₁⟩ and ⟨w, rest⟩
    differ by ⟨w, y⟩⟨y, v₁⟩, and the residual of y bounds that by tol over the distance of the two values.
    """
    n = len(A)
    x = v0 + noise
    amount = np.linalg.norm(noise) / np.linalg.norm(x)
    V = [unit(x)]
    for step in range(1, n):
        w = A @ V[-1]
        for _ in range(2):
            w = w - np.array(V).T @ (np.array(V) @ w)
        Q = np.array(V)
        values, Y = np.linalg.eigh(Q @ A @ Q.T)
        if step > 2 and np.linalg.norm(w) * abs(Y[-1, -1]) <= tol * values[-1]:
            rest = -Y[:, -1] * Y[0, -1] + np.eye(step)[0]
            length = np.linalg.norm(rest)
            # Lanczos's iteration for the diagonal matrix of the other Ritz values
            weights, diagonal, off, P = Y[:, :-1].T @ rest / length, [], [], []
            for _ in range(step - 2):
                P.append(unit(weights))
                z = values[:-1] * P[-1]
                diagonal.append(P[-1] @ z)
                for _ in range(2):
                    z = z - np.array(P).T @ (np.array(P) @ z)
                off.append(np.linalg.norm(z))
                weights = z
            share = hidden(diagonal, off, values[-1]) * length if diagonal else 1.0
            if probability(share, n, amount, False) <= 1e-3:
                return values[-1], step
        V.append(unit(w))
    return values[-1], n


def test_one_that_leaves_out_what_was_found_promises_too_much():
    """It takes fewer steps, and is wrong 10 times as often as the one in 1,000 that it promises, and more."""
    n, lead, wrong, ours, cheap, sound = 60, 1.002, 0, 0, [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        s = np.r_[lead, 1, 0.3 * rng.random(n - 2)]
        A, v0 = np.diag(s), np.eye(n)[1]
        square, steps = without_what_was_found(A @ A, v0, 0.05 * rng.standard_normal(n) / n**0.5, 1e-2)
        wrong += square < (lead**2 + 1) / 2
        cheap.append(steps)
        order = rng.permutation(n)  # the package's noise is always the same
        t, known = lanczos(torch.from_numpy(A[order][:, order]), v0=torch.from_numpy(v0[order]), tol=1e-2)
        ours += t.sigma.item() < (lead + 1) / 2
        sound.append(known.steps.item())
    assert wrong >= 3 and ours == 0 and np.mean(cheap) < np.mean(sound)


@pytest.mark.parametrize(("size", "many"), [(5, 400), (3, 1000)])
def test_it_neither_overflows_nor_underflows(size, many):
    assert hidden([0.0] * many, [10.0**-size] * many, 1.0) >= 0.0
    assert hidden([0.0] * many, [10.0**size] * many, 2.1 * 10.0**size) > 0.0


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("mean", [0.0, 0.05])
def test_the_probability_bounds_how_often_a_random_start_has_so_little_of_a_vector(is_complex, mean):
    """Close where v0 itself has nothing of it; the numbers by simulation."""
    size, noise, runs = 50, 0.2, 200_000
    g = np.random.default_rng(0).standard_normal((2, runs))
    g = (g[0] + 1j * g[1]) / 2**0.5 if is_complex else g[0]
    component = np.abs(mean + noise * g / size**0.5)
    for share in (1e-3, 3e-3, 1e-2):
        often, bound = (component <= share).mean(), probability(share, size, noise, is_complex)
        assert often <= bound + 3 * math.sqrt(bound / runs)
        if mean == 0:
            assert often >= 0.8 * bound - 3 * math.sqrt(bound / runs)
        assert allowed(bound, size, noise, is_complex) == pytest.approx(share)
    assert probability(1.0, size, noise, is_complex) == 1.0


# --- the edges --------------------------------------------------------------------------------------------------------


def test_a_tie_is_accepted_and_one_value_above_the_resolution_is_not():
    s = np.r_[1.0, 1.0, np.linspace(0.8, 0.1, 38)]
    known = lanczos(matrices.with_singular_values(s, 60, 40))[1]
    assert abs(known.S[0] - 1) <= 1e-14 and known.missed <= 1e-3
    v0, (U, V) = torch.zeros(40).double(), rotations(np.random.default_rng(0), 60, 40)
    for gap, found in ((10 * RESOLUTION, 1.0), (1e-9, 1 - 1e-9)):
        s[1] = 1 - gap
        A, v0 = torch.from_numpy((U * s) @ V.T), torch.from_numpy(V[:, 1])
        assert abs(lanczos(A, v0=v0, tol=1e-6)[0].sigma - found) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 2), (4, 4)], ids=str)
def test_an_exhausted_space_leaves_no_doubt(shape, dtype):
    A = matrices.gaussian(*shape).to(dtype)
    assert lanczos(A, tol=0.0)[1].missed == 0
    assert lanczos(torch.zeros(shape, dtype=dtype))[1].missed == 0
    assert lanczos(torch.eye(*shape, dtype=dtype))[1].missed <= 1e-5


def test_a_batch_has_one_for_each():
    A = torch.stack([matrices.gaussian(60, 40, seed=seed) for seed in range(3)])
    known = lanczos(A, tol=1e-2)[1]
    assert known.missed.shape == (3,) and (known.missed > 0).all() and (known.missed <= 1e-3).all()
    assert lanczos(A[:0])[1].missed.shape == (0,)


def test_what_diagnose_says():
    A = matrices.gaussian(60, 40)
    assert svdgrad.diagnose(A).missed == 0  # a direct method misses nothing
    found = svdgrad.diagnose(A, forward="lanczos", tol=1e-2)
    assert 0 < found.missed <= 1e-3
    assert svdgrad.diagnose(A, forward="lanczos", tol=1e-2, v0=torch.ones(40), missed=None).missed == 1
    assert found.missed == pytest.approx(lanczos(A, tol=1e-2)[1].missed.item())


def test_no_convergence_says_which_of_the_two_is_wanting():
    A = matrices.gaussian(200, 150)
    for scale in (1.0, 1e20):
        with pytest.raises(
            svdgrad.ConvergenceError,
            match=r"residual that was wanted, 1\.0e-01 σ, in 6 steps, but a singular value above 1\.001 σ may have "
            r"been missed with a probability of 1\.0e\+00, where missed=0\.001 .*Raise maxiter or missed, or trust v0",
        ):
            lanczos(scale * A, tol=1e-1, maxiter=6)
    with pytest.raises(svdgrad.ConvergenceError, match="reached a residual of"):
        lanczos(A, tol=1e-3, maxiter=6)


CALLS = {
    "singular_triplet": lambda A, **how: svdgrad.singular_triplet(A, **how),
    "spectral_norm": lambda A, **how: svdgrad.spectral_norm(A, **how),
    "rank_two_gradient": lambda A, **how: svdgrad.rank_two_gradient(lambda t: t.sigma, A, **how),
    "diagnose": lambda A, **how: svdgrad.diagnose(A, **how),
    "operator_triplet": lambda A, **how: svdgrad.operator_triplet(lambda A, x: A @ x, A, torch.ones(A.shape[1]), **how),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("missed", [0, -1e-3, 1.5, math.nan, "1e-3"])
def test_missed_is_a_probability(call, missed):
    with pytest.raises(ValueError, match="missed must be a probability above 0 and up to 1, or None .* found"):
        CALLS[call](torch.eye(4, 3), missed=missed)


@pytest.mark.parametrize("call", [name for name in CALLS if name != "operator_triplet"])
def test_a_method_that_takes_no_risk_has_no_such_option(call):
    for forward, missed in itertools.product(("svd", "gram"), (1e-2, None)):
        with pytest.raises(ValueError, match=f"forward '{forward}' does not iterate, found missed={missed}"):
            CALLS[call](torch.eye(4, 3), forward=forward, missed=missed)
        CALLS[call](torch.eye(4, 3), forward=forward, missed=1e-3)
    CALLS[call](torch.eye(4, 3), missed=None)  # "auto" may take it or not


def test_what_the_chapter_says_of_the_noise_and_the_resolution():
    assert RESOLUTION == 1e-3 and noise_beside(1e-2) == 0.05 and noise_beside(1e-8) == pytest.approx(0.01)
