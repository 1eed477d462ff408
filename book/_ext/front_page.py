"""Sphinx extension of this book: what the front page says of the chapters, read from the chapters themselves.

    ```{chapters}            every page of _toc.yml by parts, with a line, what it needs and its reading time
    ```{route}               the pages named in its lines, in order, with their reading times and the sum
    ```{citation}            BibTeX made from CITATION.cff
    ```{ideas}               the terms, the theorems and the equations, by name
    ```{feedback}            where to send a mistake: to the repository, if _config.yml gives its address

A chapter's line is its paragraph *What you will do*, its prerequisites are *What you need*, and the line of any other
page is its first sentence: nothing is written twice.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]

#: mathematics is read more slowly than prose; a formula on a line of its own, or a cell of code, takes half a minute
WORDS_A_MINUTE, MINUTES_A_FORMULA, MINUTES_A_CELL = 150, 0.5, 0.5


def reading_minutes(notebook) -> float:
    """The time that a first reading takes, exercises and their solutions left out."""
    words = formulas = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"^(:{3,})\{(exercise|solution)\b.*?^\1\s*$", "", cell.source, flags=re.M | re.S)
            formulas += len(re.findall(r"\$\$.+?\$\$", text, flags=re.S))
            text = re.sub(r"\$\$.+?\$\$", "", text, flags=re.S)
            text = re.sub(r"\$.+?\$", "symbol", text, flags=re.S)
            words += len(re.findall(r"[^\W\d_][\w'’-]*", text))
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    return words / WORDS_A_MINUTE + formulas * MINUTES_A_FORMULA + cells * MINUTES_A_CELL


def duration(minutes: float) -> str:
    """Minutes as a reader plans with them: in steps of five, from an hour and a half on in half hours.

    >>> duration(12), duration(1), duration(88), duration(97), duration(125)
    ('10\xa0min', '5\xa0min', '90\xa0min', '1.5\xa0h', '2\xa0h')
    """
    space = "\N{NO-BREAK SPACE}"
    if minutes < 90:
        return f"{max(5, 5 * round(minutes / 5))}{space}min"
    return f"{round(minutes / 30) / 2:g}{space}h"


@dataclass(frozen=True)
class Chapter:
    label: str
    line: str
    needs: str
    minutes: float


def read_chapter(path: Path) -> Chapter:
    """What the front page tells of the chapter in this notebook, or in this page of text alone."""
    notebook = read_cells(path)
    opening = notebook.cells[0].source
    label = re.match(r"\((ch-[a-z0-9-]+)\)=", opening)
    if label is None:
        raise ValueError(f"{path.name} must begin with its label, (ch-{path.stem})=")
    return Chapter(
        label=label[1],
        line=_paragraph(path, opening, "What you will do."),
        needs=_paragraph(path, opening, "What you need."),
        minutes=reading_minutes(notebook),
    )


def read_cells(path: Path) -> nbformat.NotebookNode:
    """The notebook at this path; a page of text alone as a notebook of one cell."""
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    new = nbformat.v4
    return new.new_notebook(cells=[new.new_markdown_cell(path.read_text(encoding="utf-8"))])


def _paragraph(path: Path, text: str, heading: str) -> str:
    found = re.search(rf"^\*\*{re.escape(heading)}\*\*\n(.+?)(?:\n\s*\n|\Z)", text, flags=re.M | re.S)
    if found is None:
        raise ValueError(f"the first cell of {path.name} must have a paragraph **{heading}**, the front page shows it")
    text = re.sub(r"\{term\}`([^`<]+?)(?: <[^`]*>)?`", r"\1", found[1])  # the page itself links to the glossary
    return " ".join(text.split())


class Listing(SphinxDirective):
    """Writes MyST text and has it read as if it stood on the page."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        box = nodes.container(classes=[f"book-{self.name}"])
        self.state.nested_parse(StringList(self.text().splitlines(), self.name), self.content_offset, box)
        return [box]

    def text(self) -> str:
        raise NotImplementedError

    def chapter(self, docname: str) -> Chapter | None:
        """The chapter of this name; None for a page of reference. The front page is stale when it changes."""
        path = next(path for suffix in ("ipynb", "md") if (path := ROOT / f"{docname}.{suffix}").exists())
        self.env.note_dependency(str(path))
        if path.suffix == ".md" and "**What you will do.**" not in path.read_text(encoding="utf-8"):
            return None
        try:
            return read_chapter(path)
        except ValueError as reason:
            raise self.error(str(reason)) from reason

    def opening(self, docname: str) -> str:
        """The first sentence of a page of reference."""
        path = ROOT / f"{docname}.md"
        self.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8").split("\n# ", 1)[-1]
        prose = next((p for p in text.split("\n\n")[1:] if re.match(r"[A-Za-z`]", p)), "")
        return re.split(r"(?<=[.?])\s+(?=[A-Z])", " ".join(prose.split()))[0]


class Ideas(Listing):
    """The terms of the glossary and the theorems in one list, then the numbered equations by chapters."""

    def text(self) -> str:
        toc = Path(self.env.config.external_toc_path)
        parts = yaml.safe_load(toc.read_text(encoding="utf-8"))["parts"]
        ideas = {term: f"{{term}}`{term}`" for term in self.terms()}
        equations = []
        for docname in (page["file"] for part in parts for page in part["chapters"]):
            chapter = self.chapter(docname)
            if chapter is None:
                continue
            notebook = ROOT / f"{docname}.ipynb"
            cells = read_cells(notebook if notebook.exists() else notebook.with_suffix(".md")).cells
            text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
            ideas |= {title: f"{title}, {{prf:ref}}`{label}`" for title, label in THEOREM.findall(text)}
            named = [f"{label.removeprefix('eq-')} {{eq}}`{label}`" for label in EQUATION.findall(text)]
            if named:
                equations += [f"{{numref}}`{{number}}. {{name}} <{chapter.label}>`", f": {', '.join(named)}", ""]
        listed = sorted(ideas, key=lambda idea: idea.removeprefix("The ").removeprefix("A ").lower())
        lines = [f"- {ideas[idea]}" for idea in listed]
        return "\n".join([*lines, "", "**Numbered equations**", "", *equations])

    def terms(self) -> list[str]:
        path = ROOT / "book" / "notation.md"
        self.env.note_dependency(str(path))
        glossary = re.search(r"^:::\{glossary\}\n(.*?)^:::$", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        return re.findall(r"^(\w.*)$", glossary[1], flags=re.M)


THEOREM = re.compile(
    r"^:{3,}\{prf:(?:theorem|lemma|corollary|proposition|definition|algorithm)\} (.+)\n:label: (\S+)$", re.M
)
EQUATION = re.compile(r"^(?:.*\$\$ \(|:label: )(eq-[a-z0-9-]+)", re.M | re.I)


def repository(config) -> str:
    """The address of the repository in _config.yml, without a slash at its end; empty where none is given."""
    return (config.html_theme_options.get("repository_url") or "").rstrip("/")


class Chapters(Listing):
    def text(self) -> str:
        toc = Path(self.env.config.external_toc_path)
        self.env.note_dependency(str(toc))
        lines = []
        for part in yaml.safe_load(toc.read_text(encoding="utf-8"))["parts"]:
            lines += [f"**{part['caption']}**", ""]
            for page in part["chapters"]:
                chapter = self.chapter(page["file"])
                if chapter is None:
                    lines += [f"{{doc}}`/{page['file']}`", f": {self.opening(page['file'])}", ""]
                    continue
                lines += [
                    f"{{numref}}`{{number}}. {{name}} <{chapter.label}>` · {duration(chapter.minutes)}",
                    f": {chapter.line}",
                    "",
                    f"  *Needs:* {chapter.needs}",
                    "",
                ]
        return "\n".join(lines)


class Route(Listing):
    def text(self) -> str:
        lines, total = [], 0.0
        for name in self.content:
            chapter = self.chapter(f"book/{name}")
            if chapter is None:
                lines.append(f"1. {{doc}}`{name}`")
            else:
                lines.append(f"1. {{ref}}`{chapter.label}`, {duration(chapter.minutes)}")
                total += chapter.minutes
        return "\n".join([*lines, "", f"The chapters together: {duration(total)}."])


def bibtex(citation: dict, url: str = "") -> str:
    """An entry of BibTeX from the fields of a CITATION.cff."""
    fields = {
        "title": citation["title"],
        "author": " and ".join(f"{{{author['name']}}}" for author in citation["authors"]),
        "version": citation["version"],
        "note": f"License: {citation['license']}",
        "url": url or citation.get("repository-code", ""),
    }
    lines = [
        textwrap.fill(f"{name:<7} = {{{value}}},", 72, initial_indent="  ", subsequent_indent=" " * 13)
        for name, value in fields.items()
        if value
    ]
    return "\n".join(["@software{svdgrad,", *lines, "}"])


class Citation(Listing):
    def text(self) -> str:
        path = ROOT / "CITATION.cff"
        self.env.note_dependency(str(path))
        entry = bibtex(yaml.safe_load(path.read_text(encoding="utf-8")), repository(self.env.config))
        return f"```bibtex\n{entry}\n```"


class Feedback(Listing):
    def text(self) -> str:
        url = repository(self.env.config)
        where = f"[Open an issue]({url}/issues/new)" if url else "Open an issue where you have the project from"
        return (
            "A mistake in the mathematics, the text or the code, or a sentence that you had to read twice?\n"
            f"{where}, with a link to the equation, the sentence or the line."
        )


def setup(app):
    for name, directive in (
        ("chapters", Chapters),
        ("route", Route),
        ("citation", Citation),
        ("feedback", Feedback),
        ("ideas", Ideas),
    ):
        app.add_directive(name, directive)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}
