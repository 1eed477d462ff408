"""The comparison table: complete, right, honest about a missing device, and recorded for others to read."""

import inspect
import json
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import svdgrad
from svdgrad import matrices
from svdgrad.adjoint import ATTEMPTS, SOLVERS
from svdgrad.adjoint.solver import Solver
from svdgrad.lab import check, contest, cost, figure, records, tables
from svdgrad.oracles import ORACLES


def test_every_way_has_a_row_and_the_exact_ones_a_small_error():
    rows = {(row.kind, row.name): row for row in contest.compare(matrices.gaussian(12, 8), repeat=1)}
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
    rows = {(row.kind, row.name): row for row in contest.compare(A, repeat=1)}
    s = torch.linalg.svdvals(A)
    assert rows["attempt", "direct"].kappa == math.inf
    assert rows["solver", "deflated"].kappa == pytest.approx((2 * s[0] / (s[0] - s[1])).item())
    assert rows["solver", "schur"].kappa == pytest.approx((s[0] ** 2 / (s[0] ** 2 - s[1] ** 2)).item())
    assert math.isnan(rows["solver", "spectral"].kappa)


def test_a_way_that_raises_or_answers_nan_is_told_as_infinite(monkeypatch):
    def singular(*_):
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setitem(contest.ATTEMPTS, "direct", Solver(singular, "K"))
    monkeypatch.setitem(contest.ATTEMPTS, "mixed", Solver(lambda A, triplet, phi, psi: (phi * torch.nan, psi)))
    rows = {row.name: row for row in contest.compare(matrices.gaussian(5, 4), repeat=1) if row.kind == "attempt"}
    assert rows["direct"].error == math.inf and rows["direct"].note == "LinAlgError: singular"
    assert "∞" in tables.table([rows["direct"]])
    assert rows["mixed"].error == rows["mixed"].residual == math.inf


# --- what a way costs ------------------------------------------------------------------------------------------------


def test_times_are_a_median_with_quartiles(monkeypatch):
    # a clock that does not begin at zero, as that of the host does not
    clock = iter([100, 101, *(t for ms in (4, 1, 5, 2, 3) for t in (100, 100 + ms / 1e3))])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    answer, timing = cost.measure(lambda: "answer", torch.device("cpu"), repeat=5)
    assert answer == "answer" and math.isnan(timing.peak)
    # the first run, of one second, was to warm up
    assert timing[:4] == pytest.approx((3, 2, 4, 5))


def test_of_a_slow_way_few_runs_are_timed_but_at_least_one():
    def measure(*seconds, repeat):
        clock = iter([t for s in seconds for t in (0, s)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cost.time, "perf_counter", lambda: next(clock))
            _, timing = cost.measure(lambda: None, torch.device("cpu"), repeat)
        assert next(clock, None) is None  # as many runs as that, no fewer
        return timing.milliseconds / 1e3, timing.runs

    assert measure(3, repeat=1) == (3, 1)  # all that was wanted
    # ten seconds are the limit: none to warm up where one run takes longer, and no further one after them
    assert measure(10.001, repeat=9) == (10.001, 1)
    assert measure(9.999, 9.999, 7.001, repeat=9) == (8.5, 2)


def test_on_cuda_the_events_of_the_device_have_the_time(monkeypatch):
    """With a driver that is not there: what is asked of it, in which order."""
    asked = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            asked.append("event")

        def synchronize(self):
            asked.append("wait")

        def elapsed_time(self, stop):
            return 0.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1700)
    _, timing = cost.measure(lambda: asked.append("run"), torch.device("cuda"), repeat=2)
    assert asked == ["reset", *3 * ["event", "run", "event", "wait"]]
    assert timing == (0.5, 0.5, 0.5, 2, 700)


def row(name, m, n, ms=math.nan, kind="solver", **more):
    return records.Row(kind, name, m, n, "cpu", "float64", milliseconds=ms, **more)


def test_the_memory_of_jax_is_not_told_as_that_of_pytorch(monkeypatch):
    """PyTorch counts its own memory only, so of JAX it has nothing to say, and of every other way it has."""
    timing = cost.Timing(1.0, 1.0, 1.0, 1, 4096.0)
    monkeypatch.setattr(contest, "measure", lambda run, *rest: (run(), timing))
    peaks = {row.name: row.peak for row in contest.compare(matrices.gaussian(6, 4))}
    assert math.isnan(peaks.pop("jax"))
    assert set(peaks.values()) == {4096.0}


@pytest.mark.parametrize(("m", "n"), [(12, 8), (8, 12)])
def test_the_memory_of_a_way_is_six_times_the_matrix_it_forms(m, n):
    sizes = {"K": 20 * 20, "stack": 20 * 12, "P": 12 * 12, "A": 12 * 8}
    forms = {
        "K": {"attempt": "direct bordered", "solver": "direct bordered saddle deflated", "witness": "newton"},
        "stack": {
            "attempt": "mixed backward-substitution forward-substitution",
            "solver": "mixed forward-substitution",
        },
        "P": {"attempt": "block-inversion", "solver": "block-inversion backward-substitution"},
        "A": {"solver": "spectral cg minres", "witness": "torch jax"},
    }
    for formed, ways in forms.items():
        for kind, names in ways.items():
            for name in names.split():
                assert cost.memory(kind, name, m, n) == 6 * sizes[formed], (kind, name)


def test_the_time_of_a_way_is_foretold_from_the_largest_matrix_so_far():
    past = [row("schur", m, m // 2, ms) for m, ms in ((100, 1e6), (512, 10.0), (1024, 100.0))]
    past.append(row("saddle", 2048, 1024, 9e9))
    assert cost.foretold(row("schur", 2048, 1024), past) == pytest.approx(0.8)
    assert cost.foretold(row("schur", 2048, 1024), past[:1]) == 0  # too small to tell anything
    assert cost.foretold(row("cg", 2048, 1024), past) == 0
    assert cost.foretold(row("schur", 2048, 1024), [row("schur", 1024, 512, note="not run: …")]) == 0


def test_what_would_cost_too_much_is_recorded_as_not_run_with_the_reason(monkeypatch):
    A = matrices.gaussian(12, 8)
    past = (row(name, 600, 600, 1e12, kind) for name, kind in (("schur", "solver"), ("jax", "witness")))
    monkeypatch.setattr(cost, "free_memory", lambda device: 8.0 * 6 * 20 * 20)
    rows = {(r.kind, r.name): r for r in contest.compare(A, 1, budget=7.0, past=past)}
    assert {way for way, r in rows.items() if r.note} == {("solver", "schur"), ("witness", "jax")}
    schur = rows["solver", "schur"]
    assert schur.note.startswith("not run: would take about ") and schur.note.endswith("the budget is 7 s")
    assert math.isnan(schur.error) and schur.runs == 0 and schur.note in tables.table([schur])

    monkeypatch.setattr(cost, "free_memory", lambda device: 8.0 * 6 * 20 * 20 - 1)
    rows = {(r.kind, r.name): r for r in contest.compare(A, 1, differences=False)}
    assert rows.pop(("witness", "differences")).note == "not run: it takes 192 SVDs"
    formed = {"direct", "bordered", "saddle", "deflated", "newton"}
    assert {name for (_, name), r in rows.items() if r.note} == formed  # K, or K with a border, would not fit
    assert "GB are free" in rows["attempt", "direct"].note


def test_a_judge_that_would_not_fit_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(contest, "free_memory", lambda device: 1e5)
    shapes = ["--shape", "6", "4", "--shape", "60", "40"]
    contest.main(["--device", "cpu", "--dtype", "float64", *shapes, "--record", str(tmp_path)])
    assert "60×40 not run: the judge needs about" in capsys.readouterr().out
    assert {(r.m, r.n) for r in records.read_records(tmp_path, "cpu")[0]["rows"]} == {(6, 4)}


# --- records ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_small_table_and_writes_nothing(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(
        contest, "compare", lambda A, repeat, differences, **options: asked.append((A.shape, repeat, differences)) or []
    )
    monkeypatch.setattr(contest, "write_record", None)
    contest.main(["--device", "cpu"])
    assert asked == [((64, 32), 5, True)] * 2
    assert "64×32, float32" in capsys.readouterr().out


def test_differences_are_asked_for_up_to_64_by_64(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(contest, "compare", lambda A, repeat, differences, **options: asked.append(differences) or [])
    contest.main(["--device", "cpu", "--dtype", "float64", "--shape", "64", "64", "--shape", "65", "64"])
    assert asked == [True, False]


def test_the_command_records_four_sizes(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        contest, "compare", lambda A, repeat, *more, **options: asked.append((*A.shape, A.dtype, repeat)) or []
    )
    monkeypatch.setattr(contest, "free_memory", lambda device: math.inf)
    contest.main(["--device", "cpu", "--record", str(tmp_path)])
    sizes = [(64, 32), (512, 256), (2048, 1024), (4096, 4096)]
    assert asked == [(m, n, dtype, 50) for m, n in sizes for dtype in (torch.float32, torch.float64)]


def test_a_record_holds_every_row_and_what_made_it(capsys, tmp_path):
    shapes = ["--shape", "6", "4", "--shape", "5", "8"]
    more = ["--dtype", "float64", "--repeat", "2", "--budget", "30"]
    contest.main(["--device", "cpu", *shapes, *more, "--record", str(tmp_path)])
    out = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert f"written to {path}" in out and path.name.startswith("cpu-")

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    assert written["code"] == records.code() and written["budget"] == 30 and "forty-digit" in written["judge"]
    # the name of the build, such as +cu130, is not in the metadata of PyPI's wheels
    assert torch.__version__.split("+")[0] == written["versions"]["torch"].split("+")[0]
    assert written["versions"].keys() >= {"cuda", "driver", "jax", "numpy"}
    assert "not measured" in written["peak"] and written["rows"][0]["peak"] is None

    (record,) = records.read_records(tmp_path, "cpu")
    assert not records.is_stale(record) and records.headline(record).endswith("jax on cpu)")
    for m, n in ((6, 4), (5, 8)):
        rows = [r for r in record["rows"] if (r.m, r.n) == (m, n)]
        assert tables.table(rows) in out and {r.name for r in rows} >= SOLVERS.keys()
        assert all(r.lower <= r.milliseconds <= r.upper and r.runs for r in rows if r.error < 1e-6)


@pytest.mark.parametrize(
    ("cpuinfo", "threads", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Model 3: fast\nprocessor\t: 1\nmodel name\t: other\n",
            1,
            "Model 3: fast, 1 thread",
        ),
        ("processor\t: 0\n", 4, "riscv64 CPU, 4 threads"),  # a system that does not tell the model
        (None, 4, "riscv64 CPU, 4 threads"),  # one without that file
    ],
    ids=["model", "no model", "no file"],
)
def test_a_cpu_is_named_by_its_model_where_the_system_tells_it(monkeypatch, tmp_path, cpuinfo, threads, name):
    file = tmp_path / "cpuinfo"
    if cpuinfo:
        file.write_text(cpuinfo, encoding="utf-8")
    monkeypatch.setattr(records, "Path", lambda path: {"/proc/cpuinfo": file}[path])
    monkeypatch.setattr(records.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert records.hardware(torch.device("cpu")) == name


@pytest.mark.skipif(sys.platform == "win32", reason="the program that stands in for nvidia-smi is a shell script")
def test_the_driver_is_asked_for_where_there_is_cuda(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))

    def driver(cuda, script=None):
        program.unlink(missing_ok=True)
        if script:
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        return records.versions()["driver"]

    assert driver(True, "echo ' 999.5'; echo 999.5") == "999.5"  # one line for each card
    assert driver(False, "echo 999.5") is None
    assert driver(True, "echo broken; exit 1") is None
    assert driver(True) is None


def plant(folder, name, kind="cuda", **changed):
    """A record as another machine would have made it, with one solver and its time of 0.25 ms."""
    found = row("schur", 64, 32, 0.25, error=1.5e-14)._asdict() | {"kappa": "infinite", "residual": None, "lower": None}
    versions = {"torch": "9.9", "cuda": "99.1", "driver": "999.5"}
    record = {
        "hardware": name,
        "date": "2026-11-24",
        "code": records.code(),
        "versions": versions,
        "rows": [found],
        **changed,
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{kind}-{name}-{record['date']}.json").write_text(json.dumps(record), encoding="utf-8")


def test_of_each_card_the_newest_record_is_found(tmp_path):
    assert records.read_records(tmp_path / "none", "cuda") == []
    for name, date in (
        ("card-1", "2026-03-01"),
        ("card-1", "2026-11-01"),
        ("card-1", "2026-07-01"),
        ("card-2", "2026-12-01"),
    ):
        plant(tmp_path, name, date=date)
    found = records.read_records(tmp_path, "cuda")
    assert [(r["hardware"], r["date"]) for r in found] == [("card-2", "2026-12-01"), ("card-1", "2026-11-01")]
    assert found[0]["rows"][0].kappa == math.inf and math.isnan(found[0]["rows"][0].residual)
    assert records.read_records(tmp_path, "cpu") == []


def test_a_record_of_other_code_is_marked(tmp_path):
    plant(tmp_path, "fresh")
    plant(tmp_path, "stale", code={"version": "0.0.1", "sources": "0123456789ab"})
    plant(tmp_path, "edited", code=records.code() | {"sources": "0123456789ab"})
    lines = {r["hardware"]: records.headline(r) for r in records.read_records(tmp_path, "cuda")}
    assert lines["fresh"] == "fresh, recorded 2026-11-24 (torch 9.9, cuda 99.1, driver 999.5)"
    assert "OLDER CODE made this record (svdgrad 0.0.1, sources 0123456789ab)" in lines["stale"]
    assert "OLDER CODE" in lines["edited"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_headline_says_where_jax_ran(tmp_path, device):
    jax = row("jax", 64, 32, 0.25, "witness")._replace(device=device)._asdict()
    plant(tmp_path, "card", rows=[jax, jax])
    (record,) = records.read_records(tmp_path, "cuda")
    assert records.headline(record).endswith(f"driver 999.5, jax on {device})")


@pytest.fixture
def copy_of_the_package(monkeypatch, tmp_path):
    """A copy, and a function from an object of the package to the file in the copy that holds it."""
    package = Path(records.__file__).parents[1]
    copy = shutil.copytree(package, tmp_path / "svdgrad", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(records, "__file__", str(copy / "lab" / "records.py"))

    def file_of(thing):
        return copy / Path(inspect.getsourcefile(inspect.unwrap(thing))).relative_to(package)

    return file_of


TIMED = [
    svdgrad.singular_triplet,
    svdgrad.operator_triplet,
    svdgrad.forward.lanczos,
    SOLVERS["schur"].solve,
    ORACLES["newton"],
]
NOT_TIMED = [figure, check, contest.main, records.write_record]


@pytest.mark.parametrize("thing", TIMED + NOT_TIMED, ids=lambda thing: thing.__name__)
def test_the_version_of_the_code_changes_with_what_is_timed_and_with_nothing_else(thing, copy_of_the_package):
    here = records.code()
    assert here["version"] == svdgrad.__version__ and len(here["sources"]) == 12
    file = copy_of_the_package(thing)
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert records.code() == here, "the ends of the lines are those of the system"
    file.write_bytes(file.read_bytes().replace(b'"""', b'"""Of course, ', 1))
    assert (records.code() == here) == (thing in NOT_TIMED)


def test_the_version_of_the_code_covers_whatever_a_timed_program_loads():
    """Read off the import statements; Python itself says here what it has loaded."""
    program = """
import sys, torch, svdgrad, svdgrad.jax, svdgrad.oracles
A = torch.eye(3, dtype=torch.float64).cumsum(0).requires_grad_()
for forward in ("svd", "gram", "lanczos"):
    svdgrad.singular_triplet(A, forward=forward).u[0].backward()
svdgrad.operator_triplet(lambda A, x: A @ x, A, torch.ones(3).double()).u[0].backward()
print(*(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "svdgrad"), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {Path(line) for line in done.stdout.splitlines()}
    files = set(records.timed_files(Path(records.__file__).parents[1]))
    assert len(loaded) > 10 and loaded <= files
    assert not any("lab" in path.parts for path in files), "the package does not import the book's equipment"


def test_imports_are_followed_however_they_are_written(tmp_path):
    package = tmp_path / "package"
    files = {
        "__init__.py": "if True:\n    from .a import f",
        "a.py": "def f():\n    import package.deep.b",
        "deep/__init__.py": "",
        "deep/b.py": "from ..c import d, no_module\nfrom . import e",
        "deep/e.py": "from package import g",
        "c/__init__.py": "",
        "c/d.py": "import json, torch",
        "g.py": "",
        "unasked.py": "from . import a",
    }
    for name, source in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source, encoding="utf-8")
    found = {path.relative_to(package).as_posix() for path in records.timed_files(package)}
    assert found == files.keys() - {"unasked.py"}


def test_a_record_that_is_cut_short_while_it_is_written_stays_what_it_was(monkeypatch, tmp_path):
    path = tmp_path / "record.json"
    records.write_json({"rows": [1]}, path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        records.write_json({"rows": [1, 2]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"rows": [1]}
    assert list(tmp_path.glob("*.json")) == [path]


def test_a_record_is_written_after_every_way(monkeypatch, tmp_path):
    lengths = []
    monkeypatch.setattr(contest, "write_record", lambda rows, *_: lengths.append(len(rows)))
    contest.main(["--device", "cpu", "--dtype", "float64", "--shape", "6", "4", "--record", str(tmp_path)])
    assert lengths[:-1] == list(range(1, lengths[-1] + 1))


def record_of(tmp_path, *options):
    contest.main(["--device", "cpu", "--dtype", "float64", "--repeat", "1", "--record", str(tmp_path), *options])
    (record,) = records.read_records(tmp_path, "cpu")
    return record


@pytest.mark.slow
def test_a_record_is_extended_by_other_shapes(tmp_path, capsys):
    old = record_of(tmp_path, "--shape", "6", "4", "--shape", "8", "4")
    new = record_of(tmp_path, "--shape", "8", "4", "--shape", "5", "5", "--judge", "long_double", "--extend")
    assert {(r.m, r.n) for r in new["rows"]} == {(6, 4), (8, 4), (5, 5)} and len(new["rows"]) == 1.5 * len(old["rows"])
    assert [r for r in new["rows"] if r.m == 6] == [r for r in old["rows"] if r.m == 6]
    assert new["judge"] == (
        "forty-digit gradient (svdgrad.oracles.extended), at the other sizes; "
        "float64 refined in long double (svdgrad.oracles.long_double), at 8×4, 5×5"
    )
    with pytest.raises(SystemExit):
        record_of(tmp_path, "--shape", "4", "4", "--seed", "3", "--extend")
    assert "made with another seed, 0" in capsys.readouterr().err
    assert {(r.m, r.n) for r in record_of(tmp_path, "--shape", "3", "3")["rows"]} == {(3, 3)}


def test_without_python_flint_and_tqdm_the_record_names_the_other_judge(monkeypatch, tmp_path):
    for name in ("flint", "tqdm", "jax"):
        monkeypatch.setitem(sys.modules, name, None)
    record = record_of(tmp_path, "--shape", "6", "4")
    assert record["judge"] == "float64 refined in long double (svdgrad.oracles.long_double), at every size"
    rows = {row.name: row for row in record["rows"]}
    assert rows["schur"].error < 1e-13 and rows["differences"].error < 1e-7
    assert rows["jax"].note == "not run: jax is not installed"


def test_missing_witnesses_are_said_with_the_way_to_get_them(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.linalg", None)
    monkeypatch.delitem(sys.modules, "svdgrad.oracles")
    monkeypatch.delattr("svdgrad.oracles")
    with pytest.raises(SystemExit):
        contest.main(["--device", "cpu"])
    assert "pip install 'svdgrad[oracles]'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_device_is_said(capsys):
    with pytest.raises(SystemExit):
        contest.main(["--device", "cuda"])
    assert "no CUDA device here" in capsys.readouterr().err
    assert contest.device("auto").type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: this test runs where there is one")
def test_the_contest_on_cuda_is_recorded(tmp_path):
    assert contest.device("auto").type == "cuda"
    contest.main(
        ["--device", "cuda", "--dtype", "float64", "--shape", "12", "8", "--repeat", "5", "--record", str(tmp_path)]
    )
    (record,) = records.read_records(tmp_path, "cuda")
    assert record["hardware"] == torch.cuda.get_device_name() and record["versions"]["cuda"] == torch.version.cuda
    for found in record["rows"]:
        if found.kind != "attempt":
            assert found.error <= (1e-7 if found.name == "differences" else 1e-12), found.name
            assert found.milliseconds > 0, found.name
        if found.kind == "solver":
            assert found.device == "cuda" and found.peak > 0, found.name
