"""The comparison table: complete, right, and honest about a missing device."""

import pytest
import torch

from svdgrad import compare, matrices
from svdgrad.adjoint import SOLVERS


def test_every_solver_and_witness_has_a_row_and_a_small_error():
    rows = {row.name: row for row in compare.compare(matrices.gaussian(12, 8), repeat=1)}
    assert set(rows) == {*SOLVERS, "differences", "torch", "jax"}
    for name, row in rows.items():
        assert row.error <= (1e-7 if name == "differences" else 1e-12), name
    for name in SOLVERS:
        assert rows[name].residual <= 1e-13, name
    for name in compare.MATRICES:
        assert 1 < rows[name].kappa < 1e3, name


def test_the_command_prints_the_table(capsys):
    compare.main(["--device", "cpu", "--dtype", "float64", "--shape", "6", "4"])
    out = capsys.readouterr().out
    assert "6×4 Gaussian matrix" in out
    assert all(name in out for name in SOLVERS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_device_is_said(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--device", "cuda"])
    assert "no CUDA device here" in capsys.readouterr().err
    assert compare.device("auto").type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: this test runs where there is one")
def test_the_solvers_on_cuda():
    assert compare.device("auto").type == "cuda"
    for row in compare.compare(matrices.gaussian(12, 8).cuda(), repeat=1):
        assert row.error <= (1e-7 if row.name == "differences" else 1e-12), row.name
