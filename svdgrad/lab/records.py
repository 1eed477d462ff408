"""What another machine measured, in a file: the rows of the contest, the hardware, the versions, the code that made
them.
"""

import ast
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Row(NamedTuple):
    """One line of the contest: a way to the gradient, on what, where, and how well it did. NaN stands for "does not
    apply".
    """

    kind: str
    """"attempt", "solver" or "witness" """
    name: str
    """as in ``ATTEMPTS``, ``SOLVERS`` or ``ORACLES``"""
    m: int
    """the rows of the matrix"""
    n: int
    """its columns"""
    device: str
    """"cpu" or "cuda": where this way ran"""
    dtype: str
    """"float32" or "float64" """
    error: float = math.nan
    """‖G − G*‖/‖G*‖ against the extended-precision gradient G*; infinite if the way raised an error or answered NaN"""
    residual: float = math.nan
    """‖K[p; q] − c‖/‖c‖, computed in float64"""
    kappa: float = math.nan
    """κ₂ of the matrix that is factorised, in closed form"""
    milliseconds: float = math.nan
    """the adjoint solve, or, for a witness, value and gradient together: the median of several runs"""
    lower: float = math.nan
    """the lower quartile of those times"""
    upper: float = math.nan
    """the upper quartile"""
    runs: int = 0
    """how many times the median is of"""
    peak: float = math.nan
    """bytes that PyTorch held on the device at the most, beyond those it held before the run; on CUDA only"""
    note: str = ""
    """why the way was not run, or what it raised"""


#: the modules that are timed, "" for the package itself: the ways of the contest, the package in PyTorch and in JAX
TIMED = ("", "adjoint", "jax", "oracles")


def code() -> dict[str, str]:
    """The version of the code at hand: ``svdgrad.__version__``, and 12 digits of the SHA-256 of the files that the
    timed code imports. A change of any other file, of a figure or a check, leaves a record as good as it was.
    """
    from .. import __version__

    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in timed_files(root):
        # the length keeps a line that moves from one file to the next from going unnoticed
        source = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(root).as_posix()} {len(source)}\n".encode() + source)
    return {"version": __version__, "sources": digest.hexdigest()[:12]}


def timed_files(root: Path) -> list[Path]:
    """The files of the package in the folder ``root`` that hold the modules in ``TIMED``, what these import, and so on.

    They are found by reading the import statements, wherever in a file they stand, so that nothing has to be installed.
    A package's ``__init__.py`` runs before any of its modules, and counts with them.
    """
    found: set[Path] = set()
    asked = [tuple(filter(None, name.split("."))) for name in TIMED]
    while asked:
        module = asked.pop()
        folder = root.joinpath(*module)
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if file in found or not file.is_file():
            continue
        found.add(file)
        asked += [module[:length] for length in range(len(module))]
        asked += _imported(file, module if folder.is_dir() else module[:-1], root.name)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _imported(file: Path, package: tuple[str, ...], top: str) -> list[tuple[str, ...]]:
    """What a file of ``package`` may import from under ``top``, as paths of names: modules, and names within them."""
    asked: list[list[str]] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            asked += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = node.module.split(".") if node.module else []
            if node.level:
                names = [top, *package[: len(package) + 1 - node.level], *names]
            asked += [names, *([*names, alias.name] for alias in node.names)]
    return [tuple(names[1:]) for names in asked if names[0] == top]


def is_stale(record: dict[str, Any]) -> bool:
    """Whether a record was made by other code than the code at hand."""
    return bool(record.get("code") != code())


def hardware(where: torch.device) -> str:
    """The name of the device, for people."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    """The model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return f"{platform.machine()} CPU"


def versions() -> dict[str, str | None]:
    """Of everything that a number in a record may depend on; None for what is not here."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }
    for name in ("torch", "jax", "jaxlib", "numpy", "scipy", "python-flint"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _driver() -> str | None:
    """The version of NVIDIA's driver, which PyTorch does not tell."""
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            .stdout.split("\n")[0]
            .strip()
        )
    except (OSError, subprocess.SubprocessError):
        return None


def header(where: torch.device) -> dict[str, Any]:
    """What a record says of the machine and the code that made it."""
    return {
        "device": where.type,
        "hardware": hardware(where),
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "code": code(),
        "versions": versions(),
    }


def write_record(rows: Iterable[Row], where: torch.device, folder: Path, about: dict[str, Any]) -> Path:
    """One JSON file, at ``record_path``, with the rows after all that says what they are."""
    record = {**about, "rows": [{key: _written(value) for key, value in row._asdict().items()} for row in rows]}
    path = record_path(where, folder)
    write_json(record, path)
    return path


def record_path(where: torch.device, folder: Path) -> Path:
    """``<device>-<hardware>-<date>.json``, of today."""
    slug = re.sub("[^a-z0-9]+", "-", hardware(where).lower()).strip("-")
    return Path(folder) / f"{where.type}-{slug}-{time.strftime('%Y-%m-%d')}.json"


def write_json(value: Any, path: Path) -> None:
    """In one step: a program that is killed leaves the old file or the new one, and no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_record(path: Path) -> dict[str, Any]:
    """A record with its ``rows`` as ``Row``."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    record["rows"] = [Row(**{key: _read(value) for key, value in row.items()}) for row in record["rows"]]
    return record


def read_records(folder: Path, device_type: str) -> list[dict[str, Any]]:
    """The newest record of each card, or CPU, of a kind, ``rows`` as ``Row``; the newest first. No folder, no
    records.
    """
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob(f"{device_type}-*.json")):
        record = read_record(path)
        if record["date"] >= newest.get(record["hardware"], record)["date"]:
            newest[record["hardware"]] = record
    return sorted(newest.values(), key=lambda record: record["date"], reverse=True)


def _written(value: Any) -> Any:
    """JSON has no NaN and no infinity: null and a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinite"
    return value


def _read(value: Any) -> Any:
    return {None: math.nan, "infinite": math.inf}.get(value, value)


def headline(record: dict[str, Any]) -> str:
    """What a column of a table says of the record it comes from, whether made by the code at hand or not."""
    software = [
        f"{name} {version}" for name in ("torch", "cuda", "driver") if (version := record["versions"].get(name))
    ]
    software += sorted({f"jax on {row.device}" for row in record["rows"] if row.name == "jax"})
    line = f"{record['hardware']}, recorded {record['date']} ({', '.join(software)})"
    if is_stale(record):
        made_by, here = (f"svdgrad {c['version']}, sources {c['sources']}" for c in (record["code"], code()))
        line += f"\n   OLDER CODE made this record ({made_by}) than the code shown here ({here})"
    return line


def short(x: float) -> str:
    """A number of a table in two digits; ``—`` for NaN, ``∞`` for infinity."""
    return "—" if math.isnan(x) else "∞" if math.isinf(x) else f"{x:.1e}"


def milliseconds(row: Row) -> str:
    """The time of a row, for a table."""
    return "—" if math.isnan(row.milliseconds) else f"{row.milliseconds:.2f}"
