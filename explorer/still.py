"""The still pictures of the explorer, as svdgrad computes them: ``python explorer/still.py`` writes both files."""

from pathlib import Path

import matplotlib
import numpy as np
import torch

import svdgrad
from svdgrad import matrices, oracles
from svdgrad.adjoint import ATTEMPTS, SOLVERS, assemble
from svdgrad.lab import COLORS, relative_error
from svdgrad.lab.figures import use_style
from svdgrad.matrices import MATRICES, kappa, predicted_singular_values

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parent
BLUE, ORANGE = COLORS[:2]
SINGULAR_VALUES = [1.0, 0.9, 0.45, 0.225]
XI, PHI, PSI = 0.7, [0.3, -1.1, 0.8, 0.2, -0.6], [-0.9, 0.4, 1.2, 0.5]
B = [[1.5, 0.35], [-0.4, 1.0]]


def reflection(x: list[float]) -> torch.Tensor:
    x = torch.tensor(x, dtype=torch.float64)
    return torch.eye(len(x), dtype=torch.float64) - 2 * matrices.outer(x, x) / (x @ x)


def errors(A: torch.Tensor, dtype: torch.dtype) -> dict[str, float]:
    A = A.to(dtype)
    triplet = svdgrad.singular_triplet(A)
    xi, phi, psi = (torch.tensor(x).to(A) for x in (XI, PHI, PSI))
    truth = oracles.extended(A, xi, phi, psi, triplet.v)
    ways = ATTEMPTS | {name: SOLVERS[name] for name in ("saddle", "spectral")}
    return {
        name: relative_error(assemble(triplet, xi, *solve(A, triplet, phi, psi)), truth) for name, solve in ways.items()
    }


def spectrum() -> None:
    s = torch.tensor(SINGULAR_VALUES, dtype=torch.float64)
    A = (reflection([1, 2, -1, 3, 2])[:, :4] * s) @ reflection([2, -1, 1, 3]).T
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6.2), height_ratios=[12, 8])
    least = 10**-1.6
    for row, name in enumerate(MATRICES):
        values = predicted_singular_values(name, s, *A.shape)
        shown = (values / values.max()).clamp_min(least)
        top.plot([shown.min(), 1], [row, row], color=BLUE, marker="", linewidth=1.2)
        top.plot(shown, [row] * len(shown), "o", color=BLUE, alpha=0.75)
        number = kappa(values)
        top.text(1.15, row, f"{number:.3g}" if number < np.inf else "∞", va="center")
    top.set_xscale("log")
    top.set_xticks([least, 0.1, 1], ["0", "0.1", "1"])
    top.set_xlabel("singular values over the largest, and the condition number")
    top.set_yticks(range(len(MATRICES)), list(MATRICES))

    double, single = (errors(A, dtype) for dtype in (torch.float64, torch.float32))
    for row, name in enumerate(double):
        bottom.plot(double[name], row, "o", color=BLUE, label="float64" if row == 0 else None)
        bottom.plot(single[name], row, "s", color=ORANGE, label="float32" if row == 0 else None)
    bottom.set_xscale("log")
    bottom.set_xlim(1e-17, 1e3)
    bottom.set_xlabel("relative error of the gradient")
    bottom.set_yticks(range(len(double)), list(double))
    bottom.legend(loc="center")
    for ax in (top, bottom):
        ax.minorticks_off()
        ax.invert_yaxis()
    save(fig, "spectrum")


def ellipse() -> None:
    A = torch.tensor(B, dtype=torch.float64)
    dA = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    (_, u, v), (_, du, dv) = torch.func.jvp(svdgrad.singular_triplet, (A,), (dA,))
    U, S, _ = torch.linalg.svd(A)
    turn = torch.linspace(0, 2 * np.pi, 73, dtype=torch.float64)
    circle = torch.stack([turn.cos(), turn.sin()])
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6))
    for ax, curve, vector, rate, name, color in (
        (left, circle, v, dv, "v", ORANGE),
        (right, A @ circle, u, du, "u", BLUE),
    ):
        ax.plot(*curve, color="0.35", marker="")
        for start, step, text, width in ((0 * vector, vector, name, 2), (vector, rate, f"d{name}", 1.4)):
            end = start + step
            ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": width})
            ax.text(*(end + 0.2 * step / step.norm()), text, color=color, ha="center", va="center", style="italic")
        ax.set(aspect="equal", xlim=(-2, 2), ylim=(-2, 2))
    right.plot(*circle, color="0.35", marker="", linestyle=":", linewidth=1)
    for half_axis in (S[0] * u, S[1] * U[:, 1]):
        right.plot(*torch.stack([0 * u, half_axis]).T, color="0.35", marker="", linestyle="--", linewidth=1)
    left.set_xlabel("the unit circle")
    right.set_xlabel("the ellipse")
    save(fig, "ellipse")


def save(fig, name: str) -> None:
    fig.savefig(HERE / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)


if __name__ == "__main__":
    use_style()
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "explorer"})
    spectrum()
    ellipse()
