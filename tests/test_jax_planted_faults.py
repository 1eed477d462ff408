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

#: what is wrong -> (the test that notices, the file, the right text, the wrong text)
FAULTS = {
    "the phase of u relative to v held fixed": (
        f"{AGREE}[(6, 4)-complex]",
        "adjoint.py",
        "odd = times(1 / (2 * sigma + (0 if complex_ else S[0])), (lam - mu) / 2)",
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
}


def run_tests(folder: Path, *tests: str) -> subprocess.CompletedProcess:
    """The tests named, on the copy of the package in ``folder``."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={folder}"]
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
    for name in {"families.py", *(test.split("::")[0] for test, *_ in FAULTS.values())}:
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
