"""Every attempt and every solver against every witness, as a table: ``python -m svdgrad.compare --device auto``."""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import matrices
from .adjoint import ATTEMPTS, SOLVERS, Solver, assemble
from .checks import relative_error
from .forward import Triplet, svd
from .matrices import project

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
        raise ValueError("no CUDA device here: PyTorch finds none; use --device cpu, or install a CUDA build of PyTorch")
    return torch.device(wanted)


class Row(NamedTuple):
    """One line of the table: a way to the gradient, where it ran, and how well it did. NaN stands for "does not apply"."""

    kind: str
    """"attempt", "solver" or "witness" """
    name: str
    """as in ``ATTEMPTS``, ``SOLVERS`` or ``ORACLES``"""
    device: str
    """"cpu" or "cuda" """
    dtype: str
    """"float32" or "float64" """
    error: float
    """‖G − G*‖/‖G*‖ against the extended-precision gradient G*; infinite if the way raised an error"""
    residual: float
    """‖K[p; q] − c‖/‖c‖, computed in float64"""
    kappa: float
    """κ₂ of the matrix that is factorised, in closed form"""
    milliseconds: float
    """the adjoint solve, or, for a witness, value and gradient together: the median of several runs"""


def loss_vectors(A: Tensor, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal cotangents ξ, φ, ψ for A, the same on every machine for a given seed."""
    m, n = A.shape[-2:]
    numbers = np.random.default_rng(seed).standard_normal(1 + m + n)
    xi, phi, psi = torch.from_numpy(numbers).to(A).split([1, m, n])
    return xi[0], phi, psi


def compare(A: Tensor, repeat: int = 5, differences: bool = True) -> list[Row]:
    """Every attempt, every solver and every witness, judged by the extended-precision gradient.

    Shape: A (m, n), on the device and in the dtype to compare in. A random loss is used, see ``loss_vectors``.
    ``differences`` takes part with its 2mn SVDs only if wanted.
    """
    from .oracles import ORACLES

    xi, phi, psi = loss_vectors(A)
    triplet, known = svd(A)
    truth = ORACLES["extended"](A, xi, phi, psi, triplet.v)
    where, dtype = A.device.type, str(A.dtype).removeprefix("torch.")
    rows = []
    for kind, ways in (("attempt", ATTEMPTS), ("solver", SOLVERS)):
        for name, way in ways.items():
            if (kind, name) == ("solver", "spectral"):
                way = partial(way, known=known)  # the formula for when the whole SVD is at hand
            error, residual = _judge(way, A, triplet, xi, phi, psi, truth)
            kappa = _kappa(kind, name, triplet, known.S, *A.shape)
            ms = median_ms(partial(way, A, triplet, phi, psi), A.device, repeat) if math.isfinite(error) else math.nan
            rows.append(Row(kind, name, where, dtype, error, residual, kappa, ms))
    for name in (name for name in ORACLES if name != "extended" and (differences or name != "differences")):
        answer = ORACLES[name]
        error = relative_error(answer(A, xi, phi, psi, triplet.v), truth)
        # the time of 2mn SVDs says nothing; once is enough
        ms = median_ms(partial(answer, A, xi, phi, psi, triplet.v), A.device, 1 if name == "differences" else repeat)
        rows.append(Row("witness", name, where if name in ("torch", "newton") else "cpu", dtype, error, math.nan, math.nan, ms))
    return rows


def _judge(
    way: Solver, A: Tensor, triplet: Triplet, xi: Tensor, phi: Tensor, psi: Tensor, truth: np.ndarray
) -> tuple[float, float]:
    """The error of the gradient and the residual of the adjoint system, infinite where the way raises an error."""
    sigma, u, v = triplet
    try:
        p, q = way(A, triplet, phi, psi)
    except torch.linalg.LinAlgError:
        return math.inf, math.inf
    c = torch.cat([project(u, phi), project(v, psi)]).double()
    left = matrices.mv(matrices.K(A.double(), sigma.double()), torch.cat([p, q]).double())
    return relative_error(assemble(triplet, xi, p, q), truth), ((left - c).norm() / c.norm()).item()


def _kappa(kind: str, name: str, triplet: Triplet, S: Tensor, m: int, n: int) -> float:
    """In closed form; an exact solver divides A by σ first, an attempt takes A, and a border of ones, as they are."""
    if (kind, name) not in FACTORS:
        return math.nan
    S = S.double().cpu()
    if kind == "solver":
        S = S / S[0]
    values = matrices.predicted_singular_values(FACTORS[kind, name], S, m, n)
    return matrices.kappa(values[:-1] if (kind, name) == ("solver", "direct") else values)


def median_ms(run: Callable[[], Any], device: torch.device, repeat: int) -> float:
    """The median time of ``repeat`` runs in milliseconds, after one run to warm up (none if ``repeat`` is 1)."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    if repeat > 1:
        once()
    return statistics.median(once() for _ in range(repeat))


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    lines = [f"{'':<8} {'way':<22} {'device':<6} {'dtype':<8} {'error':>8} {'residual':>8} {'κ':>8} {'ms':>8}"]
    for r in rows:
        numbers = "".join(f" {_short(x):>8}" for x in (r.error, r.residual, r.kappa))
        time_ = "—" if math.isnan(r.milliseconds) else f"{r.milliseconds:.2f}"
        lines.append(f"{r.kind:<8} {r.name:<22} {r.device:<6} {r.dtype:<8}{numbers} {time_:>8}")
    return "\n".join(lines)


def _short(x: float) -> str:
    return "—" if math.isnan(x) else "∞" if math.isinf(x) else f"{x:.1e}"


# --- records: what another machine measured --------------------------------------------------------------------------


def hardware(where: torch.device) -> str:
    """The name of the device, for people."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def write_record(rows: list[Row], where: torch.device, folder: Path, matrix: str) -> Path:
    """One JSON file ``<device>-<date>.json`` with the rows, the hardware and the versions that made them."""
    from . import __version__

    record = {
        "device": where.type,
        "hardware": hardware(where),
        "date": time.strftime("%Y-%m-%d"),
        "matrix": matrix,
        "versions": {"svdgrad": __version__, "torch": torch.__version__, "cuda": torch.version.cuda, "numpy": np.__version__},
        "rows": [row._asdict() for row in rows],
    }
    path = Path(folder) / f"{where.type}-{record['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def newest_record(folder: Path, device_type: str) -> dict[str, Any] | None:
    """The newest record of a kind of device, with ``rows`` as ``Row``; None if there is none."""
    records = [json.loads(path.read_text()) for path in Path(folder).glob(f"{device_type}-*.json")]
    if not records:
        return None
    record = max(records, key=lambda r: r["date"])
    return {**record, "rows": [Row(**row) for row in record["rows"]]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m svdgrad.compare", description=__doc__.split(":")[0])
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, …")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    parser.add_argument("--shape", nargs=2, type=int, default=[64, 32], metavar=("M", "N"), help="of the Gaussian matrix")
    parser.add_argument("--seed", type=int, default=0, help="of the Gaussian matrix")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="also write the table to a JSON file in this folder")
    options = parser.parse_args(arguments)
    try:
        from . import oracles  # noqa: F401
    except ModuleNotFoundError as missing:
        parser.error(f"the witnesses need {missing.name}, which is not installed: pip install 'svdgrad[oracles]' brings it")
    try:
        where = device(options.device)
    except ValueError as problem:
        parser.error(str(problem))
    matrix = "{}×{} Gaussian matrix, seed {}".format(*options.shape, options.seed)
    print(f"gradient of ξσ + φ·u + ψ·v at a {matrix}, on {hardware(where)}\n")
    rows = []
    m, n = options.shape
    for dtype in options.dtype:
        A = matrices.gaussian(m, n, seed=options.seed, dtype=getattr(torch, dtype)).to(where)
        rows += compare(A, differences=A.numel() <= 64 * 64)
    print(table(rows))
    if options.record:
        print(f"\nwritten to {write_record(rows, where, options.record, matrix)}")


if __name__ == "__main__":
    main()
