"""Every attempt and every solver against every witness, as a table: ``python -m svdgrad.compare --device auto``.

With ``--record FOLDER`` the same at four sizes, in a file that the book reads. At every size the judge is the gradient
in extended precision: it takes a few dozen products with A in forty digits and one float64 factorisation, so it reaches
4096×4096 in two minutes and three gigabytes on one core of a CPU. Where python-flint is not installed, and with
``--judge long_double``, it has three digits more than float64.
"""

import argparse
import html as markup
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import matrices
from .adjoint import ATTEMPTS, SOLVERS, assemble
from .checks import relative_error
from .forward import Triplet, svd
from .matrices import mv, project
from .records import Row, hardware, header, milliseconds, read_record, record_path, short, write_record

#: the shapes that a record holds, from one where calling a library takes the time to one where only some ways fit
SHAPES = [(64, 32), (512, 256), (2048, 1024), (4096, 4096)]

#: the matrix that a way factorises or iterates with; the others work in the singular bases
FACTORS = {
    ("attempt", "direct"): "K",
    ("attempt", "bordered"): "bordered",
    ("attempt", "block-inversion"): "P",
    ("attempt", "mixed"): "notebook-stack",
    ("attempt", "backward-substitution"): "notebook-stack",
    ("attempt", "forward-substitution"): "notebook-stack",
    ("solver", "direct"): "K",
    ("solver", "bordered"): "bordered",
    ("solver", "block-inversion"): "deflated-P",
    ("solver", "mixed"): "middle",
    ("solver", "backward-substitution"): "deflated-P",
    ("solver", "forward-substitution"): "middle",
    ("solver", "saddle"): "saddle",
    ("solver", "deflated"): "deflated",
    ("solver", "schur"): "deflated-Q",
    ("solver", "doubling"): "deflated-Q",
    ("solver", "cg"): "deflated-Q",
    ("solver", "minres"): "deflated",
}


def device(wanted: str = "auto") -> torch.device:
    """The device that the book runs on: CUDA where there is one, else the CPU. The only place where this is chosen."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(wanted).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device here: PyTorch finds none; use --device cpu, or install a CUDA build of PyTorch"
        )
    return torch.device(wanted)


def loss_vectors(A: Tensor, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal cotangents ξ, φ, ψ for A, the same on every machine for a given seed."""
    m, n = A.shape[-2:]
    numbers = np.random.default_rng(seed).standard_normal(1 + m + n)
    xi, phi, psi = torch.from_numpy(numbers).to(A).split([1, m, n])
    return xi[0], phi, psi


def compare(
    A: Tensor,
    repeat: int = 5,
    differences: bool = True,
    budget: float = math.inf,
    past: Iterable[Row] = (),
    judge: Callable[..., np.ndarray] | None = None,
    patience: float = 10.0,
    keep: Callable[[list[Row]], Any] = lambda rows: None,
) -> list[Row]:
    """Every attempt, every solver and every witness, judged by a gradient of more digits: ``oracles.judge()`` unless
    given.

    Shape: A (m, n), on the device and in the dtype to compare in. A random loss is used, see ``loss_vectors``.
    A way is not run, and its row says why, if it would not fit in the memory that is free, or if a run is foretold,
    from ``past`` rows of smaller matrices, to take more than ``budget`` seconds; nor is ``differences``, with its 2mn
    SVDs, if not wanted. For ``patience`` see ``measure``. ``keep`` is called with the rows so far after each way.
    """
    from . import oracles
    from .oracles import ORACLES

    m, n = A.shape
    xi, phi, psi = loss_vectors(A)
    triplet, known = svd(A)
    truth = (judge or oracles.judge()[0])(A, xi, phi, psi, triplet.v)
    past = list(past)
    cpu, dtype = torch.device("cpu"), str(A.dtype).removeprefix("torch.")
    rows = []

    def add(
        kind: str, name: str, run: Callable[[], Any], judge: Callable[[Any], dict[str, Any]], where: torch.device
    ) -> None:
        row = Row(kind, name, m, n, where.type, dtype, kappa=_kappa(kind, name, triplet, known.S, m, n))
        unwanted = "" if differences or name != "differences" else f"it takes {2 * m * n} SVDs"
        if note := unwanted or too_much(row, A, budget, past):
            rows.append(row._replace(note=f"not run: {note}"))
            keep(rows)
            return
        try:
            if name == "jax":
                run()  # compiles every operation, which may take seconds that no later run takes
            answer, timing = measure(run, where, 1 if name == "differences" else repeat, patience)
            if name == "jax":
                timing = timing._replace(peak=math.nan)  # JAX's memory is not PyTorch's
            row = row._replace(**timing._asdict(), **judge(answer))
        except (torch.OutOfMemoryError, MemoryError):
            row = row._replace(note="not run: out of memory")
        except ModuleNotFoundError as missing:
            row = row._replace(note=f"not run: {missing.name} is not installed")
        except (RuntimeError, ArithmeticError, ValueError) as problem:  # PyTorch's LinAlgError and JAX's are among them
            kind_of = type(problem).__name__.lstrip("_")
            row = row._replace(error=math.inf, note=f"{kind_of}: {problem}".splitlines()[0])
        rows.append(row)
        keep(rows)

    def judge_adjoint(answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
        gradient = assemble(triplet, xi, *answer)
        return {"error": _finite(relative_error(gradient, truth)), "residual": _residual(A, triplet, phi, psi, *answer)}

    for kind, ways in (("attempt", ATTEMPTS), ("solver", SOLVERS)):
        for name, way in ways.items():
            if (kind, name) == ("solver", "spectral"):
                way = partial(way, known=known)  # the formula for when the whole SVD is at hand
            add(kind, name, partial(way, A, triplet, phi, psi), judge_adjoint, A.device)
    for name, oracle in ORACLES.items():
        if name != "extended":
            run = partial(oracle, A, xi, phi, psi, triplet.v)
            add(
                "witness",
                name,
                run,
                lambda G: {"error": _finite(relative_error(G, truth))},
                A.device if _runs_where_a_is(name, A) else cpu,
            )
    return rows


def _runs_where_a_is(name: str, A: Tensor) -> bool:
    """Of a witness, whether it calculates on the device of A, and not on the host."""
    if name == "jax":
        from .oracles import jax_device

        try:
            return bool(jax_device(A).platform != "cpu")
        except ModuleNotFoundError:
            return False
    return name in ("torch", "newton")


def _finite(error: float) -> float:
    """A way that answers NaN is as wrong as can be; in a row NaN means that it was not asked."""
    return math.inf if math.isnan(error) else error


def _residual(A: Tensor, triplet: Triplet, phi: Tensor, psi: Tensor, p: Tensor, q: Tensor) -> float:
    """‖K[p; q] − c‖/‖c‖ in float64, K not formed."""
    sigma, u, v = triplet
    c = torch.cat([project(u, phi), project(v, psi)]).double()
    A, sigma, p, q = A.double(), sigma.double(), p.double(), q.double()
    left = torch.cat([sigma * p - mv(A, q), sigma * q - mv(A.mH, p)])
    return _finite(((left - c).norm() / c.norm()).item())


def _kappa(kind: str, name: str, triplet: Triplet, S: Tensor, m: int, n: int) -> float:
    """In closed form; an exact solver divides A by σ first, an attempt takes A, and a border of ones, as they are."""
    if (kind, name) not in FACTORS:
        return math.nan
    S = S.double().cpu()
    if kind == "solver":
        S = S / S[0]
    values = matrices.predicted_singular_values(FACTORS[kind, name], S, m, n)
    return matrices.kappa(values[:-1] if (kind, name) == ("solver", "direct") else values)


# --- what a way costs ------------------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """The fields of a row that say what a way costs."""

    milliseconds: float
    lower: float
    upper: float
    runs: int
    peak: float


def measure(run: Callable[[], Any], device: torch.device, repeat: int, patience: float = 10.0) -> tuple[Any, Timing]:
    """The answer of ``run``, and what it costs: the median and the quartiles of ``repeat`` runs after one to warm up.

    No further run begins after ``patience`` seconds; where ``repeat`` is 1, or the first run takes that long, it is the
    only one. The peak of the memory is that of the first run.
    """
    cuda, peak = device.type == "cuda", math.nan
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    answer, first = stopwatch(run, device)
    if cuda:
        peak = float(torch.cuda.max_memory_allocated(device) - before)
    times = [first] if repeat == 1 or first > 1e3 * patience else []
    while len(times) < repeat and sum(times) < 1e3 * patience:
        times.append(stopwatch(run, device)[1])
    lower, _, upper = statistics.quantiles(times, method="inclusive") if len(times) > 1 else 3 * times
    return answer, Timing(statistics.median(times), lower, upper, len(times), peak)


def stopwatch(run: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The answer and the milliseconds of one run: between two events of a CUDA device, else by the clock of the
    host.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            answer = run()
            stop.record()
            stop.synchronize()
            return answer, start.elapsed_time(stop)
    begin = time.perf_counter()
    answer = run()
    return answer, 1e3 * (time.perf_counter() - begin)


def too_much(row: Row, A: Tensor, budget: float, past: Iterable[Row]) -> str:
    """Why a way should not be run on A: more memory than is free, or more seconds than the budget. Empty if it may
    run.
    """
    needed, free = memory(row.kind, row.name, row.m, row.n) * A.element_size(), free_memory(A.device)
    if needed > free:
        return f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    if (seconds := foretold(row, past)) > budget:
        return f"would take about {seconds:.0f} s, the budget is {budget:.0f} s"
    return ""


def memory(kind: str, name: str, m: int, n: int) -> int:
    """About how many numbers a way holds: six times the largest matrix that it forms, for its pieces and factors
    too.
    """
    formed = {"newton": "saddle", "cg": "A", "minres": "A"}.get(name, FACTORS.get((kind, name), "A"))
    larger = max(m, n)
    of_k = dict.fromkeys(("K", "bordered", "saddle", "deflated"), (m + n) ** 2)
    of_stack = dict.fromkeys(("notebook-stack", "middle"), (m + n) * larger)
    of_p = dict.fromkeys(("P", "deflated-P"), larger**2)
    return 6 * (of_k | of_stack | of_p).get(formed, m * n)


def judge_memory(m: int, n: int) -> int:
    """About how many bytes of the host the extended-precision gradient needs: A and its products in forty digits, and
    J.
    """
    return 150 * m * n + 16 * (m + n + 2) ** 2


def free_memory(device: torch.device) -> float:
    """Bytes that can be had on the device; infinite where the system does not tell."""
    if device.type == "cuda":
        # what PyTorch keeps for itself can be had too
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:
            return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, ValueError, OSError):
            return math.inf


def foretold(row: Row, past: Iterable[Row]) -> float:
    """Seconds of one run, from the largest matrix on which the way has been timed, as mn(m + n) grows; 0 if there is
    none.

    Matrices as small as 64×32 do not count: there a time is that of calling libraries, and grows slower.
    """
    who = (row.kind, row.name, row.device, row.dtype)
    timed = [r for r in past if (r.kind, r.name, r.device, r.dtype) == who and r.milliseconds > 0 and _work(r) > 1e7]
    last = max(timed, key=_work, default=None)
    return 1e-3 * last.milliseconds * _work(row) / _work(last) if last else 0.0


def _work(row: Row) -> int:
    return row.m * row.n * (row.m + row.n)


# --- the command -----------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    lines = [f"{'':<8} {'way':<22} {'device':<6} {'dtype':<8} {'error':>8} {'residual':>8} {'κ':>8} {'ms':>8}"]
    for r in rows:
        numbers = "".join(f" {short(x):>8}" for x in (r.error, r.residual, r.kappa))
        lines.append(
            f"{r.kind:<8} {r.name:<22} {r.device:<6} {r.dtype:<8}{numbers} {milliseconds(r):>8}  {r.note}".rstrip()
        )
    return "\n".join(lines)


#: what a table of a notebook calls the three kinds of ways
KINDS = {"attempt": "attempts of the notebook", "solver": "solvers", "witness": "witnesses"}

#: the columns of such a table, each once for every title
QUANTITIES: dict[str, Callable[[Row], str]] = {
    "error": lambda row: short(row.error),
    "residual": lambda row: short(row.residual),
    "ms": milliseconds,
}


def html_tables(columns: dict[str, list[Row]]) -> str:
    """The rows under several titles, side by side, for a notebook: a table for every shape and precision, the first one
    unfolded.

    Of every way κ once, and error, residual and milliseconds under each title; below, what raised an error or was not
    run, and what did not run where the others under its title did.
    """
    tables: list[str] = []
    for m, n, dtype in dict.fromkeys((r.m, r.n, r.dtype) for rows in columns.values() for r in rows):
        alike = {title: [r for r in rows if (r.m, r.n, r.dtype) == (m, n, dtype)] for title, rows in columns.items()}
        unfolded = "" if tables else " open"
        summary = f"<summary>{m}×{n}, {dtype}</summary>"
        tables.append(f'<details class="contest"{unfolded}>{summary}\n{_html_table(alike)}\n</details>')
    return "\n".join(tables)


def _html_table(columns: dict[str, list[Row]]) -> str:
    letters = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", columns))
    found = {a: {(r.kind, r.name): r for r in columns[title]} for a, title in letters.items()}
    ways = dict.fromkeys(way for rows in found.values() for way in rows)
    several, span = len(letters) > 1, 1 + len(QUANTITIES) * len(letters)
    first = "".join(f'<th scope="col" rowspan="{1 + several}">{name}</th>' for name in ("way", "κ"))
    first += "".join(f'<th scope="colgroup" colspan="{len(letters)}">{name}</th>' for name in QUANTITIES)
    second = "".join(f'<th scope="col">{a}</th>' for a in letters) * len(QUANTITIES)
    lines = ["<thead>", f"<tr>{first}</tr>", *([f"<tr>{second}</tr>"] if several else []), "</thead>"]
    for kind, called in KINDS.items():
        lines += ["<tbody>", f'<tr><th scope="rowgroup">{called}</th><td colspan="{span}"></td></tr>']
        for way in (way for way in ways if way[0] == kind):
            rows = [found[a].get(way) for a in letters]
            kappa = next((short(row.kappa) for row in rows if row and not math.isnan(row.kappa)), "—")
            cells = [kappa, *(quantity(row) if row else "—" for quantity in QUANTITIES.values() for row in rows)]
            lines.append(f'<tr><th scope="row">{way[1]}</th>' + "".join(f"<td>{x}</td>" for x in cells) + "</tr>")
        lines.append("</tbody>")
    above = [f"{a}: {title}" if several else title for a, title in letters.items()]
    # a class that the themes of the book and of Jupyter know, by day and by night
    table = ['<table class="dataframe">', *lines, "</table>"]
    return "\n".join([*_paragraph(above), *table, *_paragraph(_notes(found, several))])


def _paragraph(lines: list[str]) -> list[str]:
    text = markup.escape("\n".join(lines)).replace("\n", "<br>")
    return [f"<p>{text}</p>"] if lines else []


def _notes(found: dict[str, dict[tuple[str, str], Row]], several: bool) -> list[str]:
    """What the numbers of a table do not tell: why there is none, and where else a way ran."""
    notes = []
    for a, rows in found.items():
        before = f"{a}: " if several else ""
        notes += [f"{before}{row.name} ({row.kind}): {row.note}" for row in rows.values() if row.note]
        usual = next((row.device for row in rows.values() if row.kind == "solver"), "")
        elsewhere: dict[str, list[str]] = {}
        for row in rows.values():
            if row.device != usual and row.runs:
                elsewhere.setdefault(row.device, []).append(row.name)
        notes += [f"{before}on {device}: {', '.join(names)}" for device, names in elsewhere.items()]
    return notes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m svdgrad.compare", description=__doc__.split(":")[0])
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, …")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    sizes = " ".join("{}×{}".format(*shape) for shape in SHAPES)
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        action="append",
        metavar=("M", "N"),
        help=f"of a Gaussian matrix, may be given more than once; 64×32 unless given, {sizes} for a record",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the Gaussian matrix")
    parser.add_argument(
        "--record", type=Path, metavar="FOLDER", help="also write the rows to a JSON file in this folder"
    )
    parser.add_argument("--repeat", type=int, help="timed runs of each way; 5 unless given, 50 for a record")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds that one run of a way may take, 60 unless given"
    )
    parser.add_argument(
        "--patience", type=float, default=10.0, help="seconds after which no way is run once more, 10 unless given"
    )
    parser.add_argument(
        "--judge", choices=["extended", "long_double"], help="extended unless given, if python-flint is installed"
    )
    parser.add_argument(
        "--extend", action="store_true", help="keep what today's record of this device and code holds of other shapes"
    )
    options = parser.parse_args(arguments)
    try:
        from . import oracles
    except ModuleNotFoundError as missing:
        parser.error(
            f"the witnesses need {missing.name}, which is not installed: pip install 'svdgrad[oracles]' brings it"
        )
    try:
        where = device(options.device)
    except ValueError as problem:
        parser.error(str(problem))
    repeat = options.repeat or (50 if options.record else 5)
    by = (
        "CUDA events; of a witness with its answer copied to the host"
        if where.type == "cuda"
        else "the clock of the host"
    )
    judge, called = oracles.JUDGES[options.judge] if options.judge else oracles.judge()
    about = {
        "matrix": f"standard normal entries, seed {options.seed}",
        "judge": f"{called}, at every size",
        "times": f"milliseconds, median and quartiles of up to {repeat} runs after a first, by {by}",
        "peak": "bytes, by torch.cuda" if where.type == "cuda" else "not measured: PyTorch counts on CUDA only",
        "float32 products": torch.get_float32_matmul_precision(),
        "budget": options.budget,
        "seed": options.seed,
    }
    print(f"gradient of ξσ + φ·u + ψ·v at a Gaussian matrix, seed {options.seed}, on {hardware(where)}")
    shapes = options.shape or (SHAPES if options.record else SHAPES[:1])
    rows: list[Row] = []
    path = None
    record = {**header(where), **about} if options.record else about
    if options.record and options.extend and (old := record_path(where, options.record)).exists():
        record, rows = _extended(read_record(old), record, shapes, options.dtype, parser.error)

    def keep(found: list[Row]) -> Path | None:
        """Called after each way, so that what is interrupted is not lost."""
        return write_record([*rows, *found], where, options.record, record) if options.record else None

    for m, n in shapes:
        if (needed := judge_memory(m, n)) > (free := free_memory(torch.device("cpu"))):
            record[f"{m}×{n}"] = f"not run: the judge needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            print(f"\n{m}×{n} {record[f'{m}×{n}']}")
            continue
        for dtype in options.dtype:
            A = matrices.gaussian(m, n, seed=options.seed, dtype=getattr(torch, dtype)).to(where)
            found = compare(
                A,
                repeat,
                differences=A.numel() <= 64 * 64,
                budget=options.budget,
                past=rows,
                judge=judge,
                patience=options.patience,
                keep=keep,
            )
            path = keep(found)
            rows += found
            print(f"\n{m}×{n}, {dtype}\n{table(found)}", flush=True)
    if path:
        print(f"\nwritten to {path}")


def _extended(
    old: dict[str, Any], new: dict[str, Any], shapes: Iterable[Any], dtypes: list[str], refuse: Callable[[str], Any]
) -> tuple[dict[str, Any], list[Row]]:
    """What an old record says of itself, with the judge of the new shapes, and its rows of other shapes."""
    for key in ("code", "versions", "seed"):
        if old[key] != new[key]:
            refuse(f"--extend: the record of today was made with another {key}, {old[key]}: move it elsewhere")
    asked = [(m, n, dtype) for m, n in shapes for dtype in dtypes]
    rows = [row for row in old.pop("rows") if (row.m, row.n, row.dtype) not in asked]
    if old["judge"] != new["judge"]:
        sizes = ", ".join(f"{m}×{n}" for m, n in shapes)
        new_judge = new["judge"].replace("every size", sizes)
        old["judge"] = f"{old['judge'].replace('every size', 'the other sizes')}; {new_judge}"
    return old, rows


if __name__ == "__main__":
    main()
