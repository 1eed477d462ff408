"""Faults planted in a copy of the JAX side, each of which must turn a named test red: a net that catches nothing is no
net.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AGREE, PHASE = "test_jax.py::test_the_two_sides_agree", "test_jax.py::test_derivatives_with_a_given_phase"
ANY, SPARSE = (
    "test_jax.py::test_any_simple_triplet",
    "test_jax_sparse.py::test_the_gradient_has_the_pattern_of_the_matrix",
)
TOPK = "test_jax_topk.py::test_a_loss_that_sees_every_triplet"
TIES = "test_jax_topk.py::test_ties_inside_the_set_at_any_distance"
CIRCLE = "test_jax_nn_circular.py::test_norm_and_gradient_are_those_of_the_formed_matrix"
ENTRIES = "test_jax_topk.py::test_forward_and_reverse_mode_of_every_entry[True]"

#: what is wrong -> (the test that notices, the file, the right text, the wrong text)
FAULTS = {
    "the phase of u relative to v held fixed": (
        f"{AGREE}[(6, 4)-complex]",
        "adjoint.py",
        "odd = divided((lam - mu) / 2, 2 * sigma + (0 if complex_ else S[0]))",
        "odd = 0 * lam",
    ),
    "the common phase left to itself": (PHASE, "rule.py", "rate = anchor(v, v0, dv).imag", "rate = 0 * sigma"),
    "a wrong sign in the adjoint by the full SVD": (
        f"{ANY}[(9, 9)-1]",
        "adjoint.py",
        "times(two * sigma, a) + times(two * S, b)",
        "times(two * sigma, a) - times(two * S, b)",
    ),
    "a wrong sign in the adjoint in one basis": (
        f"{AGREE}[(6, 4)-real]",
        "adjoint.py",
        "return times(1 / sigma, phi + A(q)), q",
        "return times(1 / sigma, phi - A(q)), q",
    ),
    "u in the kernel of Aᴴ forgotten": (f"{ANY}[(12, 9)-1]", "adjoint.py", "if U.shape[0] > S.size:", "if False:"),
    "v in the kernel of A forgotten": (f"{ANY}[(9, 12)-1]", "adjoint.py", "if Vh.shape[1] > S.size:", "if False:"),
    "the transpose without the conjugate": (
        f"{SPARSE}[(4, 6)-True]",
        "api.py",
        "M.indices[:, 1], M.data.conj() *",
        "M.indices[:, 1], M.data *",
    ),
    "the anchor of the sign turned": (
        f"{AGREE}[(5, 5)-real]",
        "rule.py",
        "jnp.where(a == 0, 1, jnp.sign(a).conj())",
        "jnp.where(a == 0, 1, -jnp.sign(a).conj())",
    ),
    "of k triplets, the phases of U relative to V held fixed": (
        f"{TOPK}[(9, 6)-3-svd-True]",
        "several.py",
        "divided(a - b, inner)",
        "divided(a - b, inner) * (1 - jnp.eye(k, dtype=a.dtype))",
    ),
    "of k triplets, the phases of V left to themselves": (
        ENTRIES,
        "inside.py",
        "dU, dV, X = dU - turn * U, dV - turn * V,",
        "dU, dV, X = dU + turn * U, dV + turn * V,",
    ),
    "of k triplets, what is in the kernel of Aᴴ": (
        f"{TOPK}[(9, 6)-3-svd-True]",
        "several.py",
        "if U.shape[0] > S.size:",
        "if False:",
    ),
    "of k triplets, what is in the kernel of A": (
        f"{TOPK}[(6, 9)-6-svd-False]",
        "several.py",
        "if Vh.shape[1] > S.size:",
        "if False:",
    ),
    "of k triplets, the sign of the Sylvester system": (
        f"{TOPK}[(9, 6)-3-svd-True]",
        "several.py",
        "times(two * sigma, a) + times(two * rest, b)",
        "times(two * sigma, a) - times(two * rest, b)",
    ),
    "of k triplets, a column": (
        f"{TOPK}[(7, 7)-3-gram-False]",
        "several.py",
        "_outside(k, params, most, known, phi, psi)",
        "_outside(k, params, most, known, phi.at[:, -1].set(0), psi)",
    ),
    "of k triplets by products, a proof of nothing": (
        "test_jax_block.py::test_what_the_start_hides_is_found_by_fresh_noise",
        "block.py",
        "return (basis.theta2[0] < tau) & (unseen <= most), unit(",
        "return jnp.ones((), bool), unit(",
    ),
    "of k triplets by products, rounding along U left in": (
        "test_jax_block.py::test_values_far_below_the_largest_have_the_error_that_is_foretold",
        "block.py",
        "Y = off_U(times(over, A(D)))",
        "Y = times(over, A(D))",
    ),
    "of k triplets, rounding divided by the distance of close values": (
        f"{TIES}[polar-False-float64-True]",
        "inside.py",
        "seen = jnp.abs(numerator) > rounding",
        "seen = jnp.abs(numerator) > -1",
    ),
    "of the factors, a core that is not Hermitian": (
        f"{TIES}[truncated-True-float64-True]",
        "several.py",
        "dH = herm(mm(adjoint(U), dA_V))",
        "dH = mm(adjoint(U), dA_V)",
    ),
    "of a convolution that wraps around, the dilation": (
        f"{CIRCLE}[2d, dilation and groups]",
        "circular.py",
        "np.arange(k) * d % n",
        "np.arange(k) % n",
    ),
    "of a convolution that wraps around, groups taken for one another": (
        f"{CIRCLE}[2d, dilation and groups]",
        "circular.py",
        ".reshape(groups, out // groups, within, -1)",
        ".reshape(out // groups, groups, within, -1).swapaxes(0, 1)",
    ),
    "of a convolution that wraps around, a tap in the place of one that it meets": (
        f"{CIRCLE}[a kernel wider than the image]",
        "circular.py",
        ".add(kernel)",
        ".set(kernel)",
    ),
    "of a convolution that wraps around, another frequency": (
        f"{CIRCLE}[1d, even]",
        "circular.py",
        "jnp.argmax(jnp.linalg",
        "jnp.argmin(jnp.linalg",
    ),
    "a transpose that is not the adjoint, unseen": (
        "test_jax_operators.py::test_a_map_that_is_not_linear_is_named_and_nan_under_jit[symmetric in name-triplet]",
        "operators.py",
        "(jnp.abs(dot(w, y) - dot(x, v)) > bound)",
        "(jnp.abs(dot(w, y) - dot(x, v)) < 0)",
    ),
    "a map of the conjugate of x, unseen": (
        "test_jax_operators.py::test_a_map_that_is_not_linear_is_named_and_nan_under_jit[conjugate-triplet]",
        "operators.py",
        "w = w * (0.6 + 0.8j)",
        "w = w * (1 + 0j)",
    ),
    "a layer that differs from its derivative, unseen": (
        "test_jax_operators.py::test_a_map_that_is_not_linear_is_named_and_nan_under_jit[quantised-norm]",
        "layer.py",
        "jnp.abs(beside).max() > HALF",
        "jnp.abs(beside).max() < -HALF",
    ),
    "a state that was lost, taken for one that is known": (
        "test_jax_nn.py::test_a_state_that_was_lost_is_one_that_knows_nothing[0.0]",
        "state.py",
        "known = jnp.isfinite(state.v).all() & state.v.any()",
        "known = jnp.isfinite(state.v).all()",
    ),
}


def run_tests(folder: Path, *tests: str) -> subprocess.CompletedProcess:
    """The tests named, which are to be among those of make test, on the copy of the package in ``folder``."""
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={folder}"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "svdgrad", tmp_path / "svdgrad", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in {
        "families.py",
        "four_devices.py",
        "marks.py",
        "test_jax_inputs.py",
        *(test.split("::")[0] for test, *_ in FAULTS.values()),
    }:
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    return tmp_path


@pytest.mark.slow
def test_the_unharmed_copy_passes(copy):
    tests = sorted({test for test, *_ in FAULTS.values()})
    result = run_tests(copy, *tests)
    assert result.returncode == 0 and f"{len(tests)} passed" in result.stdout, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(copy, fault):
    test, file, right, wrong = FAULTS[fault]
    path = copy / "svdgrad" / "jax" / file
    assert path.read_text().count(right) == 1, f"{file} no longer holds {right!r} once: plant the fault anew"
    path.write_text(path.read_text().replace(right, wrong))
    result = run_tests(copy, test)
    assert result.returncode == 1 and "1 failed" in result.stdout, f"nothing noticed {fault}\n{result.stdout[-2000:]}"
