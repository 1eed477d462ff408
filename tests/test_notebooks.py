"""The book's sources: notebooks executed in order, figures described, every numbered equation verified by a cell.

Each rule is a function from a notebook to its faults, so that a planted notebook can show that the rule bites.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PAGES = NOTEBOOKS + sorted((ROOT / "book").glob("*.md"))
LONGEST_CELL = 20  # lines that are not blank
LONGEST_FOLDED_CELL = 30  # the code of a figure, folded away
LONGEST_LINE = 94  # what a page shows of one beside both sidebars, see book/_static/custom.css
LONGEST_ON_A_PHONE = 46
SHORTEST_ALT = 30
# a cell with timings may be tagged nbval-ignore-output: it still has to run without an error
UNCHECKED = {"nbval-skip", "skip", "skip-execution", "raises-exception", "nbval-raises-exception"}


# --- reading
# -----------------------------------------------------------------------------------------------------------


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def prose(path) -> str:
    """The Markdown of a page, be it a notebook or a text file."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")


def equation_labels(path) -> list[str]:
    """Labels of numbered equations: ``$$ … $$ (eq-name)``, and ``:label:`` in a math directive."""
    text = prose(path)
    directives = re.findall(r"^[`:]{3,}\{math\}.*?^[`:]{3,}\s*$", text, re.M | re.S)
    return re.findall(r"\$\$[ \t]*\(([^()\s]+)\)", text) + re.findall(
        r"^:label:[ \t]*(\S+)", "\n".join(directives), re.M
    )


def figure_metadata(cell) -> dict:
    return cell.metadata.get("mystnb", {}).get("figure", {})


def labels(path) -> list[str]:
    """Everything on a page that can be referred to: equations, theorems, exercises, targets, figures."""
    text = re.sub(r"^[`:]{3,}\{math\}.*?^[`:]{3,}\s*$", "", prose(path), flags=re.M | re.S)
    named = re.findall(r"^\s*:(?:label|name):[ \t]*(\S+)", text, re.M) + re.findall(r"^\(([^()\s]+)\)=\s*$", text, re.M)
    figures = [figure_metadata(c).get("name") for c in code_cells(path)] if path.suffix == ".ipynb" else []
    return equation_labels(path) + named + [name for name in figures if name]


def named_by_checks(path) -> set[str]:
    """The labels that executed cells name in ``check(..., eq="eq-name")`` or ``eq=("eq-a", "eq-b")``."""
    names = set()
    for cell in code_cells(path):
        if not cell.execution_count:
            continue
        python = "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!")))
        for call in ast.walk(ast.parse(python)):
            if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) == "check":
                named = [k.value for k in call.keywords if k.arg == "eq"] + call.args[3:4]
                names |= {n.value for value in named for n in ast.walk(value) if isinstance(n, ast.Constant)}
    return names


# --- the rules
# ---------------------------------------------------------------------------------------------------------


def unverified_equations(pages) -> list[str]:
    """Labels of numbered equations that no executed cell of any of the pages names in a ``check``."""
    verified = set().union(*(named_by_checks(p) for p in pages if p.suffix == ".ipynb"))
    return [label for page in pages for label in equation_labels(page) if label not in verified]


def repeated_labels(pages) -> list[str]:
    all_labels = [label for page in pages for label in labels(page)]
    return sorted({label for label in all_labels if all_labels.count(label) > 1})


def execution_faults(path) -> list[str]:
    """Cells not run in order from a fresh start, or that nbval would not run and compare."""
    cells = code_cells(path)
    faults = []
    counts = [c.execution_count for c in cells]
    if counts != list(range(1, len(cells) + 1)):
        faults.append(f"execution counts should be 1 to {len(cells)} in order, found {counts}: run `make notebooks`")
    kernel = nbformat.read(path, as_version=4).metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        faults.append(f"the kernel should be python3, found {kernel}: run `make notebooks`")
    for n, cell in enumerate(cells, 1):
        faults += [f"cell {n} stores stderr: {o.text!r}" for o in cell.outputs if o.get("name") == "stderr"]
        faults += [f"cell {n} stores an error: {o.ename}" for o in cell.outputs if o.output_type == "error"]
        if tags := UNCHECKED & set(cell.metadata.get("tags", [])):
            faults.append(f"cell {n} is kept from being checked by the tag {sorted(tags)}: remove the tag")
        if re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_(IGNORE|SKIP|RAISES)", cell.source):
            faults.append(f"cell {n} is kept from being checked by a comment: remove the comment")
    return faults


def style_faults(path) -> list[str]:
    """Cells too long to read at a glance, lines that a page would cut, and tables of blanks that a phone would."""
    faults = []
    for n, cell in enumerate(code_cells(path), 1):
        printed = "".join(output.get("text", "") for output in cell.outputs).splitlines()
        for line in cell.source.splitlines() + printed:
            if len(line) > LONGEST_LINE:
                faults.append(f"cell {n}: {len(line)} characters in a line, at most {LONGEST_LINE} fit: {line!r}")
        wide = [line for line in printed if len(line) > LONGEST_ON_A_PHONE and re.search(r"\S {2,}\S", line)]
        if len(wide) > 1:
            faults.append(f"cell {n} prints a table, which a phone cuts: show svdgrad.lab.Table(columns, rows)")
        length = sum(bool(line.strip()) for line in cell.source.splitlines())
        most = LONGEST_FOLDED_CELL if "hide-input" in cell.metadata.get("tags", []) else LONGEST_CELL
        if length > most:
            faults.append(f"cell {n} has {length} lines, at most {most} fit: split it")
    return faults


def figure_faults(path) -> list[str]:
    """Cells with a picture but without alt text, a name or a caption in ``metadata.mystnb``."""
    faults = []
    for n, cell in enumerate(code_cells(path), 1):
        if not any("image/png" in output.get("data", {}) for output in cell.outputs):
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        figure = figure_metadata(cell)
        if len(alt) < SHORTEST_ALT or alt.endswith(".png"):
            faults.append(
                f"cell {n}: mystnb.image.alt should say what is seen, in {SHORTEST_ALT} characters or more, found "
                f"{alt!r}"
            )
        if not figure.get("name", "").startswith("fig-"):
            faults.append(f"cell {n}: mystnb.figure.name should start with fig-, found {figure.get('name')!r}")
        if not figure.get("caption", "").strip():
            faults.append(f"cell {n}: mystnb.figure.caption is missing")
    return faults


#: what is no running prose: code, formulas, headings, the lines of a directive, roles, addresses, the glossary itself
NOT_PROSE = re.compile(
    r"""^(`{3,}).*?^\1\s*$ | ^:::\{(?:glossary|route)\}.*?^:::\s*$ | \$\$.*?\$\$ | \$[^$]*\$ | ^\#[^\n]* |
    ^:{3,}[^\n]* | ^[ ]*:[a-z-]+:[^\n]* | ^\([\w-]+\)=$ | (?:\{[a-z:]+\})?`[^`]*` | \]\([^)]*\)""",
    re.M | re.S | re.X,
)
TERM = re.compile(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`")
#: how a term may be inflected, if it is not by an s at its end
FORMS = {
    "witness": "witness(?:es)?",
    "deflation": "deflat(?:ions?|es?|ed|ing)",
    "saddle-point matrix": "saddle-point matri(?:x|ces)",
}


def glossary() -> list[str]:
    text = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    return re.findall(r"^(\w.*)$", re.search(r"^:::\{glossary\}\n(.*?)^:::$", text, re.M | re.S)[1], re.M)


def blank(match: re.Match) -> str:
    return re.sub(r"[^\n]", "\N{NULL}", match[0])


def blank_but_terms(match: re.Match) -> str:
    return match[0] if TERM.match(match[0]) else blank(match)


def first_terms(text: str, terms: list[str]) -> dict[str, tuple[re.Match, bool]]:
    """Each term of the glossary that the text uses -> its first place, and whether that is a link to the glossary."""
    text = NOT_PROSE.sub(blank_but_terms, text)
    first = {}
    for link in TERM.finditer(text):
        first.setdefault(link[1], (link, True))
    text = TERM.sub(blank, text)
    for term in sorted(terms, key=len, reverse=True):  # "adjoint system" before "adjoint"
        form = re.compile(rf"(?<![\w-]){FORMS.get(term, f'{term}s?')}(?![\w-])".replace(" ", r"\s+"), re.I)
        if (word := form.search(text)) and (term not in first or word.start() < first[term][0].start()):
            first[term] = word, False
        text = form.sub(blank, text)
    return first


def unlinked_terms(path) -> list[str]:
    """Terms of the glossary that are no link at their first place on the page."""
    text = prose(path)
    return [
        f"{place[0]!r} should be {{term}}`{term}` at its first place: …{text[max(0, place.start() - 60) : place.end()]}"
        for term, (place, linked) in first_terms(text, glossary()).items()
        if not linked
    ]


def pointer_faults(path) -> list[str]:
    """Figures and tables that have a number, and that the prose of their page does not name by it; vague pointers."""
    text = prose(path)
    named = re.findall(r"^\s*:name:[ \t]*((?:fig|tab)-\S+)", text, re.M)
    figures = [figure_metadata(c).get("name") for c in code_cells(path)]
    pointed = re.findall(r"\{numref\}`(?:[^`<]*<)?([^`<>]+)>?`", text)
    faults = [f"no sentence names {{numref}}`{name}`" for name in [*figures, *named] if name and name not in pointed]
    vague = (
        r"\b(?:next|last|previous|first) (?:figure|table|section)\b|\b(?:figure|table|section) (?:above|below|after)\b"
    )
    return faults + [f"{found[0]!r} should be a {{numref}}" for found in re.finditer(vague, text)]


# --- the book
# ----------------------------------------------------------------------------------------------------------


def test_every_notebook_is_a_chapter():
    """A notebook that _toc.yml does not name is never rendered."""
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"(?:file|root): (book/\S+)", toc))
    assert NOTEBOOKS and {f"book/{path.stem}" for path in NOTEBOOKS} - listed == set()


@pytest.mark.parametrize("rule", [execution_faults, style_faults, figure_faults, pointer_faults])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, rule):
    assert rule(path) == []


@pytest.mark.parametrize("path", [p for p in PAGES if p.stem != "notation"], ids=lambda path: path.stem)
def test_terms_are_links_at_their_first_place(path):
    assert unlinked_terms(path) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_line_of_code_in_the_prose_is_cut(path):
    """A browser measures only what is shown, and of two tabs one is hidden."""
    listings = re.findall(r"^ *```(?:python|bash|text|console)\n(.*?)^ *```$", prose(path), flags=re.M | re.S)
    assert [line for code in listings for line in code.splitlines() if len(line) > LONGEST_LINE] == []


def test_every_term_of_the_glossary_is_used():
    linked = {name for path in NOTEBOOKS for name in TERM.findall(prose(path))}
    assert set(glossary()) == linked


def test_chapters_that_the_explorer_plays_with_link_to_it():
    chapters = {label: path for path in NOTEBOOKS for label in re.findall(r"^\((ch-[\w-]+)\)=", prose(path))}
    named = set(re.findall(r"\{ref\}`(ch-[\w-]+)`", prose(ROOT / "book" / "explorer.md")))
    silent = {name for name in named if "<explorer-" not in prose(chapters[name])}
    assert named and silent == set()


def test_every_numbered_equation_is_verified():
    assert unverified_equations(PAGES) == []


def test_checks_name_equations_that_exist():
    exist = {label for page in PAGES for label in equation_labels(page)}
    assert {name for path in NOTEBOOKS for name in named_by_checks(path)} - exist == set()


def test_labels_are_unique():
    assert repeated_labels(PAGES) == []


# --- each rule can fail
# ------------------------------------------------------------------------------------------------

FIGURE = {
    "image": {"alt": "Two curves that cross where the gap between them closes"},
    "figure": {"name": "fig-gap", "caption": "The gap."},
}
PNG = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})


PROSE = """

## The gap

:::{note} A gap
`gap` and $gap$ are no prose, and {numref}`fig-gap` is a figure of the relative {term}`gap`, the gap.
The {term}`adjoint systems <adjoint system>` and an {term}`adjoint`.
:::"""


def sound_notebook():
    """A small notebook that keeps every rule; each test below breaks one of them."""
    v4 = nbformat.v4
    return v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            v4.new_markdown_cell("# Title\n\n$$\nA v = \\sigma u\n$$ (eq-a)\n\n$$ u^\\top u = 1 $$ (eq-b)" + PROSE),
            v4.new_code_cell("%matplotlib inline\ncheck('both', 0.0, below=1, eq=('eq-a', 'eq-b'))", execution_count=1),
            v4.new_code_cell("plt.plot(x)", execution_count=2, outputs=[PNG], metadata={"mystnb": FIGURE}),
        ],
    )


def planted(tmp_path, change=lambda cells: None) -> Path:
    notebook = sound_notebook()
    change(notebook.cells)
    path = tmp_path / "planted.ipynb"
    nbformat.write(notebook, path)
    return path


def faults(path) -> list[str]:
    rules = (execution_faults, style_faults, figure_faults, unlinked_terms, pointer_faults)
    return [f for rule in rules for f in rule(path)] + unverified_equations([path]) + repeated_labels([path])


def test_a_sound_notebook_has_no_faults(tmp_path):
    assert faults(planted(tmp_path)) == []


def in_prose(old, new):
    return lambda cells: cells[0].update(source=cells[0].source.replace(old, new, 1))


def printed(text):
    return nbformat.v4.new_output("stream", text=text)


def set_metadata(n, **mystnb):
    return lambda cells: cells[n].metadata.update(mystnb={**FIGURE, **mystnb})


@pytest.mark.parametrize(
    ("expected", "change"),
    {
        "equation no check names": ("eq-new", lambda cells: cells[0].update(source="$$ x $$ (eq-new)")),
        "equation directive": ("eq-new", lambda cells: cells[0].update(source=":::{math}\n:label: eq-new\nx\n:::")),
        "check never executed": ("eq-a", lambda cells: cells[1].update(execution_count=None)),
        "stripped count": ("execution counts", lambda cells: cells[2].update(execution_count=None, outputs=[])),
        "out of order": ("execution counts", lambda cells: cells[2].update(execution_count=3)),
        "stderr": (
            "stderr",
            lambda cells: cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="!")),
        ),
        "error": (
            "error",
            lambda cells: cells[1].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="")),
        ),
        "unchecked tag": ("nbval-skip", lambda cells: cells[1].metadata.update(tags=["nbval-skip"])),
        "unchecked comment": ("comment", lambda cells: cells[2].update(source="# NBVAL_IGNORE_OUTPUT\nx")),
        "long cell": ("21 lines", lambda cells: cells[2].update(source="x\n" * 20 + "x")),
        "long line": ("95 characters", lambda cells: cells[2].update(source="x" * 95)),
        "long line printed": ("95 characters", lambda cells: cells[1].outputs.append(printed("x" * 95))),
        "printed table": (
            "prints a table",
            lambda cells: cells[1].outputs.append(printed(f"{'name':<50}value\n{'size':<50}12.25\n")),
        ),
        "no alt": ("image.alt", set_metadata(2, image={})),
        "file name as alt": (
            "image.alt",
            set_metadata(2, image={"alt": "../_images/0123456789abcdef0123456789abcdef.png"}),
        ),
        "no figure name": ("figure.name", set_metadata(2, figure={"caption": "The gap."})),
        "no caption": ("figure.caption", set_metadata(2, figure={"name": "fig-gap"})),
        "figure that no prose names": ("{numref}`fig-gap`", in_prose("{numref}`fig-gap` is", "Here is")),
        "vague pointer": ("'next figure'", in_prose("an {term}", "the next figure, an {term}")),
        "term without a link": ("'gap' should be", in_prose("{term}`gap`", "gap")),
        "link after the first place": ("'Gaps' should be", in_prose("`gap` and", "Gaps and")),
        "term in two words": (
            "{term}`adjoint system` at its first place",
            in_prose("The {term}`adjoint systems <adjoint system>`", "The adjoint\nsystem"),
        ),
        "label used twice": ("fig-gap", lambda cells: cells[0].update(source=cells[0].source + "\n\n(fig-gap)=")),
    }.values(),
)
def test_a_planted_fault_is_found(tmp_path, expected, change):
    assert expected in str(faults(planted(tmp_path, change)))


def nbval(path) -> subprocess.CompletedProcess:
    """pytest --nbval on one file, under this project's own settings."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            ROOT / "pyproject.toml",
            "--nbval-sanitize-with",
            ROOT / "tests" / "sanitize.cfg",
            path,
        ],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_wrong_stored_output_fails(tmp_path):
    """One chapter as it is passes; with one printed word changed it fails."""
    path = min(NOTEBOOKS, key=lambda path: path.stat().st_size)
    notebook = nbformat.read(path, as_version=4)
    sound, wrong = tmp_path / "sound.ipynb", tmp_path / "wrong.ipynb"
    nbformat.write(notebook, sound)
    next(o for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stdout")["text"] = (
        "something else\n"
    )
    nbformat.write(notebook, wrong)
    assert (run := nbval(sound)).returncode == 0, run.stdout
    assert (run := nbval(wrong)).returncode == 1 and "mismatch" in run.stdout, run.stdout
