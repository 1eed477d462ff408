"""The witnesses, each against something that it shares no code with."""

import importlib.util

import numpy as np
import pytest
import torch
from families import FAMILIES, NAN_MATRICES, NARROW, problem

from svdgrad import matrices, oracles
from svdgrad.lab import relative_error


def extended_value(A, xi, phi, psi, v):
    """f(A) with 60 digits by mpmath's own SVD, an algorithm of its own."""
    import mpmath

    U, S, V = mpmath.svd_r(A)
    i = max(range(len(S)), key=lambda i: S[i])
    u, v_found = U[:, i], V[i, :].T
    sign = mpmath.sign(mpmath.fsum(a * b for a, b in zip(v_found, v)))
    dot = lambda x, y: mpmath.fsum(mpmath.mpf(float(a)) * b for a, b in zip(x, y))
    return float(xi) * S[i] + sign * (dot(phi, u) + dot(psi, v_found))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
def test_extended_gradient_against_sixty_digit_differences(shape):
    import mpmath

    with mpmath.workdps(60):
        A = matrices.gaussian(*shape)
        xi, phi, psi, v, G = problem(A)
        base, h = mpmath.matrix(A.tolist()), mpmath.mpf("1e-20")
        for i, j in ((0, 0), (2, 1), (3, 3)):
            step = mpmath.zeros(*shape)
            step[i, j] = h
            difference = extended_value(base + step, xi, phi, psi, v) - extended_value(base - step, xi, phi, psi, v)
            assert abs(difference / (2 * h) - G[i, j]) <= 2e-16 * np.abs(G).max()


WIDE = pytest.mark.skipif(np.finfo(np.longdouble).eps > 2.0**-60, reason="long double is float64 on this processor")


@WIDE
@pytest.mark.parametrize("family", FAMILIES | NARROW)
def test_long_double_agrees_with_forty_digits(family):
    """To float64's last digit, and to a tenth of what rounding an entry of A changes: as it promises."""
    asked = (FAMILIES | NARROW)[family]
    A = asked.matrix()
    xi, phi, psi, v, _ = problem(A, asked.index)
    wanted = oracles.extended(A, xi, phi, psi, v, asked.index)
    eps = np.finfo(float).eps
    found = oracles.long_double(A, xi, phi, psi, v, asked.index)
    assert relative_error(found, wanted) <= eps + 0.1 * eps / asked.relative_gap()


@WIDE
@pytest.mark.parametrize("index", [1, -1])
def test_long_double_serves_any_simple_triplet(index):
    A = matrices.gaussian(9, 5)
    xi, phi, psi, v, _ = problem(A, index)
    wanted, found = (judge(A, xi, phi, psi, v, index) for judge in (oracles.extended, oracles.long_double))
    assert relative_error(found, wanted) <= 1e-14  # a gap of a hundredth of σ₁ or more


def test_long_double_says_where_it_has_no_more_digits(monkeypatch):
    monkeypatch.setattr(np, "longdouble", np.float64)
    A = matrices.gaussian(3, 2)
    with pytest.raises(NotImplementedError, match="found ε = 2.2e-16: install python-flint"):
        oracles.long_double(A, 1.0, A[:, 0], A[0], A[0])


def test_the_judge_is_the_one_that_can_run(monkeypatch):
    assert oracles.judge() == oracles.JUDGES["extended"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert oracles.judge() == oracles.JUDGES["long_double"]


@pytest.mark.parametrize("index", [0, 1, -1])
@pytest.mark.parametrize("name", ["differences", "torch", "jax", "newton"])
def test_the_witnesses_agree(name, index):
    A = matrices.with_singular_values([5, 4, 2.5, 1], 6, 4)
    xi, phi, psi, v, truth = problem(A, index)
    error = relative_error(oracles.ORACLES[name](A, xi, phi, psi, v, index), truth)
    assert error <= (1e-8 if name == "differences" else 1e-13)


@pytest.mark.parametrize("name", oracles.ORACLES)
def test_the_sign_is_that_of_v(name):
    A = matrices.gaussian(5, 4)
    xi, phi, psi, v, _ = problem(A)
    f = oracles.ORACLES[name]
    G, flipped = f(A, xi, phi, psi, v), f(A, xi, -phi, -psi, -v)
    np.testing.assert_allclose(G, flipped, rtol=1e-9, atol=1e-12)
    assert relative_error(f(A, xi, phi, psi, -v), G) > 0.1


def test_the_directional_difference_is_the_inner_product_with_the_gradient():
    A = matrices.gaussian(6, 4)
    xi, phi, psi, v, G = problem(A)
    E = np.random.default_rng(5).standard_normal((6, 4))
    assert abs(oracles.directional(A, xi, phi, psi, v, E, 1e-5) - (G * E).sum()) <= 1e-8


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("matrix", NAN_MATRICES)
def test_autograd_through_the_svd_answers_nan(matrix, name):
    """A recorded fact about torch 2.13 and JAX 0.10: should a newer release mend it, chapter one has news to tell."""
    A = torch.from_numpy(NAN_MATRICES[matrix])
    xi, phi, psi, v, truth = problem(A)
    assert np.isfinite(truth).all()
    assert np.isnan(oracles.ORACLES[name](A, xi, phi, psi, v)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_newton_step_differentiated_is_right_on_every_family(family, dtype):
    A = FAMILIES[family].matrix(dtype)
    xi, phi, psi, v, truth = problem(A)
    assert relative_error(oracles.newton(A, xi, phi, psi, v), truth) <= FAMILIES[family].bound(dtype)


@pytest.mark.parametrize("matrix", NAN_MATRICES)
def test_one_newton_step_differentiated_is_right_where_autograd_answers_nan(matrix):
    A = torch.from_numpy(NAN_MATRICES[matrix])
    xi, phi, psi, v, truth = problem(A)
    assert relative_error(oracles.newton(A, xi, phi, psi, v), truth) <= 1e-13


def test_differences_show_a_bar_only_when_asked(capfd):
    A = matrices.gaussian(3, 2)
    xi, phi, psi, v, _ = problem(A)
    oracles.differences(A, xi, phi, psi, v)
    assert capfd.readouterr().err == ""
    oracles.differences(A, xi, phi, psi, v, progress=True)
    assert "central differences" in capfd.readouterr().err


def test_extended_says_when_it_cannot_separate_two_singular_values():
    A = torch.eye(3).double()
    with pytest.raises(ArithmeticError, match="too near to another singular value"):
        oracles.extended(A, 1.0, np.ones(3), np.arange(3.0), np.array([1.0, 0.3, 0.2]))


@pytest.mark.parametrize("name", oracles.ORACLES)
def test_a_witness_leaves_no_trace_in_its_input(name):
    A = matrices.gaussian(5, 4).requires_grad_()
    before = A.detach().clone()
    xi, phi, psi, v, _ = problem(before)
    oracles.ORACLES[name](A, xi, phi, psi, v)
    assert A.grad is None and torch.equal(A, before)
