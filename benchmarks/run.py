"""svdgrad beside its peers: ``make bench``, or ``python -m benchmarks.run``; ``--quick`` for a first look.

Within a table the contestants take turns, round by round, so that what disturbs the machine disturbs them all. A quick
one runs twice in its turn, and the second run counts: its threads are awake by then, as in a loop, and those of others
asleep. A time is the median after a first run, with its quartiles; a contestant whose first run is long is timed by
that alone.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import svdgrad
from svdgrad import matrices
from svdgrad.lab import loss_vectors, records
from svdgrad.lab.cost import measure, stopwatch

from .counting import Counted
from .peers import PEERS, Peer, _autograd, _torch_svd, ours, ours_in_jax
from .problem import Problem, problem, truth

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
SIZES = [(64, 32), (512, 256), (1024, 512), (2048, 2048), (8192, 256), (256, 8192), (4096, 4096)]
QUICK = [(64, 32), (512, 256), (1024, 512)]
#: above this only float32, judged in float64
LARGEST_EXACT = 2048 * 2048

#: milliseconds; below this a contestant runs twice in its turn
QUICK_RUN = 150

Rows = list[dict[str, Any]]


def seconds_of(row: dict[str, Any]) -> float:
    return 1e-3 * float(row["ms"])


# --- the contest -----------------------------------------------------------------------------------------------------


class Clock:
    """How long, and how often, each contestant may run."""

    def __init__(self, quick: bool) -> None:
        self.rounds = 7 if quick else 15
        self.budget = 1.0 if quick else 2.0  # seconds for all runs of a contestant in a table
        self.limit = 10.0 if quick else 60.0  # seconds that one run may be foretold to take
        self.deadline = math.inf  # of time.monotonic: nothing begins after it
        self.past: dict[tuple[str, str], tuple[int, float]] = {}

    def refusal(self, name: str, dtype: str, m: int, n: int) -> str:
        """Why a contestant should not run. Empty if it may."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            return "not run: no time is left"
        seconds, limit = self.foretold(name, dtype, m, n), min(self.limit, left)
        return f"not run: estimated {seconds:.0f} s, the limit is {limit:.0f} s" if seconds > limit else ""

    def foretold(self, name: str, dtype: str, m: int, n: int) -> float:
        """From the largest matrix so far, as mn·min(m, n) grows. Of small ones none: there the calls take the time."""
        work, seconds = self.past.get((name, dtype), (0, 0.0))
        return seconds * m * n * min(m, n) / work if work else 0.0

    def remember(self, name: str, dtype: str, m: int, n: int, seconds: float) -> None:
        work = m * n * min(m, n)
        if work > max(1e7, self.past.get((name, dtype), (0, 0.0))[0]):
            self.past[name, dtype] = work, seconds


def take_turns(
    runs: dict[str, Callable[[], Any]], rounds: int, budget: float, where: torch.device = CPU
) -> tuple[dict[str, Any], dict[str, list[float]], dict[str, float]]:
    """The first answer of each, or the exception that it raised, its times in milliseconds, alternating, and the peak
    of its memory, which is known of CUDA only.
    """
    answers: dict[str, Any] = {}
    first: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name, run in runs.items():
        try:
            answers[name], timing = measure(run, where, 1)
            first[name], peaks[name] = timing.milliseconds, timing.peak
        except Exception as failure:  # noqa: BLE001  (a contestant's failure is a result, not the end of the others)
            answers[name] = failure
    times: dict[str, list[float]] = {name: [] for name in first}
    for turn in range(rounds):
        for name in list(times)[:: -1 if turn % 2 else 1]:
            if first[name] + sum(times[name]) < 1e3 * budget:
                if first[name] < QUICK_RUN:
                    runs[name]()
                times[name].append(stopwatch(runs[name], where)[1])
    return answers, {name: times[name] or [first[name]] for name in times}, peaks


def spread(times: list[float]) -> dict[str, Any]:
    lower, _, upper = statistics.quantiles(times, method="inclusive") if len(times) > 1 else 3 * times
    return {"ms": statistics.median(times), "lower": lower, "upper": upper, "runs": len(times)}


def race(
    asked: tuple[Tensor, ...], dtype: str, peers: dict[str, Peer], clock: Clock, where: torch.device = CPU
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A row for each contestant, with its times, and its answer, if it has one; asked are A, ξ, φ, ψ and v."""
    *batch, m, n = asked[0].shape
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for name, peer in peers.items():
        rows[name] = {"name": name, "m": m, "n": n, "dtype": dtype, "ms": None, "error": None, "note": peer.note}
        why = peer.missing()
        if not why and m + n > peer.most:
            why = f"not run: forms a matrix of size m + n, asked up to {peer.most:.0f}"
        if not why and batch and not peer.batched:
            why = "not run: takes the matrices of a batch one by one"
        if why := why or clock.refusal(name, dtype, m, n):
            rows[name]["note"] = why
            continue
        try:
            runs[name] = peer.make(*(x.to(where) for x in asked))
        except Exception as failure:  # noqa: BLE001
            rows[name]["note"] = _told(failure)
    answers, times, peaks = take_turns(runs, clock.rounds, clock.budget, where)
    for name, answer in list(answers.items()):
        if isinstance(answer, Exception):
            rows[name]["note"] = _told(answers.pop(name))
            continue
        rows[name] |= spread(times[name])
        if not math.isnan(peaks[name]):
            rows[name]["peak"] = peaks[name]
        if not batch:
            clock.remember(name, dtype, m, n, seconds_of(rows[name]))
    base = rows.get("svdgrad", {}).get("ms")
    for row in rows.values():
        row["ratio"] = row["ms"] / base if row["ms"] and base else None
    return rows, answers


def contest(
    m: int,
    n: int,
    dtype: str,
    peers: dict[str, Peer],
    clock: Clock,
    judged: bool | str | None = True,
    where: torch.device = CPU,
) -> Rows:
    """One table. ``judged``: True by forty digits, or by the judge that it names; False in float64; None not at all."""
    kind = getattr(torch, dtype)
    asked = problem(m, n)
    rows, answers = race(asked.arguments(kind), dtype, peers, clock, where)
    if judged is not None and answers:
        right = truth(m, n, judged)
        for name, answer in answers.items():
            wrong = error(answer, right.value, right.gradient)
            rows[name] |= {"error": wrong, "bound": asked.bound(kind), "judge": right.judge}
    return list(rows.values())


def error(answer: tuple[Any, Any], value: float, gradient: np.ndarray) -> float:
    """‖G − G*‖/‖G*‖, or, of one that has no gradient, that of the value; infinite for NaN."""
    f, G = answer
    if G is None:
        found = abs(float(f) - value) / abs(value)
    else:
        G = np.asarray(G.detach().cpu() if isinstance(G, Tensor) else G, dtype=np.float64)
        found = float(np.linalg.norm(G - gradient) / np.linalg.norm(gradient))
    return found if np.isfinite(found) else float("inf")


def _told(failure: Exception) -> str:
    return f"{type(failure).__name__.lstrip('_')}: {failure}".splitlines()[0][:100]


def table(rows: Rows) -> str:
    lines = [f"  {'':<26}{'ms':>10}{'quartiles':>20}{'runs':>5}{'ratio':>8}{'error':>9}"]
    for r in rows:
        if r["ms"] is None:
            lines.append(f"  {r['name']:<26}{'—':>10}  {r['note']}")
            continue
        quartiles = f"{r['lower']:.2f}–{r['upper']:.2f}"
        ratio, wrong = (
            "" if x is None else form.format(x) for x, form in ((r["ratio"], "{:.2f}"), (r["error"], "{:.1e}"))
        )
        flag = " > bound" if r.get("bound") and r["error"] is not None and r["error"] > r["bound"] else ""
        line = f"  {r['name']:<26}{r['ms']:>10.2f}{quartiles:>20}{r['runs']:>5}{ratio:>8}{wrong:>9}{flag}  {r['note']}"
        lines.append(line.rstrip())
    return "\n".join(lines)


# --- products
# ----------------------------------------------------------------------------------------------------------


def count_products(
    A: Tensor, xi: Tensor, phi: Tensor, psi: Tensor, v0: Tensor | None = None
) -> tuple[int, int, Tensor]:
    """Products with A forward, products backward, and v."""
    A = A.detach().clone().requires_grad_()
    with Counted(A) as ahead:
        sigma, u, v = svdgrad.singular_triplet(A, forward="lanczos", v0=v0)
    # on a thread of its own, which a backward on CUDA has, nothing would be counted
    with torch.autograd.set_multithreading_enabled(False), Counted(A) as back:
        torch.autograd.grad(xi * sigma + phi @ u + psi @ v, A)
    return ahead.count, back.count, v.detach()


#: of svdgrad and svdgrad.jax: shapes on both sides of where "auto" changes from "gram" to "lanczos"
AROUND = {
    "svdgrad": [(256, 256), (384, 384), (1536, 384), (6144, 384)],
    "svdgrad.jax": [(64, 64), (96, 96), (128, 128)],
}


def auto(package: str, m: int, n: int, dtype: str, clock: Clock) -> Rows:
    """ "gram" beside "lanczos"; a note says which of the two "auto" stands for."""
    import svdgrad.jax

    A = problem(m, n).A.to(getattr(torch, dtype))
    if package == "svdgrad":
        make, chosen = partial(ours, adjoint="auto"), svdgrad.auto.choose(A)
    else:
        make, chosen = ours_in_jax, svdgrad.jax.auto.choose(A.numpy()).forward
    rows = contest(m, n, dtype, {way: make(way) for way in ("gram", "lanczos")}, clock, judged=None)
    for row in rows:
        row |= {
            "package": package,
            "ratio": row["ms"] / rows[0]["ms"],
            "note": '"auto"' if row["name"] == chosen else "",
        }
    return rows


def floor(n: int, dtype: str, clock: Clock) -> dict[str, Any]:
    """Value and gradient by products, beside the time that the products alone take, counted and timed in turns."""
    asked = problem(n, n).arguments(getattr(torch, dtype))
    A, xi, phi, psi, v = asked
    ahead, back, _ = count_products(A, xi, phi, psi)
    u = A @ v
    matvec, rmatvec = matrices.products(A)
    report = svdgrad.diagnose(A, forward="lanczos")
    pairs = 10  # in a row, as the iteration does them: what fits in the cache is there, not what another run left

    def many() -> None:
        for _ in range(pairs):
            matvec(v)
            rmatvec(u)

    def in_torch() -> None:
        for _ in range(pairs):
            A @ v
            A.mT @ u

    runs = {
        "all": ours("lanczos", "auto").make(*asked),
        "forward": lambda: svdgrad.singular_triplet(A, forward="lanczos"),
        "products": many,
        "products in torch": in_torch,
        "copy": lambda: A.clone(),
    }
    _, times, _ = take_turns(runs, 3 * clock.rounds, clock.budget)
    ms = {name: statistics.median(taken) for name, taken in times.items()}
    one = ms["products"] / (2 * pairs)
    least = (ahead + back) * one
    return {
        "n": n, "dtype": dtype, "steps": report.steps, "forward products": ahead, "backward products": back,
        "one product ms": one, "in torch ms": ms["products in torch"] / (2 * pairs), "copy of A ms": ms["copy"],
        "forward ms": ms["forward"], "ms": ms["all"],
        "floor ms": least, "ratio": ms["all"] / least, "forward ratio": ms["forward"] / (ahead * one),
    }  # fmt: skip


def warm_start(n: int, dtype: str) -> Rows:
    """Products before and after A moved by 1% of itself in noise, cold and from the v of before.

    Of a Gaussian matrix, whose gap is small, and of one whose σ₁ was doubled; with the default tolerance, and a loose
    one.
    """
    kind = getattr(torch, dtype)
    A, xi, phi, psi, v, *_ = problem(n, n)
    rows = []
    for what, X in (("Gaussian", A), ("σ₁ doubled", A + torch.outer(A @ v, v))):
        moved = X + 0.01 * X.norm() / n * matrices.gaussian(n, n, seed=5)
        X, moved, xi_, phi_, psi_ = (x.to(kind) for x in (X, moved, xi, phi, psi))
        old = count_products(X, xi_, phi_, psi_)[2]
        cold, warm = count_products(moved, xi_, phi_, psi_), count_products(moved, xi_, phi_, psi_, v0=old)
        loose = {}
        for name, v0 in (("cold", None), ("warm", old)):
            # the forward pass alone
            loose[f"{name}, tol 1e-2"] = svdgrad.diagnose(moved, forward="lanczos", tol=1e-2, v0=v0).products
        angle = (1 - float((old @ cold[2]).abs()) ** 2) ** 0.5 if (old @ cold[2]).abs() < 1 else 0.0
        row = {"what": what, "n": n, "dtype": dtype, "sin(v, v of before)": angle, **loose}
        rows.append(row | {"cold": cold[0], "warm": warm[0], "adjoint cold": cold[1], "adjoint warm": warm[1]})
    return rows


# --- batches, the backward pass, memory, growth
# ------------------------------------------------------------------------


def batch(dtype: str, clock: Clock, size: int = 1024, n: int = 32) -> Rows:
    A = torch.from_numpy(np.random.default_rng(6).standard_normal((size, n, n))).to(getattr(torch, dtype))
    xi, phi, psi = loss_vectors(A[0])
    v = torch.ones(n, dtype=A.dtype)
    runs = {
        "svdgrad": ours("auto", "auto").make(A, xi, phi, psi, v),
        "svdgrad svd": ours("svd", "auto").make(A, xi, phi, psi, v),
        "torch.linalg.svd": _autograd(_torch_svd, A, xi, phi, psi, v),
    }
    return _compared(runs, clock, {"batch": size, "m": n, "n": n, "dtype": dtype})


def backward(m: int, n: int, dtype: str, clock: Clock) -> Rows:
    """The backward pass alone, again and again from one stored SVD: "spectral" beside PyTorch's own."""
    A, xi, phi, psi, v = problem(m, n).arguments(getattr(torch, dtype))

    def alone(triplet: Callable[[Tensor], Any]) -> Callable[[], Any]:
        X = A.clone().requires_grad_()
        sigma, ui, vi = triplet(X)
        sign = torch.sign(vi.detach() @ v)
        value = xi * sigma + sign * (ui @ phi + vi @ psi)
        return lambda: (value.detach(), torch.autograd.grad(value, X, retain_graph=True)[0])

    by_spectral = partial(svdgrad.singular_triplet, forward="svd", adjoint="spectral")
    runs = {"svdgrad": alone(by_spectral), "torch.linalg.svd": alone(_torch_svd)}
    return _compared(runs, clock, {"m": m, "n": n, "dtype": dtype})


def _compared(runs: dict[str, Callable[[], Any]], clock: Clock, about: dict[str, Any]) -> Rows:
    answers, times, _ = take_turns(runs, 2 * clock.rounds, clock.budget)
    rows: Rows = [{"name": name, **about, **spread(times[name]), "note": ""} for name in runs]
    value, gradient = answers["torch.linalg.svd"]
    for row in rows:
        row["ratio"] = row["ms"] / rows[0]["ms"]
        # how far from PyTorch's answer; the tables above say how far that is from the truth
        row["error"] = error(answers[row["name"]], float(value), gradient.double().numpy())
    return rows


def many(m: int, n: int, k: int, dtype: str, clock: Clock) -> Rows:
    """k triplets: value and gradient of ⟨W, U diag(w) Vᵀ⟩ + ⟨w, σ⟩, which no sign changes, by whoever gives them."""
    A = matrices.gaussian(m, n).to(getattr(torch, dtype))
    W, w = matrices.gaussian(m, n, seed=1).to(A), torch.linspace(1, 2, k).to(A)

    def run(triplets: Callable[[Tensor], Any], A: Tensor = A) -> Callable[[], Any]:
        def value_and_gradient() -> Any:
            X = A.clone().requires_grad_()
            torch.manual_seed(0)
            sigma, U, V = triplets(X)
            value = (W.to(A) * ((U * w.to(A)) @ V.mT)).sum() + (w.to(A) * sigma).sum()
            return value.detach(), torch.autograd.grad(value, X)[0]

        return value_and_gradient

    def full(X: Tensor) -> Any:
        U, sigma, Vh = torch.linalg.svd(X, full_matrices=False)
        return sigma[:k], U[:, :k], Vh[:k].mT

    def random(X: Tensor) -> Any:
        U, sigma, V = torch.svd_lowrank(X, q=k + 6, niter=10)
        return sigma[:k], U[:, :k], V[:, :k]

    def blocks(X: Tensor) -> Any:
        squares, V = torch.lobpcg(X.mT @ X, k=k, X=torch.randn(n, k).to(X), largest=True, tol=1e-10)
        sigma = squares.sqrt()
        return sigma, X @ V / sigma, V

    ways = {"svdgrad": partial(svdgrad.singular_triplets, k=k)}
    ways |= {f"svdgrad {name}": partial(svdgrad.singular_triplets, k=k, forward=name) for name in ("gram", "lanczos")}
    ways |= {"torch.linalg.svd": full, "torch.svd_lowrank": random, "torch.lobpcg": blocks}
    answers, times, _ = take_turns({name: run(way) for name, way in ways.items()}, clock.rounds, clock.budget)
    truth, gradient = run(full, A.double())()
    rows: Rows = []
    for name in ways:
        row = {"name": name, "m": m, "n": n, "k": k, "dtype": dtype, **spread(times[name]), "note": f"k = {k}"}
        found = error(answers[name], float(truth), gradient.numpy())
        rows.append(row | {"ratio": row["ms"] / spread(times["svdgrad"])["ms"], "error": found})
    return rows


def training(channels: int, side: int, batch: int, clock: Clock) -> Rows:
    """A step of stochastic gradients on two convolutions: as they are, with PyTorch's tool, and with the gain held."""
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    def network(way: str) -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        for layer in layers:
            if way == "torch spectral_norm":
                spectral_norm(layer)
            if way == "svdgrad.nn":
                svdgrad.nn.spectral_norm(layer, input_shape=(channels, side, side))
        return nn.Sequential(layers[0], nn.ReLU(), layers[1])

    x = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))

    def step(model: nn.Module) -> Callable[[], Any]:
        optimiser = torch.optim.SGD(model.parameters(), 1e-2)

        def run() -> Any:
            loss = model(x).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        return run

    models = {way: network(way) for way in ("torch spectral_norm", "svdgrad.nn", "no regularisation")}
    _, times, _ = take_turns({way: step(model) for way, model in models.items()}, clock.rounds, clock.budget)
    rows: Rows = []
    for way, model in models.items():
        with torch.no_grad():
            model(x)
            largest = max(svdgrad.nn.operator_norm(model[k], (channels, side, side)).item() for k in (0, 2))
        row = {"name": way, "m": channels, "n": side, "dtype": "float32", **spread(times[way])}
        ratio = row["ms"] / spread(times["torch spectral_norm"])["ms"]
        rows.append(row | {"ratio": ratio, "error": None, "note": f"largest gain {largest:.3f}"})
    return rows


def memory(jobs: Iterable[tuple[str, int, int, str]]) -> Rows:
    """Each in a process of its own."""
    rows = []
    for name, m, n, dtype in jobs:
        command = [sys.executable, "-m", "benchmarks.memory", name, str(m), str(n), dtype]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        row = {"name": name, "m": m, "n": n, "dtype": dtype, "peak": None, "ratio": None, "note": ""}
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        rows.append(row | (json.loads(done.stdout) if done.returncode == 0 else {"note": f"not measured: {last}"}))
    return rows


def growth(sizes: Iterable[int], dtype: str, peers: dict[str, Peer], clock: Clock, known: Rows) -> Rows:
    """Time against n of square matrices; what a table above has measured is taken from there."""
    found: Rows = []
    for n in sizes:
        have = [r for r in known if (r["m"], r["n"], r["dtype"]) == (n, n, dtype)]
        found += have or contest(n, n, dtype, peers, clock, judged=None)
        print(f"  {n}×{n} measured", flush=True)
    rows: Rows = []
    for name in peers:
        points = [[r["n"], r["ms"]] for r in found if r["name"] == name and r["ms"]]
        last = np.log(np.array(points[-3:], dtype=float)).reshape(-1, 2)
        slope = float(np.polyfit(last[:, 0], last[:, 1], 1)[0]) if len(last) > 1 else None
        rows.append({"name": name, "dtype": dtype, "points": points, "slope": slope})
    return rows


# --- the command
# -------------------------------------------------------------------------------------------------------


def write(record: dict[str, Any], folder: Path) -> Path:
    """``speed-<device>-<date>.json``; JSON has no infinity, so that is a word, as in svdgrad.lab.records."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        return [plain(y) for y in x] if isinstance(x, list) else records._written(x)

    path = folder / f"speed-{record['device']}-{record['date']}.json"
    records.write_json(plain(record), path)
    return path


def read(path: Path) -> dict[str, Any]:
    """A record as it was before it was written."""

    def back(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: back(value) for key, value in x.items()}
        return [back(y) for y in x] if isinstance(x, list) else float("inf") if x == "infinite" else x

    record: dict[str, Any] = back(json.loads(path.read_text(encoding="utf-8")))
    return record


SECTIONS = ["contest", "auto", "floor", "warm", "batch", "many", "training", "backward", "memory", "growth"]


#: m, n, k of the larger contests of k triplets
MANY = [(1024, 512, 4), (1024, 1024, 16), (2048, 2048, 4), (2048, 2048, 16)]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split(":")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: under four minutes")
    parser.add_argument("--sizes", nargs="+", metavar="MxN", help="of the contest, such as 512x256")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"contestants, or sections: {', '.join(SECTIONS)}")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write speed-cpu-<date>.json into this folder")
    options = parser.parse_args(arguments)
    only = options.only or []
    if unknown := [name for name in only if name not in PEERS and name not in SECTIONS]:
        parser.error(f"no contestant or section named {', '.join(unknown)}: the contestants are {', '.join(PEERS)}")
    sections = [name for name in SECTIONS if name in only] or SECTIONS
    named = [name for name in only if name in PEERS]
    # svdgrad always takes part: ratios are to it
    peers = {name: peer for name, peer in PEERS.items() if not named or name in named or name == "svdgrad"}
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes or []] or (QUICK if options.quick else SIZES)
    quick, clock = options.quick, Clock(options.quick)
    record: dict[str, Any] = {
        "device": "cpu",
        "hardware": records.hardware(CPU),
        "torch threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "quick": quick,
        "code": records.code(),
        "versions": records.versions() | {peer.module: _version(peer) for peer in PEERS.values() if "==" in peer.needs},
        "matrix": "standard normal, seed 0, rounded to float32",
        "times": f"milliseconds: median and quartiles of up to {clock.rounds} turns after a first run, or of that "
        "alone",
    }
    print(f"value and gradient of ξσ + φ·u + ψ·v at a Gaussian matrix, on {record['hardware']}")
    print("ratio: times as slow as svdgrad; error: against the truth, and whether beyond 50 ε σ₁/gap")
    begin = time.perf_counter()

    def keep(section: str, rows: Any, text: str) -> None:
        record.setdefault(section, []).extend(rows)
        record["seconds"] = round(time.perf_counter() - begin, 1)
        print(text, flush=True)
        if options.record:  # after each part: what is interrupted is not lost
            write(record, options.record)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        if "contest" in sections:
            _contests(sizes, options.dtype, peers, clock, keep)
        for dtype in options.dtype:
            for package, shapes in AROUND.items() if "auto" in sections else ():
                for m, n in shapes:
                    rows = auto(package, m, n, dtype, clock)
                    keep("auto", rows, f"\n{package}, {m}×{n}, {dtype}; ratio: to gram\n{table(rows)}")
            if "floor" in sections:
                for n in (1024,) if quick else (1024, 2048, 4096):
                    if n < 4096 or dtype == "float32":
                        keep("floor", [row := floor(n, dtype, clock)], f"\nfloor, {n}×{n}, {dtype}\n{_lines(row)}")
            if "warm" in sections:
                for row in warm_start(512 if quick else 1024, dtype):
                    keep("warm", [row], f"\nwarm start, products with A after it moved by 1%\n{_lines(row)}")
            if "batch" in sections:
                rows = batch(dtype, clock)
                keep("batch", rows, f"\n1024 matrices of 32×32, {dtype}; error: from torch.linalg.svd\n{table(rows)}")
            if "many" in sections:
                for m, n, k in [(64, 32, 4), (512, 256, 4)] + ([] if quick else MANY):
                    rows = many(m, n, k, dtype, clock)
                    head = f"{k} triplets, {m}×{n}, {dtype}; error: from torch.linalg.svd in float64"
                    keep("many", rows, f"\n{head}\n{table(rows)}")
            if "training" in sections and dtype == "float32":
                for channels, side in [(8, 8), (64, 32)] + ([] if quick else [(128, 32)]):
                    rows = training(channels, side, 128, clock)
                    head = f"a training step, two convolutions of {channels} channels on {side}×{side}, batch 128"
                    keep("training", rows, f"\n{head}; ratio: to PyTorch's tool\n{table(rows)}")
            if "backward" in sections:
                for m, n in [(512, 256), (1024, 512)] + ([] if quick else [(2048, 2048)]):
                    rows = backward(m, n, dtype, clock)
                    head = f"backward alone, {m}×{n}, {dtype}; error: from torch.linalg.svd"
                    keep("backward", rows, f"\n{head}\n{table(rows)}")
        if "memory" in sections:
            n = 1024 if quick else 4096
            jobs = [("svdgrad", n, n, "float32")]
            jobs += [(name, n // 2, n // 2, "float32") for name in ("svdgrad", "svdgrad gram", "torch.linalg.svd")]
            rows = memory(jobs + [("operator", 1, n, "float64") for n in (200_000, 800_000)])
            unit = "(peak + A)/(A + gradient); operator: numbers over k(m + n)"
            keep("memory", rows, f"\nmemory, {unit}\n" + "\n".join(_lines(row) for row in rows))
        if "growth" in sections:
            print("\ngrowth, float32: slope of log time against log n, of the three largest sizes", flush=True)
            lengths = [2**k for k in range(6, 10 if quick else 13)]
            rows = growth(lengths, "float32", peers, clock, record.get("contest", []))
            slopes = ("—" if row["slope"] is None else f"{row['slope']:.2f}" for row in rows)
            keep("growth", rows, "\n".join(f"  {row['name']:<26} {slope}" for row, slope in zip(rows, slopes)))
    print(
        f"\n{record['seconds']:.0f} s in all"
        + (f"; written to {write(record, options.record)}" if options.record else "")
    )
    return record


def _contests(sizes: Any, dtypes: list[str], peers: dict[str, Peer], clock: Clock, keep: Callable[..., None]) -> None:
    for m, n in sizes:
        exact = m * n <= LARGEST_EXACT
        for dtype in dtypes:
            if dtype == "float64" and not exact:
                print(f"\n{m}×{n}, float64: not run: judged in float64, that size judges float32 only")
                continue
            rows = contest(m, n, dtype, peers, clock, judged=exact)
            asked: Problem = problem(m, n)
            bound = asked.bound(getattr(torch, dtype))
            head = f"{m}×{n}, {dtype}, gap {asked.gap:.1e} σ₁, bound {bound:.1e}, judge: {truth(m, n, exact).judge}"
            keep("contest", rows, f"\n{head}\n{table(rows)}")


def _lines(row: dict[str, Any]) -> str:
    told = ((key, f"{value:.3g}" if isinstance(value, float) else value) for key, value in row.items() if value != "")
    return "  " + ", ".join(f"{key} {value}" for key, value in told)


def _version(peer: Peer) -> str | None:
    return None if peer.missing() else peer.needs.split("==")[1]


if __name__ == "__main__":
    main()
