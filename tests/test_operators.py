"""Matrices that are never formed, a gradient in rank-two form, and the error predicted before there is one."""

import gc
import math
import resource
import warnings
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from families import Family, gapped
from torch.nn.functional import conv2d

import svdgrad
from svdgrad import matrices
from svdgrad.adjoint.krylov import cg
from svdgrad.forward.lanczos import lanczos
from svdgrad.lab import relative_error
from svdgrad.oracles import extended
from svdgrad.products import project

EPS = torch.finfo(torch.float64).eps
SHAPES = [(40, 25), (25, 40), (30, 30)]


def dense(A, x):
    return A @ x


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def spread(m, n, gap=0.3, seed=0):
    return Family(m, n, 3 * gapped(min(m, n), gap)).matrix(seed=seed)


# --- against the dense matrix -----------------------------------------------------------------------------------------

LOSSES = {
    "σ": lambda t: t.sigma,
    "u": lambda t: (t.u * torch.arange(t.u.numel())).sum(),
    "v": lambda t: t.v.flatten()[0] ** 3,
    "all": lambda t: t.sigma * t.u.flatten()[0] ** 2 + t.v.flatten()[1],
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [*SHAPES, (8, 2), (2, 8), (1, 4)], ids=str)
def test_a_dense_matvec_as_the_matrix(shape, loss):
    A, v0 = spread(*shape), normal(shape[1])
    X, Y = A.clone().requires_grad_(), A.clone().requires_grad_()
    t, s = svdgrad.operator_triplet(dense, X, v0), svdgrad.singular_triplet(Y, v0=v0)
    for a, b in zip(t, s):
        assert relative_error(a, b) <= 50 * EPS / 0.3
    LOSSES[loss](t).backward()
    LOSSES[loss](s).backward()
    # with one row u is ±1, and its derivative zero
    assert (X.grad - Y.grad).norm() <= 50 * EPS / 0.3 * max(Y.grad.norm(), 1)
    assert v0 @ t.v > 0


def test_params_may_be_any_structure_and_only_what_requires_a_gradient_gets_one():
    A, v0 = spread(12, 9), normal(9)
    D, E = normal(12, seed=1), normal(9, seed=2)
    D, E = 1 + D.abs(), 1 + E.abs()

    def gradient(matvec, make):
        d, a = D.clone().requires_grad_(), A.clone().requires_grad_()
        e = E.clone()
        t = svdgrad.operator_triplet(matvec, make(d, a, e), v0)
        LOSSES["all"](t).backward()
        assert e.grad is None
        return d.grad, a.grad

    def direct():
        d, a = D.clone().requires_grad_(), A.clone().requires_grad_()
        LOSSES["all"](svdgrad.singular_triplet(d[:, None] * a * E, v0=v0)).backward()
        return d.grad, a.grad

    found = {
        "tuple": gradient(lambda p, x: p[0] * (p[1] @ (p[2] * x)), lambda d, a, e: (d, a, e)),
        "dict": gradient(lambda p, x: p["d"] * (p["a"] @ (p["e"] * x)), lambda d, a, e: {"d": d, "a": a, "e": e}),
        "nested, and not only tensors": gradient(
            lambda p, x: p[0]["d"] * (p[1][0] @ (p[1][1] * x)) * p[2], lambda d, a, e: [{"d": d}, (a, e), 1.0]
        ),
    }
    for name, pair in found.items():
        for a, b in zip(pair, direct()):
            assert relative_error(a, b) <= 1e3 * EPS, name


def test_no_params_require_a_gradient():
    t = svdgrad.operator_triplet(dense, spread(6, 4), normal(4))
    assert not any(x.requires_grad for x in t)


def test_v0_of_any_shape():
    A, v0 = spread(12, 8), normal(8)

    def matvec(A, x):  # (2, 4) -> (3, 2, 2)
        return (A @ x.reshape(8)).reshape(3, 2, 2)

    X, Y = A.clone().requires_grad_(), A.clone().requires_grad_()
    t, flat = svdgrad.operator_triplet(matvec, X, v0.reshape(2, 4)), svdgrad.operator_triplet(dense, Y, v0)
    assert (t.u.shape, t.v.shape) == ((3, 2, 2), (2, 4))
    LOSSES["all"](t).backward()
    LOSSES["all"](flat).backward()
    assert torch.equal(X.grad, Y.grad)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_changes_nothing_else_in_single_precision(scale):
    A, v0 = spread(12, 8).float(), normal(8).float()
    X = (scale * A).requires_grad_()
    sigma, u, v = svdgrad.operator_triplet(dense, X, v0)
    exact = svdgrad.singular_triplet(A, v0=v0)
    bound = 50 * torch.finfo(torch.float32).eps / 0.3
    assert relative_error(sigma / scale, exact.sigma) <= bound and relative_error(v, exact.v) <= bound
    (G,) = torch.autograd.grad(sigma, X)
    assert relative_error(G, matrices.outer(exact.u, exact.v)) <= bound


def test_low_rank_plus_diagonal_as_the_dense_matrix():
    n, rank = 60, 3
    start = {"U": 3 * normal(n, rank, seed=1), "V": normal(n, rank, seed=2), "d": normal(n, seed=3)}
    v0 = normal(n)

    def matvec(p, x):
        return p["U"] @ (p["V"].T @ x) + p["d"] * x

    p, r = ({name: x.clone().requires_grad_() for name, x in start.items()} for _ in range(2))
    LOSSES["all"](svdgrad.operator_triplet(matvec, p, v0)).backward()
    A = r["U"] @ r["V"].T + torch.diag(r["d"])
    s = torch.linalg.svdvals(A.detach())
    LOSSES["all"](svdgrad.singular_triplet(A, v0=v0)).backward()
    for name in start:
        assert relative_error(p[name].grad, r[name].grad) <= 50 * EPS * s[0] / (s[0] - s[1]), name


def test_a_parameter_that_the_operator_does_not_use_has_no_gradient():
    A, idle = spread(5, 4).requires_grad_(), torch.ones(3, requires_grad=True)
    svdgrad.operator_triplet(lambda p, x: p[0] @ x, (A, idle), normal(4)).sigma.backward()
    assert A.grad is not None and idle.grad is None


def test_an_operator_that_ignores_its_argument_is_zero():
    sigma, u, v = svdgrad.operator_triplet(lambda p, x: p, torch.zeros(3).double(), normal(2, 2))
    assert sigma == 0 and u.shape == (3,) and v.shape == (2, 2)
    assert abs(u.norm() - 1) + abs(v.norm() - 1) <= 4 * EPS


# --- a convolution and a large sparse matrix --------------------------------------------------------------------------


def smooth_kernel(channels=64):
    """A 3×3 kernel with one dominant singular triplet: noise, and a blur that all channels share."""
    blur = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])).double() / 16
    return normal(channels, channels, 3, 3) / (12 * channels**0.5) + 3 * blur / channels


def test_a_convolution_has_the_norm_that_the_fourier_transform_gives():
    """With periodic ends the singular values are those of the 64×64 matrices of the kernel's Fourier transform."""
    W, tol = smooth_kernel().requires_grad_(), 1e-8

    def periodic(W, x):
        return conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), W)

    S = torch.linalg.svdvals(torch.fft.fft2(W.detach(), s=(32, 32)).permute(2, 3, 0, 1)).flatten().sort().values
    exact, gap = S[-1], 1 - (S[-2] / S[-1]).item()
    sigma, _, _ = svdgrad.operator_triplet(periodic, W, normal(1, 64, 32, 32), tol=tol)
    assert abs(sigma - exact) <= (tol**2 / gap + 100 * EPS) * exact
    (G,) = torch.autograd.grad(sigma, W)
    # frequency zero has the largest: its matrix is the sum of the nine taps, and each tap has the gradient of the sum
    (G_exact,) = torch.autograd.grad(torch.linalg.matrix_norm(W.sum((-2, -1)), 2), W)
    assert relative_error(G, G_exact) <= 4 * tol / gap


def test_the_gradient_of_a_convolution_answers_a_directional_difference():
    W, E, x0 = smooth_kernel(), normal(64, 64, 3, 3, seed=1), normal(1, 64, 32, 32, seed=2)
    E = E / E.norm()

    def conv(W, x):
        return conv2d(x, W, padding=1)

    h, tol, gap = 1e-4, 1e-8, 0.01  # the gap is that of the blur's first two modes
    X = W.clone().requires_grad_()
    t = svdgrad.operator_triplet(conv, X, x0, tol=tol)
    (G,) = torch.autograd.grad(t.sigma, X)
    right, left = (svdgrad.operator_triplet(conv, W + s * E, t.v, tol=tol).sigma for s in (h, -h))
    # u and v, and with them G, are right to tol/gap; the difference of σ is right to h² ‖E‖³/gap² < 1e-6, ‖E‖ ≈ 0.2
    assert abs((G * E).sum() - (right - left) / (2 * h)) <= tol / gap * G.norm()
    assert abs((G * W).sum() - t.sigma) <= tol * t.sigma  # Euler: σ is homogeneous in W, of degree one


N, ENTRIES = 200_000, 2_000_000


def test_a_sparse_matrix_of_two_million_entries_and_its_memory():
    """200,000 × 200,000: the dense matrix would take 298 GiB in float64; the peak here stays below 3."""
    rng = np.random.default_rng(0)
    i, j = torch.from_numpy(rng.integers(0, N, (2, ENTRIES)))
    values = torch.from_numpy(rng.standard_normal(ENTRIES)) / 10
    heavy = torch.arange(200)  # one row and one column that stand out make the triplet simple, with a wide gap
    i[:200], j[200:400] = 0, 0
    values[:400] = 1.0
    j[:200], i[200:400] = 5 * heavy, 7 * heavy
    values.requires_grad_()

    def matvec(values, x):
        return torch.zeros(N, dtype=x.dtype).index_add(0, i, values * x[j])

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sigma, u, v = svdgrad.operator_triplet(matvec, values, normal(N), tol=1e-6)
    (G,) = torch.autograd.grad(sigma, values)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 3
    assert torch.equal(G, u.detach()[i] * v.detach()[j])  # ∂σ/∂A = u vᵀ, at the entries that there are
    assert abs(G @ values.detach() - sigma) <= 1e-9 * sigma


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matvec", "v0", "error", "message"),
    [
        (
            lambda A, x: A @ x + 1,
            torch.ones(4),
            ValueError,
            r"must be linear in x, found matvec\(params, 0\) ≠ 0: likely cause: a bias",
        ),
        (
            dense,
            torch.zeros(4),
            ValueError,
            "must be finite and not zero: it fixes the sign, and is where an iteration starts; random numbers will do",
        ),
        (dense, torch.full((4,), torch.nan), ValueError, "must be finite and not zero"),
        (
            dense,
            torch.ones(4, dtype=torch.int64),
            TypeError,
            "v0 must be a floating point tensor, real or complex, found torch.int64",
        ),
        (dense, [1.0] * 4, TypeError, "v0 must be a floating point tensor, real or complex, found list"),
    ],
    ids=["bias", "zero", "nan", "integer", "list"],
)
def test_bad_input_gets_one_clear_error(matvec, v0, error, message):
    with pytest.raises(error, match=message):
        svdgrad.operator_triplet(matvec, torch.ones(3, 4), v0)


def test_no_convergence_says_how_far_it_came_and_what_to_try():
    with pytest.raises(
        svdgrad.ConvergenceError,
        match=r"residual of \d\.\de-0\d σ in 4 steps, where 2\.2e-15 σ was wanted.*Likely causes: .*Raise maxiter",
    ):
        svdgrad.operator_triplet(dense, spread(40, 30, gap=1e-2), normal(30), maxiter=4)


def test_a_tie_is_refused_for_the_vectors_and_not_for_the_value():
    d = torch.tensor([3.0, 3.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    # in exact arithmetic one start vector sees one copy of a tied value: the operator must hide it from nobody
    Q, _ = torch.linalg.qr(normal(4, 4))
    t = svdgrad.operator_triplet(lambda d, x: Q @ (d * (Q.T @ x)), d, normal(4, seed=1))
    (G,) = torch.autograd.grad(t.sigma, d, retain_graph=True)
    assert abs(G[:2].sum() - 1) <= 1e-12 and G[2:].abs().max() <= 1e-12
    with pytest.raises(svdgrad.TieError, match="found a relative gap of"):
        t.u[0].backward()


def test_params_changed_in_place_before_backward_are_noticed():
    """As PyTorch's own operations do: the gradient would silently be that of another matrix."""
    A = spread(5, 4).requires_grad_()
    t = svdgrad.operator_triplet(dense, A, normal(4))
    with torch.no_grad():
        A.mul_(torch.linspace(1, 2, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        t.u[0].backward()


# --- the gradient in rank-two form ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"forward": "lanczos"}, {"adjoint": "saddle"}, {"index": 2}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_rank_two_gradient_is_the_gradient(shape, loss, how):
    A, v0 = spread(*shape), normal(shape[1])
    value, G = svdgrad.rank_two_gradient(LOSSES[loss], A, v0=v0, **how)
    X = A.clone().requires_grad_()
    expected = LOSSES[loss](svdgrad.singular_triplet(X, v0=v0, **how))
    expected.backward()
    assert not value.requires_grad and abs(value - expected) <= 50 * EPS / 0.01
    rounding = 10 * EPS * X.grad.norm()
    assert (G.dense() - X.grad).norm() <= rounding
    L, R = G.factors()
    assert (L.shape, R.shape) == ((shape[0], 2), (shape[1], 2))
    assert (L @ R.T - X.grad).norm() <= rounding
    assert abs(G.u @ G.p) + abs(G.v @ G.q) <= 10 * EPS * (G.p.norm() + G.q.norm())


def test_a_hessian_is_an_operator_by_torch_func_and_refused_by_autograd():
    w, X = normal(4, seed=1).requires_grad_(), normal(9, 4, seed=2)
    f = lambda w: torch.tanh(X @ w).pow(3).sum()

    def by_autograd(w, v):
        (g,) = torch.autograd.grad(f(w), w, create_graph=True)
        return torch.autograd.grad(g @ v, w, create_graph=True)[0]

    by_func = lambda w, v: torch.func.jvp(torch.func.grad(f), (w,), (v,))[1]
    sigma = svdgrad.operator_triplet(by_func, w, torch.ones(4, dtype=w.dtype)).sigma
    assert abs(sigma - torch.linalg.matrix_norm(torch.func.hessian(f)(w.detach()), 2)) < 1e-12
    with pytest.raises(RuntimeError, match="a derivative of its own by torch.autograd.grad"):
        svdgrad.operator_triplet(by_autograd, w, torch.ones(4, dtype=w.dtype))


def test_rank_two_gradient_refuses():
    for A in (torch.eye(3).expand(2, 3, 3), torch.eye(3, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"takes one real matrix \(m, n\), found torch.* of shape"):
            svdgrad.rank_two_gradient(lambda t: t.sigma, A)
    with pytest.raises(svdgrad.TieError):
        svdgrad.rank_two_gradient(lambda t: t.u[0], torch.eye(3))
    A = torch.diag(torch.tensor([3.0, 1.0])).requires_grad_()
    half = A.detach().bfloat16().requires_grad_()  # the triplet is that of a copy in single precision
    sparse = svdgrad.operator.Sparse(torch.arange(2), torch.arange(2), (2, 2), half.diagonal())
    for call in (
        lambda: svdgrad.rank_two_gradient(lambda t: (A - t.sigma * torch.outer(t.u, t.v)).square().sum(), A),
        lambda: svdgrad.rank_2k_gradient(lambda t: (2 * A - t.U * t.sigma @ t.V.mT).square().sum(), A, 1),
        lambda: svdgrad.rank_two_gradient(lambda t: (half * t.u[0]).sum(), half),
        lambda: svdgrad.rank_two_gradient(lambda t: (sparse.values * t.u[0]).sum(), sparse),
    ):
        with pytest.raises(ValueError, match="depends on A besides"):
            call()
    value, G = svdgrad.rank_two_gradient(lambda t: t.sigma, torch.eye(3))  # of σ alone, never
    assert value == 1 and torch.linalg.svdvals(G.dense()).sum() <= 1 + 1e-6


# --- diagnosis --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ["auto", "saddle", "schur", "cg"])
@pytest.mark.parametrize("gap", [10.0**-k for k in range(1, 7)])
def test_the_predicted_error_is_that_measured_within_a_factor_of_thirty(gap, adjoint):
    """Over six decades of gap; the error of one matrix scatters, the geometric mean over several says where it lies."""
    errors, predicted = [], []
    for seed in range(8):
        A = Family(24, 16, gapped(16, gap)).matrix(seed=seed)
        phi, psi, v0 = normal(24, seed=100 + seed), normal(16, seed=200 + seed), normal(16, seed=300 + seed)
        X = A.clone().requires_grad_()
        _, u, v = svdgrad.singular_triplet(X, v0=v0, adjoint=adjoint)
        (phi @ u + psi @ v).backward()
        errors.append(relative_error(X.grad, extended(A, 0.0, phi, psi, v)))
        found = svdgrad.diagnose(A, adjoint=adjoint)
        predicted.append(found.predicted_error)
        assert abs(found.gap - gap) <= 100 * EPS
    ratio = math.exp(np.mean(np.log(predicted)) - np.mean(np.log(errors)))
    assert 1 / 30 <= ratio <= 30, ratio


def test_what_diagnose_says_of_a_direct_method():
    A = Family(9, 6, 5 * gapped(6, 0.25)).matrix()
    found = svdgrad.diagnose(A, forward="svd")
    assert (found.forward, found.adjoint, found.steps, found.products, found.stopped) == (
        "svd",
        "spectral",
        0,
        0,
        "direct method",
    )
    assert abs(found.sigma - 5) <= 1e-13 and abs(found.gap - 0.25) <= 1e-13
    assert abs(found.kappa - 8) <= 1e-11  # (σ + σ₁)/gap
    assert found.predicted_error == pytest.approx(4 * EPS / 0.25)
    assert 0 <= found.residual <= 50 * EPS
    assert svdgrad.diagnose(A, index=5).gap == pytest.approx(0.1)  # the distance to zero, since m ≠ n
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == list(found._fields)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("k", [None, 2])
def test_the_residual_that_diagnose_says_has_no_unit(scale, k):
    A = (Family(9, 6, gapped(6, 0.25)).matrix() * scale).float()
    assert 0 < svdgrad.diagnose(A, k=k).residual < 1e-5
    A = torch.diag(torch.tensor([3, 2, 1, 1e-13], dtype=torch.float64))  # residual and gap are in different units here
    assert svdgrad.diagnose(A, index=-1).predicted_error < 1e-14


def test_what_diagnose_says_of_lanczos():
    A = Family(60, 40, gapped(40, 0.25)).matrix()
    found = svdgrad.diagnose(A, forward="lanczos", tol=1e-10)
    assert (found.forward, found.adjoint, found.stopped) == ("lanczos", "cg", "the residual reached the tolerance")
    assert 0 < found.steps < 40 and found.products == 2 * found.steps + 1
    assert found.residual <= 1e-10
    assert 0.25 - 1e-12 <= found.gap <= 0.3  # never too small
    assert found.kappa == pytest.approx(2 / found.gap)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)], ids=str)
def test_the_residual_is_relative_and_the_larger_of_the_two(shape):
    A = 0.01 * Family(*shape, gapped(40, 0.25)).matrix()  # Lanczos leaves one of the two, which depends on the shape
    sigma, u, v = svdgrad.singular_triplet(A, forward="lanczos", tol=1e-3, missed=None)
    residual = max((A @ v - sigma * u).norm(), (A.T @ u - sigma * v).norm()) / sigma
    assert svdgrad.diagnose(A, forward="lanczos", tol=1e-3, missed=None).residual == pytest.approx(residual.item())
    assert residual > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [[3, 2, 1, 0], [3, 2, 1, 1e-9], [3, 2, 2 - 1e-6, 1], [1, 1e-7, 1e-8, 0]], ids=str)
def test_diagnose_says_infinite_where_and_only_where_there_is_a_tie_error(values, dtype):
    A = Family(4, 4, np.array(values)).matrix(dtype).requires_grad_()
    options = [{"index": i} for i in range(4)] + [{"k": k} for k in (1, 2, 3, 4)]
    for option in options:
        infinite = svdgrad.diagnose(A, **option).predicted_error == math.inf
        if "k" in option:
            loss = (lambda t: (t.U @ t.U.mT)[0, 1])(svdgrad.singular_triplets(A, **option))
            if option["k"] == 4:  # of which U Uᵀ is the identity
                continue
        else:
            loss = svdgrad.singular_triplet(A, **option).v[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", svdgrad.NearTieWarning)
            with pytest.raises(svdgrad.TieError) if infinite else nullcontext():
                loss.backward()


@pytest.mark.parametrize("part", ["rows", "columns", "values"])
def test_a_list_in_a_sparse_matrix_is_named(part):
    parts = {"rows": torch.arange(2), "columns": torch.arange(2), "values": torch.ones(2)}
    with pytest.raises(TypeError, match=f"{part} must be a tensor, found list"):
        svdgrad.operator.Sparse(**parts | {part: [0, 1]}, shape=(3, 3))


@pytest.mark.parametrize("A", [torch.eye(3), torch.zeros(3, 2)], ids=["identity", "zero"])
def test_diagnose_at_a_tie(A):
    found = svdgrad.diagnose(A)
    assert (found.gap, found.kappa, found.predicted_error) == (0.0, math.inf, math.inf)
    assert found.residual <= 1e-6


def test_diagnose_refuses():
    with pytest.raises(
        ValueError, match=r"takes one matrix \(m, n\), found shape \(2, 3, 3\): call it for each of a batch"
    ):
        svdgrad.diagnose(torch.eye(3).expand(2, 3, 3))
    with pytest.raises(ValueError, match="unknown forward 'magic'"):
        svdgrad.diagnose(torch.eye(3), forward="magic")
    with pytest.raises(ValueError, match="index must be from -3 to 2"):
        svdgrad.diagnose(torch.eye(3), index=3)


@pytest.mark.parametrize(
    "matvec",
    [lambda M, x: torch.relu(M @ x), lambda M, x: (M @ x) ** 3, lambda M, x: M @ x / (1 + x @ x)],
    ids=["relu", "cube", "normalised"],
)
def test_a_nonlinear_matvec_is_noticed_though_it_sends_zero_to_zero(matvec):
    with pytest.raises(ValueError, match="not those of a matrix and its transpose.*not linear in x"):
        svdgrad.operator_triplet(matvec, matrices.gaussian(5, 4), torch.ones(4).double())


def test_a_bias_may_cancel_up_to_rounding():
    """Its derivatives through a layer that is called twice are summed in another order, and cancel but for digits."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(9, 9)

    def product(layer, x):
        return layer(layer(x)) - layer(layer(torch.zeros_like(x)))

    x = torch.randn(9)
    sigma = svdgrad.operator_triplet(product, layer, x).sigma
    assert abs(sigma / torch.linalg.matrix_norm(layer.weight @ layer.weight, 2) - 1) < 1e-5
    with torch.no_grad():
        layer.bias.zero_()
    with pytest.raises(ValueError, match="a bias that is zero"):
        svdgrad.operator_triplet(lambda layer, x: layer(layer(x)), layer, x)


def test_a_division_by_the_size_of_x_is_called_so():
    with pytest.raises(ValueError, match=r"NaN or Inf, and none in params: likely cause: a division .* x"):
        svdgrad.operator_triplet(lambda A, x: A @ (x / x.norm()), torch.ones(3, 4), torch.ones(4))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    "matvec", [lambda A, x: A @ x.detach(), lambda A, x: A @ torch.from_numpy(x.detach().numpy())], ids=["", "numpy"]
)
def test_a_matvec_that_autograd_cannot_follow_to_x_is_called_so(matvec, requires_grad):
    A = torch.ones(3, 4, requires_grad=requires_grad)
    with pytest.raises(ValueError, match=r"differentiable in x, .* no connection: likely causes: detach\(\)"):
        svdgrad.operator_triplet(matvec, A, torch.ones(4))
    # with a product of its own with the transpose nothing is followed
    sigma = svdgrad.operator_triplet(matvec, A.detach(), torch.ones(4), rmatvec=lambda A, y: A.mT @ y).sigma
    assert abs(sigma - 12**0.5) < 1e-5


def test_numbers_that_were_replaced_before_backward_are_called_so():
    A = torch.randn(3, 4, requires_grad=True)
    sigma = svdgrad.operator_triplet(dense, A, torch.ones(4)).sigma
    A.data = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"the same in backward .* \.data"):
        sigma.backward()


def test_nan_among_the_parameters_is_called_so():
    with pytest.raises(ValueError, match="NaN or Inf: likely cause: they are in params"):
        svdgrad.operator_triplet(lambda d, x: d * x, torch.tensor([1.0, torch.nan]), torch.ones(2))


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
def test_the_adjoint_of_a_loose_triplet_is_solved_to_a_tenth_of_its_residual(tol):
    A = matrices.with_singular_values(np.r_[1.0, 0.9, np.linspace(0.8, 0.1, 58)], 80, 60)
    t, ritz = lanczos(A, v0=normal(60), tol=tol, missed=None)
    phi, psi = project(t.u, normal(80)), project(t.v, normal(60))
    loose, exact = (torch.cat(cg(A, t, phi, psi, x)) for x in (ritz, ritz._replace(residual=torch.tensor(0.0))))
    gap, error = 0.1, (loose - exact).norm() / exact.norm()
    # of u and v the error is residual/gap; of what is solved a tenth of that, but for the preconditioner's condition
    assert 1e-4 * ritz.residual < error < ritz.residual / gap
    t, ritz = (type(known)(*(x[None] for x in known)) for known in (t, ritz))
    batch = torch.cat(cg(A[None], t, phi[None], psi[None], ritz), -1)[0]
    assert (batch - exact).norm() < ritz.residual / gap * exact.norm()


@pytest.mark.parametrize("k", [1, 2])
def test_no_operator_outlives_its_backward(k):
    """No circle of Python's through the operator, which would keep its parameters until the collector comes by."""
    gc.collect()
    gc.disable()
    try:
        params = torch.randn(6, 5, dtype=torch.float64).requires_grad_()
        svdgrad.operator_triplets(torch.mv, params, torch.ones(5, dtype=torch.float64), k).U.sum().backward()
        alive = weakref.ref(params)
        del params
        assert alive() is None
    finally:
        gc.enable()
