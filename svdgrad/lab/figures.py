"""One plotting style for every figure of the book."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

# Okabe and Ito's colours, which readers with any colour vision can tell apart; each series also has its own marker.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]

#: A space has one colour in every picture: du, phi and p have the colour of u, dv, psi and q that of v, and dsigma and
#: xi that of sigma.
INK = {"u": COLORS[0], "v": COLORS[1], "sigma": COLORS[2]}


def use_style() -> None:
    """Set matplotlib's defaults for the book: an opaque white face (readable on a dark page), a grid, legible lines."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.35,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2.0,
            "lines.markersize": 5.0,
            "font.size": 10.5,
            "legend.frameon": False,
            "image.cmap": "viridis",
            "axes.prop_cycle": cycler(color=COLORS) + cycler(marker=MARKERS),
        }
    )


@contextmanager
def figure(rows: int = 1, columns: int = 1, height: float = 3.8, **kwargs: Any) -> Iterator[Any]:
    """A figure in the book's style, shown at the end of the block: ``with figure(1, 2) as (left, right): …``.

    Yields one axes, or a flat array of them; further keywords go to ``matplotlib.pyplot.subplots``.
    """
    import matplotlib.pyplot as plt

    use_style()
    fig, axes = plt.subplots(rows, columns, figsize=(7.0, height), **kwargs)
    yield axes if rows * columns == 1 else axes.ravel()
    plt.show()
    plt.close(fig)


def reference_slope(ax: Any, x: Sequence[float], y0: float, slope: float, label: str, linestyle: str = "--") -> None:
    """Draw the dashed line y = y0 (x/x[0])^slope on log-log axes, to read a rate against."""
    y = [y0 * (xi / x[0]) ** slope for xi in x]
    ax.plot(x, y, linestyle=linestyle, color="0.45", marker="", linewidth=1.2, label=label)


def canvas(ax: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Make the axes a sheet of paper from x[0] to x[1] and y[0] to y[1]: one scale for both, no frame, no ticks."""
    ax.set(xlim=x, ylim=y, aspect="equal")
    ax.axis("off")


def ellipse(ax: Any, A: Any, **style: Any) -> None:
    """Draw where the 2×2 matrix A sends the unit circle; ``style`` goes to ``ax.plot``."""
    angle = np.linspace(0, 2 * np.pi, 181)
    ax.plot(*(np.asarray(A) @ [np.cos(angle), np.sin(angle)]), marker="", **style)


def vector(ax: Any, tip: Any, color: str, label: str = "", start: Any = (0.0, 0.0), **style: Any) -> None:
    """Draw an arrow from ``start`` to ``tip``, with its label just beyond the tip; ``style`` goes to the arrow."""
    start, tip = np.asarray(start, dtype=float), np.asarray(tip, dtype=float)
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 2.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
    ax.annotate("", tip, start, arrowprops={**arrow, **style})
    ahead = 13 * (tip - start) / np.linalg.norm(tip - start)
    ax.annotate(label, tip, ahead, textcoords="offset points", color=color, ha="center", va="center", fontsize=14)


def block(ax: Any, corner: tuple[float, float], size: tuple[float, float], text: str, color: str = "0.5") -> None:
    """Draw a labelled rectangle, a block of a matrix or a box of a diagram; ``corner`` is its lower left."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle(corner, *size, facecolor=color, alpha=0.16, linewidth=0))
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=1.4))
    ax.text(corner[0] + size[0] / 2, corner[1] + size[1] / 2, text, ha="center", va="center", fontsize=14)
