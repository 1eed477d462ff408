"""Faults planted in a copy of the package, each of which must turn the tests red: a net that catches nothing is no
net.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: what is wrong -> (file, the right text, the wrong text)
FAULTS = {
    "a flipped sign in the gradient": (
        "rule.py",
        "*A.pull((x, u), (v, q), wanted)",
        "*A.pull((x, u), (v, -q), wanted)",
    ),
    "p for u": (
        "rule.py",
        "*A.pull((x, u), (v, q), wanted)",
        "*A.pull((x, p), (v, q), wanted)",
    ),
    "A for its transpose": (
        "matrices.py",
        "torch.cat([-A.mH, scaled_identity(sigma, n, A)], -1)",
        "torch.cat([-A.reshape(n, m), scaled_identity(sigma, n, A)], -1)",
    ),
    "a projection dropped": (
        "adjoint/spectral.py",
        "project(u, phi / s), project(v, psi / s)",
        "phi / s, project(v, psi / s)",
    ),
    "the part outside range(A) forgotten": ("adjoint/spectral.py", "else mv(U, x - a) + phi", "else mv(U, x)"),
    "the cotangent of sigma forgotten": (
        "rule.py",
        "x = along_u(sigma, u, xi, phi, p, alone=not many)",
        "x = along_u(sigma, u, None, phi, p, alone=not many)",
    ),
    "the sign of v0 ignored": (
        "forward/found.py",
        "    if v0 is None:\n        anchor",
        "    if True:\n        anchor",
    ),
    "a term of the second derivative lost": ("solve.py", "A.pull((y, p), (q, z), ctx", "A.pull((y,), (q,), ctx"),
}

QUICK = "a term of the second derivative lost"  # the others are planted by make slow


def run_tests(folder: Path) -> subprocess.CompletedProcess:
    """The tests of the differentiable map, on the copy of the package in ``folder``, up to the first failure."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-m",
        "not slow",  # make test is to notice
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        f"--rootdir={folder}",
        "tests/test_triplet.py",
    ]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "svdgrad", tmp_path / "svdgrad", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in ("families.py", "test_triplet.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    return tmp_path


@pytest.mark.slow
def test_the_unharmed_copy_passes(copy):
    result = run_tests(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("fault", [QUICK, *(pytest.param(x, marks=pytest.mark.slow) for x in FAULTS if x != QUICK)])
def test_a_planted_fault_is_caught(copy, fault):
    file, right, wrong = FAULTS[fault]
    source = (copy / "svdgrad" / file).read_text()
    assert source.count(right) == 1, f"{file} no longer holds {right!r} once: plant the fault anew"
    (copy / "svdgrad" / file).write_text(source.replace(right, wrong))
    result = run_tests(copy)
    assert result.returncode == 1 and " failed" in result.stdout, f"nothing noticed {fault}\n{result.stdout[-2000:]}"
