"""The one command for a machine with a GPU: its parts do not stop each other, and all of them work on a CPU."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from card import Card, OnCard

import svdgrad
from benchmarks import card, device
from benchmarks import run as speed
from svdgrad import matrices
from svdgrad.lab import loss_vectors, relative_error

ROOT = Path(card.__file__).parent.parent
CPU = torch.device("cpu")


def part(name, program, limit=60.0, results="*", least=0.0):
    return card.Part(name, [sys.executable, "-c", program], limit, results, least)


def states(folder):
    return {
        row["part"]: row["state"] for row in json.loads((folder / "card.json").read_text(encoding="utf-8"))["parts"]
    }


def test_a_part_that_fails_or_overruns_does_not_stop_the_next(tmp_path, capfd):
    writes = f"open({str(tmp_path / 'result')!r}, 'w').write('all')"
    sleeps = "import subprocess, sys; print('asleep', flush=True); subprocess.run([sys.executable, '-c', '{}'])"
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    asked = [
        part("fails", "raise SystemExit('a planted failure')"),
        part("overruns", sleeps.format(child.replace("'", '"""')), limit=3.0),
        card.Part("no program", ["/no/such/program"], 60.0, "*"),
        part("says done", "pass", results="nothing-*.json"),
        part("writes", writes, results="result"),
        part("too late", writes),
    ]
    begin = time.monotonic()
    done = card.run(asked[:-1], tmp_path, in_all=100.0)
    done += card.run(asked[-1:], tmp_path / "late" if (tmp_path / "late").mkdir() is None else tmp_path, in_all=1.0)
    assert time.monotonic() - begin < 60
    assert [row["state"] for row in done] == [
        "failed with status 1",
        "stopped at its limit of 3 s",
        "failed to start: [Errno 2] No such file or directory: '/no/such/program'",
        "done, and wrote no nothing-*.json",
        "done",
        "not run: no time is left",
    ]
    assert states(tmp_path) == {row["part"]: row["state"] for row in done[:-1]}
    log = (tmp_path / "card.log").read_text(encoding="utf-8")
    assert "a planted failure" in log and "asleep" in log and "a planted failure" in capfd.readouterr().out
    with pytest.raises(ProcessLookupError):  # what an overrunning part has started is ended with it
        for _ in range(50):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.1)


def test_what_is_killed_leaves_what_it_had(tmp_path):
    """The whole command, ended from without: the parts that are done, and the name of the one that was not."""
    program = f"""
from benchmarks import card
from pathlib import Path
import signal, sys
signal.signal(signal.SIGTERM, card._stopped)
sleep = card.Part("sleeps", [sys.executable, "-c", "import time; time.sleep(600)"], 600, "*")
card.run([card.Part("first", [sys.executable, "-c", "print(1)"], 60, "*"), sleep], Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    for _ in range(600):
        if (tmp_path / "card.json").exists() and states(tmp_path).get("sleeps") == "running":
            break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(30) != 0
    assert states(tmp_path) == {"first": "done", "sleeps": "running"}


def test_a_part_leaves_to_the_later_ones_what_they_need(tmp_path):
    asked = [part("first", "pass", limit=90.0), part("second", "pass", limit=50.0, least=30.0), part("third", "pass")]
    first, second, third = (row["limit"] for row in card.run(asked, tmp_path, in_all=60.0))
    assert first <= 30 and second <= 50 and third <= 60 and min(second, third) > 20


def test_all_parts_fit_into_nine_minutes():
    parts = card.parts("cuda", Path("out"), quick=False)
    assert card.IN_ALL <= 9 * 60
    assert [part.name for part in parts] == [
        "hardware",
        "tests",
        "contest",
        "speed",
        "profile",
        "auto",
        "largest contest",
    ]
    # even where each takes all that it may, none that is asked for by name goes without
    assert sum(part.limit for part in parts[:3]) + sum(part.least for part in parts) <= card.IN_ALL


def test_only_files_that_can_be_imported_are_tested(tmp_path, capsys):
    (tmp_path / "families.py").touch()
    for name, source in {
        "test_all_there.py": "import json, torch.linalg\nfrom families import x\npytest.mark.cuda\nfrom . import y",
        "test_later.py": "def test():\n    import no_such_package\npytest.mark.cuda",
        "test_missing.py": "import no_such_package.part\nfrom not_there import z\npytest.mark.cuda",
        "test_other.py": "import no_such_package",
    }.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    assert [path.name for path in card.test_files(tmp_path)] == ["test_all_there.py", "test_later.py"]
    assert capsys.readouterr().out == "tests: test_missing.py is left out, for want of no_such_package, not_there\n"


def test_the_tests_on_a_card_need_no_package_of_the_book():
    files = card.test_files()
    assert [path.name for path in files] == ["test_compare.py", "test_devices.py"]
    for path in [*files, ROOT / "tests" / "families.py", ROOT / "conftest.py"]:
        needed = card._imported(ast.parse(path.read_text(encoding="utf-8")))
        assert not needed & {"flint", "nbformat", "nbval", "bs4", "playwright", "yaml", "tqdm"}, path.name


def test_a_folder_with_files_is_refused(tmp_path, capsys):
    (tmp_path / "kept.json").touch()
    with pytest.raises(SystemExit):
        card.main([str(tmp_path)])
    assert "found files in" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_card_it_says_so_and_ends(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "tools" / "card.sh"], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode != 0 and "no CUDA device here" in done.stdout
    assert states(tmp_path) == {"hardware": "failed with status 2, and wrote no hardware.json"}


@pytest.mark.parametrize("name", sorted(device.IN_TORCH.keys() - device.DRIVERS.keys()))
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_a_contestant_takes_what_is_on_a_card_and_answers_there(name, batch, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it knows no card that is not there
    peer = device.IN_TORCH[name]
    if name == "torch.lobpcg":
        pytest.skip("its backward makes a generator of random numbers, which a card that is not there has not")
    A = torch.stack([matrices.gaussian(40, 30, seed) for seed in range(3)]) if batch else matrices.gaussian(40, 30)
    asked = A, *loss_vectors(A), torch.ones(30, dtype=A.dtype)
    _, wanted = peer.make(*asked)()
    with Card() as there:
        value, found = peer.make(*there.put(asked))()
    assert isinstance(value, OnCard) and isinstance(found, OnCard) and found.shape == wanted.shape
    if name != "torch.svd_lowrank":  # whose random numbers are of the device
        assert relative_error(found.numbers, wanted) < 1e-9  # within rounding, at gaps of a hundredth or more


def test_products_are_counted():
    """Two a step, one for u; and as many as the iteration itself counts."""
    asked = device.Lanczos(256, 200, "float64", CPU)
    A = asked.A.detach()
    assert asked.products()[0] == svdgrad.diagnose(A, forward="lanczos").products


def test_the_profile_of_a_card_is_summed_up_by_its_names():
    """Events as PyTorch gives them where there is a card: two kernels are products with A, one is with a basis."""
    kinds = torch.autograd.DeviceType

    def event(name, kind, us=0.0, shapes=None, kernels=()):
        taken = SimpleNamespace(elapsed_us=lambda: us)
        kernels = [SimpleNamespace(duration=duration) for duration in kernels]
        return SimpleNamespace(name=name, device_type=kind, time_range=taken, input_shapes=shapes, kernels=kernels)

    A = SimpleNamespace(is_cuda=True, numel=lambda: 64)
    events = [
        event("aten::mv", kinds.CPU, shapes=[[8, 8], [8]]),
        event("aten::addmv_", kinds.CPU, shapes=[[8], [8, 8], [8], [], []], kernels=[3.0]),
        event("aten::mm", kinds.CPU, shapes=[[8, 8], [8, 1]], kernels=[2.0]),
        event("aten::mv", kinds.CPU, shapes=[[3, 8], [8]], kernels=[4.0]),
        event("aten::cat", kinds.CPU, shapes=[[[8], [8]], []]),
        *(event(name, kinds.CPU) for name in ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaStreamSynchronize")),
        *(event(name, kinds.CPU) for name in ("cudaMemcpyAsync", "cudaDeviceSynchronize", "custom")),
        *(event("gemv", kinds.CUDA, us) for us in (3.0, 2.0, 4.0)),
        event("Memcpy DtoH (Device -> Pageable)", kinds.CUDA, 1.0),
    ]
    found = device._summary(SimpleNamespace(events=lambda: events), A)
    assert found["busy ms"] == pytest.approx(0.01) and found["products ms"] == pytest.approx(0.005)
    assert (found["launches"], found["waits"]) == (2, 1) and set(found["calls"]) == {
        "cudaLaunchKernel",
        "cuLaunchKernelEx",
        "cudaStreamSynchronize",
        "cudaMemcpyAsync",
        "cudaDeviceSynchronize",
    }
    assert found["longest"][0] == {"name": "gemv", "ms": pytest.approx(0.009), "count": 3}


def test_a_table_that_fails_is_recorded_and_the_next_begins(tmp_path):
    record = device.Record(tmp_path, CPU, quick=True)

    def fails():
        raise RuntimeError("a planted failure")

    device._guarded(record, "speed", fails)
    device._guarded(record, "speed", lambda: record.keep("speed", [{"name": "x"}], ""))
    again = device.Record(tmp_path, CPU, quick=True).record
    assert again["failures"] == [{"section": "speed", "note": "RuntimeError: a planted failure"}]
    assert again["speed"] == [{"name": "x"}]


@pytest.mark.slow
def test_after_the_deadline_nothing_begins(tmp_path):
    record = device.Record(tmp_path, CPU, quick=True)
    device.speed(CPU, record, device.Sizes(quick=True), seconds=-1.0)
    rows = record.record["speed"]
    assert {row["name"] for row in rows} >= device.IN_TORCH.keys() | device.IN_JAX.keys()
    assert all(row["ms"] is None and row["note"].startswith("not run: ") for row in rows)


@pytest.mark.slow
def test_all_parts_work_on_a_cpu(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "DEVICE": "cpu", "QUICK": "1"}
    done = subprocess.run([ROOT / "tools" / "card.sh"], capture_output=True, text=True, env=environment)
    log = (tmp_path / "card.log").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr + log[-5000:]
    assert set(states(tmp_path).values()) == {"done"} and len(states(tmp_path)) == 7
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) <= 8 and all(path.parent == tmp_path for path in files)
    assert all(path.stat().st_size <= device.LARGEST_FILE for path in files)
    assert all(re.fullmatch("[A-Za-z0-9._-]+", path.name) for path in files)

    (path,) = tmp_path.glob("cpu-*.json")
    contest = json.loads(path.read_text(encoding="utf-8"))
    assert {(row["m"], row["n"], row["dtype"]) for row in contest["rows"]} == {
        (m, n, dtype) for m, n in ((64, 32), (128, 64)) for dtype in ("float32", "float64")
    }
    assert "float64 refined in long double (svdgrad.oracles.long_double), at " in contest["judge"]

    (path,) = tmp_path.glob("speed-*.json")
    record = speed.read(path)
    assert record.keys() >= {"bandwidth", "speed", "products", "profile", "auto"} and "failures" not in record
    for row in record["speed"]:
        if row["name"] in device.DRIVERS:
            assert row["note"] == "not run: a driver needs CUDA"
        elif row["name"] == "torch.lobpcg" and "batch" in row:
            assert row["note"] == "not run: takes the matrices of a batch one by one"
        else:
            assert row["ms"] > 0, row
            if row["name"].startswith("svdgrad") and row["error"] is not None:
                assert row["error"] <= row["bound"], row
    assert {row["pass"] for row in record["profile"]} == {"forward", "adjoint"}
    assert all(row["products ms"] > 0 and row["steps"] > 5 for row in record["profile"])
    assert 'errors="0" failures="0"' in (tmp_path / "tests.xml").read_text(encoding="utf-8")
