"""Methods and solvers as values: with their own options and facts, beside their names."""

import subprocess
import sys
from typing import get_args

import pytest
import torch

import svdgrad
from svdgrad import matrices
from svdgrad.adjoint import ATTEMPTS, SOLVERS
from svdgrad.adjoint.solver import Solver
from svdgrad.auto import AdjointName, ForwardName
from svdgrad.forward import FORWARDS, SVD, Gram, Lanczos


def gradient(A, **how):
    A = A.clone().requires_grad_()
    _, u, v = svdgrad.singular_triplet(A, **how)
    (u[0] + v[1]).backward()
    return A.grad


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (SVD(), {"forward": "svd"}),
        (Gram(), {"forward": "gram"}),
        (Lanczos(), {"forward": "lanczos"}),
        (Lanczos(tol=1e-3, missed=None), {"forward": "lanczos", "tol": 1e-3, "missed": None}),
    ],
    ids=str,
)
def test_a_method_is_what_its_name_and_its_options_say(value, named):
    A = matrices.gaussian(20, 15)
    assert torch.equal(gradient(A, forward=value), gradient(A, **named))
    assert svdgrad.diagnose(A, forward=value) == svdgrad.diagnose(A, **named)


def test_a_solver_of_ones_own_is_taken_and_asked_for_its_facts():
    def by_pseudoinverse(A, triplet, phi, psi, known=None):
        sigma, u, v = triplet
        c = torch.cat([matrices.project(u, phi), matrices.project(v, psi)])
        return (torch.linalg.pinv(matrices.K(A, sigma)) @ c).split([len(u), len(v)])

    own = Solver(by_pseudoinverse, "K", largest_only=True)
    A = matrices.gaussian(20, 15)
    assert torch.dist(gradient(A, adjoint=own), gradient(A)) < 1e-11 * gradient(A).norm()
    assert svdgrad.diagnose(A, adjoint=own).adjoint == "a solver of your own"
    with pytest.raises(ValueError, match=r"adjoint 'a solver of your own' needs index 0.*for others use 'direct'"):
        svdgrad.singular_triplet(A, index=2, adjoint=own)


def test_a_compiled_call_takes_values_too():
    A = matrices.gaussian(12, 9)
    compiled = torch.compile(
        lambda A: svdgrad.singular_triplet(A, forward=Gram(), adjoint=SOLVERS["saddle"]), backend="aot_eager"
    )
    found, wanted = compiled(A), svdgrad.singular_triplet(A)
    assert all(torch.dist(x, y) < 1e-12 * y.norm() for x, y in zip(found, wanted))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"forward": Lanczos(), "tol": 1e-3}, r"a method carries its own options, found tol=0\.001 beside Lanczos"),
        ({"forward": Lanczos}, r"unknown forward <class .*a method is a value such as svdgrad\.forward\.Lanczos\(tol"),
        ({"forward": "lanzcos"}, r"unknown forward 'lanzcos': the names are 'auto', 'svd', 'gram', 'lanczos'"),
        ({"adjoint": "sadle"}, r"unknown adjoint 'sadle': the names are 'auto', 'direct'"),
        ({"adjoint": torch.linalg.solve}, r"unknown adjoint <built-in function"),
    ],
)
def test_what_is_neither_a_name_nor_a_value_is_an_error(how, message):
    with pytest.raises(ValueError, match=message):
        svdgrad.singular_triplet(matrices.gaussian(6, 5), **how)


def test_the_names_that_a_type_checker_knows_are_those_that_there_are():
    assert get_args(ForwardName) == ("auto", *FORWARDS)
    assert get_args(AdjointName) == ("auto", *SOLVERS)


def test_every_solver_says_what_it_works_with():
    for name, solver in {**SOLVERS, **ATTEMPTS}.items():
        assert (solver.works_with is None) == (name == "spectral")
        assert solver.works_with is None or solver.works_with in matrices.MATRICES


def test_a_misspelt_name_is_caught_by_a_type_checker(tmp_path):
    program = tmp_path / "program.py"
    lines = ["import torch, svdgrad", "A = torch.eye(3)", 'svdgrad.singular_triplet(A, forward="lanczos")']
    program.write_text("\n".join([*lines, 'svdgrad.singular_triplet(A, forward="lanzcos")']))
    done = subprocess.run([sys.executable, "-m", "mypy", str(program)], capture_output=True, text=True)
    (found,) = (line for line in done.stdout.splitlines() if "error:" in line)
    assert "program.py:4" in found and "lanzcos" in found
