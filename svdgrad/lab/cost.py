"""What a way to the gradient costs: its time and memory as measured, and as foretold before it is run."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adjoint import ATTEMPTS, SOLVERS
from .records import Row


def works_with(kind: str, name: str) -> str | None:
    """The matrix that a way factorises or iterates with, a name in ``matrices.MATRICES``; None for a witness, and for
    what works in the singular bases.
    """
    way = {"attempt": ATTEMPTS, "solver": SOLVERS}.get(kind, {}).get(name)
    return way.works_with if way else None


class Timing(NamedTuple):
    """The fields of a row that say what a way costs."""

    milliseconds: float
    """the median of the times, in milliseconds"""
    lower: float
    """their lower quartile"""
    upper: float
    """their upper quartile"""
    runs: int
    """how many times there are"""
    peak: float
    """the peak of the memory in bytes, on a GPU; NaN on a CPU"""


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
    by_products = kind == "solver" and SOLVERS[name].by_products
    formed = "saddle" if name == "newton" else "A" if by_products else works_with(kind, name)
    larger = max(m, n)
    of_k = dict.fromkeys(("K", "bordered", "saddle", "deflated"), (m + n) ** 2)
    of_stack = dict.fromkeys(("notebook-stack", "middle"), (m + n) * larger)
    of_p = dict.fromkeys(("P", "deflated-P"), larger**2)
    return 6 * (of_k | of_stack | of_p).get(formed or "A", m * n)


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
