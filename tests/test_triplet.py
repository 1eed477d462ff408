"""The differentiable map against extended precision, on every family of matrices, and its answers to bad input."""

import numpy as np
import pytest
import torch
from families import FAMILIES, NAN_MATRICES, NARROW, Family, gapped, problem

import svdgrad
from svdgrad import adjoint, matrices
from svdgrad.adjoint import SOLVERS
from svdgrad.forward import FORWARDS
from svdgrad.lab import relative_error

ADJOINTS = ["auto", *adjoint.SOLVERS]


def gradient(A, xi, phi, psi, v, index=0, **how):
    A = A.clone().requires_grad_()
    sigma, u, v = svdgrad.singular_triplet(A, index=index, v0=torch.from_numpy(v), **how)
    (xi * sigma + (phi * u).sum(-1) + (psi * v).sum(-1)).sum().backward()
    return A.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_agrees_with_extended_precision(family, dtype):
    A = FAMILIES[family].matrix(dtype)
    xi, phi, psi, v, truth = problem(A)
    for name in ADJOINTS:
        G = gradient(A, xi, phi, psi, v, adjoint=name)
        assert relative_error(G, truth) <= FAMILIES[family].bound(dtype), name


@pytest.mark.parametrize("family", NARROW)
def test_gradient_at_narrow_gaps(family):
    A = NARROW[family].matrix()
    xi, phi, psi, v, truth = problem(A)
    for name in ADJOINTS:
        G = gradient(A, xi, phi, psi, v, adjoint=name)
        assert relative_error(G, truth) <= NARROW[family].bound(torch.float64), name


@pytest.mark.parametrize("index", [1, 4, -1])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9)], ids=str)
def test_any_simple_triplet(shape, index):
    family = Family(*shape, np.linspace(9, 1, 9), index)
    A = family.matrix()
    xi, phi, psi, v, truth = problem(A, index)
    for name in ADJOINTS:
        if name != "auto" and SOLVERS[name].largest_only:
            with pytest.raises(
                ValueError,
                match=f"'{name}' needs index 0, the largest singular value, found {index}: for others use.*'minres'",
            ):
                gradient(A, xi, phi, psi, v, index, adjoint=name)
            continue
        G = gradient(A, xi, phi, psi, v, index, adjoint=name)
        assert relative_error(G, truth) <= family.bound(torch.float64), name


@pytest.mark.parametrize("name", ADJOINTS)
@pytest.mark.parametrize("matrix", NAN_MATRICES)
def test_finite_and_right_where_autograd_answers_nan(matrix, name):
    A = torch.from_numpy(NAN_MATRICES[matrix])
    xi, phi, psi, v, truth = problem(A)
    s = torch.linalg.svdvals(A)
    G = gradient(A, xi, phi, psi, v, adjoint=name)
    assert relative_error(G, truth) <= 50 * torch.finfo(A.dtype).eps * s[0] / (s[0] - s[1])


@pytest.mark.parametrize("name", ADJOINTS)
def test_a_batch_is_its_matrices_one_by_one(name):
    A = torch.stack(
        [Family(8, 5, gapped(5, gap)).matrix(seed=seed) for seed, gap in enumerate((0.5, 0.3, 0.2, 0.1, 0.4, 0.25))]
    )
    A = A.reshape(2, 3, 8, 5)
    xi, phi, psi = torch.randn(2, 3).double(), torch.randn(2, 3, 8).double(), torch.randn(2, 3, 5).double()
    v0 = svdgrad.singular_triplet(A).v.numpy()
    together = gradient(A, xi, phi, psi, v0, adjoint=name)
    for i in np.ndindex(2, 3):
        alone = gradient(A[i], xi[i], phi[i], psi[i], v0[i], adjoint=name)
        torch.testing.assert_close(together[i], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", adjoint.SOLVERS)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
def test_first_and_second_derivatives_against_differences(shape, name):
    A = matrices.with_singular_values(np.arange(min(shape), 0, -1.0), *shape).requires_grad_()

    def f(A):
        return tuple(svdgrad.singular_triplet(A, adjoint=name))

    assert torch.autograd.gradcheck(f, (A,))
    assert torch.autograd.gradgradcheck(f, (A,))


def test_the_triplet_satisfies_its_equations():
    for family in FAMILIES.values():
        A = family.matrix()
        sigma, u, v = svdgrad.singular_triplet(A)
        eps = 100 * torch.finfo(A.dtype).eps
        assert (A @ v - sigma * u).norm() <= eps * sigma
        assert (A.T @ u - sigma * v).norm() <= eps * sigma
        assert abs(u.norm() - 1) <= eps and abs(v.norm() - 1) <= eps


def test_only_sigma_asks_for_no_solve(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the adjoint system was solved for a loss of σ alone")

    monkeypatch.setitem(adjoint.SOLVERS, "spectral", fail)
    A = torch.eye(3).double().requires_grad_()  # a tie: u vᴴ is a subgradient even here
    sigma = svdgrad.spectral_norm(A)
    sigma.backward()
    torch.testing.assert_close((A.grad * A).sum(), sigma)
    assert torch.linalg.svdvals(A.grad).sum() <= 1 + 1e-14


@pytest.mark.parametrize(
    "A",
    [torch.eye(3), torch.zeros(3, 2), matrices.with_singular_values([1, 1, 0.5], 5, 3)],
    ids=["identity", "zero", "rotated"],
)
def test_a_tie_is_refused_for_the_vectors_and_not_for_the_value(A):
    A = A.double().requires_grad_()
    sigma, u, v = svdgrad.singular_triplet(A)
    G = torch.autograd.grad(sigma, A, retain_graph=True)[0]
    assert torch.isfinite(G).all() and torch.linalg.svdvals(G).sum() <= 1 + 1e-14
    with pytest.raises(
        svdgrad.TieError, match="found a relative gap of .*a tie up to rounding.*Likely causes.*A loss of σ alone"
    ):
        u[0].backward()


def test_an_index_near_zero_ties_with_zero_sooner_if_there_are_more_rows():
    """Of a square matrix the sign of u relative to v is all that zero takes, and no less than rounding takes it."""
    for m, n, smallest, tie in ((4, 3, 2e-15, True), (3, 4, 2e-15, True), (3, 3, 4e-15, False), (3, 3, 0, True)):
        A = matrices.with_singular_values([2, 1, smallest], m, n).requires_grad_()
        u = svdgrad.singular_triplet(A, index=-1).u
        if tie:
            with pytest.raises(svdgrad.TieError):
                u[0].backward()
        else:
            torch.autograd.grad(u[0], A)


@pytest.mark.parametrize(
    ("dtype", "gap", "warned"),
    [
        (torch.float64, 2e-15, None),
        (torch.float64, 5e-14, True),
        (torch.float64, 1e-12, False),
        (torch.float32, 4e-5, True),
        (torch.float32, 1e-3, False),
    ],
    ids=str,
)
def test_one_warning_names_the_gap_and_the_error_to_expect(recwarn, dtype, gap, warned):
    A = torch.diag(torch.tensor([1.0, 1.0 - gap, 0.5], dtype=dtype)).expand(2, 3, 3).clone().requires_grad_()
    u = svdgrad.singular_triplet(A).u
    if warned is None:
        with pytest.raises(svdgrad.TieError):
            u.sum().backward()
        return
    u.sum().backward()
    assert len(recwarn) == int(warned)
    if warned:
        assert recwarn[0].category is svdgrad.NearTieWarning
        message = str(recwarn[0].message)
        assert f"relative gap {gap:.1e}" in message and "is to be expected in the gradient with float" in message


def test_sign_largest_entry_of_v_is_positive_and_v0_overrides():
    A = matrices.gaussian(6, 4)
    u, v = svdgrad.singular_triplet(A)[1:]
    assert v[v.abs().argmax()] > 0
    u2, v2 = svdgrad.singular_triplet(A, v0=-v)[1:]
    torch.testing.assert_close((u2, v2), (-u, -v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    A = matrices.gaussian(6, 4).to(dtype)
    half = A.clone().requires_grad_()
    single = A.float().requires_grad_()
    for X in (half, single):
        sigma, u, v = svdgrad.singular_triplet(X)
        assert {sigma.dtype, u.dtype, v.dtype} == {X.dtype}
        (sigma + u[0] + v[1]).backward()
    torch.testing.assert_close(half.grad, single.grad.to(dtype))


def test_the_input_is_not_modified():
    A = matrices.gaussian(6, 4)
    before = A.clone()
    gradient(A, torch.tensor(1.0), torch.ones(6), torch.ones(4), np.ones(4))
    assert torch.equal(A, before)


BAD = [
    ([[1.0, 2.0]], {}, TypeError, "A must be a torch.Tensor, found list: convert it with torch.as_tensor"),
    (torch.eye(3, dtype=torch.int64), {}, TypeError, "must be floating point, found torch.int64.*try A.double"),
    (torch.ones(3), {}, ValueError, r"must be a matrix \(..., m, n\), found shape \(3,\)"),
    (torch.ones(0, 3), {}, ValueError, r"at least one row and one column, found shape \(0, 3\)"),
    (
        torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]]),
        {},
        ValueError,
        "must be finite, found 2 NaN or Inf among 4",
    ),
    (torch.eye(3), {"index": 3}, ValueError, "index must be from -3 to 2 for a matrix of shape 3×3, found 3"),
    (torch.eye(3), {"index": -4}, ValueError, "found -4"),
    (torch.eye(3), {"forward": "magic"}, ValueError, "unknown forward 'magic': the names are 'auto', 'svd'"),
    (torch.eye(3), {"adjoint": "magic"}, ValueError, "unknown adjoint 'magic': the names are 'auto', .*'saddle'"),
]


@pytest.mark.parametrize(("A", "how", "error", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_bad_input_gets_one_clear_error(A, how, error, message):
    with pytest.raises(error, match=message):
        svdgrad.singular_triplet(A, **how)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (4, 3, 2), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("forward", FORWARDS)
def test_no_entry_that_is_not_finite_goes_unseen(forward, dtype, shape):
    bad = [float("nan"), float("inf"), -float("inf")]
    for value in bad + [complex(0, x) for x in bad] * dtype.is_complex:
        for at in range(torch.Size(shape).numel()):
            A = torch.arange(1.0, 1 + torch.Size(shape).numel()).to(dtype)
            A[at] = value
            with pytest.raises(ValueError, match="must be finite, found 1 NaN or Inf among"):
                svdgrad.singular_triplet(A.reshape(shape), forward=forward)
            with pytest.raises(ValueError, match="must be finite, found 1 NaN or Inf among"):
                svdgrad.singular_triplet(A.reshape(shape).mH, forward=forward)


@pytest.mark.parametrize("adjoint", SOLVERS)
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (300, 250)], ids=str)
def test_a_view_that_conjugates_lazily_is_the_matrix_it_stands_for(shape, forward, adjoint):
    if shape[0] > 9 and adjoint not in ("cg", "spectral"):
        pytest.skip("what multiplies in blocks, from 2¹⁶ entries on, is these two")
    real, imag = matrices.gaussian(*shape, 1), matrices.gaussian(*shape, 2)
    B = torch.complex(real, imag)
    x, y = B[0], B[:, 0]

    def loss(triplet):  # blind to the phase
        _, u, v = triplet
        return (torch.linalg.vecdot(x, u) * torch.linalg.vecdot(v, y)).real + triplet.sigma

    for view in (B.mH, torch.complex(imag, real).mH.imag):  # the second is real, and negates lazily
        x, y = (z.real if view.is_floating_point() else z for z in (B[0], B[:, 0]))
        grads = []
        for A in (view, view.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()):
            A = A.detach().requires_grad_()
            loss(svdgrad.singular_triplet(A, forward=forward, adjoint=adjoint)).backward()
            grads.append(A.grad)
        assert relative_error(*grads) <= 1e-11  # 50 ε σ₁/gap, for gaps from 1.2e-3 up


def test_a_singular_value_of_zero_has_a_gradient_for_itself_alone():
    A = torch.diag(torch.tensor([3.0, 1.0, 0.0])).requires_grad_()
    sigma, u, v = svdgrad.singular_triplet(A, index=-1)
    sigma.backward(retain_graph=True)
    assert torch.isfinite(A.grad).all()
    with pytest.raises(svdgrad.TieError, match="σ is zero"):
        v[0].backward()


@pytest.mark.parametrize(
    ("dtype", "small"), [(torch.float64, 1e-3), (torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str
)
def test_the_smallest_of_a_square_matrix_keeps_its_digits_near_zero(dtype, small):
    """Zero is no neighbour where m = n: the bound knows the distance to the other singular values only."""
    A = matrices.with_singular_values([2, 1, 0.5, small], 4, 4).to(dtype)
    xi, phi, psi, v, truth = problem(A, index=-1)
    X = A.clone().requires_grad_()
    t = svdgrad.singular_triplet(X, index=-1, v0=torch.from_numpy(v).to(dtype))
    (xi * t.sigma + phi @ t.u + psi @ t.v).backward()
    assert relative_error(X.grad, truth) <= 50 * torch.finfo(dtype).eps / 0.2
