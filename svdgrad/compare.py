"""Every solver against every oracle, on one device, as a table: ``python -m svdgrad.compare --device auto``."""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import matrices
from .adjoint import SOLVERS, assemble
from .checks import relative_error
from .forward import svd
from .matrices import project
from .triplet import singular_triplet

#: solver -> the matrix that it factorises, for A scaled to σ = 1 as the solvers scale it
MATRICES = {"bordered": matrices.bordered, "saddle": matrices.saddle}


def device(wanted: str = "auto") -> torch.device:
    """The device that the book runs on: CUDA where there is one, else the CPU. The only place where this is chosen."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(wanted).type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here: PyTorch finds none; use --device cpu, or install a CUDA build of PyTorch")
    return torch.device(wanted)


class Row(NamedTuple):
    """One line of the table: a way to the gradient, where it ran, and how well it did."""

    name: str
    device: str
    dtype: str
    error: float  #: ‖G − G*‖/‖G*‖ against the extended-precision gradient G*
    residual: float  #: ‖K[p; q] − c‖/‖c‖; nan for a way that has no (p, q)
    kappa: float  #: κ₂ of the matrix that is factorised; nan where there is none
    milliseconds: float  #: value and gradient together, the median of several runs


def loss_vectors(A: Tensor, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal cotangents ξ, φ, ψ for A, the same on every machine for a given seed."""
    m, n = A.shape[-2:]
    numbers = np.random.default_rng(seed).standard_normal(1 + m + n)
    xi, phi, psi = torch.from_numpy(numbers).to(A).split([1, m, n])
    return xi[0], phi, psi


def compare(A: Tensor, repeat: int = 5) -> list[Row]:
    """Every solver of ``SOLVERS``, and the other witnesses of ``ORACLES``, judged by the extended-precision gradient.

    Shape: A (m, n), on the device and in the dtype to compare in. A random loss is used, see ``loss_vectors``.
    """
    from .oracles import ORACLES

    xi, phi, psi = loss_vectors(A)
    triplet, _ = svd(A)
    truth = ORACLES["extended"](A, xi, phi, psi, triplet.v)
    where, dtype = A.device.type, str(A.dtype).removeprefix("torch.")
    rows = []
    for name in SOLVERS:
        p, q = SOLVERS[name](A, triplet, phi, psi)
        sigma, u, v = triplet
        c = torch.cat([project(u, phi), project(v, psi)]).double()
        residual = matrices.mv(matrices.K(A.double(), sigma.double()), torch.cat([p, q]).double()) - c
        B = MATRICES[name](A / sigma, torch.ones_like(sigma), u, v) if name in MATRICES else None
        kappa = matrices.kappa(torch.linalg.svdvals(B.double())) if B is not None else float("nan")
        error = relative_error(assemble(triplet, xi, p, q), truth)

        def run(name=name):
            X = A.clone().requires_grad_()
            sigma, u, v = singular_triplet(X, adjoint=name)
            (xi * sigma + phi @ u + psi @ v).backward()

        rows.append(Row(name, where, dtype, error, (residual.norm() / c.norm()).item(), kappa, median_ms(run, A.device, repeat)))
    for name in ("differences", "torch", "jax"):
        answer = ORACLES[name]
        error = relative_error(answer(A, xi, phi, psi, triplet.v), truth)
        # differences take 2mn SVDs, and their time says nothing; once is enough
        ms = median_ms(lambda answer=answer: answer(A, xi, phi, psi, triplet.v), A.device, 1 if name == "differences" else repeat)
        rows.append(Row(name, where if name == "torch" else "cpu", dtype, error, float("nan"), float("nan"), ms))
    return rows


def median_ms(run, device: torch.device, repeat: int) -> float:
    """The median time of ``repeat`` runs in milliseconds, after one run to warm up (none if ``repeat`` is 1)."""

    def once():
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
    lines = [f"{'way':<22} {'device':<6} {'dtype':<8} {'error':>9} {'residual':>9} {'κ':>9} {'ms':>9}"]
    for r in rows:
        numbers = "".join(f" {'—' if x != x else format(x, '.1e'):>9}" for x in (r.error, r.residual, r.kappa))
        lines.append(f"{r.name:<22} {r.device:<6} {r.dtype:<8}{numbers} {r.milliseconds:>9.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m svdgrad.compare", description=__doc__.split(":")[0])
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, …")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])
    parser.add_argument("--shape", nargs=2, type=int, default=[64, 32], metavar=("M", "N"), help="of the Gaussian matrix")
    parser.add_argument("--seed", type=int, default=0, help="of the Gaussian matrix")
    options = parser.parse_args(arguments)
    try:
        where = device(options.device)
    except ValueError as problem:
        parser.error(str(problem))
    print(f"gradient of ξσ + φ·u + ψ·v at a {options.shape[0]}×{options.shape[1]} Gaussian matrix, seed {options.seed}\n")
    rows = []
    for dtype in options.dtype:
        A = matrices.gaussian(*options.shape, seed=options.seed, dtype=getattr(torch, dtype)).to(where)
        rows += compare(A)
    print(table(rows))


if __name__ == "__main__":
    main()
