"""The benchmarks answer right, say what is missing, and can be read back. No time is asserted here."""

import json
import math
import subprocess
import sys

import pytest
import torch

import svdgrad
from benchmarks import run
from benchmarks.peers import PEERS, Peer
from benchmarks.problem import problem, truth

SHAPES = [(12, 8), (8, 12)]
RIGHT = ["svdgrad", "svdgrad lanczos", "svdgrad doubling", "notebook: bordered lstsq", "torch.linalg.svd"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contestants_meet_the_bound(shape, dtype):
    asked, right = problem(*shape), truth(*shape)
    for name in RIGHT:
        answer = PEERS[name].make(*asked.arguments(dtype))()
        assert run.error(answer, right.value, right.gradient) <= asked.bound(dtype), name
    for name in ("svdgrad, forward only", "scipy svds"):
        value, gradient = PEERS[name].make(*asked.arguments(dtype))()
        assert gradient is None
        assert run.error((value, None), right.value, right.gradient) <= asked.bound(dtype), name


@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_judges_agree(shape):
    asked, right = problem(*shape), truth(*shape)
    in_float64 = truth(*shape, exact=False)
    assert run.error((in_float64.value, in_float64.gradient), right.value, right.gradient) <= asked.bound(torch.float64)


def test_every_contestant_computes_anew():
    # a second call answers the same, so what is timed is not a look at a stored answer of the first
    asked, right = problem(12, 8), truth(12, 8)
    once = PEERS["svdgrad"].make(*asked.arguments(torch.float64))
    first, second = once(), once()
    assert first[1] is not second[1]
    assert run.error(second, right.value, right.gradient) <= asked.bound(torch.float64)


def test_what_is_missing_wrong_or_failing_has_a_row():
    def fails(*_):
        raise RuntimeError("no such routine")

    def answers_nan(A, *_):
        return lambda: (A.sum(), A * math.nan)

    peers = {
        "svdgrad": PEERS["svdgrad"],
        "away": Peer(fails, "no-such-package==1.0", "no_such_package"),
        "fails": Peer(fails),
        "fails later": Peer(lambda *_: fails),
        "nan": Peer(answers_nan),
        "too large": Peer(fails, most=10),
    }
    rows = {row["name"]: row for row in run.contest(12, 8, "float64", peers, run.Clock(quick=True))}
    assert list(rows) == list(peers)
    assert rows["away"]["note"] == "not installed: pip install no-such-package==1.0"
    assert rows["fails"]["note"] == rows["fails later"]["note"] == "RuntimeError: no such routine"
    assert rows["nan"]["error"] == math.inf and rows["nan"]["ms"] is not None
    assert rows["too large"]["note"].startswith("not run: forms a matrix of size m + n")
    text = run.table(list(rows.values()))
    assert all(name in text for name in peers) and "not installed" in text


def test_what_would_take_too_long_is_foretold():
    clock = run.Clock(quick=True)
    clock.remember("slow", "float32", 64, 64, 100.0)  # too small to tell anything
    assert clock.foretold("slow", "float32", 128, 128) == 0
    clock.remember("slow", "float32", 512, 512, 2.0)
    assert clock.foretold("slow", "float32", 1024, 1024) == pytest.approx(16.0)


def test_products_are_two_a_step():
    A, xi, phi, psi, v = problem(40, 40).arguments(torch.float64)
    steps = svdgrad.diagnose(A, forward="lanczos").steps
    forward, backward, found = run.count_products(A, xi, phi, psi)
    assert forward == 2 * steps + 1  # and one for u
    assert backward % 2 == 0 and backward > 0
    assert abs(abs(float(found @ v)) - 1) < 1e-12


def test_a_record_can_be_read_back(tmp_path):
    options = ["--quick", "--sizes", "12x8", "--dtype", "float64", "--only", "contest", "batch", "svdgrad"]
    made = run.main([*options, "--record", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    assert path.name == f"speed-cpu-{made['date']}.json"
    assert run.read(path) == json.loads(json.dumps(made))
    assert made["quick"] is True and made["code"] == svdgrad.lab.records.code()
    assert [row["name"] for row in made["contest"]] == ["svdgrad"]
    assert set(made) & set(run.SECTIONS) == {"contest", "batch"}


@pytest.mark.parametrize(("package", "size"), [("svdgrad", 400), ("svdgrad.jax", 100)])
def test_the_section_on_auto_marks_the_method_that_auto_takes(package, size):
    for n, chosen in ((20, "gram"), (size, "lanczos")):
        rows = run.auto(package, n, n, "float64", run.Clock(quick=True))
        assert [row["name"] for row in rows if row["note"] == '"auto"'] == [chosen]
        assert rows[0]["ratio"] == 1 and all(row["ms"] > 0 for row in rows)


def test_infinity_is_written_as_a_word(tmp_path):
    record = {"device": "cpu", "date": "2000-01-01", "contest": [{"error": math.inf, "points": [[64, 1.0]]}]}
    path = run.write(record, tmp_path)
    assert "Infinity" not in path.read_text()
    assert run.read(path) == record


def test_an_unknown_contestant_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["--only", "svdgard"])
    assert "svdgard" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset through /proc")
def test_memory_counts_the_gradient_and_what_it_took():
    command = [sys.executable, "-m", "benchmarks.memory", "svdgrad", "1024", "1024", "float32"]
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=run.ROOT).stdout)
    assert row["peak"] >= 0.9 * 4 * 1024**2  # the gradient at least, whose pages are touched
    assert row["ratio"] <= 1.3
