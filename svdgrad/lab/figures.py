"""One plotting style for every figure of the book."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Okabe and Ito's colours, which readers with any colour vision can tell apart; each series also has its own marker.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


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
