"""The figures of the book: what its cells unpack, what a reader can tell apart, and nothing left open behind them."""

import importlib.util
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from svdgrad.lab import figure, reference_slope
from svdgrad.lab.figures import INK, block, canvas, ellipse, vector

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """The figures that were open at each ``plt.show()``, from matplotlib's own defaults on."""
    numbers = []
    monkeypatch.setattr(plt, "show", lambda: numbers.append(plt.get_fignums()))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield numbers


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_a_block_has_its_axes_and_is_shown_once(shown, rows, columns):
    with figure(rows, columns, height=2.5) as axes:
        if rows * columns == 1:
            axes = [axes]
        assert [ax.get_subplotspec().num1 for ax in axes] == list(range(rows * columns))  # a flat array, row by row
        assert list(axes[0].figure.get_size_inches()) == [7, 2.5]
        assert shown == []
    assert shown == [[1]] and plt.get_fignums() == []


def test_without_arguments_it_is_one_axes():
    with figure() as ax:
        assert ax.get_gridspec().get_geometry() == (1, 1)


def test_every_line_has_a_colour_and_a_marker_of_its_own():
    """So that who does not see the colours, or prints without them, can tell the lines apart."""
    with figure() as ax:
        lines = [ax.plot([1, 2], [k, k])[0] for k in range(7)]
        assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 7
        assert all(line.get_marker() not in ("", "None") for line in lines)


def test_a_figure_is_opaque_and_has_a_grid():
    with figure() as ax:
        ax.plot([1, 2], [1, 2])
        assert ax.figure.get_facecolor() == (1, 1, 1, 1)  # on a dark page the words on the axes would be lost
        assert all(line.get_visible() for line in ax.get_xgridlines() + ax.get_ygridlines())


def test_what_is_written_beside_one_axes_does_not_run_into_the_next():
    with figure(1, 2, height=2.0) as axes:
        for ax in axes:
            ax.plot([0, 1e-7], [0, 12345.678])
            ax.set(xlabel="a", ylabel="two lines\nof a label", title="a title")
        axes[0].figure.canvas.draw()
        left, right = (ax.get_tightbbox() for ax in axes)
        assert left.x1 <= right.x0
        assert all(0 <= box.y0 and box.y1 <= axes[0].figure.bbox.y1 for box in (left, right))


def test_a_reference_slope_is_the_rate_that_it_names():
    with figure() as ax:
        reference_slope(ax, [1e-3, 1e-2, 1.0], 5e-9, -2, "h⁻²")
        (line,) = ax.lines
        x, y = line.get_data()
        assert y[0] == pytest.approx(5e-9)
        assert np.diff(np.log(y)) / np.diff(np.log(x)) == pytest.approx([-2, -2])
        # a guide for the eye, not measured points
        assert line.get_label() == "h⁻²" and line.get_linestyle() == "--" and line.get_marker() in ("", "None")
        assert math.isclose(float(line.get_color()), 0.45)


def test_the_three_spaces_have_three_colours():
    assert set(INK) == {"u", "v", "sigma"} and len(set(INK.values())) == 3


def test_a_canvas_has_one_scale_and_no_frame():
    with figure(1, 2, height=2.0) as axes:
        for ax in axes:
            canvas(ax, (-1, 3), (0, 1))
        axes[0].figure.canvas.draw()
        for ax in axes:
            (width, height), (x, y) = ax.get_window_extent().size, (ax.get_xlim(), ax.get_ylim())
            assert (x, y) == ((-1, 3), (0, 1)) and width == pytest.approx(4 * height)
            assert not ax.axison


def test_an_ellipse_has_the_singular_values_as_half_axes():
    """Told from the points that were drawn: the farthest is σ₁ from the middle, the nearest σ₂, at right angles."""
    A = np.array([[3.0, 0.3], [0.9, 1.0]])
    with figure() as ax:
        ellipse(ax, A, color="red")
        (line,) = ax.lines
        points = np.array(line.get_data())
        size = np.linalg.norm(points, axis=0)
        # 181 points around the circle: the extreme is missed by less than a degree, to second order in it
        assert [size.max(), size.min()] == pytest.approx(np.linalg.svd(A)[1], rel=2e-3)
        assert np.allclose(points[:, 0], points[:, -1])
        assert line.get_color() == "red" and line.get_marker() == ""


@pytest.mark.parametrize("tip", [(2.0, 0.0), (0.0, -1.0), (-1.0, 1.0)])
def test_a_vector_ends_at_its_tip_and_bears_its_name_beyond_it(tip):
    with figure() as ax:
        canvas(ax, (-3, 3), (-3, 3))
        vector(ax, tip, "blue", "$u$", alpha=0.5)
        arrow, name = ax.texts
        assert arrow.xy == pytest.approx(tip) and arrow.arrow_patch.get_alpha() == 0.5
        ax.figure.canvas.draw()
        where = ax.transData.inverted().transform(name.get_window_extent().get_points().mean(axis=0))
        assert name.get_text() == "$u$" and name.get_color() == "blue"
        length = np.linalg.norm(tip)
        assert where @ tip / length > length + 0.1  # beyond the tip
        assert abs(where @ [-tip[1], tip[0]]) < 0.1  # and straight ahead of it


def test_a_block_is_where_it_is_put_with_its_name_in_the_middle():
    with figure() as ax:
        canvas(ax, (0, 10), (0, 10))
        block(ax, (1, 2), (4, 3), "$-A$", "green")
        shade, frame = ax.patches
        for patch in (shade, frame):
            assert patch.get_bbox().bounds == (1, 2, 4, 3)
        (name,) = ax.texts
        assert name.get_text() == "$-A$" and name.get_position() == (3, 3.5)


# --- the picture of the front page: drawn by tools/front.py, kept beside the book's style sheet

ROOT = Path(__file__).resolve().parent.parent
FRONT = ROOT / "book" / "_static" / "front.svg"


def numbers(svg: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", svg)]


def test_the_front_picture_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location("front", ROOT / "tools" / "front.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    kept, drawn = FRONT.read_text(encoding="utf-8"), script.picture()
    assert re.sub(r"\d", "", kept.replace("-", "")) == re.sub(r"\d", "", drawn.replace("-", ""))
    # two decimals are kept, and another machine may round the last of them the other way
    assert numbers(kept) == pytest.approx(numbers(drawn), abs=0.011)


def test_the_front_picture_says_what_happens():
    """The ellipses and turns that are drawn, against NumPy's SVD of the matrices that the picture names."""
    seconds, turns = ([float(x) for x in re.findall(p, FRONT.read_text())] for p in (r"σ₂ = ([\d.]+)", r"±(\d+)°"))
    ellipses = re.findall(r'rx="([\d.]+)" ry="([\d.]+)" transform="rotate\((-?[\d.]+)\)"', FRONT.read_text())
    assert len(seconds) == len(turns) == 3
    for second, turn, panel in zip(seconds, turns, np.split(np.array(ellipses, dtype=float), 3), strict=True):
        U, S, _ = np.linalg.svd([[1, 0], [0.12, second]])
        angle = np.degrees(np.arctan(U[1, 0] / U[0, 0]))
        assert round(angle) == turn
        assert panel[-2] == pytest.approx([104 * S[0], 104 * S[1], -angle], abs=0.006)  # the last move
        assert panel[-1] == pytest.approx([104, 104 * second, 0], abs=0.006)  # the matrix itself
