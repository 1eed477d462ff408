"""The comparison table: complete, right, honest about a missing device, and recorded for others to read."""

import json
import math
import sys

import pytest
import torch

from svdgrad import compare, matrices
from svdgrad.adjoint import ATTEMPTS, SOLVERS
from svdgrad.oracles import ORACLES


def test_every_way_has_a_row_and_the_exact_ones_a_small_error():
    rows = {(row.kind, row.name): row for row in compare.compare(matrices.gaussian(12, 8), repeat=1)}
    ways = {"attempt": ATTEMPTS, "solver": SOLVERS, "witness": ORACLES.keys() - {"extended"}}
    assert set(rows) == {(kind, name) for kind, names in ways.items() for name in names}
    for (kind, name), row in rows.items():
        if kind == "attempt" and name != "bordered":
            assert row.error > 1e-9, name
        else:
            assert row.error <= (1e-7 if name == "differences" else 1e-12), name
        if kind == "solver":
            assert row.residual <= 1e-13, name
        assert row.milliseconds > 0, name


def test_kappa_is_that_of_the_matrix_that_is_factorised():
    A = matrices.gaussian(12, 8)
    rows = {(row.kind, row.name): row for row in compare.compare(A, repeat=1)}
    s = torch.linalg.svdvals(A)
    assert rows["attempt", "direct"].kappa == math.inf
    assert rows["solver", "deflated"].kappa == pytest.approx((2 * s[0] / (s[0] - s[1])).item())
    assert rows["solver", "schur"].kappa == pytest.approx((s[0] ** 2 / (s[0] ** 2 - s[1] ** 2)).item())
    assert math.isnan(rows["solver", "spectral"].kappa)


def test_a_way_that_raises_is_told_as_infinite(monkeypatch):
    def singular(*_):
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setitem(compare.ATTEMPTS, "direct", singular)
    row = compare.compare(matrices.gaussian(5, 4), repeat=1)[0]
    assert row.error == math.inf and "∞" in compare.table([row])


def test_the_command_prints_the_table_and_writes_a_record(capsys, tmp_path):
    compare.main(["--device", "cpu", "--dtype", "float64", "--shape", "6", "4", "--record", str(tmp_path)])
    out = capsys.readouterr().out
    assert "6×4 Gaussian matrix" in out
    assert all(name in out for name in SOLVERS)
    record = compare.newest_record(tmp_path, "cpu")
    assert record["matrix"] == "6×4 Gaussian matrix, seed 0" and "CPU" in record["hardware"]
    assert record["versions"]["torch"] == torch.__version__
    assert compare.table(record["rows"]) in out


def test_missing_witnesses_are_said_with_the_way_to_get_them(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.linalg", None)
    monkeypatch.delitem(sys.modules, "svdgrad.oracles")
    monkeypatch.delattr("svdgrad.oracles")
    with pytest.raises(SystemExit):
        compare.main(["--device", "cpu"])
    assert "pip install 'svdgrad[oracles]'" in capsys.readouterr().err


def test_the_newest_record_of_a_kind_of_device_is_found(tmp_path):
    assert compare.newest_record(tmp_path, "cuda") is None
    for date in ("2026-03-01", "2026-11-01", "2026-07-01"):
        (tmp_path / f"cuda-{date}.json").write_text(json.dumps({"date": date, "rows": []}))
    assert compare.newest_record(tmp_path, "cuda")["date"] == "2026-11-01"
    assert compare.newest_record(tmp_path, "cpu") is None


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
        if row.kind != "attempt":
            assert row.error <= (1e-7 if row.name == "differences" else 1e-12), row.name
