"""Every attempt and every solver against every witness, as a table: ``python -m svdgrad.lab.contest --device auto``.

With ``--record FOLDER`` the same at four sizes, in a file that the book reads. At every size the judge is the gradient
in extended precision: it takes a few dozen products with A in forty digits and one float64 factorisation, so it reaches
4096×4096 in two minutes and three gigabytes on one core of a CPU. Where python-flint is not installed, and with
``--judge long_double``, it has three digits more than float64.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import matrices
from ..adjoint import ATTEMPTS, SOLVERS, assemble
from ..forward import Triplet, svd
from ..products import mv, project
from .checks import relative_error
from .cost import free_memory, judge_memory, measure, too_much, works_with
from .records import Row, hardware, header, read_record, record_path, write_record
from .tables import table

#: the shapes that a record holds, from one where calling a library takes the time to one where only some ways fit
SHAPES = [(64, 32), (512, 256), (2048, 1024), (4096, 4096)]


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
    keep: Callable[..., Any] = lambda rows: None,
) -> list[Row]:
    """Every attempt, every solver and every witness, judged by a gradient of more digits: ``oracles.judge()`` unless
    given.

    Shape: A (m, n), on the device and in the dtype to compare in. A random loss is used, see ``loss_vectors``.
    A way is not run, and its row says why, if it would not fit in the memory that is free, or if a run is foretold,
    from ``past`` rows of smaller matrices, to take more than ``budget`` seconds; nor is ``differences``, with its 2mn
    SVDs, if not wanted. For ``patience`` see ``measure``. ``keep`` is called with the rows so far after each way.
    """
    from .. import oracles
    from ..oracles import ORACLES

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
        for name, solver in ways.items():
            way: Callable[..., Any] = solver
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
        from ..oracles import jax_device

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
    if (factor := works_with(kind, name)) is None:
        return math.nan
    S = S.double().cpu()
    if kind == "solver":
        S = S / S[0]
    values = matrices.predicted_singular_values(factor, S, m, n)
    return matrices.kappa(values[:-1] if (kind, name) == ("solver", "direct") else values)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m svdgrad.lab.contest", description=__doc__.split(":")[0])
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
        from .. import oracles
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
