"""Ties and near ties on the paths that use products alone, where a Krylov space holds one vector of a multiple σ."""

import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch

import svdgrad
from svdgrad import matrices
from svdgrad.certificate import RESOLUTION
from svdgrad.copies import OVERLOOKED, largest_unseen
from svdgrad.forward import lanczos
from svdgrad.forward.basis import noise
from svdgrad.gap import near_tie, tie

SHAPES = {"tall": (60, 40), "wide": (40, 60), "square": (50, 50)}
REAL = [torch.float32, torch.float64]
DTYPES = [*REAL, torch.complex64, torch.complex128]
LOSSES = {
    "u": lambda t: t.u[0].abs(),
    "v": lambda t: t.v[-1].abs(),
    "all": lambda t: t.sigma + (t.u[0].conj() * t.v[1]).abs(),
}


def with_values(s, m, n, dtype, seed=0):
    """U diag(s) Vᴴ with random singular vectors, complex for a complex dtype."""
    rng = np.random.default_rng(seed)
    k = len(s)
    factors = []
    for size in (m, n):
        X = rng.standard_normal((size, k))
        X = X + 1j * rng.standard_normal((size, k)) if dtype.is_complex else X
        factors.append(np.linalg.qr(X)[0])
    U, V = factors
    return torch.from_numpy((U * s) @ V.conj().T).to(dtype)


def apart(k, gap):
    """1, 1 − gap, and a tail that falls evenly from 0.8."""
    return np.r_[1.0, 1.0 - gap, np.linspace(0.8, 0.1, k - 2)]


def run(A, loss, how):
    """Value and backward, by singular_triplet or as an operator."""
    A = A.clone().requires_grad_()
    if how == "operator":
        t = svdgrad.operator_triplet(lambda A, x: A @ x, A, torch.ones(A.shape[1], dtype=A.dtype))
    else:
        t = svdgrad.singular_triplet(A, forward="lanczos", adjoint=how)
    loss(t).backward()
    return A.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_of_all_ties_each_is_a_tie_error(shape, dtype):
    """288 in all: 3 shapes × 4 dtypes × 3 losses × 4 ties × 2 ways, of which complex operators are "saddle" instead."""
    m, n = SHAPES[shape]
    k, count = min(m, n), 0
    values = {
        "double": np.r_[1, 1, np.linspace(0.8, 0.1, k - 2)],
        "triple": np.r_[1, 1, 1, np.linspace(0.8, 0.1, k - 3)],
        "with a neighbour": np.r_[1, 1, 0.99, np.linspace(0.8, 0.1, k - 3)],
        "half of all": np.r_[np.ones(k // 2), np.full(k - k // 2, 0.5)],
    }
    for (name, s), loss in itertools.product(values.items(), LOSSES.values()):
        A = 7 * with_values(s, m, n, dtype, seed=len(name))
        for how in ("auto", "saddle" if dtype.is_complex else "operator"):
            with pytest.raises(svdgrad.TieError, match="have no derivative where σ is not simple; found"):
                run(A, loss, how)
            count += 1
    assert count * len(SHAPES) * len(DTYPES) == 288


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tie_that_the_loss_does_not_touch_is_one_all_the_same(shape):
    """Nothing in the adjoint system points to the copy: only fresh noise sees it."""
    A = with_values(apart(min(SHAPES[shape]), 0), *SHAPES[shape], torch.float64)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    t, known = lanczos(A)
    copy = Vh[:2].T @ torch.tensor([-(Vh[1] @ t.v), Vh[0] @ t.v]).double()
    X = A.clone().requires_grad_()
    v = svdgrad.singular_triplet(X, forward="lanczos").v
    with pytest.raises(svdgrad.TieError):
        (v @ Vh[5] + 0 * (v @ copy)).backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_diagnose_says_the_gap_as_it_is(shape, dtype):
    eps = torch.finfo(dtype).eps
    for gap in (0.0, 1e-5, RESOLUTION / 2, 1e-2, 0.1):
        A = with_values(apart(min(SHAPES[shape]), gap), *SHAPES[shape], dtype)
        S = torch.linalg.svdvals(A.to(torch.complex128 if dtype.is_complex else torch.float64))
        found = svdgrad.diagnose(A, forward="lanczos").gap
        assert abs(found - (1 - S[1] / S[0])) <= 0.1 * gap + 10 * eps, gap


@pytest.mark.parametrize("how", ["auto", "operator"])
def test_a_copy_is_seen_wherever_it_is(how):
    """A near copy of σ, unseen by the iteration if the start lies in the block of the other: no wrong gradient."""
    s = np.r_[1.0, np.linspace(0.8, 0.1, 39)]
    for gap, outcome in ((1e-15, svdgrad.TieError), (6e-14, svdgrad.NearTieWarning)):
        A = torch.block_diag(*(with_values(f * s, 50, 40, torch.float64, seed=3) for f in (1, 1 - gap)))
        with pytest.raises(outcome), warnings.catch_warnings():
            warnings.simplefilter("error", svdgrad.NearTieWarning)
            run(A, LOSSES["v"], how)


def test_a_batch_is_judged_by_its_closest():
    A = torch.stack([with_values(apart(40, gap), 60, 40, torch.float64) for gap in (0.1, 0.0, 0.2)]).requires_grad_()
    t = svdgrad.singular_triplet(A, forward="lanczos")
    assert torch.autograd.grad(t.sigma.sum(), A, retain_graph=True)[0].isfinite().all()
    with pytest.raises(svdgrad.TieError, match="relative gap"):
        t.u[:, 0].sum().backward()
    (svdgrad.singular_triplet(A[::2], forward="lanczos").u[:, 0].sum()).backward()


@pytest.mark.parametrize("adjoint", svdgrad.adjoint.SOLVERS)
def test_a_matrix_that_the_loss_does_not_read_needs_no_gap(adjoint):
    """Whatever it is: a tie, a unit matrix, zeros, and whether autograd, torch.func or a mask leaves it out."""
    good = [with_values(apart(4, 0.3), 6, 4, torch.complex128, seed=i) for i in range(2)]
    of = lambda A: LOSSES["all"](svdgrad.singular_triplet(A, forward="svd", adjoint=adjoint))
    alone = [torch.func.grad(of)(A) for A in good]
    weights = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    for bad in (with_values(apart(4, 0), 6, 4, torch.complex128), torch.eye(6, 4), torch.zeros(6, 4)):
        A = torch.stack([good[0], bad, good[1]])
        masked = lambda A: (torch.func.vmap(of)(A) * weights).sum()
        X = A.clone().requires_grad_()
        masked(X).backward()
        for found in (X.grad, torch.func.grad(masked)(A)):
            assert not found[1].any()
            assert all((x - y).norm() <= 1e-13 * y.norm() for x, y in zip(found[::2], alone))
    A = torch.zeros(6, 4, dtype=torch.complex128)  # by torch.func, which hands zeros to what a loss does not use
    assert torch.func.grad(lambda A: svdgrad.singular_triplet(A, adjoint=adjoint).sigma)(A).isfinite().all()


def test_forward_mode_and_vmap_raise_it_too():
    A, E = with_values(apart(40, 0), 60, 40, torch.float64), matrices.gaussian(60, 40)
    f = lambda A: svdgrad.singular_triplet(A, forward="lanczos").v
    with pytest.raises(svdgrad.TieError):
        torch.func.jvp(f, (A,), (E,))
    with pytest.raises(svdgrad.TieError):
        torch.func.vmap(torch.func.grad(lambda A: f(A)[0]))(torch.stack([A, A]))


@pytest.mark.parametrize("how", ["auto", "operator"])
def test_a_value_that_is_larger_is_not_taken_for_a_gap(how):
    """missed=None trusts a v0 that lies; whoever then asks for a gradient of v is told."""
    A = with_values(apart(40, 0.05), 60, 40, torch.float64).requires_grad_()
    v0 = torch.linalg.svd(A.detach(), full_matrices=False).Vh[1]
    if how == "operator":
        t = svdgrad.operator_triplet(lambda A, x: A @ x, A, v0, tol=1e-3, missed=None)
    else:
        t = svdgrad.singular_triplet(A, forward="lanczos", v0=v0, tol=1e-3, missed=None)
    assert abs(t.sigma - 0.95) <= 1e-3
    with pytest.raises(
        svdgrad.ConvergenceError,
        match="not the largest singular value: .* larger by at least .*e-02",
    ):
        t.v[0].backward()


def test_periodic_convolutions_have_ties_by_the_rule():
    """Frequencies k and −k have the same gain; only where the largest is that of 0 or of n/2 is it simple."""
    ties = 0
    for seed in range(20):
        kernel = matrices.gaussian(3, 3, seed=seed)[None, None].requires_grad_()

        def periodic(kernel, x):
            return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), kernel)

        gains = torch.fft.fft2(kernel.detach()[0, 0], s=(8, 8)).abs()
        double = (gains > gains.max() * (1 - 1e-9)).sum() > 1
        t = svdgrad.operator_triplet(periodic, kernel, matrices.gaussian(8, 8, seed=99)[None, None])
        assert abs(t.sigma - gains.max()) <= 1e-12
        t.sigma.backward(retain_graph=True)
        if double:
            ties += 1
            with pytest.raises(svdgrad.TieError):
                t.v[0, 0, 0, 0].backward()
        else:
            t.v[0, 0, 0, 0].backward()
    assert 8 <= ties < 20


@pytest.mark.slow
@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("name", ["even", "close", "falling"])
def test_a_copy_is_overlooked_with_the_probability_that_is_promised(name, dtype):
    """By the search alone, before the adjoint system sees what the loss touches: in both directions, since a search
    that overlooks far less costs steps for nothing.
    """
    rests = {
        "even": np.linspace(0.9, 0.05, 88),
        "close": np.linspace(0.99, 0.5, 88),
        "falling": 0.9 ** np.arange(1, 89),
    }
    runs, overlooked = 600, 0
    for seed in range(runs):
        A = with_values(np.r_[1, 1, rests[name]], 120, 90, dtype, seed=seed)
        (sigma, _, _), known = lanczos(A)
        value, _ = largest_unseen(A.mv, A.mT.mv, sigma, known)
        overlooked += max(value, known.S[1].item()) < (1 - tie(120, 90, dtype)) * sigma.item()
    assert OVERLOOKED / 4 <= overlooked / runs <= OVERLOOKED + 3 * math.sqrt(OVERLOOKED / runs)


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (350, 350), (800, 600)], ids=str)
def test_the_search_costs_at_most_a_quarter_of_the_products(shape, dtype):
    """Of those that the value and the gradient take without it."""
    A = matrices.gaussian(*shape, dtype=dtype)
    counts = {"all": 0, "search": 0}

    def matvec(A, x):
        counts["all"] += 1
        return A @ x

    X = A.clone().requires_grad_()
    svdgrad.operator_triplet(matvec, X, torch.ones(shape[1], dtype=dtype)).v[0].backward()
    tall = A if shape[0] >= shape[1] else A.mT
    (sigma, _, _), known = lanczos(A)

    def counted(x):
        counts["search"] += 1
        return tall @ x

    assert largest_unseen(counted, tall.mT.mv, sigma, known)[0] < 0.97 * sigma
    assert counts["search"] <= 0.25 * (counts["all"] - counts["search"])


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_where_a_spectrum_falls_fast_the_search_and_the_solve_take_a_few_steps(dtype):
    """The eight leading Ritz vectors precondition both; the three within a tenth of σ alone leave 11 + 6 in float32."""
    calls = []

    def matvec(A, x):
        calls.append(1)
        return A @ x

    A = with_values(0.95 ** np.arange(200), 300, 200, dtype).requires_grad_()
    v = svdgrad.operator_triplet(matvec, A, torch.ones(200, dtype=dtype)).v
    calls.clear()
    v[0].backward()
    assert len(calls) <= (16 if dtype is torch.float32 else 24)  # one step each, and two for the gradient


# --- the warning ------------------------------------------------------------------------------------------------------


def near(dtype=torch.float64):
    return with_values(apart(40, 200 * torch.finfo(dtype).eps), 60, 40, dtype).requires_grad_()


WAYS = {
    "backward": lambda A: svdgrad.singular_triplet(A, forward="svd").u[0].backward(),
    "lanczos": lambda A: svdgrad.singular_triplet(A, forward="lanczos").u[0].backward(),
    "autograd.grad": lambda A: torch.autograd.grad(svdgrad.singular_triplet(A, forward="svd").u[0], A),
    "create_graph": lambda A: torch.autograd.grad(svdgrad.singular_triplet(A).u[0], A, create_graph=True),
    "operator": lambda A: svdgrad.operator_triplet(lambda A, x: A @ x, A, torch.ones(40).double()).u[0].backward(),
    "rank two": lambda A: svdgrad.rank_two_gradient(lambda t: t.u[0], A.detach()),
    "torch.func.grad": lambda A: torch.func.grad(lambda A: svdgrad.singular_triplet(A).u[0])(A.detach()),
    "jvp": lambda A: torch.func.jvp(lambda A: svdgrad.singular_triplet(A).u, (A.detach(),), (A.detach(),)),
    "vmap": lambda A: torch.func.vmap(torch.func.grad(lambda A: svdgrad.singular_triplet(A).u[0]))(A.detach()[None]),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_warning_and_it_points_at_the_line_of_the_caller(way):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WAYS[way](near())
    caught = [w for w in caught if w.category is svdgrad.NearTieWarning]
    assert [w.filename for w in caught] == [__file__]
    assert way in (__import__("linecache").getline(__file__, caught[0].lineno))


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("size", [1, 10, 1000, 1250, 10_000, 10**6])
def test_there_is_always_room_for_a_warning_before_an_error(size, dtype):
    assert near_tie(size, size, dtype) >= 8 * tie(size, size, dtype) > 0
    assert near_tie(4, 3, dtype) == 400 * torch.finfo(dtype).eps  # where 4 ε/gap passes 1%


SPECTRA = {
    "even": lambda n: np.linspace(1, 0.01, n),
    "close": lambda n: np.linspace(1, 0.9, n),
    "falling": lambda n: np.logspace(0, -6, n),
    "two": lambda n: np.repeat([1, 0.5], [n // 2, n - n // 2]),
}


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("forward", ["svd", "gram", "lanczos"])
@pytest.mark.parametrize(
    "shape", [(8, 8), (60, 50), (200, 200), pytest.param((1200, 1000), marks=pytest.mark.slow)], ids=str
)
def test_equal_values_come_out_closer_than_two_thirds_of_a_tie(shape, forward, dtype):
    """Else they would pass for two."""
    for spectrum, seed in itertools.product(SPECTRA, range(5)):
        s = SPECTRA[spectrum](shape[1])
        s[1] = s[0]
        A = with_values(s, *shape, dtype, seed=seed)
        assert svdgrad.diagnose(A, forward=forward).gap <= tie(*shape, dtype) * 2 / 3, spectrum


@pytest.mark.parametrize("way", ["matrix", "operator", "k"])
@pytest.mark.parametrize("case", ["constant", "noise", "one column"])
def test_a_rank_of_one_is_no_tie(case, way):
    """What is left of A off its only triplet is rounding, which may lie along that: it passed for a larger value."""
    for m, n in ((30, 40), (40, 30), (50, 50)):
        a = noise(min(m, n), torch.empty(0).double(), 1)  # of which the search for copies makes its start
        A = {
            "constant": torch.ones(m, n),
            "noise": torch.outer(*((a, torch.linspace(-1, 2, n)) if m < n else (torch.linspace(-1, 2, m), a))),
            "one column": torch.linspace(-1, 2, m)[:, None] * torch.eye(1, n),
        }[case].to(torch.float32 if case == "constant" else torch.float64)
        w = torch.linspace(-1, 1, n).to(A)
        X = A.clone().requires_grad_()
        if way == "k":
            v = svdgrad.singular_triplets(X, 1, "lanczos", v0=torch.ones(n, 2).to(A)).V[:, 0]
        elif way == "matrix":
            v = svdgrad.singular_triplet(X, forward="lanczos").v
        else:
            v = svdgrad.operator_triplet(lambda A, x: A @ x, X, torch.ones(n).to(A)).v
        (w @ v).backward()
        Y = A.clone().requires_grad_()
        exact = svdgrad.singular_triplet(Y, forward="svd").v
        (w @ exact * torch.sign(exact.detach() @ v.detach())).backward()
        assert (X.grad - Y.grad).norm() <= 100 * torch.finfo(A.dtype).eps * Y.grad.norm()


def test_a_large_sparse_matrix_has_a_gradient_in_single_precision_close_to_a_tie():
    """Judged by the same in double precision: 2% are wrong, where 4% are said."""
    m, n, gap = 20_000, 10_000, 1.3e-4
    assert tie(m, n, torch.float32) < gap < near_tie(m, n, torch.float32)
    rng = np.random.default_rng(0)
    rows, columns = np.r_[np.arange(n), rng.integers(0, m, 50_000)], np.r_[np.arange(n), rng.integers(0, n, 50_000)]
    values = torch.from_numpy(np.r_[1, 1 - gap, np.linspace(0.9, 0.1, n - 2), 1e-3 * rng.standard_normal(50_000)])
    a, v0 = torch.from_numpy(rng.standard_normal(m)), torch.eye(1, n, dtype=torch.float64)[0]

    def slope(dtype):
        x = values.to(dtype, copy=True).requires_grad_()
        A = svdgrad.operator.Sparse(torch.from_numpy(rows), torch.from_numpy(columns), (m, n), x)
        (svdgrad.singular_triplet(A, v0=v0.to(dtype)).u @ a.to(dtype)).backward()
        return x.grad.double()

    exact = slope(torch.float64)
    with pytest.warns(svdgrad.NearTieWarning, match="relative error of about 4e-02"):
        found = slope(torch.float32)
    assert (found - exact).norm() < 4e-2 * exact.norm()


# --- a σ of zero ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_smallest_value_of_a_square_matrix_may_be_too_small(dtype):
    """Of a complex one the phase of u relative to v has an error of ε/σ, of a real one the sign where σ is rounding."""
    eps, C = torch.finfo(dtype).eps, with_values(np.ones(4), 4, 4, torch.complex128, seed=9)
    C = C if dtype.is_complex else C.real
    for smallest in (1e-2, 1e2 * eps, 0.3 * eps, 0.0):
        A = with_values([3, 2, 1, smallest], 4, 4, torch.complex128 if dtype.is_complex else torch.float64)
        X, exact = A.to(dtype).requires_grad_(), A.to(dtype).to(A.dtype).requires_grad_()
        U, _, Vh = torch.linalg.svd(exact)
        (truth,) = torch.autograd.grad((torch.outer(U[:, -1], Vh[-1]) * C).real.sum(), exact)
        slope = lambda X=X: torch.autograd.grad(
            (torch.outer((t := svdgrad.singular_triplet(X, index=-1)).u, t.v.conj()) * C.to(dtype)).real.sum(), X
        )[0]
        if smallest < eps:
            with pytest.raises(svdgrad.TieError, match="zero"):
                slope()
            continue
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            error = (slope() - truth).norm() / truth.norm()
        assert bool(told) == (smallest < 1e-3 and dtype.is_complex)
        assert all("or to zero" in str(warning.message) for warning in told)
        gap = svdgrad.diagnose(A.to(dtype), index=-1).gap
        assert error < (4 if dtype.is_complex else 30) * eps / gap
        assert gap == pytest.approx(smallest / 3 if dtype.is_complex else (1 - smallest) / 3, rel=0.1)


ZEROS = {"a column": (5, 4), "a row": (4, 5), "square": (4, 4)}
#: losses of a product of σ and vectors at a σ of zero, whose gradient is not that of σ alone
PRODUCTS = {
    "scores": lambda A: ((t := svdgrad.singular_triplets(A, 4)).U * t.sigma).sum(),
    "smallest": lambda A: ((t := svdgrad.singular_triplet(A, index=-1)).sigma * t.u).sum(),
    "zero matrix": lambda A: svdgrad.low_rank(0 * A, 1).dense().sum(),
}


SLOPES = {
    "backward": lambda loss, A: loss(A.requires_grad_()).backward(),
    "compiled": lambda loss, A: torch.compile(loss, backend="aot_eager")(A.requires_grad_()).backward(),
    "grad": lambda loss, A: torch.func.grad(loss)(A),
    "mapped": lambda loss, A: torch.func.vmap(torch.func.grad(loss))(torch.stack([matrices.gaussian(*A.shape), A])),
    "jacrev": lambda loss, A: torch.func.jacrev(lambda A: loss(A)[None])(A),
}


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("shape", ZEROS)
@pytest.mark.parametrize("loss", PRODUCTS)
def test_a_loss_of_sigma_and_vectors_at_zero_is_told(loss, shape, slope):
    A = matrices.gaussian(*ZEROS[shape])
    A[0 if len(A) < 5 else slice(None), slice(None) if len(A) < 5 else 0] = 0.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            SLOPES[slope](PRODUCTS[loss], A)
        except svdgrad.TieError:  # where σ came out as rounding
            assert 0 < svdgrad.singular_triplets(A, 4).sigma[-1] < 1e-15
            return
    assert any("exactly zero" in str(warning.message) for warning in told)


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 2, 2)], ids=str)
def test_what_goes_along_for_a_look_disturbs_no_second_derivative(shape):
    """Of a batch, two outputs at once: ξ has one dimension more than σ there, and belongs to the first solve alone."""
    A = torch.stack([matrices.gaussian(*shape[1:], seed=i) for i in range(shape[0])])
    f = lambda A: (lambda t: torch.stack([t.sigma[0] * t.u[0, 0], t.u[1, 1] * t.sigma[1]]))(svdgrad.singular_triplet(A))
    twice = torch.func.jacrev(torch.func.jacrev(f))(A)
    assert (twice - torch.func.jacfwd(torch.func.jacrev(f))(A)).abs().max() < 1e-11 * twice.abs().max()


def test_a_transform_without_gradients_around_it():
    A, f = matrices.gaussian(5, 4), lambda A: (lambda t: t.sigma * t.u[:3])(svdgrad.singular_triplet(A))
    with torch.no_grad():
        found = torch.func.jacrev(f)(A)
    assert (found - torch.func.jacrev(f)(A)).abs().max() == 0


def test_under_torch_func_no_zero_of_k_values_is_told_where_the_loss_reads_no_vectors():
    """There a loss of σ alone, and one of σ u for a single u, differ in nothing, so k = 1 is told in either case."""
    A = matrices.gaussian(5, 4)
    A[:, 0] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", svdgrad.NearTieWarning)
        torch.func.grad(lambda A: svdgrad.singular_triplets(A, 4).sigma.sum())(A)
        torch.func.grad(lambda A: svdgrad.low_rank(A, 4).core.trace())(A)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_a_loss_of_sigma_alone_has_a_subgradient_at_zero_and_nothing_is_said(k):
    A = matrices.gaussian(5, 4)
    A[:, 0] = 0.0
    A = A if k > 1 else 0 * A
    with warnings.catch_warnings():
        warnings.simplefilter("error", svdgrad.NearTieWarning)
        t = svdgrad.singular_triplets(A.requires_grad_(), k)
        (G,) = torch.autograd.grad(t.sigma.sum(), A)
    assert (G - (t.U @ t.V.mT).detach()).norm() < 1e-14


def of_a_head(weight, A, **options):
    """weight · u of A (..., m, n): a head that may begin at zero."""
    return (svdgrad.singular_triplet(A, **options).u * weight).sum()


SECOND = {  # both derive, by the weight, the derivative by A
    "reverse over reverse": lambda f, A, w: torch.autograd.grad(
        torch.autograd.grad(f(w, A), A, create_graph=True)[0].sum(), w
    )[0],
    "torch.func": lambda f, A, w: torch.func.grad(lambda w: torch.func.grad(partial(f, w))(A).sum())(w),
    "torch.autograd.functional": lambda f, A, w: torch.autograd.functional.jvp(
        lambda A: f(torch.ones_like(w), A), A.detach(), torch.ones_like(A)
    )[1],
}


@pytest.mark.parametrize("options", [{}, {"index": 1}, {"forward": "gram"}, {"forward": "lanczos"}], ids=str)
@pytest.mark.parametrize("way", SECOND)
def test_a_first_cotangent_of_zeros_hides_no_tie(way, options):
    """The first solve has nothing to solve, and so looks at no gap; the derivative of that solves."""
    second = lambda s: SECOND[way](
        partial(of_a_head, **options),
        with_values(s, 5, 4, torch.float64).requires_grad_(),
        torch.zeros(5, dtype=torch.float64, requires_grad=True),
    )
    with pytest.raises(svdgrad.TieError):
        second([1, 1, 0.5, 0.2])
    if options.get("forward") != "lanczos":  # which looks for copies only where it has something to solve
        with pytest.warns(svdgrad.NearTieWarning, match="relative gap"):
            second([1, 1 - 4e-14, 0.5, 0.2])


def test_a_first_cotangent_of_zeros_hides_no_tie_in_a_batch():
    A = torch.stack([with_values(s, 5, 4, torch.float64) for s in ([2, 1, 0.5, 0.2], [1, 1, 0.5, 0.2])])
    weight = torch.tensor([[1.0], [0.0]]).double().requires_grad_()
    (g,) = torch.autograd.grad(of_a_head(weight, A.requires_grad_()), A, create_graph=True)
    with pytest.raises(svdgrad.TieError):
        torch.autograd.grad(g.sum(), weight)


def test_a_first_cotangent_of_zeros_hides_no_sigma_of_zero():
    A = torch.diag(torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)).requires_grad_()
    weight = torch.zeros(3, dtype=A.dtype, requires_grad=True)
    with pytest.raises(svdgrad.TieError, match="σ is zero"):
        SECOND["reverse over reverse"](partial(of_a_head, index=-1), A, weight)
