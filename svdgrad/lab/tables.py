"""Tables of the book: text for a terminal, HTML for a page."""

import html as markup
import math
from collections.abc import Callable, Iterable, Sequence

from .records import Row, milliseconds, short


class Table:
    """Rows under the names of their columns, the first of which names the row: a table where a notebook shows it, and
    lines of text anywhere else.

    >>> Table(("", "residual", "over ‖b‖"), [("x", "27.9", "0.32"), ("y", "4.87", "1")])
       residual  over ‖b‖
    x      27.9      0.32
    y      4.87         1
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self.columns = list(columns)
        self.rows = [[str(x) for x in row] for row in rows]

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            row[0].ljust(widths[0]) + "".join(f"  {x.rjust(w)}" for x, w in zip(row[1:], widths[1:], strict=True))
            for row in (self.columns, *self.rows)
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{markup.escape(name)}</th>' for name in self.columns)
        # a cell without a name above heads no column
        head = head.replace('<th scope="col"></th>', "<td></td>")
        lines = ['<table class="dataframe">', f"<thead><tr>{head}</tr></thead>", "<tbody>"]
        for name, *cells in self.rows:
            row = f'<th scope="row">{markup.escape(name)}</th>'
            lines.append(f"<tr>{row}{''.join(f'<td>{markup.escape(x)}</td>' for x in cells)}</tr>")
        return "\n".join([*lines, "</tbody>", "</table>"])


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    lines = [f"{'':<8} {'way':<22} {'device':<6} {'dtype':<8} {'error':>8} {'residual':>8} {'κ':>8} {'ms':>8}"]
    for r in rows:
        numbers = "".join(f" {short(x):>8}" for x in (r.error, r.residual, r.kappa))
        lines.append(
            f"{r.kind:<8} {r.name:<22} {r.device:<6} {r.dtype:<8}{numbers} {milliseconds(r):>8}  {r.note}".rstrip()
        )
    return "\n".join(lines)


#: what a table of a notebook calls the three kinds of ways
KINDS = {"attempt": "attempts of the notebook", "solver": "solvers", "witness": "witnesses"}

#: the columns of such a table, each once for every title
QUANTITIES: dict[str, Callable[[Row], str]] = {
    "error": lambda row: short(row.error),
    "residual": lambda row: short(row.residual),
    "ms": milliseconds,
}


def html_tables(columns: dict[str, list[Row]]) -> str:
    """The rows under several titles, side by side, for a notebook: a table for every shape and precision, the first one
    unfolded.

    Of every way κ once, and error, residual and milliseconds under each title; below, what raised an error or was not
    run, and what did not run where the others under its title did.
    """
    tables: list[str] = []
    for m, n, dtype in dict.fromkeys((r.m, r.n, r.dtype) for rows in columns.values() for r in rows):
        alike = {title: [r for r in rows if (r.m, r.n, r.dtype) == (m, n, dtype)] for title, rows in columns.items()}
        unfolded = "" if tables else " open"
        summary = f"<summary>{m}×{n}, {dtype}</summary>"
        tables.append(f'<details class="contest"{unfolded}>{summary}\n{_html_table(alike)}\n</details>')
    return "\n".join(tables)


def _html_table(columns: dict[str, list[Row]]) -> str:
    letters = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", columns))
    found = {a: {(r.kind, r.name): r for r in columns[title]} for a, title in letters.items()}
    ways = dict.fromkeys(way for rows in found.values() for way in rows)
    several, span = len(letters) > 1, 1 + len(QUANTITIES) * len(letters)
    first = "".join(f'<th scope="col" rowspan="{1 + several}">{name}</th>' for name in ("way", "κ"))
    first += "".join(f'<th scope="colgroup" colspan="{len(letters)}">{name}</th>' for name in QUANTITIES)
    second = "".join(f'<th scope="col">{a}</th>' for a in letters) * len(QUANTITIES)
    lines = ["<thead>", f"<tr>{first}</tr>", *([f"<tr>{second}</tr>"] if several else []), "</thead>"]
    for kind, called in KINDS.items():
        lines += ["<tbody>", f'<tr><th scope="rowgroup">{called}</th><td colspan="{span}"></td></tr>']
        for way in (way for way in ways if way[0] == kind):
            rows = [found[a].get(way) for a in letters]
            kappa = next((short(row.kappa) for row in rows if row and not math.isnan(row.kappa)), "—")
            cells = [kappa, *(quantity(row) if row else "—" for quantity in QUANTITIES.values() for row in rows)]
            lines.append(f'<tr><th scope="row">{way[1]}</th>' + "".join(f"<td>{x}</td>" for x in cells) + "</tr>")
        lines.append("</tbody>")
    above = [f"{a}: {title}" if several else title for a, title in letters.items()]
    # a class that the themes of the book and of Jupyter know, by day and by night
    table = ['<table class="dataframe">', *lines, "</table>"]
    return "\n".join([*_paragraph(above), *table, *_paragraph(_notes(found, several))])


def _paragraph(lines: list[str]) -> list[str]:
    text = markup.escape("\n".join(lines)).replace("\n", "<br>")
    return [f"<p>{text}</p>"] if lines else []


def _notes(found: dict[str, dict[tuple[str, str], Row]], several: bool) -> list[str]:
    """What the numbers of a table do not tell: why there is none, and where else a way ran."""
    notes = []
    for a, rows in found.items():
        before = f"{a}: " if several else ""
        notes += [f"{before}{row.name} ({row.kind}): {row.note}" for row in rows.values() if row.note]
        usual = next((row.device for row in rows.values() if row.kind == "solver"), "")
        elsewhere: dict[str, list[str]] = {}
        for row in rows.values():
            if row.device != usual and row.runs:
                elsewhere.setdefault(row.device, []).append(row.name)
        notes += [f"{before}on {device}: {', '.join(names)}" for device, names in elsewhere.items()]
    return notes
