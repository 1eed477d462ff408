"""Lanczos bidiagonalisation: the dominant triplet from products with A alone."""

import numpy as np
import pytest
import torch
from families import FAMILIES

import svdgrad
from svdgrad import matrices
from svdgrad.forward import FORWARDS, golub_kahan, gram, lanczos
from svdgrad.forward.basis import Basis, over, steps_to_go
from svdgrad.products import mv

DTYPES = [torch.float32, torch.float64]


def residual(A, t):
    """max(‖Av − σu‖, ‖Aᴴu − σv‖)/σ, in double precision"""
    A, sigma, u, v = (x.to(torch.promote_types(x.dtype, torch.float64)) for x in (A, *t))
    return (max((mv(A, v) - sigma * u).norm(), (mv(A.mH, u) - sigma * v).norm()) / sigma).item()


def spread(m, n, gap=0.3):
    """σ₁ = 1, then 1 − gap down to 0.1."""
    return matrices.with_singular_values(np.r_[1, np.linspace(1 - gap, 0.1, min(m, n) - 1)], m, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_triplet_satisfies_its_equations_and_is_the_dominant_one(family, dtype):
    A = FAMILIES[family].matrix(dtype)
    t, known = lanczos(A)
    eps = torch.finfo(dtype).eps
    assert residual(A, t) <= 50 * eps
    assert abs(t.u.norm() - 1) + abs(t.v.norm() - 1) <= 4 * eps
    assert abs(t.sigma.item() - FAMILIES[family].s[0]) <= 50 * eps * FAMILIES[family].s[0]
    assert t.v[t.v.abs().argmax()] > 0
    assert known.steps <= A.shape[1] and known.S[0] == t.sigma


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (1, 4), (4, 1), (1, 1)], ids=str)
def test_complex_matrices(shape, dtype):
    A = torch.complex(matrices.gaussian(*shape), matrices.gaussian(*shape, seed=1)).to(dtype)
    t, _ = lanczos(A)
    exact = torch.linalg.matrix_norm(A.to(torch.complex128), 2)
    assert residual(A, t) <= 50 * torch.finfo(dtype).eps
    assert abs(t.sigma - exact) <= 50 * torch.finfo(dtype).eps * exact
    largest = t.v[t.v.abs().argmax()]
    assert largest.real > 0 and abs(largest.imag) <= 4 * torch.finfo(dtype).eps


def test_the_same_matrix_gives_the_same_bits():
    A = matrices.gaussian(60, 40)
    torch.manual_seed(1)
    first, _ = lanczos(A)
    torch.manual_seed(2)  # the start vector has a seed of its own, and leaves the caller's alone
    second, _ = lanczos(A.clone())
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    after = torch.randn(1)
    torch.manual_seed(2)
    assert torch.equal(after, torch.randn(1))


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (250, 250)], ids=str)
def test_the_tolerance_is_kept_and_a_tighter_one_costs_more(shape):
    A = spread(*shape, gap=0.1)
    steps = []
    for tol in (1e-2, 1e-5, 1e-8, 1e-11):
        t, known = lanczos(A, tol=tol, missed=None)
        assert residual(A, t) <= tol + 50 * torch.finfo(A.dtype).eps
        # what it says is what it is; it is kept in single precision
        assert abs(known.residual.item() - residual(A, t)) <= 1e-6 * residual(A, t) + 50 * torch.finfo(A.dtype).eps
        steps.append(known.steps.item())
    assert steps == sorted(set(steps)) and steps[-1] < 100  # by far not all of the space


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (3, 8), (8, 3), (6, 6)], ids=str)
def test_it_ends_when_the_space_is_exhausted(shape):
    A = matrices.gaussian(*shape)
    t, known = lanczos(A, tol=0.0)
    # a wide matrix may be done sooner, when its m-dimensional range is
    assert known.steps == shape[1] or (shape[0] < shape[1] and known.steps <= shape[1])
    assert residual(A, t) <= 50 * torch.finfo(A.dtype).eps


@pytest.mark.parametrize("forward", ["gram", "lanczos"])
@pytest.mark.parametrize("shape", [(2, 3, 9, 6), (2, 3, 6, 9), (0, 4, 3), (2, 0, 3, 3)], ids=str)
def test_a_batch_is_what_each_of_its_matrices_is(forward, shape):
    A = torch.from_numpy(np.random.default_rng(2).standard_normal(shape)).requires_grad_()
    v0 = torch.ones(shape[-1]).double()
    t = svdgrad.singular_triplet(A, forward=forward, v0=v0)
    assert [tuple(x.shape) for x in t] == [shape[:-2], shape[:-1], (*shape[:-2], shape[-1])]
    (t.sigma.sum() + t.u[..., 0].sum() + t.v[..., -1].sum()).backward()
    for X, G in zip(A.detach().reshape(-1, *shape[-2:]), A.grad.reshape(-1, *shape[-2:])):
        X = X.clone().requires_grad_()
        one = svdgrad.singular_triplet(X, forward="svd", v0=v0)
        (one.sigma + one.u[0] + one.v[-1]).backward()
        assert (G - X.grad).norm() <= 1e-11 * X.grad.norm()


def test_the_ritz_pairs_are_orthonormal_lie_below_and_satisfy_their_equation():
    A = spread(300, 200, gap=0.05)
    t, ritz = lanczos(A)
    S = torch.linalg.svdvals(A)
    k, l = ritz.S.numel(), ritz.W.shape[1]
    assert 1 < l < k and (ritz.S[:l] ** 2 > 0.8 * ritz.S[0] ** 2).all()
    assert (ritz.W.mT @ ritz.W - torch.eye(l)).norm() <= 1e-13 * k
    assert (ritz.S <= S[:k] + 1e-14).all() and (ritz.S.diff() <= 0).all()
    # Rayleigh and Ritz: on the span of W the matrix AᵀA is diag(S²)
    assert (ritz.W.mT @ (A.T @ (A @ ritz.W)) - torch.diag(ritz.S[:l] ** 2)).norm() <= 1e-13 * k
    assert (ritz.W[:, 0] - t.v).norm() <= 1e-13 or (ritz.W[:, 0] + t.v).norm() <= 1e-13


def test_a_start_in_the_null_space_or_along_another_vector_still_finds_the_largest():
    A = torch.diag(torch.tensor([1.0, 3.0, 2.0, 0.0]).double())
    for v0 in torch.eye(4).double():
        assert abs(lanczos(A, v0=v0)[0].sigma - 3) <= 1e-14
        assert abs(lanczos(A[:2], v0=v0)[0].sigma - 3) <= 1e-14  # a wide one


SMALL = {
    "zero": torch.zeros(4, 3),
    "rank one": torch.ones(4, 3),
    "diagonal": torch.diag(torch.tensor([2.0, 0, 0, 0])),
    "identity": torch.eye(5),
}


@pytest.mark.parametrize("A", SMALL.values(), ids=SMALL)
def test_an_invariant_subspace_is_no_accident(A):
    A = A.double()
    (sigma, u, v), _ = lanczos(A)
    exact = torch.linalg.matrix_norm(A, 2)
    assert abs(sigma - exact) <= 1e-14
    assert (A @ v - sigma * u).norm() <= 1e-14 and (A.T @ u - sigma * v).norm() <= 1e-14


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3), (9, 9)], ids=str)
def test_sigma_of_zero_is_not_negative(shape, forward):
    for A in (torch.zeros(shape), -torch.zeros(shape)):  # LAPACK finds −0 for the second
        for k in range(1, min(shape) + 1):
            core = svdgrad.low_rank(A, k, forward).core
            assert not any(x.signbit().any() for x in (svdgrad.singular_triplets(A, k, forward).sigma, core.diagonal()))
        assert not svdgrad.singular_triplet(A, forward=forward).sigma.signbit()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_changes_nothing_else(scale):
    A = spread(20, 12).float()
    t, _ = lanczos(A)
    t_scaled, _ = lanczos(scale * A)
    bound = 50 * torch.finfo(A.dtype).eps
    assert abs(t_scaled.sigma / scale - t.sigma) <= bound
    assert (t_scaled.v - t.v).norm() <= bound / 0.3


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)], ids=str)
@pytest.mark.parametrize("scales", [(1e-25, 1, 1e25), (0, 1)], ids=str)
def test_by_the_gram_matrix_each_of_a_batch_has_a_unit_of_its_own(scales, shape):
    """Squares of the smallest and the largest leave the range of float32; of A = 0 any u will do, of the others only
    one.
    """
    A = matrices.gaussian(*shape, dtype=torch.float32)
    (sigma, u, v), known = gram(torch.stack([scale * A for scale in scales]))
    one, of_one = gram(A)
    factors = torch.tensor(scales)
    torch.testing.assert_close(sigma, factors * one.sigma)
    # the smallest of them lose digits, as squares do
    torch.testing.assert_close(known.S, factors.unsqueeze(-1) * of_one.S, rtol=1e-4, atol=0)
    for i in range(len(scales)):
        torch.testing.assert_close(u[i].norm(), torch.tensor(1.0))
        if scales[i]:
            torch.testing.assert_close(u[i], one.u)
            torch.testing.assert_close(v[i], one.v)


def test_v0_starts_it_and_fixes_the_sign():
    A = spread(200, 150, gap=0.02)
    t, known = lanczos(A)
    near, soon = lanczos(A, v0=-t.v)
    assert soon.steps < known.steps
    assert (near.v + t.v).norm() + (near.u + t.u).norm() <= 50 * torch.finfo(A.dtype).eps / 0.02


def test_golub_kahan_takes_products_only():
    d = torch.linspace(1, 9, 9).double()
    counts = {"A": 0, "Aᵀ": 0}

    def product(which):
        def apply(x):
            counts[which] += 1
            return d * x

        return apply

    (sigma, _, v), known = golub_kahan(product("A"), product("Aᵀ"), torch.ones(9).double())
    assert counts == {"A": known.steps + 1, "Aᵀ": known.steps}
    assert abs(sigma - 9) <= 1e-13 and abs(v[-1].abs() - 1) <= 1e-13


def test_no_convergence_says_how_far_it_came_and_what_to_try():
    A = spread(200, 150, gap=1e-3)
    for how, steps, wanted in (({"maxiter": 7}, 7, "2.2e-15"), ({"maxiter": 10, "tol": 1e-9}, 10, "1.0e-09")):
        with pytest.raises(
            svdgrad.ConvergenceError,
            match=rf"reached a residual of \d\.\de-0\d σ in {steps} steps, where {wanted} σ was wanted",
        ):
            lanczos(A, **how)
    with pytest.raises(
        svdgrad.ConvergenceError,
        match="Likely causes: σ₂ is close to σ₁, or v0 .*Raise maxiter, loosen tol, or start from another v0",
    ):
        svdgrad.singular_triplet(A, forward="lanczos", maxiter=3)


@pytest.mark.parametrize("forward", ["gram", "lanczos"])
def test_another_index_is_refused(forward):
    with pytest.raises(
        ValueError, match=f"forward '{forward}' finds the largest singular value, found index 1: use forward 'svd'"
    ):
        svdgrad.singular_triplet(torch.eye(3), index=1, forward=forward)


@pytest.mark.parametrize("how", [{"v0": torch.zeros(4)}, {"maxiter": 0}], ids=["zero v0", "no steps"])
def test_a_start_that_leads_nowhere_is_refused(how):
    with pytest.raises((ValueError, svdgrad.ConvergenceError), match="v0 must be finite and not zero|maxiter"):
        svdgrad.singular_triplet(torch.ones(5, 4), forward="lanczos", **how)


def test_the_next_look_is_where_the_residual_should_have_fallen():
    """By hand: at the rate of the last looks, but in 2 to step/4 + 3 steps; in as many where there is no rate."""
    go = lambda history, step, x, tol: steps_to_go([(at, over(y, tol)) for at, y in history], step, over(x, tol), 2)
    assert go([], 5, 1e-2, 1e-8) == 4
    # a factor of ten in four steps: log₁₀(500) times four is 10.8
    assert go([(36, 1e-4)], 40, 1e-5, 2e-8) == 11
    assert go([(20, 1.0), (36, 1e-4)], 40, 1e-5, 2e-8) == 11
    assert go([(36, 1e-4)], 40, 1e-5, 1e-30) == 13
    assert go([(36, 1e-2)], 40, 1e-7, 9e-8) == 2
    for residual, tol in ((1e-4, 1e-8), (2e-4, 1e-8), (0.0, 1e-8), (1e-5, 0.0)):
        assert go([(36, 1e-4)], 40, residual, tol) == 13


def test_a_basis_doubles_its_room():
    eye = torch.eye(2**14, 33).T
    basis, sizes = Basis(eye[0]), []
    for row in eye[1:]:
        basis.extend(row)
        sizes.append(len(basis.array))
    assert sizes == [16] * 15 + [32] * 16 + [64]
    assert torch.equal(basis.rows(), eye) and torch.equal(basis.rows(7), eye[:7]) and torch.equal(basis.last(), eye[32])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_a_basis_stays_orthonormal_whatever_is_left_of_a_vector(dtype):
    """Of the last vector all but 1e-10 lies along the rows, the first of them too, which a three-term recurrence
    forgets.
    """
    eps = torch.finfo(torch.float64).eps
    Q = torch.linalg.qr(
        matrices.gaussian(50, 8).to(dtype) + (1j * matrices.gaussian(50, 8, seed=1) if dtype.is_complex else 0)
    )[0]
    basis = Basis(Q[:, 0].clone())
    for i in range(1, 7):
        basis.extend(5 * Q[:, i - 1] + 2 * Q[:, i])
        along, length = basis.diagonal[-1], basis.off[-1]
        assert along == pytest.approx(5) and length == pytest.approx(2)
    basis.extend(Q[:, 0] + 3 * Q[:, 6] + 1e-10 * Q[:, 7])
    along, length = basis.diagonal[-1], basis.off[-1]
    assert along == pytest.approx(3)
    rows = basis.rows()
    assert (rows.conj() @ rows.mT - torch.eye(8)).abs().max() <= 8 * eps


@pytest.mark.parametrize(("good", "steps"), [(0, "1 step:"), (1, r"\d+ steps:"), (9, r"\d+ steps:")])
def test_a_product_that_is_not_finite_is_named(good, steps):
    """One that is so from the first product on, within the first look, or later."""
    A, calls = matrices.gaussian(40, 30), []

    def matvec(x):
        calls.append(None)
        return A @ x if len(calls) <= good else torch.full((40,), torch.nan, dtype=A.dtype)

    with pytest.raises(ValueError, match=f"must be finite, found NaN or Inf within {steps}"):
        golub_kahan(matvec, A.T.mv, torch.ones(30, dtype=A.dtype))
