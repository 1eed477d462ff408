"""Everything that is to be measured on a machine with a GPU, part by part: ``make card``.

Each part is a program of its own with a limit of its own, and what it writes is there at once. One that fails, or is
stopped at its limit, does not stop the next. This file needs nothing but Python, so that it outlives whatever breaks.
"""

import argparse
import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent

#: seconds for all parts together: nine minutes, less what it takes to start and to end
IN_ALL = 530.0
#: seconds below which no part begins
TOO_LITTLE = 5.0


class Part(NamedTuple):
    name: str
    command: list[str]
    """``{seconds}`` in it is what the part is given"""
    limit: float
    """seconds, of which it may have fewer if less is left"""
    results: str
    """a pattern of the files that it writes, or adds to"""
    least: float = 0.0
    """seconds that the parts before it leave to it"""


def parts(device: str, out: Path, quick: bool, python: str = sys.executable) -> list[Part]:
    def measure(name: str) -> list[str]:
        command = [python, "-m", "benchmarks.device", name, "--device", device, "--out", str(out)]
        return [*command, "--seconds", "{seconds}", *(["--quick"] if quick else [])]

    def contest(repeat: int, shapes: list[tuple[int, int]], *more: str) -> list[str]:
        command = [python, "-m", "svdgrad.lab.contest", "--device", device, "--record", str(out)]
        sizes = [word for m, n in shapes for word in ("--shape", str(m), str(n))]
        return [*command, *sizes, "--repeat", str(2 if quick else repeat), "--patience", "2", *more]

    tests = [python, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "cuda", "-v", "--tb=short"]
    tests += ["-rfE", "--durations=5", "--continue-on-collection-errors", f"--junitxml={out / 'tests.xml'}"]
    small, large = ([(64, 32)], (128, 64)) if quick else ([(64, 32), (512, 256), (2048, 1024)], (4096, 4096))
    speed = f"speed-{device}-*.json"
    return [
        Part("hardware", measure("hardware"), 40, "hardware.json"),
        Part("tests", [*tests, *map(str, test_files())], 150, "tests.xml"),
        Part("contest", contest(10, small), 120, f"{device}-*.json"),
        Part("speed", measure("speed"), 200, speed, least=60),
        Part("profile", measure("profile"), 45, speed, least=30),
        Part("auto", measure("auto"), 45, speed, least=30),
        # at this size a run takes seconds, and forty digits take minutes
        Part(
            "largest contest",
            contest(3, [large], "--extend", "--judge", "long_double", "--budget", "25"),
            IN_ALL,
            f"{device}-*.json",
        ),
    ]


def test_files(folder: Path = ROOT / "tests") -> list[Path]:
    """The files that hold a test marked cuda, less those that cannot be imported here, which are named with what is
    missing.
    """
    found = []
    for path in sorted(folder.glob("test_*.py")):
        source = ast.parse(path.read_text(encoding="utf-8"))
        if not any(
            ast.unparse(node) == "pytest.mark.cuda" for node in ast.walk(source) if isinstance(node, ast.Attribute)
        ):
            continue
        if missing := sorted(name for name in _imported(source) if not _is_here(name, folder)):
            print(f"tests: {path.name} is left out, for want of {', '.join(missing)}", flush=True)
        else:
            found.append(path)
    return found


def _imported(source: ast.Module) -> set[str]:
    """The packages that a file imports when it is imported itself."""
    names: set[str] = set()
    for node in source.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def _is_here(name: str, folder: Path) -> bool:
    return (folder / f"{name}.py").exists() or importlib.util.find_spec(name) is not None


def run(asked: list[Part], out: Path, in_all: float = IN_ALL) -> list[dict[str, Any]]:
    """Run the parts one after the other; what became of each is in ``card.json``, what it printed in ``card.log``."""
    end = time.monotonic() + in_all
    done: list[dict[str, Any]] = []
    for index, part in enumerate(asked):
        kept = sum(later.least for later in asked[index + 1 :])
        left = end - time.monotonic() - kept
        limit = min(part.limit, left)
        row: dict[str, Any] = {"part": part.name, "limit": max(0.0, round(limit, 1)), "seconds": 0.0}
        done.append(row)
        if left < TOO_LITTLE:
            row["state"] = "not run: no time is left"
        else:
            begin, clock = time.monotonic(), time.time()
            row["state"] = "running"
            _write(done, out)
            row["state"] = _one(part, limit, out / "card.log")
            row["seconds"] = round(time.monotonic() - begin, 1)
            # a file system may count time in steps
            if not [path for path in out.glob(part.results) if path.stat().st_mtime > clock - 0.1]:
                row["state"] += f", and wrote no {part.results}"
        print(f"card: {part.name}: {row['state']}, {row['seconds']} s of {row['limit']}", flush=True)
        _write(done, out)
        if part.name == "hardware" and row["state"].startswith("failed with status 2"):
            break  # what it was asked to measure is not here, as it has said
    return done


def _one(part: Part, limit: float, log: Path) -> str:
    """What became of a part: "done", or how it ended. Its output goes to the log, and the end of that to the screen."""
    command = [word.format(seconds=round(limit, 1)) if word == "{seconds}" else word for word in part.command]
    with log.open("ab") as file:
        file.write(f"\n=== {part.name}, {limit:.0f} s at the most: {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        try:
            # a session of its own, so that whatever the part starts can be ended with it
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
        except OSError as problem:
            return f"failed to start: {problem}"
        try:
            status = process.wait(limit)
            state = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            state = f"stopped at its limit of {limit:.0f} s"
        finally:
            _end(process)
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    for line in lines[-12 if state == "done" else -25 :]:
        print(f"  {line}", flush=True)
    return state


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started: asked first, then made."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue


def _write(done: list[dict[str, Any]], out: Path) -> None:
    draft = out / ".card.json.draft"
    draft.write_text(json.dumps({"parts": done}, indent=1) + "\n", encoding="utf-8")
    draft.replace(out / "card.json")


def _stopped(sign: int, frame: FrameType | None) -> None:
    sys.exit(f"card: stopped by signal {sign}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make card", description=__doc__.split(":")[0])
    parser.add_argument("out", type=Path, help="a folder that is empty, or not there yet")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all parts work")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    if out.is_dir() and any(out.iterdir()):
        parser.error(f"OUT must be an empty folder or a new one, found files in {out}: name another")
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _stopped)
    done = run(parts(options.device, out, options.quick), out)
    print(f"card: {', '.join(sorted(path.name for path in out.iterdir() if path.name[0] != '.'))} in {out}")
    if bad := [row["part"] for row in done if row["state"] != "done"]:
        sys.exit(f"card: see {out / 'card.log'} for {', '.join(bad)}")


if __name__ == "__main__":
    main()
