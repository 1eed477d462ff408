"""k triplets: their gradients in every mode and form, at every distance of the kept values, and what is refused."""

import itertools
import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from test_transforms import along, differences_in_sixty_digits, in_sixty_digits
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import svdgrad
from svdgrad import inside, matrices, rule, steps
from svdgrad.auto import choose
from svdgrad.lab import relative_error
from svdgrad.operator import Dense

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
FORWARDS = ["svd", "gram", "lanczos"]
SHAPES = [(14, 9), (9, 14), (10, 10)]


def numbers(*shape, dtype=torch.float64, seed=0):
    wide = torch.complex128 if dtype.is_complex else torch.float64  # the same numbers in every precision
    return torch.randn(*shape, dtype=wide, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss(t):
    """Sees single vectors, up to their common phase."""
    sigma, U, V = t
    w = torch.arange(1, sigma.shape[-1] + 1).to(sigma)
    X = (U * w) @ V.mH
    W = numbers(*X.shape, dtype=X.dtype, seed=5)
    return (W.conj() * X).real.sum() + (sigma * w).sum() + (U[..., 0, :].abs() ** 2 * w).sum()


def core_loss(t):
    """Sees A_k, and what the values alone say."""
    A_k = t.dense()
    W = numbers(*A_k.shape, dtype=A_k.dtype, seed=6)
    return (W.conj() * A_k).real.sum() + ((t.core @ t.core) * torch.eye(t.core.shape[-1])).real.sum()


def by_torch(A, k):
    U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
    return svdgrad.Triplets(sigma[..., :k], U[..., :k], Vh[..., :k, :].mH)


def gradient(f, A):
    A = A.clone().requires_grad_()
    return torch.autograd.grad(f(A), A)[0]


# --- gradients where all values are distinct -------------------------------------------------------------------------


def bound(A, k):
    """Rounding over the smallest distance that the loss sees: among the kept, and at the cut."""
    S = torch.linalg.svdvals(A.to(torch.promote_types(A.dtype, torch.float64)))
    last = S[..., k : k + 1] if k < S.shape[-1] else 0 * S[..., :1]
    gap = (-torch.cat([S[..., :k], last], -1).diff(dim=-1) / S[..., :1]).min()
    return 50 * torch.finfo(A.dtype).eps / gap.item()


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k"), [(s, k) for s in SHAPES for k in (1, 2, 4, min(s))], ids=str)
def test_the_gradient_is_that_of_the_full_svd(shape, k, dtype, forward):
    A = numbers(*shape, dtype=dtype, seed=1)
    wide = A.to(torch.complex128 if A.is_complex() else torch.float64)
    for f in (lambda A: loss(svdgrad.singular_triplets(A, k, forward)), lambda A: loss(triplets_of(A, k, forward))):
        assert relative_error(gradient(f, A), gradient(lambda A: loss(by_torch(A, k)), wide)) < bound(A, k)


def triplets_of(A, k, forward):
    U, core, V = svdgrad.low_rank(A, k, forward)
    return svdgrad.Triplets(core.diagonal(dim1=-2, dim2=-1).real, U, V)


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_batch_is_its_matrices(forward):
    A = numbers(2, 3, 8, 6)
    found = gradient(lambda A: core_loss(svdgrad.low_rank(A, 3, forward)), A)
    W = numbers(2, 3, 8, 6, seed=6)
    for i, j in itertools.product(range(2), range(3)):

        def one(A, W=W[i, j]):
            t = svdgrad.low_rank(A, 3, forward)
            return (W * t.dense()).sum() + ((t.core @ t.core).diagonal()).sum()

        assert relative_error(found[i, j], gradient(one, A[i, j])) < 1e-12


def test_one_triplet_is_the_single_triplet():
    A = numbers(400, 350)
    sigma, u, v = svdgrad.singular_triplet(A)
    many = svdgrad.singular_triplets(A, 1)
    assert torch.equal(many.sigma[0], sigma) and torch.equal(many.U[:, 0], u) and torch.equal(many.V[:, 0], v)


def jacobi(A):
    """The SVD in 80-bit numbers, by one-sided Jacobi rotations: shares nothing with LAPACK."""
    A = A.astype(np.clongdouble if np.iscomplexobj(A) else np.longdouble)
    n = A.shape[1]
    V = np.eye(n, dtype=A.dtype)
    for _ in range(30):
        largest = 0.0
        for i, j in itertools.combinations(range(n), 2):
            x, y = A[:, i], A[:, j]
            a, b, c = (x.conj() @ x).real, (y.conj() @ y).real, x.conj() @ y
            size = abs(c)
            largest = max(largest, float(size / np.sqrt(a * b)))
            if size <= 1e-19 * np.sqrt(a * b):
                continue
            zeta = (b - a) / (2 * size)
            t = (1 if zeta >= 0 else -1) / (abs(zeta) + np.sqrt(1 + zeta**2))
            cos = 1 / np.sqrt(1 + t**2)
            turn = np.array([[cos, cos * t * c / size], [-cos * t * (c / size).conj(), cos]], dtype=A.dtype)
            A[:, [i, j]], V[:, [i, j]] = A[:, [i, j]] @ turn, V[:, [i, j]] @ turn
        if largest < 1e-18:
            break
    sigma = np.sqrt((A.conj() * A).real.sum(0))
    order = np.argsort(-sigma)
    return A[:, order] / sigma[order], sigma[order], V[:, order]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (5, 5)], ids=str)
def test_the_gradient_is_that_of_differences_in_80_bits(shape, dtype):
    """Fourth-order differences along two directions, of a loss of A_k, of the projector and of the values."""
    k, A, W = 2, numbers(*shape, dtype=dtype, seed=3), numbers(*shape, dtype=dtype, seed=4)

    def value(A):
        t = svdgrad.low_rank(A, k)
        f = (W.conj() * t.dense()).real.sum() + (t.core @ t.core @ t.core).diagonal().real.sum()
        return f + (t.U @ t.U.mH)[0, 1].real + (t.U @ t.V.mH)[1, 0].real

    def value_wide(A):
        U, sigma, V = (x[..., :k] for x in jacobi(A))
        f = (W.numpy().conj() * (U * sigma @ V.conj().T)).real.sum() + (sigma**3).sum()
        return f + (U @ U.conj().T)[0, 1].real + (U @ V.conj().T)[1, 0].real

    G = gradient(value, A)
    for seed in (7, 8):
        E = numbers(*shape, dtype=dtype, seed=seed)
        h, X, D = np.longdouble(1e-4), A.numpy().astype(np.clongdouble), E.numpy()
        if not dtype.is_complex:
            X = X.real
        f = {s: value_wide(X + s * h * D) for s in (-2, -1, 1, 2)}
        wanted = float((8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h))
        assert abs((G.conj() * E).real.sum().item() - wanted) < 1e-11 * abs(wanted)


# --- ties among the kept values --------------------------------------------------------------------------------------


def tied(d, dtype, m=20, n=15):
    """σ = 3, 3 − d, 3 − 2d and twelve values from 2 down, and the singular vectors that it was made of."""
    X = torch.linalg.qr(numbers(m, n, dtype=dtype, seed=1))[0]
    Y = torch.linalg.qr(numbers(n, n, dtype=dtype, seed=2))[0]
    s = torch.cat([torch.tensor([3, 3 - d, 3 - 2 * d], dtype=torch.float64), torch.linspace(2, 0.5, n - 3).double()])
    return (X * s) @ Y.mH, X, s, Y


def exact(X, s, Y, k, right_hand_sides, M):
    """(U M + P)Vᴴ + U Qᴴ with P and Q from all singular vectors (the table of closed forms)."""
    Phi, Psi = right_hand_sides
    U, V, a, b = X[:, :k], Y[:, :k], X[:, k:].mH @ Phi, Y[:, k:].mH @ Psi
    kept, left = s[:k], s[k:, None]
    P = X[:, k:] @ ((kept * a + left * b) / (kept**2 - left**2)) + (Phi - X @ (X.mH @ Phi)) / kept
    Q = Y[:, k:] @ ((left * a + kept * b) / (kept**2 - left**2)) + (Psi - Y @ (Y.mH @ Psi)) / kept
    return (U @ M + P) @ V.mH + U @ Q.mH


def blind_losses(X, s, Y, k, dtype):
    """name → (loss of low_rank, its gradient): of A_k, of the polar factor and of the projector."""
    G = numbers(len(X), len(Y), dtype=dtype, seed=9)
    U, V, S = X[:, :k], Y[:, :k], s[:k]
    N, H = U.mH @ G @ V, G @ G.mH
    polar = (N - N.mH) / (S[:, None] + S)
    return {
        "A_k": (lambda t: (G.conj() * t.dense()).real.sum(), exact(X, s, Y, k, (G @ V * S, G.mH @ U * S), N)),
        "U Vᴴ": (lambda t: (G.conj() * (t.U @ t.V.mH)).real.sum(), exact(X, s, Y, k, (G @ V, G.mH @ U), polar)),
        "U Uᴴ": (lambda t: (H.conj() * (t.U @ t.U.mH)).real.sum(), exact(X, s, Y, k, (2 * H @ U, 0 * V), 0 * N)),
    }


@pytest.mark.parametrize("d", [0, 1e-15, 1e-13, 1e-12, 1e-10, 1e-8, 1e-6, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("forward", FORWARDS)
def test_what_no_turn_changes_has_its_gradient_at_any_distance(forward, dtype, d):
    A, X, s, Y = tied(d, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (f, wanted) in blind_losses(X, s, Y, 3, dtype).items():
            error = relative_error(gradient(lambda A: f(svdgrad.low_rank(A, 3, forward)), A), wanted)
            assert error < 1e-13, name
            if name != "A_k":
                found = gradient(lambda A: f(svdgrad.singular_triplets(A, 3, forward)), A)
                assert relative_error(found, wanted) < 1e-13, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_forward_mode_at_a_tie_is_right_for_what_no_turn_changes_and_says_so(dtype):
    A, X, s, Y = tied(0, dtype)
    E = numbers(*A.shape, dtype=dtype, seed=4)
    for f, wanted in blind_losses(X, s, Y, 3, dtype).values():
        with pytest.warns(svdgrad.NearTieWarning, match="two of the kept singular values are tied"):
            _, slope = jvp(lambda A: f(svdgrad.low_rank(A, 3)), (A,), (E,))
        assert relative_error(slope, (wanted.conj() * E).real.sum()) < 1e-12


def as_dense(t):
    return (t.U * t.sigma) @ t.V.mT


def test_what_u_sigma_and_v_cannot_carry_is_told_and_low_rank_has_it():
    A, X, s, Y = tied(0, torch.float64)
    f, wanted = blind_losses(X, s, Y, 3, torch.float64)["A_k"]
    G = numbers(*A.shape, seed=9)
    with pytest.warns(
        svdgrad.NearTieWarning, match=r"tells singular values apart that are tied.*svdgrad\.low_rank"
    ) as told:
        (G * as_dense(svdgrad.singular_triplets(A.requires_grad_(), 3))).sum().backward()
    assert told[0].filename == __file__
    assert relative_error(A.grad, wanted) > 1e-2
    of_dense = lambda A: (G * as_dense(svdgrad.singular_triplets(A, 3))).sum()
    for transform in (grad(of_dense), jacrev(of_dense), lambda A: vmap(grad(of_dense))(A[None])[0]):
        with pytest.warns(svdgrad.NearTieWarning, match=r"tells singular values apart that are tied.*low_rank"):
            assert relative_error(transform(A.detach()), A.grad) < 1e-12
    assert relative_error(gradient(lambda A: f(svdgrad.low_rank(A, 3)), A.detach()), wanted) < 1e-13


def test_a_loss_of_the_core_alone_that_turns_a_triplet_tied_with_the_rest_is_refused():
    A = matrices.with_singular_values([3, 2, 2, 1, 0.5], 6, 5)
    f = lambda A: svdgrad.low_rank(A, 2).core[0, 1]
    for derivative in (partial(gradient, f), grad(f), jacrev(f), lambda A: vmap(grad(f))(A[None])):
        with pytest.raises(svdgrad.TieError, match="one at a relative distance of .* from σₖ₊₁"):
            derivative(A)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize(
    "see", [lambda t: t.U[0, 0], lambda t: t.U[0, 0] + t.V[1, 2], lambda t: (t.V[:, 1] ** 3).sum()]
)
def test_a_single_vector_of_a_tie_has_no_derivative(see, forward):
    A, *_ = tied(0, torch.float64)
    with pytest.raises(svdgrad.TieError, match=r"single vectors of singular values that are tied.*low_rank"):
        gradient(lambda A: see(svdgrad.singular_triplets(A, 3, forward)), A)
    with pytest.raises(svdgrad.TieError):
        grad(lambda A: see(svdgrad.singular_triplets(A, 3, forward)))(A)


def test_a_single_vector_near_a_tie_has_few_digits():
    A, *_ = tied(1e-13, torch.float64)
    with pytest.warns(svdgrad.NearTieWarning, match="close to each other: relative gap .*by any method"):
        gradient(lambda A: svdgrad.singular_triplets(A, 3).U[0, 0], A)


def test_a_minimum_is_no_tie_error():
    """‖A − A_k‖² has cotangents that are rounding, or nearly, and a gradient that is not."""
    A, X, s, Y = tied(0, torch.float64)
    with pytest.warns(svdgrad.NearTieWarning, match="may be rounding, as at a minimum"):
        found = gradient(lambda A: ((A - svdgrad.low_rank(A, 3).dense()) ** 2).sum(), A)
    assert relative_error(found, 2 * (X[:, 3:] * s[3:]) @ Y[:, 3:].mT) < 1e-12


# --- the cut ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_cut_through_a_tie(forward):
    A, *_ = tied(0, torch.float64)
    with pytest.raises(svdgrad.TieError, match="from σₖ₊₁.*a cut through a multiple singular value"):
        gradient(lambda A: (svdgrad.singular_triplets(A, 2, forward).U ** 4).sum(), A)
    found = gradient(lambda A: svdgrad.singular_triplets(A, 3, forward).sigma.sum(), A)
    assert found.isfinite().all()
    assert svdgrad.diagnose(A, k=2, forward=forward).gap < 1e-14
    assert abs(svdgrad.diagnose(A, k=3, forward=forward).gap - 1 / 3) < 1e-12


def test_a_cut_near_a_tie_is_a_warning():
    A = matrices.with_singular_values([3, 2, 1 + 1e-13, 1, 0.5, 0.3, 0.1], 9, 7)
    with pytest.warns(svdgrad.NearTieWarning, match="close to the first left out"):
        gradient(lambda A: (svdgrad.singular_triplets(A, 3).U ** 4).sum(), A)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_what_the_loss_does_not_read_needs_no_gap(forward, dtype):
    """Neither a matrix of a batch nor a column, whatever is tied there, or zero."""
    good = [numbers(8, 5, dtype=dtype, seed=i) for i in range(2)]
    X, Y = (torch.linalg.qr(numbers(size, 5, dtype=dtype, seed=3))[0] for size in (8, 5))
    see = lambda t: (t.U[0].abs() ** 2 * t.sigma).sum() + (t.U[1] * t.V[2].conj()).abs().sum()
    of = lambda A, w: w * see(svdgrad.singular_triplets(A, 2, forward))
    alone = [gradient(lambda A: of(A, 1), A) for A in good]
    for values in ([3, 2, 2, 1, 1], [3, 3, 3, 3, 3], [0, 0, 0, 0, 0]):
        A = torch.stack([good[0], (X * torch.tensor(values)) @ Y.mH, good[1]])
        for f in (
            lambda A: sum(see(svdgrad.Triplets(*t)) for t in list(zip(*svdgrad.singular_triplets(A, 2, forward)))[::2]),
            lambda A: vmap(of)(A, torch.tensor([1, 0, 1])).sum(),
        ):
            for found in (gradient(f, A), grad(f)(A)):
                assert not found[1].any()
                assert all(relative_error(x, y) < 1e-12 for x, y in zip(found[::2], alone))
    A = (X * torch.tensor([3, 2, 1, 1, 0.5])) @ Y.mH  # the third of three kept is tied with the first left out
    first = lambda t: (t.U[0, :2].abs() ** 2).sum() + (t.U[:, 0].conj() * t.U[1, 0] * t.V[2, 0].conj()).abs().sum()
    found = gradient(lambda A: first(svdgrad.singular_triplets(A, 3, forward)), A)
    assert relative_error(found, gradient(lambda A: first(svdgrad.singular_triplets(A, 2, forward)), A)) < 1e-12
    with pytest.raises(svdgrad.TieError):
        gradient(lambda A: svdgrad.singular_triplets(A, 3, forward).U[0, 2].abs(), A)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_forward_mode_at_a_tied_cut_has_what_is_there(forward, dtype):
    """σ₁, σ₂ and their vectors have a derivative where σ₃ = σ₄; σ₃, which has none, is NaN, and that is told."""
    X, Y = (torch.linalg.qr(numbers(size, 5, dtype=dtype, seed=3))[0] for size in (8, 5))
    A, E = (X * torch.tensor([3, 2, 1, 1, 0.5])) @ Y.mH, numbers(8, 5, dtype=dtype, seed=4)
    wanted = jvp(lambda A: svdgrad.singular_triplets(A, 2, forward), (A,), (E,))[1]
    with pytest.warns(svdgrad.NearTieWarning, match="NaN for a tangent"):
        found = jvp(lambda A: svdgrad.singular_triplets(A, 3, forward), (A,), (E,))[1]
    for x, y in zip(found, wanted):
        assert x[..., 2].isnan().all() and relative_error(x[..., :2], y) < 1e-12
    with pytest.warns(svdgrad.NearTieWarning, match="NaN for a tangent"):  # of a batch each
        found = vmap(lambda E: jvp(lambda A: svdgrad.singular_triplets(A, 3, forward).sigma, (A,), (E,))[1])(
            torch.stack([E, 0 * E])
        )
    assert relative_error(found[0, :2], wanted.sigma) < 1e-12 and found[0, 2].isnan() and not found[1].any()
    A = (X * torch.tensor([2, 2, 2, 2, 0.5])) @ Y.mH
    with pytest.raises(svdgrad.TieError):  # none of the three has
        jvp(lambda A: svdgrad.singular_triplets(A, 3, forward).sigma, (A,), (E,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_second_derivatives_where_the_first_is_zero(k, dtype):
    """Of (f − c)² with c = f they are 2∇f∇fᵀ: a cotangent of zero has a derivative. f sees a phase, and turns."""
    A, E = (numbers(6, 4, dtype=dtype, seed=i) for i in (1, 2))
    f = lambda A: (lambda t: (t.U[1, -1] * t.V[2, -1]).real)(svdgrad.singular_triplets(A, k))
    c = f(A)
    square = lambda A: (f(A) - c) ** 2
    slope = gradient(f, A)
    wanted = 2 * slope * (slope.conj() * E).real.sum()
    assert relative_error(jvp(lambda A: grad(square)(A), (A,), (E,))[1], wanted) < 1e-12
    X = A.clone().requires_grad_()
    (g,) = torch.autograd.grad(square(X), X, create_graph=True)
    assert relative_error(torch.autograd.grad((g.conj() * E).real.sum(), X)[0], wanted) < 1e-12


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_rank_below_k(forward):
    A = matrices.with_singular_values([3, 2, 0, 0, 0, 0, 0], 9, 7)
    with pytest.raises(svdgrad.TieError, match="a rank below k"):
        gradient(lambda A: (svdgrad.singular_triplets(A, 3, forward).U ** 4).sum(), A)
    sigma, U, V = svdgrad.singular_triplets(A, 4, forward)
    for X in (U, V):
        assert relative_error(X.mT @ X, torch.eye(4).double()) < 1e-13
    assert (sigma[2:] < 1e-14).all()


# --- every mode and form ---------------------------------------------------------------------------------------------


def forms(k, v0):
    """Dense by each method, sparse by all its entries, and a function."""
    for forward in FORWARDS:
        yield lambda A, forward=forward: svdgrad.singular_triplets(A, k, forward)

    def sparse(A):
        rows, columns = torch.ones(A.shape).nonzero().T
        return svdgrad.singular_triplets(svdgrad.operator.Sparse(rows, columns, tuple(A.shape), A.reshape(-1)), k)

    yield sparse
    yield lambda A: svdgrad.operator_triplets(lambda A, x: A @ x, A, v0, k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)], ids=str)
def test_every_mode_is_that_of_the_full_svd(shape, dtype):
    A, E, v0 = (numbers(*s, dtype=dtype, seed=i) for i, s in enumerate((shape, shape, shape[1:])))
    k, step = 2, 1e-5

    def wanted(A):
        return loss(by_torch(A, k))

    G, slope = grad(wanted)(A), (wanted(A + step * E) - wanted(A - step * E)) / (2 * step)
    curved = (grad(wanted)(A + step * E) - grad(wanted)(A - step * E)) / (2 * step)
    for form in forms(k, v0):

        def f(A, form=form):
            return loss(form(A))

        assert relative_error(grad(f)(A), G) < 1e-12
        assert relative_error(jvp(f, (A,), (E,))[1], slope) < 1e-7
        assert relative_error(jvp(grad(f), (A,), (E,))[1], curved) < 1e-7
        x = A.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(x), x, create_graph=True)
        assert relative_error(torch.autograd.grad((g.conj() * E).real.sum(), x)[0], curved) < 1e-7
        with torch.autograd.forward_ad.dual_level():
            dual = f(torch.autograd.forward_ad.make_dual(A, E))
            assert relative_error(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope) < 1e-7
        both = vmap(grad(f), randomness="same")(torch.stack([A, A + E]))
        assert relative_error(both, torch.stack([G, grad(wanted)(A + E)])) < 1e-12


def test_the_core_in_every_mode():
    A, E, step = numbers(7, 5), numbers(7, 5, seed=1), 1e-5

    def f(A):
        return core_loss(svdgrad.low_rank(A, 2))

    def slope(A):
        return (f(A + step * E) - f(A - step * E)) / (2 * step)

    assert relative_error(jvp(f, (A,), (E,))[1], slope(A)) < 1e-7
    assert relative_error((grad(f)(A) * E).sum(), slope(A)) < 1e-7
    curved = (grad(f)(A + step * E) - grad(f)(A - step * E)) / (2 * step)
    assert relative_error(jvp(grad(f), (A,), (E,))[1], curved) < 1e-7
    assert relative_error(grad(lambda A: (grad(f)(A) * E).sum())(A), curved) < 1e-7


def as_sparse(A):
    return svdgrad.operator.Sparse(*torch.ones_like(A).nonzero().mT.contiguous(), tuple(A.shape), A.flatten())


NESTED = {
    "svd": lambda A: svdgrad.singular_triplets(A, 3, forward="svd"),
    "gram": lambda A: svdgrad.singular_triplets(A, 3, forward="gram"),
    "lanczos": lambda A: svdgrad.singular_triplets(A, 3, forward="lanczos"),
    "low_rank": lambda A: svdgrad.low_rank(A, 3),
    "sparse": lambda A: svdgrad.singular_triplets(as_sparse(A), 3),
    "operator": lambda A: svdgrad.operator_triplets(lambda A, x: A @ x, A, A[0].detach().real.clone().to(A), 3),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (4, 7)], ids=str)
@pytest.mark.parametrize("name", NESTED)
def test_forward_modes_inside_one_another(name, shape, dtype):
    """All of σ, U and V beside differences of sixty digits, triplet by triplet; one by one and under vmap."""
    A, *E = (numbers(*shape, seed=seed, dtype=dtype) for seed in range(3))

    def f(A):
        L, values, R = NESTED[name](A)  # (U, core, V), or (σ, U, V)
        sigma, U, V = (values.diagonal().real, L, R) if name == "low_rank" else (L, values, R)
        return torch.cat([sigma.unsqueeze(0), U, R])

    found = along(f, E)(A)
    # places made inside vmap would be mapped, and a pattern may not be
    mapped = torch.vmap(lambda A: along(f, E)(A))(torch.stack([A, 2 * A]))[0] if name != "sparse" else found
    truth = np.stack(
        [differences_in_sixty_digits(lambda A: in_sixty_digits(A, None, i), A, E) for i in range(3)], axis=1
    )
    # about ε/gap³, the gaps being a thirtieth or more
    assert relative_error(found, truth) < 1e-9 and relative_error(mapped, truth) < 1e-9


def test_forward_modes_inside_one_another_at_a_tie_and_close_to_one():
    def second(A):
        return along(lambda A: svdgrad.low_rank(A, 2).dense(), [torch.ones_like(A)] * 2)(A)

    tied = torch.diag(torch.tensor([3.0, 3.0, 1.0, 0.5])).double()
    with pytest.raises(svdgrad.TieError, match="distinct"), pytest.warns(svdgrad.NearTieWarning, match="tied"):
        second(tied)
    with pytest.warns(svdgrad.NearTieWarning, match="forward mode inside forward mode"):
        second(tied + torch.diag(torch.tensor([1e-8, 0, 0, 0])))


@pytest.mark.parametrize(("modes", "power"), [("jj", 3), ("gj", 2), ("ggg", 3), ("ggj", 3), ("jjg", 4), ("jjj", 4)])
def test_higher_derivatives_close_to_a_tie_inside_say_how_many_digits_they_lose(modes, power):
    """For a loss that no turn of the tied values changes, so that its derivatives stay finite at the tie."""

    def derivative(gap):
        E = numbers(5, 5, seed=3)
        U, V = (torch.linalg.qr(numbers(5, 5, seed=seed))[0] for seed in (1, 2))
        f = lambda A: (svdgrad.low_rank(A, 2).dense() ** 2 * E).sum()
        for mode in reversed(modes):
            f = (
                (lambda A, f=f: torch.func.jvp(f, (A,), (E,))[1])
                if mode == "j"
                else (lambda A, f=f: (torch.func.grad(f)(A) * E).sum())
            )
        return f(U @ torch.diag(torch.tensor([3, 3 - 3 * gap, 1.5, 1, 0.5], dtype=E.dtype)) @ V)

    edge = (100 * torch.finfo(torch.float64).eps) ** (1 / power)  # where ε/gapᵖ is 1%
    with warnings.catch_warnings():
        warnings.simplefilter("error", svdgrad.NearTieWarning)
        derivative(1.1 * edge)
    with pytest.warns(svdgrad.NearTieWarning, match="more often than the result needs"):
        derivative(0.9 * edge)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("batch", [(0,), (2, 0)], ids=str)
@pytest.mark.parametrize("k", [1, 2])
def test_an_empty_batch(k, batch, forward):
    A = torch.empty(*batch, 5, 4, dtype=torch.float64, requires_grad=True)
    sigma, U, V = svdgrad.singular_triplets(A, k, forward=forward)
    assert (sigma.shape, U.shape, V.shape) == ((*batch, k), (*batch, 5, k), (*batch, 4, k))
    (sigma.sum() + U.sum() + V.sum() + svdgrad.low_rank(A, k, forward=forward).dense().sum()).backward()
    assert A.grad.shape == A.shape


def test_autocast_costs_a_compiled_call_no_digit():
    """PyTorch traces the backward pass in the autocast of the caller, where products of matrices have eight bits."""
    A = numbers(7, 5, dtype=torch.float32)

    def f(A):
        return (svdgrad.singular_triplets(A, 2).U ** 3).sum()

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    X = A.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(X)
    y.backward()
    # rounding of single precision; with products in bfloat16 it was 3e-3
    assert relative_error(X.grad, gradient(f, A)) < 1e-5


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_call_and_small_precisions():
    A = numbers(8, 6, dtype=torch.float32)

    def f(A):
        return (svdgrad.low_rank(A, 3).dense() ** 4).sum()

    assert relative_error(gradient(torch.compile(f, backend="aot_eager"), A), gradient(f, A)) < 1e-6
    half = A.bfloat16()
    t = svdgrad.singular_triplets(half, 3)
    assert {x.dtype for x in t} == {torch.bfloat16}
    assert (
        relative_error(gradient(f, half).float(), gradient(f, half.float())) < 12 * 2**-9
    )  # three factors rounded, to the fourth power


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_gradient_keeps_its_layout(layout):
    full = numbers(12, 9) * (numbers(12, 9, seed=1) > 0)
    A = getattr(full, layout)().requires_grad_()
    loss(svdgrad.singular_triplets(A, 3)).backward()
    wanted = gradient(lambda A: loss(svdgrad.singular_triplets(A, 3)), full)
    assert A.grad.layout == A.layout
    assert relative_error(A.grad.to_dense(), wanted * (full != 0)) < 1e-12


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("of_cotangent", [1e-34, 1.0, 1e30])
@pytest.mark.parametrize("of_A", [1e-30, 1e-10, 1.0, 1e30])
def test_units_do_not_matter(of_A, of_cotangent, forward):
    if not 1e-36 < of_cotangent / of_A < 1e36:
        pytest.skip("the gradient itself is no normal number of float32")
    A, G = numbers(12, 9, dtype=torch.float32), numbers(12, 3, dtype=torch.float32, seed=1)

    def f(A, size=1.0):
        return (size * (G * svdgrad.singular_triplets(A, 3, forward).U)).sum()

    found = gradient(lambda A: f(A, of_cotangent), of_A * A).double() * (of_A / of_cotangent)
    assert relative_error(found, gradient(f, A)) < 1e-4


def test_the_gradient_in_factors():
    for shape, k in itertools.product([(30, 20), (20, 30), (340, 330)], (1, 3)):
        A = numbers(*shape)
        value, L, R = svdgrad.rank_2k_gradient(loss, A, k)
        assert L.shape == (shape[0], 2 * k) and R.shape == (shape[1], 2 * k)
        assert relative_error(value, loss(svdgrad.singular_triplets(A, k))) < 1e-12
        wanted = gradient(lambda A: loss(svdgrad.singular_triplets(A, k)), A)
        assert relative_error(L @ R.mT, wanted) < 1e-10


# --- what is refused, and what is noticed ----------------------------------------------------------------------------


def test_a_loss_of_a_phase_is_refused():
    A = numbers(8, 6, dtype=torch.complex128)
    with pytest.raises(svdgrad.PhaseError):
        gradient(lambda A: svdgrad.singular_triplets(A, 3).U[0, 1].real, A)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k must be from 1 to 5 for a matrix of shape 6×5, found 0"),
        (6, ValueError, "k must be from 1 to 5"),
        (True, TypeError, "k must be an integer, found True"),
        (2.0, TypeError, "k must be an integer, found 2.0"),
    ],
)
def test_numbers_of_triplets_that_cannot_be(k, error, message):
    for call in (svdgrad.singular_triplets, svdgrad.low_rank):
        with pytest.raises(error, match=message):
            call(numbers(6, 5), k)
    with pytest.raises(error, match=message):
        svdgrad.operator_triplets(lambda A, x: A @ x, numbers(6, 5), numbers(5), k)


def test_solvers_of_one_triplet_are_refused():
    with pytest.raises(ValueError, match="adjoint must be 'auto' or 'spectral' for k triplets after 'gram'"):
        svdgrad.singular_triplets(numbers(6, 5), 2, adjoint="saddle")


FAULTS = {
    "no phase term": (
        rule,
        "rotation",
        lambda *x: inside.rotation(*x) - 1j * torch.diag(inside.rotation(*x).diag().imag),
    ),
    "no rule for numerators": (inside, "rounding", lambda U, V, Phi, Psi, size, *_: 0 * size),
    "a sign of the system": (steps, "off", lambda U, X: -inside.off(U, X)),
    "a dropped column": (steps, "off", lambda U, X: inside.off(U, X) * (torch.arange(len(X)) > 0)[:, None]),
    "no commutator": (inside, "turned", lambda U, sigma, h, Phi: Phi),
}


@pytest.mark.filterwarnings("ignore::svdgrad.NearTieWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, monkeypatch):
    where, name, wrong = FAULTS[fault]
    A, X, s, Y = tied(1e-9 if fault == "no rule for numerators" else 1e-2, torch.complex128)
    f, wanted = blind_losses(X, s, Y, 3, torch.complex128)["A_k" if fault != "no rule for numerators" else "U Vᴴ"]
    assert relative_error(gradient(lambda A: f(svdgrad.low_rank(A, 3, "svd")), A), wanted) < 1e-12
    monkeypatch.setattr(where, name, wrong)
    assert relative_error(gradient(lambda A: f(svdgrad.low_rank(A, 3, "svd")), A), wanted) > 1e-10


def test_the_remainder_of_a_long_matrix_is_needed(monkeypatch):
    A, X, s, Y = tied(1e-2, torch.float64)
    f, wanted = blind_losses(X, s, Y, 3, torch.float64)["A_k"]
    closed = steps.spectral_rows
    square = lambda A, sigma, phi, psi, known: closed(A[:15], sigma, phi @ known.U @ known.U.mT, psi, known)
    monkeypatch.setattr(steps, "spectral_rows", square)
    assert relative_error(gradient(lambda A: f(svdgrad.low_rank(A, 3, "svd")), A), wanted) > 1e-3


def test_auto_is_gram_up_to_a_size_that_grows_with_k():
    for k, size in ((1, 320), (4, 768), (16, 1536)):
        for n, name in ((size, "gram"), (size + 1, "lanczos")):
            assert choose(torch.empty(n, n), count=k) == name
    assert svdgrad.diagnose(numbers(321, 330), k=4).forward == "gram"


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_kept_value_of_zero_has_a_gradient_of_its_own(forward):
    A = torch.diag(torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64))
    found = gradient(lambda A: (svdgrad.singular_triplets(A, 3, forward).sigma ** 2).sum(), A)
    assert relative_error(found, 2 * A) < 1e-14
    with pytest.raises(svdgrad.TieError):
        gradient(lambda A: svdgrad.low_rank(0 * A, 2, forward).dense().sum(), A)


@pytest.mark.parametrize("see", [lambda t: t.dense()[0, 1], lambda t: (t.U @ t.U.mT)[0, 2]], ids=["A_k", "U Uᵀ"])
def test_second_derivatives_at_a_tie_are_refused_and_warned_of_near_one(see):
    A, *_ = tied(0, torch.float64, 6, 5)
    f = lambda A: see(svdgrad.low_rank(A, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for second in (hessian(f), jacrev(jacrev(f)), jacrev(jacfwd(f)), lambda A: twice(f, A)):
            with pytest.raises(svdgrad.TieError, match="a second derivative needs kept singular values that are dist"):
                second(A)
    A, *_ = tied(1e-9, torch.float64, 6, 5)
    with pytest.warns(svdgrad.NearTieWarning, match="reverse mode over forward mode"):
        jacrev(jacfwd(f))(A)
    step, E = 1e-5, numbers(6, 5, seed=3)
    wanted = (gradient(f, A + step * E) - gradient(f, A - step * E)) / (2 * step)
    assert relative_error((hessian(f)(A) * E).sum((-2, -1)), wanted) < 1e-4
    with pytest.warns(svdgrad.NearTieWarning, match="blind to that turn"):
        assert relative_error((jacrev(jacrev(f))(A) * E).sum((-2, -1)), wanted) < 1e-4


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-8])
def test_second_derivatives_of_a_loss_that_is_stationary_for_a_turn(gap):
    """−c·u₁ with c = u₁ has no slope, and the curvature (σ₁/(σ₁² − σ₂²))² as u₁ turns into u₂: no loss is blind that
    has a gradient of zero.
    """
    A = torch.diag(torch.tensor([1, 1 - gap, 0.3], dtype=torch.float64))
    c, eps = torch.eye(3, dtype=torch.float64)[0], torch.finfo(torch.float64).eps
    wanted = (1 - (1 - gap) ** 2) ** -2
    for vectors in (svdgrad.singular_triplets, svdgrad.low_rank):
        f = lambda A, vectors=vectors: -c @ vectors(A, 2).U[:, 0]
        right = lambda H: abs(H[1, 0, 1, 0] / wanted - 1) < 100 * eps / gap
        assert right(hessian(f)(A)) and right(jacfwd(grad(f))(A))
        if gap > eps ** (1 / 3):
            assert right(jacrev(jacrev(f))(A))
        else:
            for second in (jacrev(jacrev(f)), partial(twice, f)):
                with pytest.warns(svdgrad.NearTieWarning, match="only stationary there"):
                    second(A)


OF_VALUES = {"Σσ²": lambda s: (s**2).sum(), "Σσ": lambda s: s.sum(), "σ₁": lambda s: s[0]}


@pytest.mark.filterwarnings("ignore::svdgrad.NearTieWarning")
@pytest.mark.parametrize("f", OF_VALUES.values(), ids=OF_VALUES)
@pytest.mark.parametrize("k", [3, 5])
def test_second_derivatives_of_the_values_at_a_tie_are_refused(f, k):
    A, *_ = tied(0, torch.float64, 6, 5)
    E = torch.randn_like(A)
    ways = {
        "singular_triplets": lambda A: f(svdgrad.singular_triplets(A, k).sigma),
        "low_rank": lambda A: f(svdgrad.low_rank(A, k).core.diagonal()),
        "operator": lambda A: f(svdgrad.operator_triplets(torch.mv, A, torch.ones(5).double(), k).sigma),
    }
    for name, g in ways.items():
        assert gradient(g, A).isfinite().all()
        along = lambda A, g=g: jvp(g, (A,), (E,))[1]
        if f is OF_VALUES["Σσ"]:  # a sum of uᵢᴴE vᵢ, which no turn within the tie changes
            assert relative_error(grad(along)(A), differences(gradient, g, A, E)) < 1e-6
        elif name != "low_rank":
            with pytest.warns(svdgrad.NearTieWarning, match="low_rank|single vectors"):
                grad(along)(A)
        seconds = {
            "double": lambda A, g=g: twice(g, A),
            "jacrev(jacrev)": jacrev(jacrev(g)),
            "jvp(grad)": lambda A, g=g: jvp(grad(g), (A,), (E,))[1],
            "jvp(jvp)": lambda A, along=along: jvp(along, (A,), (E,))[1],
            "hessian": hessian(g),
            "vmap": lambda A, g=g: vmap(lambda A: jvp(grad(g), (A,), (E,))[1])(torch.stack([2 * A, A])),
        }
        for order, second in seconds.items():
            with pytest.raises(svdgrad.TieError, match="a second derivative needs kept singular values that are dist"):
                raise AssertionError((name, order, second(A)))


def differences(gradient, f, A, E, step=1e-5):
    return (gradient(f, A + step * E) - gradient(f, A - step * E)) / (2 * step)


def test_a_tied_matrix_of_a_batch_that_stands_still_asks_for_nothing():
    A, *_ = tied(0, torch.float64, 6, 5)
    B = torch.randn_like(A)
    f = lambda s: (s**2).sum()
    of_first = lambda A: f(svdgrad.singular_triplets(A, 3).sigma[0])
    X, E = torch.stack([B, A]), torch.stack([torch.randn_like(A), torch.zeros_like(A)])
    alone = jvp(grad(lambda B: f(svdgrad.singular_triplets(B, 3).sigma)), (B,), (E[0],))[1]
    assert relative_error(jvp(grad(of_first), (X,), (E,))[1][0], alone) < 1e-12
    assert relative_error(grad(lambda X: jvp(of_first, (X,), (E,))[1])(X)[0], alone) < 1e-12


def twice(f, A):
    A = A.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(A), A, create_graph=True)
    return torch.autograd.grad(g.sum(), A)


def test_the_phase_is_that_of_the_sign_rule_in_every_mode():
    A, E = (numbers(8, 5, dtype=torch.complex128, seed=i) for i in (1, 2))
    ones, step = torch.ones(5, dtype=A.dtype), 1e-6
    see = lambda t: (t.U[1, 0] * t.V[2, 0]).real  # sees the common phase
    for form in (lambda A: svdgrad.singular_triplets(A, 3), lambda A: svdgrad.operator_triplets(torch.mv, A, ones, 3)):
        f = lambda A: see(form(A))
        slope = (f(A + step * E) - f(A - step * E)) / (2 * step)
        assert relative_error((gradient(f, A).conj() * E).real.sum(), slope) < 1e-7
        assert relative_error(jvp(f, (A,), (E,))[1], slope) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ties_of_small_precisions(dtype):
    """What the loss gets is rounded, and so are its cotangents: by as much the gradient may be wrong, and no more."""
    A = tied(0, torch.float64, 8, 5)[0].to(dtype)
    for see in (lambda t: (t.U @ t.V.mT)[0, 1], lambda t: t.dense()[0, 1], lambda t: (t.U @ t.U.mT)[0, 1]):
        f = lambda A: see(svdgrad.low_rank(A, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert relative_error(gradient(f, A).double(), gradient(f, A.double())) < 12 * torch.finfo(dtype).eps


@pytest.mark.parametrize("form", [svdgrad.singular_triplets, svdgrad.low_rank])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_loss_of_single_vectors_in_small_precisions(dtype, form):
    """Its numerators are small beside the cotangents of long vectors, and no rounding: leaving them out cost 40%."""
    A = (numbers(256, 64, dtype=torch.float32) * 0.9 ** torch.arange(64)).to(dtype)
    R = numbers(256, 3, dtype=torch.float32, seed=1).to(dtype)
    f = lambda A: (form(A, 3).U * R.to(A)).sum()
    assert relative_error(gradient(f, A).float(), gradient(f, A.float())) < torch.finfo(dtype).eps


@pytest.mark.parametrize("gap", [2e-14, 4e-14])
@pytest.mark.parametrize("seed", range(5))
def test_what_cannot_be_carried_is_told_near_a_tie_too(seed, gap):
    X, Y = (torch.linalg.qr(numbers(6, 5, seed=seed + i))[0] for i in (0, 9))
    A = (X * torch.tensor([3, 3 - 3 * gap, 1, 0.5, 0.2], dtype=torch.float64)) @ torch.linalg.qr(Y[:5])[0].mT
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gradient(lambda A: (lambda t: ((t.U * t.sigma) @ t.V.mT)[0, 1])(svdgrad.singular_triplets(A, 2)), A)
    assert any("tied, or nearly" in str(one.message) for one in told)


def test_in_half_precision_a_stationary_loss_keeps_its_curvature():
    A = torch.diag(torch.tensor([1.0, 0.7, 0.3])).bfloat16()
    c = torch.tensor([1.0, 0.004, 0.002], dtype=A.dtype)  # next to no slope as u₁ turns: less than rounding
    f = lambda A: -c.to(A) @ svdgrad.singular_triplets(A, 2).U[:, 0]
    found, wanted = (hessian(f)(X)[1, 0, 1, 0].item() for X in (A, A.double()))
    assert abs(found / wanted - 1) < 4 * torch.finfo(A.dtype).eps


@pytest.mark.parametrize("forward", FORWARDS)
def test_each_matrix_of_a_batch_has_the_derivatives_of_its_core(forward):
    """A cotangent of one matrix is zero for the others, which are left out of the solve."""
    A = torch.stack([numbers(5, 4, seed=seed) for seed in (1, 2)])
    for of in (lambda t: t.core, lambda t: t.dense(), lambda t: t.core.pow(3).sum() + t.dense()[..., 0].sum()):
        f = lambda A: of(svdgrad.low_rank(A, 2, forward))
        assert relative_error(jacrev(f)(A), jacfwd(f)(A)) < 1e-10
    f = lambda A: svdgrad.low_rank(A, 2, forward).dense().pow(3).sum()
    found = hessian(f)(A)
    for i in range(2):
        assert relative_error(found[i, ..., i, :, :], hessian(f)(A[i])) < 1e-10
    assert not found[0, ..., 1, :, :].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("forward", FORWARDS)
def test_what_a_tie_lacks_is_told_in_a_basis_along_the_axes_too(forward, dtype):
    """There the cotangents of the tied values are alike by chance, and A_k lacked half of its gradient in silence."""
    A = torch.diag(torch.tensor([3, 3, 1, 0.5], dtype=dtype))
    seen = [lambda X: X[0, 1].real, lambda X: X.real.sum(), *[lambda X: X[0, 1].imag] * dtype.is_complex]
    for see in seen:
        with pytest.warns(svdgrad.NearTieWarning, match="low_rank"):
            gradient(lambda A: see((lambda s, U, V: (U * s) @ V.mH)(*svdgrad.singular_triplets(A, 2, forward))), A)
    t = svdgrad.singular_triplets(torch.stack([A, 2 * A]), 3, forward)
    assert (
        relative_error((t.U * t.sigma.unsqueeze(-2)) @ t.V.mH, torch.stack([A, 2 * A]) * (A.diag().real > 0.7)) < 1e-14
    )


@pytest.mark.parametrize("forward", ["svd", "gram"])
@pytest.mark.parametrize("case", ["a sum", "a phase", "blocks", "an ulp", "three", "a chain", "a longer one"])
def test_so_it_is_where_rounding_has_split_the_tie(case, forward):
    """Half of the gradient was lacking for a sum and a number that are equal but for a rounding."""
    B = numbers(3, 3)
    A = {
        "a sum": torch.diag(torch.tensor([0.1 + 0.2, 0.3, 0.1], dtype=torch.float64)),
        "a phase": torch.diag(torch.polar(torch.tensor([1, 1, 0.5]).double(), torch.tensor([0.1, 0.8, 0]).double())),
        "blocks": torch.block_diag(B, B.flip(0)),
        "an ulp": torch.diag(torch.tensor([1 + 2e-7, 1, 0.1])),
        "three": torch.diag(torch.tensor([1 + 3e-15, 1, 1, 0.5], dtype=torch.float64)),
        "a longer one": torch.diag(torch.tensor([1 + 6e-15, 1 + 3e-15, 1, 0.5], dtype=torch.float64)),
        "a chain": torch.diag(torch.tensor([1 + 12 * 2.0**-52, 1 + 6 * 2.0**-52, 1, 0.5], dtype=torch.float64)),
    }[case]
    k = 3 if case in ("three", "a chain", "a longer one") else 2
    whole = lambda A: (lambda s, U, V: (U * s) @ V.mH)(*svdgrad.singular_triplets(A, k, forward))
    at = (0, 4) if case == "blocks" else (0, 1)
    with pytest.warns(svdgrad.NearTieWarning, match="low_rank"):
        gradient(lambda A: whole(A)[at].real, A)
    U, S, Vh = torch.linalg.svd(A)
    assert relative_error(whole(A), (U[:, :k] * S[:k]) @ Vh[:k]) < 20 * torch.finfo(A.dtype).eps


@pytest.mark.parametrize("distance", [20, 60, 110, 390])
def test_along_the_axes_a_numerator_as_small_as_the_distance_is_told(distance):
    """It is taken for rounding, 4 ε of whole cotangents, and a third of the gradient was lacking in silence."""
    A = torch.diag(torch.tensor([1 + distance * 2.0**-52, *torch.linspace(1, 0.5, 99).double()], dtype=torch.float64))
    with pytest.warns(svdgrad.NearTieWarning, match="low_rank|close to each other"):
        gradient(lambda A: (lambda s, U, V: ((U * s) @ V.mT).sum())(*svdgrad.singular_triplets(A, 2)), A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [500, 3000])
def test_a_numerator_that_cancels_is_not_divided(gap, dtype):
    """‖UᵀB‖², B with orthogonal rows, near the axes: entries of Φ are sums, whose rounding is larger than they are."""
    near = lambda seed: torch.linalg.qr(torch.eye(8).double() + 1e-3 * numbers(8, 8, seed=seed))[0]
    s = torch.tensor([1, 1 - gap * torch.finfo(dtype).eps, 0.9, 0.8, *[0.3] * 4], dtype=torch.float64)
    B = torch.linalg.qr(numbers(8, 8, seed=5))[0] * torch.linspace(1, 3, 8, dtype=torch.float64)[:, None]
    f = lambda A: (svdgrad.singular_triplets(A, 4).U.mT @ B.to(A)).square().sum()
    A = ((near(1) * s) @ near(2).mT).to(dtype)
    wanted = gradient(lambda A: (svdgrad.low_rank(A, 4).U.mT @ B).square().sum(), A.double())
    assert relative_error(gradient(f, A).double(), wanted) < 2e4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("gap", "told"), [(35 * 2.0**-52, True), (1e-11, False)])
def test_a_second_derivative_of_a_core_near_a_tie_is_told(gap, told):
    """Reverse over reverse of ‖A − A₃‖² by its core was 20 to 44% wrong in silence."""
    Q, P, E = (torch.linalg.qr(numbers(6, 6, seed=i))[0] for i in range(3))
    A = ((Q * torch.tensor([2, 2 - 2 * gap, 1, 0.6, 0.4, 0.2], dtype=Q.dtype)) @ P).requires_grad_()
    loss = (A**2).sum() - (svdgrad.low_rank(A, 3).core ** 2).sum()
    (G,) = torch.autograd.grad(loss, A, create_graph=True)
    with pytest.warns(svdgrad.NearTieWarning, match="a second derivative is asked for") if told else nullcontext():
        torch.autograd.grad((G * E).sum(), A)


@pytest.mark.parametrize("mode", ["reverse over reverse", "forward over reverse", "a batch"])
@pytest.mark.parametrize("gap", [1e-3, 1e-8])
def test_a_second_derivative_that_divides_what_is_as_small_as_the_gap_is_told(gap, mode):
    """Of U S Vᴴ by (σ, U, V): 40% wrong at a gap of 1e-8, 54 times too large at 1e-9. The core has its digits."""
    Q, P = (torch.linalg.qr(numbers(4, 4, seed=i))[0] for i in range(2))
    A, G, E = (
        (Q * torch.tensor([1, 1 - gap, 0.5, 0.25], dtype=Q.dtype)) @ P,
        numbers(4, 4, seed=2),
        numbers(4, 4, seed=3),
    )
    by_core = lambda A: (svdgrad.low_rank(A, 2).dense() * G).sum()
    by_columns = lambda A: (lambda s, U, V: ((U * s) @ V.mT * G).sum())(*svdgrad.singular_triplets(A, 2))
    see_columns = lambda A: (lambda s, U, V: s[0] + (U[:, 0] * G[0]).sum() * V[1, 1])(*svdgrad.singular_triplets(A, 2))

    def second(f):
        if mode == "reverse over reverse":
            X = A.clone().requires_grad_()
            (found,) = torch.autograd.grad(f(X), X, create_graph=True)
            return torch.autograd.grad((found * E).sum(), X)[0]
        along = lambda A: jvp(grad(f), (A,), (E,))[1]
        return vmap(along)(A[None])[0] if mode == "a batch" else along(A)

    wanted = jvp(grad(by_core), (A,), (E,))[1]
    with pytest.warns(svdgrad.NearTieWarning, match="svdgrad.low_rank") if gap < 1e-7 else nullcontext():
        found = second(by_columns)
    assert (relative_error(found, wanted) > 1e-2) == (gap < 1e-7)
    assert second(see_columns).isfinite().all()  # with no warning


def test_forward_mode_near_a_tie_of_kept_values_is_told():
    A = torch.diag(torch.tensor([1, 1 - 1e-14, 0.5, 0.2], dtype=torch.float64))
    with pytest.warns(svdgrad.NearTieWarning, match="forward mode divides"):
        jvp(lambda A: (lambda U: U @ U.mT)(svdgrad.singular_triplets(A, 2).U), (A,), (numbers(4, 4),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_tie_is_told_in_half_precision(dtype):
    """σ = 8, 8, and losses Σ W ∘ U; what is not told is as small as rounding."""
    A = torch.tensor([[2, 2, 2, 2, 0]]).mT @ torch.ones(1, 4, dtype=torch.long)
    A = (A + torch.tensor([[1, -1, 1, -1, 0]]).mT @ torch.tensor([[2, -2, 2, -2]])).to(dtype)
    silent = 0
    for seed in range(40):
        with warnings.catch_warnings():
            warnings.simplefilter("error", svdgrad.NearTieWarning)
            try:
                gradient(lambda A: (svdgrad.singular_triplets(A, 2).U * numbers(5, 2, seed=seed)).sum(), A)
                silent += 1
            except (svdgrad.TieError, svdgrad.NearTieWarning):
                pass
    assert silent <= 2


@pytest.mark.parametrize("call", ["is_grads_batched", "vectorize"])
def test_the_core_too_refuses_a_map_of_autograd(call):
    A = numbers(6, 5).requires_grad_()
    core = lambda A: svdgrad.low_rank(A, 2).core
    with pytest.raises(NotImplementedError, match="torch.func.jacrev"):
        if call == "vectorize":
            torch.autograd.functional.jacobian(core, A, vectorize=True)
        torch.autograd.grad(core(A), A, torch.ones(3, 2, 2, dtype=A.dtype), is_grads_batched=True)


@pytest.mark.parametrize(("least", "told"), [(1e-5, False), (1e-8, True)])
def test_nested_forward_modes_tell_of_a_small_value_with_nothing_left_out(least, told):
    U, V, E = (torch.linalg.qr(numbers(size, 4, seed=i))[0] for i, size in enumerate((8, 4, 8)))
    A = (U * torch.tensor([1, 0.6, 0.3, least])) @ V.mT
    twice = lambda f: jvp(lambda A: jvp(f, (A,), (E[:, :4],))[1], (A,), (E[:, :4],))[1]
    with pytest.warns(svdgrad.NearTieWarning, match="the last singular value") if told else nullcontext():
        found = twice(lambda A: (lambda U, H, V: U @ (H - H @ H @ H / 3) @ V.mT)(*svdgrad.low_rank(A, 4)).sum().sin())
    wanted = twice(lambda A: (A - A @ A.mT @ A / 3).sum().sin())
    assert (abs(found / wanted - 1) > 1e-3) == told


@pytest.mark.parametrize("forward", ["svd", "gram"])
def test_values_that_differ_are_not_turned_into_each_other(forward):
    """Graded values below rounding of the first, and a chain of values that are close: A V = U S, and dσ = uᵀdA v."""
    A = torch.diag(torch.tensor([1, 1e-6, 1e-7, 1e-8, 1e-9], dtype=torch.float32))
    s, U, V = svdgrad.singular_triplets(A, 5, "svd")
    assert torch.equal(A @ V, U * s)
    found = gradient(lambda A: svdgrad.singular_triplets(A, 5, "svd").sigma.log().sum(), A)
    assert relative_error(found.diag() * A.diag(), torch.ones(5)) < 1e-6
    X = torch.eye(60, dtype=torch.float32) + 3e-6 * numbers(60, 60, dtype=torch.float32)
    s, U, V = svdgrad.singular_triplets(X, 60, forward)
    found = gradient(lambda A: (svdgrad.singular_triplets(A, 60, forward).sigma ** 2).sum(), X)
    assert max(relative_error((U * s) @ V.mT, X), relative_error(found, 2 * X)) < 30 * 2**-23


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_terms_that_cancel_in_half_precision_are_no_tie_error(dtype):
    """They may be told, as what "may be rounding"."""
    warnings.filterwarnings("ignore", "the loss seems to depend on .* which may be rounding")
    for seed in range(10):
        W, order = numbers(32, 32, seed=seed), torch.randperm(32, generator=torch.Generator().manual_seed(seed))
        A = torch.diag(torch.tensor([2, 2, 2, *torch.linspace(1, 0.2, 29)]))[order].to(dtype)
        weights = (W - W.mT + 0.1 * numbers(32, 32, seed=99)).to(dtype)  # U Uᵀ is symmetric, so a tenth is left
        gradient(lambda A: (lambda U: (U @ U.mT * weights).sum())(svdgrad.singular_triplets(A, 3).U), A)


def test_an_empty_batch_under_nested_forward_modes():
    E = torch.zeros(0, 4, 3, dtype=torch.float64)
    once = lambda A: jvp(lambda A: svdgrad.singular_triplets(A, 3).sigma, (A,), (E,))[1]
    assert jvp(once, (E,), (E,))[1].shape == (0, 3)


def test_what_cancels_along_the_kept_vectors_hides_no_tie_at_the_cut():
    """Φ of U core Uᴴ − c U Uᴴ and what its core asks for cancel for one c, and Ψ is zero."""
    A = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    for c in (0, 2.5):
        with pytest.raises(svdgrad.TieError, match="left out"):
            gradient(lambda A: (lambda t: t.U @ (t.core - c * torch.eye(2)) @ t.U.mT)(svdgrad.low_rank(A, 2))[0, 1], A)


@pytest.mark.parametrize("seed", range(5))
def test_half_precision_keeps_what_is_small_at_a_gap_of_a_tenth(seed):
    """The numerator of A_k is the gap times h: with 4ε for rounding it was lost, and with it 24% of the gradient."""
    X, Y, G = (torch.linalg.qr(numbers(16, 16, seed=seed + i))[0] for i in (0, 9, 18))
    A = ((X * torch.tensor([3, 2.7, *torch.linspace(1, 0.5, 14)])) @ Y.mT).bfloat16()
    whole = lambda A: (lambda s, U, V: (U * s) @ V.mT)(*(x.to(G) for x in svdgrad.singular_triplets(A, 2)))
    found, wanted = (gradient(lambda A: (G * whole(A)).sum(), X).double() for X in (A, A.double()))
    assert relative_error(found, wanted) < 0.06


@pytest.mark.parametrize("least", [1e-8, 1e-13])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(("m", "n"), [(8, 4), (4, 8), (4, 4)])
def test_a_small_value_that_is_kept_divides_no_rounding(m, n, complex_, least):
    """With all four values kept A_k is A, so the truth is elementary, and smooth: no digit of the gradient may be lost,
    and of a second derivative ε σ₁/σₖ.
    """
    dtype = torch.complex128 if complex_ else torch.float64
    U, V = (torch.linalg.qr(numbers(size, 4, dtype=dtype, seed=i))[0] for i, size in enumerate((m, n)))
    A = ((U * torch.tensor([1, 0.6, 0.3, least])) @ V.mH).requires_grad_()
    C, E = (numbers(m, n, dtype=dtype, seed=seed) / 5 for seed in (3, 4))
    inner = lambda X, Y: (X.conj() * Y).real.sum()
    (found,) = torch.autograd.grad(inner(C, svdgrad.low_rank(A, 4).dense()).sin(), A, create_graph=True)
    value = inner(C, A.detach())
    assert relative_error(found.detach(), value.cos() * C) < 1e-14
    (found,) = torch.autograd.grad(inner(found, E), A)
    error = torch.linalg.norm(found + value.sin() * inner(C, E) * C)
    assert error < 20 * 2**-52 / least * torch.linalg.norm(C) ** 2 * torch.linalg.norm(E)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("forward", FORWARDS)
def test_a_cotangent_that_is_not_finite_is_no_tie(forward, bad):
    """A scaler of gradients expects it in the gradient, and then takes a smaller scale."""
    G = gradient(lambda A: svdgrad.singular_triplets(A, 3, forward).U[1, 1] * bad, numbers(30, 20))
    assert G.isnan().all()


def test_a_tolerance_that_is_too_loose_for_the_cut_is_told():
    """σₖ − σₖ₊₁ is 0.02: at a residual of 1% the gradient is wrong by 9%, and at the default by rounding."""
    X, Y = (torch.linalg.qr(numbers(size, 300, seed=size))[0] for size in (350, 300))
    s = torch.cat([torch.tensor([1.0, 0.98, 0.96]).double(), 0.94 * torch.linspace(1, 0.8, 297).double()])
    A, C = (X * s) @ Y.mT, numbers(350, 350, seed=2)
    start = Y[:, :3] + 0.3 * numbers(300, 3, seed=3) / 300**0.5
    options = {"forward": "lanczos", "v0": start, "tol": 0.1, "missed": None}
    f = lambda A, **how: (lambda U: (U @ U.mT * C).sum())(svdgrad.singular_triplets(A, 3, **how).U)
    with pytest.warns(svdgrad.NearTieWarning, match="lower tol"):
        found = gradient(partial(f, **options), A)
    error = relative_error(found, gradient(f, A))
    told = svdgrad.diagnose(A, k=3, **options)
    assert 0.02 < error < told.predicted_error < 10 * error
    assert svdgrad.diagnose(A, k=3).predicted_error < 1e-12


# --- a start ----------------------------------------------------------------------------------------------------------


def drifting(m=300, n=200, k=4, dtype=torch.float64):
    """A matrix with a clear cut, and one that it drifts along."""
    X, Y, Z = (torch.linalg.qr(numbers(size, n, seed=i))[0] for i, size in enumerate((m, n, m)))
    s = torch.cat([torch.linspace(2, 1, k), torch.linspace(0.9, 0.05, n - k)])
    return ((X * s) @ Y.mT).to(dtype), 1e-3 * (Z @ Y).to(dtype)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)], ids=str)
def test_a_start_from_the_last_step_costs_less_and_changes_nothing(shape):
    A, dA = drifting()
    A, dA = (A, dA) if shape[0] > shape[1] else (A.mT, dA.mT)
    tol = 1e-6
    V = svdgrad.singular_triplets(A, 4, "lanczos", tol=tol).V
    before = V.clone()
    method, products = svdgrad.forward.Lanczos(tol=tol), []
    for start in (None, V.mT):
        known = method.find_many(Dense(A + dA, rows=True), 4, start)[1]
        products.append(known.products.item())
        assert known.missed <= 1e-3 and known.residual <= tol
    assert products[1] <= 0.8 * products[0]
    for j in (1, 3, 4, 6):  # any number of columns
        starts = numbers(shape[1], j) if j > 4 else V[:, :j]
        for f in (svdgrad.singular_triplets, svdgrad.low_rank):
            see = lambda A, **how: (lambda t: (t.U @ t.V.mT)[0].sum())(f(A, 4, "lanczos", **how))
            assert relative_error(gradient(lambda A: see(A, v0=starts), A), gradient(see, A)) < 1e-12
    assert torch.equal(V, before)


def test_a_start_that_lies_is_not_believed():
    """The next vectors, of which none is asked for, and of the wanted ones nothing: the proof is asked for all the
    same."""
    A, _ = drifting()
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    for tol in (1e-3, None):
        sigma = svdgrad.singular_triplets(A, 4, "lanczos", tol=tol, v0=Vh[4:8].mT).sigma
        assert (sigma - S[:4]).abs().max() <= 1e-5


def test_a_start_of_a_batch_and_of_one_triplet():
    A = torch.stack([numbers(20, 12, seed=i) for i in range(3)])
    V = svdgrad.singular_triplets(A, 2).V
    see = lambda A, v0, k=2: (svdgrad.singular_triplets(A, k, "lanczos", v0=v0).V[..., 0, :] ** 2).sum()
    wanted = gradient(lambda A: see(A, None), A)
    for f in (
        lambda A: see(A, V),
        lambda A: see(A, V[1]),
        lambda A: vmap(see)(A, V).sum(),
        lambda A: vmap(see, (0, None))(A, V[2]).sum(),
        lambda A: vmap(see, (None, 0))(A, torch.stack([V, V])).sum() / 2,
    ):
        assert relative_error(gradient(f, A), wanted) < 1e-12
    one = svdgrad.singular_triplets(A[0], 1, "lanczos", v0=-V[0, :, :1])  # no matter of signs
    assert all(relative_error(x, y) < 1e-12 for x, y in zip(one, svdgrad.singular_triplets(A[0], 1)))
    assert relative_error(svdgrad.singular_triplets(A[0].to_sparse(), 2, v0=V[0]).V, V[0]) < 1e-12


@pytest.mark.parametrize("k", [1, 2])
def test_a_start_is_no_part_of_the_graph(k):
    """Else each step of a training would hold the graph of all those before."""
    A = numbers(20, 12).requires_grad_()
    sees, found = [], None
    for _ in range(3):
        if k == 1:
            found = svdgrad.singular_triplet(A, forward="lanczos", v0=None if found is None else found.v)
        else:
            found = svdgrad.singular_triplets(A, k, "lanczos", v0=None if found is None else found.V)
        sees.append(found[2])
    node, names = sees[-1].grad_fn, []
    todo = [node]
    while todo:
        node = todo.pop()
        names.append(node.name())
        todo += [other for other, _ in node.next_functions if other is not None]
    assert sum("Triplet" in name for name in names) == 1, names


@pytest.mark.parametrize(
    ("error", "message", "how"),
    [
        (ValueError, r"of shape \(5, j\), .*found shape \(5,\)", {"v0": torch.ones(5)}),
        (ValueError, r"found shape \(6, 2\)", {"v0": torch.ones(6, 2)}),
        (ValueError, r"found shape \(5, 0\)", {"v0": torch.ones(5, 0)}),
        (ValueError, r"found shape \(3, 5, 2\)", {"v0": torch.ones(3, 5, 2)}),
        (ValueError, "finite and not zero", {"v0": torch.zeros(5, 2)}),
        (ValueError, "finite and not zero", {"v0": torch.full((5, 2), torch.nan)}),
        (TypeError, "v0 must be a torch.Tensor, found list", {"v0": [1.0]}),
        (TypeError, "v0 must be real", {"v0": torch.ones(5, 2, dtype=torch.complex64)}),
        (ValueError, "meta device", {"v0": torch.ones(5, 2, device="meta")}),
        (ValueError, "forward 'svd' does not iterate, found v0", {"v0": torch.ones(5, 2), "forward": "svd"}),
    ],
)
def test_a_start_that_cannot_be(error, message, how):
    with pytest.raises(error, match=message):
        svdgrad.singular_triplets(torch.ones(6, 5), 2, **{"forward": "lanczos", **how})
    if "zero" not in message:  # "auto" looks at it too, though it does not need it here
        with pytest.raises(error, match=message):
            svdgrad.low_rank(torch.ones(6, 5), 2, **{"forward": "auto", **how})


@pytest.mark.parametrize("forward", ["auto", "lanczos"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_tie_at_the_cut_is_seen_beside_what_else_a_core_is_read_for(dtype, forward):
    """Half of the gradient of A_k[1, 2] came without a word, if the loss read the first triplet too."""
    A = torch.diag(torch.tensor([3, 0, 0, 0], dtype=dtype))
    whole = lambda A: svdgrad.low_rank(A, 4, forward).dense().real
    for loss in (
        lambda A: whole(A)[..., 0, 0] + whole(A)[..., 1, 2],
        lambda A: whole(A).square().sum() + whole(A)[1, 2],
    ):
        with pytest.raises(svdgrad.TieError, match="left out"):
            gradient(loss, A)
    tied = torch.diag(torch.tensor([3, 2, 2, 2], dtype=dtype))
    with pytest.raises(svdgrad.TieError, match="left out"):
        gradient(lambda A: (lambda t: t.core[1, 2].real + abs(t.U[0, 0]) ** 2)(svdgrad.low_rank(A, 3, forward)), tied)
    if forward == "auto":
        with pytest.raises(svdgrad.TieError, match="left out"):
            gradient(lambda A: whole(A)[:, 0, 1].sum(), torch.stack([A, 0 * A]))


def test_sigma_of_a_complex_subnormal_matrix_has_a_gradient():
    """A complex zero divided by a number below the range is NaN in PyTorch."""
    A = torch.diag(torch.tensor([2, 1], dtype=torch.complex64)) * 1e-40
    for of in (lambda A: svdgrad.singular_triplets(A, 2).sigma.sum(), lambda A: svdgrad.singular_triplet(A).sigma):
        assert torch.func.grad(of)(A).isfinite().all()
    batch = torch.stack([A, torch.diag(torch.tensor([2, 1], dtype=torch.complex64))])
    for of in (
        lambda B: abs(svdgrad.singular_triplet(B).u[1, 0] + 1) ** 2,
        lambda B: abs(svdgrad.singular_triplets(B, 1).U[1, 0, 0] + 1) ** 2,
    ):
        assert gradient(of, batch).isfinite().all()


def test_k_is_asked_for():
    for call in (svdgrad.singular_triplets, svdgrad.low_rank):
        with pytest.raises(TypeError, match="k must be an integer"):
            call(numbers(4, 3), None)


def test_a_complex_matrix_of_zeros_that_does_not_move_keeps_its_tangents_zero():
    A = torch.stack([torch.zeros(3, 2), torch.eye(3, 2) * torch.tensor([2, 1])]).to(torch.complex128)
    dA = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)]).to(A)
    _, (dsigma, du, dv) = torch.func.jvp(lambda A: tuple(svdgrad.singular_triplet(A)), (A,), (dA,))
    assert not (dsigma[0].any() or du[0].any() or dv[0].any())
    assert du[1].isfinite().all() and dsigma[1] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_loss_that_is_blind_to_a_chain_in_blocks_is_not_warned_of(dtype):
    """Its numerators are rounding between blocks that share no entry, and not exactly zero."""
    for seed in range(5):
        X, Y = (torch.block_diag(Q, Q) for Q in torch.linalg.qr(numbers(2, 2, 2, seed=seed, dtype=dtype))[0])
        A = (X * (1 + 10 * 2.0**-52 * torch.arange(3, -1, -1, dtype=torch.float64))) @ Y.mH
        C = numbers(4, 4, seed=seed + 9, dtype=dtype)
        f = lambda A: (lambda s, U, V: ((U @ V.mH).conj() * C).real.sum() + s.sum())(*svdgrad.singular_triplets(A, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradient(f, A)
