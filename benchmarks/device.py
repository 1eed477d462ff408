"""What a device can do, for ``make card``: ``python -m benchmarks.device speed --device cuda --out FOLDER``.

Four parts. ``hardware`` says what is here, in a file of its own. ``speed``, ``profile`` and ``auto`` add their sections
to one record, ``speed-<device>-<date>.json``, after every table, so that what is cut short leaves what it has.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import svdgrad
from svdgrad import matrices, oracles
from svdgrad.lab import device, loss_vectors, records
from svdgrad.lab.cost import free_memory, stopwatch

from . import run
from .counting import PRODUCTS, Counted
from .peers import PEERS, Peer, ours, torch_svd
from .run import Clock, Rows

DRIVERS = {f"torch.linalg.svd {driver}": torch_svd(driver) for driver in ("gesvdj", "gesvd", "gesvda")}
#: the slow ones last, so that what stops them stops nothing else
IN_TORCH = {
    **{name: PEERS[name] for name in ("svdgrad", "svdgrad gram", "svdgrad lanczos", "power iteration")},
    **{name: PEERS[name] for name in ("torch.svd_lowrank", "torch.lobpcg")},
    **DRIVERS,
}
#: Lanczos takes the matrices of a batch one by one, ten seconds and more for a thousand
IN_BATCHES = {name: peer for name, peer in IN_TORCH.items() if name != "svdgrad lanczos"}
#: apart, since to compile takes longer than to run
IN_JAX = {name: PEERS[name] for name in ("svdgrad.jax", "jax.numpy.linalg.svd")}


#: bytes of a result file, at the most
LARGEST_FILE = 16 * 2**20


class Sizes:
    """What the parts ask for; quick, to see that all of it works."""

    def __init__(self, quick: bool) -> None:
        self.single = (
            [(64, 32), (256, 128)] if quick else [(64, 32), (512, 256), (1024, 512), (2048, 2048), (4096, 4096)]
        )
        self.batches = [(32, 32), (100, 8)] if quick else [(1024, 32), (10_000, 8)]
        self.larger = 384 if quick else 8192
        self.profile = [256] if quick else [2048, 4096]
        square = [64, 128] if quick else [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
        long = [(4, 64)] if quick else [(times, n) for times in (4, 16) for n in (64, 256, 512, 1024)]
        self.auto = [(n, n) for n in square] + [(times * n, n) for times, n in long]
        self.copy = 2**24 if quick else 2**30  # bytes


class Record:
    """The record of speed in a folder, that of an earlier part continued."""

    def __init__(self, folder: Path, where: torch.device, quick: bool) -> None:
        self.folder = folder
        old = sorted(folder.glob(f"speed-{where.type}-*.json"))
        self.record = run.read(old[-1]) if old else {**records.header(where), "quick": quick}
        self.failures: list[str] = []

    def keep(self, section: str, rows: Rows, text: str) -> None:
        self.record.setdefault(section, []).extend(rows)
        run.write(self.record, self.folder)
        print(text, flush=True)

    def times(self) -> dict[tuple[Any, ...], float]:
        """The milliseconds of svdgrad, by what it was asked."""
        rows = self.record.get("speed", [])
        return {_asked(row): row["ms"] for row in rows if row["name"] == "svdgrad" and row["ms"]}


def _asked(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("batch", "m", "n", "dtype"))


# --- hardware --------------------------------------------------------------------------------------------------------


def hardware(where: torch.device) -> dict[str, Any]:
    """What a number may depend on."""
    found = {
        **records.header(where),
        "platform": platform.platform(),
        "host": records.hardware(torch.device("cpu")),
        "host memory": _or_why(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "python": sys.version,
        "packages": _or_why(lambda: {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}),
        "PyTorch's build": torch.__config__.show().splitlines(),
        "judge": oracles.judge()[1],
        "devices of JAX": _or_why(_jax_devices),
    }
    if where.type == "cuda":
        found["properties"] = str(torch.cuda.get_device_properties(where))
        found["memory free"] = free_memory(where)
        found["float32 products"] = torch.get_float32_matmul_precision()
        found["nvidia-smi"] = _or_why(lambda: _output("nvidia-smi").splitlines())
        found["clocks, power"] = _or_why(lambda: _output("nvidia-smi", "-q", "-d", "CLOCK,POWER,MEMORY").splitlines())
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def _jax_devices() -> list[str]:
    import jax

    return [f"{x.platform}: {x.device_kind}" for x in jax.devices()]


def _or_why(ask: Callable[[], Any]) -> Any:
    """What it answers, or why it does not: nothing of this is worth to stop for."""
    try:
        return ask()
    except Exception as failure:  # noqa: BLE001
        return f"{type(failure).__name__}: {failure}"


# --- speed -----------------------------------------------------------------------------------------------------------


def copy_bandwidth(where: torch.device, size: int) -> dict[str, Any]:
    """Of a copy within the device, bytes read and bytes written counted."""
    source = torch.randn(size // 4, device=where)
    goal = torch.empty_like(source)

    def many() -> None:
        for _ in range(10):
            goal.copy_(source)

    many()
    times = [stopwatch(many, where)[1] / 10 for _ in range(7)]
    milliseconds = statistics.median(times)
    return {
        "bytes": size,
        "ms": milliseconds,
        "GB/s": 2e-6 * size / milliseconds,
        "best GB/s": 2e-6 * size / min(times),
    }


def speed(where: torch.device, record: Record, sizes: Sizes, seconds: float) -> None:
    clock = Clock(quick=True)
    # a driver may take long at the largest size, and is worth it once
    clock.rounds, clock.budget, clock.limit = 7, 0.3, 40.0
    clock.deadline = time.monotonic() + 0.9 * seconds
    _warm_up(where)
    bandwidth = copy_bandwidth(where, sizes.copy)
    record.keep("bandwidth", [bandwidth], f"a copy of {sizes.copy / 2**20:.0f} MiB: {bandwidth['GB/s']:.0f} GB/s")
    dtypes = ("float32", "float64")
    for dtype in dtypes:
        for m, n in sizes.single:
            _guarded(record, "speed", lambda: _contest(m, n, dtype, IN_TORCH, clock, where, record))
            if m > 64:  # smaller ones have no products worth the name
                _guarded(record, "products", lambda: _products(m, n, dtype, where, record, clock))
        for size, n in sizes.batches:
            _guarded(record, "speed", lambda: _batch(size, n, dtype, IN_BATCHES, clock, where, record))
    for dtype in dtypes:
        for m, n in sizes.single:
            _guarded(record, "speed", lambda: _contest(m, n, dtype, IN_JAX, clock, where, record))
        for size, n in sizes.batches:
            _guarded(record, "speed", lambda: _batch(size, n, dtype, IN_JAX, clock, where, record))
    _guarded(record, "speed", lambda: _larger(sizes.larger, clock, where, record))
    print("\nthe fastest driver of torch.linalg.svd beside svdgrad, value and gradient")
    for line in _verdicts(record):
        print(line)


def _warm_up(where: torch.device) -> None:
    """The first call of each library loads it, which takes longer than any of the calls that are timed."""
    for dtype in ("float32", "float64"):
        asked = Lanczos(64, 32, dtype, where)
        for method in ("gram", "svd", "lanczos"):
            asked.adjoint(asked.forward(method))


def _guarded(record: Record, section: str, part: Callable[[], None]) -> None:
    """A table that fails leaves a row that says so, and the next one begins."""
    try:
        part()
    except Exception as failure:  # noqa: BLE001
        told = f"{type(failure).__name__}: {failure}".splitlines()[0]
        record.failures.append(told)
        record.keep("failures", [{"section": section, "note": told}], f"{section}: a table failed: {told}")


def _contest(
    m: int, n: int, dtype: str, peers: dict[str, Peer], clock: Clock, where: torch.device, record: Record
) -> None:
    largest = m * n > run.LARGEST_EXACT
    rows = run.contest(m, n, dtype, peers, clock, judged=False if largest else "long_double", where=where)
    _finished(rows, where, record, f"{m}×{n}, {dtype}")


def _batch(
    size: int, n: int, dtype: str, peers: dict[str, Peer], clock: Clock, where: torch.device, record: Record
) -> None:
    """Judged by PyTorch's SVD and its backward in float64 on the host."""
    exact = torch.from_numpy(np.random.default_rng(6).standard_normal((size, n, n))).float().double()
    asked = (exact, *(x.float().double() for x in loss_vectors(exact[0])), torch.ones(n, dtype=torch.float64))
    kind = getattr(torch, dtype)
    found, answers = run.race(tuple(x.to(kind) for x in asked), dtype, peers, clock, where)
    if answers:
        value, gradient = torch_svd().make(*asked)()
        S = torch.linalg.svdvals(exact)
        gap = float(((S[:, 0] - S[:, 1]) / S[:, 0]).min())
        for name, answer in answers.items():
            wrong = run.error(answer, float(value), gradient.numpy())
            bound = 50 * torch.finfo(kind).eps / gap
            found[name] |= {"error": wrong, "bound": bound, "judge": "torch.linalg.svd in float64 on the CPU"}
    rows = [{"batch": size, **row} for row in found.values()]
    _finished(rows, where, record, f"{size} matrices of {n}×{n}, {dtype}")


def _larger(n: int, clock: Clock, where: torch.device, record: Record) -> None:
    """Beyond what all are asked: svdgrad and the fastest driver, where memory and time are foretold to do."""
    rows = [
        row for row in record.record.get("speed", []) if row["name"] in DRIVERS and not row.get("batch") and row["ms"]
    ]
    rows = [row for row in rows if row["dtype"] == "float32"]
    largest = max((row["n"] for row in rows), default=None)
    fastest = min((row for row in rows if row["n"] == largest), key=run.seconds_of, default=None)
    peers = {"svdgrad": PEERS["svdgrad"]}
    driver = fastest["name"] if fastest else "torch.linalg.svd"
    peers[driver] = DRIVERS.get(driver, PEERS["torch.linalg.svd"])
    # A, its SVD, the gradient, and what LAPACK's successors and the backward want besides
    needed = 16 * 4 * n * n
    if needed > free_memory(where):
        row = {"name": driver, "m": n, "n": n, "dtype": "float32", "ms": None, "error": None, "ratio": None}
        row["note"] = f"not run: needs about {needed / 1e9:.1f} GB"
        _finished([row], where, record, f"{n}×{n}, float32")
        return
    A = matrices.gaussian(n, n, dtype=torch.float32)
    asked = (A, *loss_vectors(A), torch.ones(n))
    found, _ = run.race(asked, "float32", peers, clock, where)
    _finished(list(found.values()), where, record, f"{n}×{n}, float32, not judged")


def _finished(rows: Rows, where: torch.device, record: Record, head: str) -> None:
    times = record.times()
    for row in rows:
        if row["name"] in DRIVERS and where.type != "cuda":
            row["note"] = "not run: a driver needs CUDA"
        if row["name"] in IN_JAX and row["ms"] and where.type == "cuda" and not _jax_on_card():
            row["note"] = "JAX ran on the CPU"
        base = times.get(_asked(row))
        row["ratio"] = row["ratio"] or (row["ms"] / base if base and row["ms"] else None)
    record.keep("speed", rows, f"\n{head}\n{run.table(rows)}")


def _jax_on_card() -> bool:
    return bool(oracles.jax_device(torch.empty(0, device="cuda")).platform != "cpu")


def _verdicts(record: Record) -> Iterator[str]:
    rows = record.record.get("speed", [])
    for asked, ours_ms in record.times().items():
        drivers = [row for row in rows if row["name"].startswith("torch.linalg.svd") and _asked(row) == asked]
        best = min((row for row in drivers if row["ms"]), key=run.seconds_of, default=None)
        batch, m, n, dtype = asked
        head = f"  {f'{batch} of ' if batch else ''}{m}×{n}, {dtype}: svdgrad {ours_ms:.3g} ms"
        yield head + (f", {best['name']} {best['ms']:.3g} ms, ratio {best['ms'] / ours_ms:.1f}" if best else "")


# --- products --------------------------------------------------------------------------------------------------------


class Lanczos:
    """A value by products, and its gradient, as two steps that can be looked at one by one."""

    def __init__(self, m: int, n: int, dtype: str, where: torch.device) -> None:
        A = matrices.gaussian(m, n, dtype=getattr(torch, dtype))
        self.xi, self.phi, self.psi = (x.to(where) for x in loss_vectors(A))
        self.A = A.to(where).requires_grad_()

    def forward(self, method: str = "lanczos") -> Tensor:
        sigma, u, v = svdgrad.singular_triplet(self.A, forward=method)
        value: Tensor = self.xi * sigma + self.phi @ u + self.psi @ v
        return value

    def adjoint(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.A, retain_graph=True)[0]

    def products(self) -> tuple[int, int]:
        with Counted(self.A) as ahead:
            value = self.forward()
        # on a thread of its own, which a backward on CUDA has, nothing would be counted
        with torch.autograd.set_multithreading_enabled(False), Counted(self.A) as back:
            self.adjoint(value)
        return ahead.count, back.count


def _products(m: int, n: int, dtype: str, where: torch.device, record: Record, clock: Clock) -> None:
    """How many products one value and gradient takes, and what the products alone take, beside the copy of before."""
    if clock.refusal("svdgrad", dtype, m, n):
        return
    asked = Lanczos(m, n, dtype, where)
    ahead, back = asked.products()
    A, pairs = asked.A.detach(), 50

    def many() -> None:
        for _ in range(pairs):
            A @ asked.psi
            A.mT @ asked.phi

    def both() -> Tensor:
        return asked.adjoint(asked.forward())

    many()
    one = statistics.median(stopwatch(many, where)[1] for _ in range(7)) / (2 * pairs)
    both()
    whole = statistics.median(stopwatch(both, where)[1] for _ in range(5))
    rate = 1e-6 * A.numel() * A.element_size() / one
    copy = record.record["bandwidth"][-1]["GB/s"]
    row = {
        "m": m, "n": n, "dtype": dtype, "forward products": ahead, "adjoint products": back,
        "ms": whole, "one product ms": one,
        "GB/s": rate, "of the copy": rate / copy, "products' share": (ahead + back) * one / whole,
    }  # fmt: skip
    record.keep("products", [row], f"\nproducts, {m}×{n}, {dtype}\n{run._lines(row)}")


# --- profile ---------------------------------------------------------------------------------------------------------


def profile(where: torch.device, record: Record, sizes: Sizes, folder: Path) -> None:
    """One Lanczos forward and one adjoint: launches, waits of the host, and the share of the products."""
    _guarded(record, "profile", lambda: _trace(sizes.profile[0], where, folder / "trace.json.gz"))
    for n in sizes.profile:
        asked = Lanczos(n, n, "float32", where)
        value = asked.forward()
        ahead, back = asked.products()
        _guarded(record, "profile", lambda: _pass("forward", asked.forward, ahead, asked.A, where, record))
        _guarded(
            record, "profile", lambda: _pass("adjoint", lambda: asked.adjoint(value), back, asked.A, where, record)
        )


def _trace(n: int, where: torch.device, path: Path) -> None:
    """Both passes as PyTorch's profiler saw them, for chrome://tracing or Perfetto."""
    asked = Lanczos(n, n, "float32", where)
    both = lambda: asked.adjoint(asked.forward())
    _seen(both, where)  # the first session sets the profiler up, which takes longer than the work
    _seen(both, where).export_chrome_trace(str(path))
    print(f"{path.name}, of both passes at {n}×{n}: {path.stat().st_size / 2**20:.1f} MiB", flush=True)
    if path.stat().st_size > LARGEST_FILE:
        path.unlink()


def _pass(name: str, work: Callable[[], Any], products: int, A: Tensor, where: torch.device, record: Record) -> None:
    n, steps = A.shape[0], max(1, products // 2)
    work()
    row = {"pass": name, "n": n, "dtype": "float32", "products": products, "steps": steps}
    row |= {"ms": statistics.median(stopwatch(work, where)[1] for _ in range(5))}
    row |= _summary(_seen(work, where), A)
    row |= {"launches a step": row["launches"] / steps, "waits a step": row["waits"] / steps}
    if where.type == "cuda":
        row["waits by place"] = _or_why(lambda: _waits(work))
    record.keep("profile", [row], f"\nprofile, {name}, {n}×{n}, float32\n{_profile_text(row)}")


def _seen(work: Callable[[], Any], where: torch.device) -> Any:
    """What PyTorch's profiler saw of one run."""
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if where.type == "cuda" else [kinds.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as seen:
        work()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
    return seen


def _summary(seen: Any, A: Tensor) -> dict[str, Any]:
    """On CUDA times are those of the kernels and copies, on a CPU those of the operations."""
    cuda, kinds = A.is_cuda, torch.autograd.DeviceType
    events = list(seen.events())
    on_host = [e for e in events if e.device_type == kinds.CPU]
    calls = Counter(e.name for e in on_host if re.match("cu(da)?[A-Z]", e.name))
    taken: Counter[str] = Counter()
    often: Counter[str] = Counter()
    for e in [e for e in events if e.device_type == kinds.CUDA] if cuda else on_host:
        taken[e.name] += e.time_range.elapsed_us() if cuda else e.self_cpu_time_total
        often[e.name] += 1
    by_products = [
        sum(k.duration for k in e.kernels) if cuda else e.self_cpu_time_total
        for e in on_host
        if e.name.removeprefix("aten::") in PRODUCTS and any(_entries(x) >= A.numel() / 2 for x in e.input_shapes or ())
    ]
    busy = sum(taken.values())
    return {
        "busy ms": 1e-3 * busy,
        "products ms": 1e-3 * sum(by_products),
        "products' share": sum(by_products) / busy if busy else None,
        "launches": sum(count for name, count in calls.items() if "Launch" in name),
        # that the whole device is waited for at the end is the profiler's doing, and ours
        "waits": sum(count for name, count in calls.items() if re.search("(Stream|Event)Synchronize", name)),
        "calls": dict(calls.most_common()),
        "longest": [{"name": name[:120], "ms": 1e-3 * us, "count": often[name]} for name, us in taken.most_common(20)],
    }


def _entries(shape: Any) -> int:
    return math.prod(shape) if shape and all(isinstance(x, int) for x in shape) else 0


def _waits(work: Callable[[], Any]) -> dict[str, int]:
    """The lines at which PyTorch made the host wait, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught, torch.autograd.set_multithreading_enabled(False):
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "called a synchronizing" in str(w.message)]
    return dict(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found).most_common())


def _profile_text(row: dict[str, Any]) -> str:
    head = run._lines({key: value for key, value in row.items() if not isinstance(value, (dict, list))})
    calls = ", ".join(f"{name} {count}" for name, count in row["calls"].items())
    longest = "\n".join(f"    {x['ms']:>9.3f} ms {x['count']:>6} {x['name']}" for x in row["longest"][:8])
    waits = f"\n    waits: {row['waits by place']}" if "waits by place" in row else ""
    return f"{head}\n    {calls}\n{longest}{waits}"


# --- auto ------------------------------------------------------------------------------------------------------------


def auto(where: torch.device, record: Record, sizes: Sizes, seconds: float) -> None:
    """ "gram" beside "lanczos", value and gradient; a note says which of the two "auto" stands for."""
    _warm_up(where)
    clock = Clock(quick=True)
    clock.rounds, clock.budget = 7, 0.3
    clock.deadline = time.monotonic() + 0.9 * seconds
    peers: dict[str, Peer] = {way: ours(way, "auto") for way in ("gram", "lanczos")}
    for dtype in ("float32", "float64"):
        for m, n in sizes.auto:
            if clock.refusal("gram", dtype, m, n):
                print(f"{m}×{n}, {dtype}: not run: no time is left")
                continue
            A = matrices.gaussian(m, n, dtype=getattr(torch, dtype))
            found, _ = run.race((A, *loss_vectors(A), torch.ones(n, dtype=A.dtype)), dtype, peers, clock, where)
            rows = list(found.values())
            chosen = svdgrad.diagnose(A.to(where)).forward
            gram = rows[0]["ms"]
            for row in rows:
                row["ratio"] = row["ms"] / gram if gram and row["ms"] else None
                row["note"] = row["note"] or ('"auto"' if row["name"] == chosen else "")
            record.keep("auto", rows, f"\n{m}×{n}, {dtype}; ratio: to gram\n{run.table(rows)}")


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.split(":")[0])
    parser.add_argument("part", choices=["hardware", "speed", "profile", "auto"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=150.0, help="that the part may take")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args(arguments)
    try:
        where = device(options.device)
    except ValueError as problem:
        parser.error(str(problem))
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(options.quick)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        if options.part == "hardware":
            found = hardware(where)
            records.write_json(found, options.out / "hardware.json")
            print(found["hardware"], *(f"{name} {version}" for name, version in found["versions"].items()), sep="\n  ")
            print(f"  JAX: {found['devices of JAX']}\n  judge: {found['judge']}")
            return
        record = Record(options.out, where, options.quick)
        if options.part == "speed":
            speed(where, record, sizes, options.seconds)
        elif options.part == "profile":
            profile(where, record, sizes, options.out)
        else:
            auto(where, record, sizes, options.seconds)
    if record.failures:
        sys.exit("\n".join(record.failures))


if __name__ == "__main__":
    main()
