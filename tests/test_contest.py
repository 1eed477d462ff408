"""The contest as a page: the tables of ``svdgrad.lab.contest``, and the chapter that shows them, in both states."""

import math
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from test_compare import plant, row

from svdgrad import matrices
from svdgrad.adjoint import ATTEMPTS, SOLVERS
from svdgrad.lab import contest, tables

# --- tables for a notebook --------------------------------------------------------------------------------------------


def cells(html):
    """Of every table its summary, and its rows as lists of words."""
    folded = BeautifulSoup(html, "html.parser").find_all("details")
    rows = [[[cell.text for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")] for table in folded]
    return dict(zip((table.summary.text for table in folded), rows))


def test_a_table_of_a_notebook_has_a_line_for_every_way_and_columns_for_every_title():
    columns = {
        "the CPU here": [
            row("direct", 64, 32, 0.5, "attempt", error=math.inf, residual=0.7, kappa=math.inf, note="singular <K>"),
            row("schur", 64, 32, 0.25, error=1e-15, residual=2e-16, kappa=3.5, runs=5),
        ],
        "a <card>": [
            row("schur", 64, 32, 0.125, error=3e-15, residual=4e-16, kappa=3.5, runs=5)._replace(device="cuda"),
            row("jax", 64, 32, 2.0, "witness", error=5e-15, runs=5),
        ],
    }
    html = tables.html_tables(columns)
    assert cells(html)["64×32, float64"] == [
        ["way", "κ", "error", "residual", "ms"],
        ["A", "B"] * 3,
        ["attempts of the notebook", ""],
        ["direct", "∞", "∞", "—", "7.0e-01", "—", "0.50", "—"],
        ["solvers", ""],
        ["schur", "3.5e+00", "1.0e-15", "3.0e-15", "2.0e-16", "4.0e-16", "0.25", "0.12"],
        ["witnesses", ""],
        ["jax", "—", "—", "5.0e-15", "—", "—", "—", "2.00"],
    ]
    paragraphs = [p.get_text("|") for p in BeautifulSoup(html, "html.parser").find_all("p")]
    assert paragraphs == [
        "A: the CPU here|B: a <card>",
        "A: direct (attempt): singular <K>|B: on cpu: jax",
    ]


def test_there_is_a_table_for_every_shape_and_precision_and_the_first_is_unfolded():
    rows = [row("schur", m, 8, 0.25) for m in (12, 24)]
    html = tables.html_tables({"the CPU here": [*rows, rows[0]._replace(dtype="float32")]})
    assert list(cells(html)) == ["12×8, float64", "24×8, float64", "12×8, float32"]
    assert [tag.has_attr("open") for tag in BeautifulSoup(html, "html.parser").find_all("details")] == [1, 0, 0]
    assert cells(html)["24×8, float64"][0] == ["way", "κ", "error", "residual", "ms"]
    assert [p.text for p in BeautifulSoup(html, "html.parser").find_all("p")] == ["the CPU here"] * 3


def test_a_table_of_words_heads_its_rows_and_columns_and_escapes_them():
    html = BeautifulSoup(tables.Table(("", "a < b"), [("x & y", 1), ("z", "2")])._repr_html_(), "html.parser")
    assert [[word.text for word in row.find_all(["th", "td"])] for row in html.find_all("tr")] == [
        ["", "a < b"],
        ["x & y", "1"],
        ["z", "2"],
    ]
    assert [head["scope"] for head in html.find_all("th")] == ["col", "row", "row"]


def test_a_row_that_is_too_short_is_an_error():
    with pytest.raises(ValueError):
        repr(tables.Table(("", "a", "b"), [("x", 1)]))


# --- the chapter that reads the records ------------------------------------------------------------------------------

NOTEBOOK = nbformat.read(Path(__file__).parents[1] / "book" / "contest.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
THIS_RUN, TIMES, OF_RECORDS = "contest-05", "contest-15b", "contest-17"


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """Run the contest's cells beside the records of a folder; what each cell shows, by its name, of a figure the number
    of its lines. Left out are the differences, which take long, and the exercise on the elevation matrix.
    """
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contest, "compare", partial(contest.compare, repeat=1, differences=False))
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda thing: shown.append(thing.data))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append(len(plt.gca().lines)))

    def run():
        by_cell, names = {}, {}
        for cell in CODE:
            if "elevation" not in cell.source:
                exec(compile(cell.source, cell.id, "exec"), names)
                by_cell[cell.id], shown[:] = list(shown), []
        return by_cell

    return run


@pytest.fixture(scope="module")
def made_up():
    """Rows such as a card would have recorded, from a run on the CPU: for these tests alone, never to be committed."""
    rows = [
        found
        for m, n in ((64, 32), (12, 8))
        for dtype in (torch.float64, torch.float32)
        for found in contest.compare(matrices.gaussian(m, n, dtype=dtype), repeat=1, differences=False)
    ]
    return [found._replace(device="cuda", milliseconds=1234.5, peak=1e6)._asdict() for found in rows]


def test_without_a_record_the_chapter_has_one_paragraph_of_it_and_a_table_of_this_run(chapter):
    shown = chapter()
    (paragraph,) = shown[OF_RECORDS]
    assert paragraph.startswith("No CUDA device has been recorded") and "--record book/records/" in paragraph
    assert shown[TIMES] == [6]
    (tables,) = shown[THIS_RUN]
    assert list(cells(tables)) == ["64×32, float64", "64×32, float32"] and "OLDER CODE" not in tables
    ways = {words[0] for words in cells(tables)["64×32, float64"]}
    assert ways >= {*ATTEMPTS, *SOLVERS, "torch", "jax", "newton"}


def test_with_a_record_the_chapter_has_its_tables_and_a_figure(chapter, tmp_path, made_up):
    plant(tmp_path / "records", "card", rows=made_up)
    shown = chapter()
    (tables,) = shown[OF_RECORDS]
    found = cells(tables)
    assert shown[TIMES] == [12]  # six ways on the CPU of this run, and on the card
    assert list(found) == [f"{shape}, {dtype}" for shape in ("64×32", "12×8") for dtype in ("float64", "float32")]
    for words in found.values():
        ways = {line[0]: line for line in words}
        assert ways.keys() >= {*ATTEMPTS, *SOLVERS, "torch", "jax", "newton"}
        assert all(ways[name][-1] == "1234.50" and "—" not in ways[name][2:] for name in SOLVERS)
    assert "No CUDA device" not in tables and "card, recorded 2026-11-24 (torch 9.9" in tables
    assert "B: card, recorded" in shown[THIS_RUN][0]
    assert [line[-1] for line in cells(shown[THIS_RUN][0])["64×32, float64"] if line[0] == "schur"] == ["1234.50"]


def test_the_record_of_a_cpu_stands_beside_that_of_a_card(chapter, tmp_path, made_up):
    plant(tmp_path / "records", "card", rows=made_up)
    on_cpu = [found | {"device": "cpu", "milliseconds": 7.0} for found in made_up]
    plant(tmp_path / "records", "old-machine", kind="cpu", rows=on_cpu)
    (tables,) = chapter()[OF_RECORDS]
    assert "A: old-machine, recorded 2026-11-24" in tables and "B: card, recorded" in tables
    assert [line[-2:] for line in cells(tables)["12×8, float32"] if line[0] == "schur"] == [["7.00", "1234.50"]]


def test_the_chapter_marks_a_stale_record_where_nothing_is_compared(chapter, tmp_path, made_up):
    """So the stored tables of a record change with the record alone, and nbval can compare them."""
    plant(tmp_path / "records", "stale-card", rows=made_up, code={"version": "0.0.1", "sources": "0123456789ab"})
    shown = chapter()
    assert "OLDER CODE made this record (svdgrad 0.0.1, sources 0123456789ab)" in shown[THIS_RUN][0]
    assert "OLDER CODE" not in shown[OF_RECORDS][0]
    compared = {cell.id for cell in CODE if "nbval-ignore-output" not in cell.metadata.get("tags", [])}
    assert OF_RECORDS in compared and THIS_RUN not in compared


@pytest.mark.parametrize("size", [(64, 32), (12, 8)], ids=str)
def test_the_chapter_fails_where_a_card_breaks_its_claim(chapter, tmp_path, made_up, size):
    wrong = [
        found | ({"error": 1e-3} if (found["name"], found["m"], found["n"]) == ("cg", *size) else {})
        for found in made_up
    ]
    plant(tmp_path / "records", "bad-card", rows=wrong)
    with pytest.raises(AssertionError, match="every solver and witness, error over bound"):
        chapter()


def test_every_cell_of_the_chapter_but_the_first_shows_something():
    assert [cell.id for cell in CODE if not cell.outputs] == ["contest-03"]
