"""Peak memory of one value and gradient, in a process of its own: ``python -m benchmarks.memory svdgrad 4096 4096
float32``.

The peak of the resident memory is reset after A is there (Linux only), so that neither the libraries nor the making of
A count.
"""

import ctypes
import json
import sys
from typing import Any

import torch

import svdgrad
from svdgrad import matrices
from svdgrad.lab import loss_vectors

from .peers import PEERS


def status(field: str) -> int:
    """Bytes: VmRSS, resident now, or VmHWM, resident at the most since the last reset."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def beyond(run: Any) -> int:
    """Bytes at the peak of ``run`` beyond those resident before it."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what was freed goes back to the system, or the run would take it again unseen
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = status("VmRSS")
    answer = run()
    peak = status("VmHWM") - before
    del answer
    return peak


def dense(name: str, m: int, n: int, dtype: torch.dtype) -> dict[str, Any]:
    """A itself is resident before; that a run holds its gradient at the end is part of the peak."""

    def make(m: int, n: int) -> Any:
        A = matrices.gaussian(m, n, dtype=dtype)
        v = torch.ones(n, dtype=dtype)
        return PEERS[name].make(A, *loss_vectors(A), v)

    make(600, 600)()  # what the libraries take at the first call, once
    run = make(m, n)
    bytes_of_A = m * n * torch.finfo(dtype).bits // 8
    peak = beyond(run)
    return {"name": name, "m": m, "n": n, "peak": peak, "ratio": (peak + bytes_of_A) / (2 * bytes_of_A)}


def operator(n: int, dtype: torch.dtype) -> dict[str, Any]:
    """x ↦ d·x, entry by entry, with d from 0 to 1 and one entry of 1.05: never formed; k steps hold 2k vectors of n."""
    calls = 0

    def make(n: int) -> Any:
        d = torch.linspace(0, 1, n, dtype=dtype)
        d[-1] = 1.05
        d.requires_grad_()
        v0, phi = torch.ones(n, dtype=dtype), matrices.gaussian(1, n, dtype=dtype)[0]

        def product(d: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return d * x

        def run() -> int:
            nonlocal calls
            calls = 0
            sigma, u, _ = svdgrad.operator_triplet(product, d, v0)
            steps = calls - 1  # the first call asks whether zero goes to zero; the transposes are autograd's
            (sigma + phi @ u).backward()
            return steps

        return run

    make(1000)()
    run = make(n)
    answers: list[int] = []
    peak = beyond(lambda: answers.append(run()))
    numbers = peak / (torch.finfo(dtype).bits // 8)
    k = answers[0]
    return {"name": "operator_triplet", "m": n, "n": n, "steps": k, "peak": peak, "ratio": numbers / (2 * k * n)}


if __name__ == "__main__":
    name, m, n, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4])
    print(json.dumps(operator(n, dtype) if name == "operator" else dense(name, m, n, dtype)))
