"""Sphinx extension of this book: MathJax from an installed package, no thebe, svdgrad importable, signatures and
docstrings as a reader needs them.
"""

import importlib.util
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import solution_node

ROOT = Path(__file__).resolve().parents[2]

# Of the 24 MB of MathJax: the TeX-to-HTML component, its fonts, the TeX packages it loads by name (\cancel,
# \boldsymbol) and what its own menu offers to readers who use a screen reader.
MATHJAX_FILES = (
    "tex-chtml.js",
    "output/chtml/fonts/woff-v2/*",
    "input/tex/extensions/*.js",
    "a11y/*.js",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)


def copy_mathjax(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    # the package's name has hyphens, so it cannot be imported by a statement
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None:
        raise RuntimeError(
            "the book needs MathJax's files and sphinx-mathjax-offline is not installed; run `make setup`"
        )
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for pattern in MATHJAX_FILES:
        for file in source.glob(pattern):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def drop_thebe(app, pagename, templatename, context, doctree) -> None:
    """sphinx-thebe, which Jupyter Book always loads, puts an address on the network into every page, twice."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script.filename} {script.attributes.get('body', '')}".lower()
    ]


class OneFoldPerSolution(SphinxPostTransform):
    """The hidden cells after a solution move into its box: one click shows the whole solution."""

    default_priority = 190  # before myst_nb, at 199, folds each hidden cell by itself

    def run(self, **kwargs):
        for solution in list(self.document.findall(solution_node)):
            rest = solution.parent[solution.parent.index(solution) + 1 :]
            for cell in itertools.takewhile(is_hidden_cell, rest):
                solution.parent.remove(cell)
                del cell["hide_mode"]
                solution += cell


class PunctuationStaysWithFormula(SphinxPostTransform):
    """A browser would break the line between a formula and the comma after it, or the parenthesis before it."""

    default_priority = 400

    def run(self, **kwargs):
        for formula in list(self.document.findall(nodes.math)):
            parent, place = formula.parent, formula.parent.index(formula)
            before, after = (parent[i] if 0 <= i < len(parent) else None for i in (place - 1, place + 1))
            opening = re.search(r"[(\[“‘]*$", before)[0] if isinstance(before, nodes.Text) else ""
            closing = re.match(r"[.,;:!?)\]”’]*", after)[0] if isinstance(after, nodes.Text) else ""
            if opening:
                parent[place - 1] = nodes.Text(before.removesuffix(opening))
            if closing:
                parent[place + 1] = nodes.Text(after.removeprefix(closing))
            if opening or closing:
                whole = [nodes.Text(opening), formula, nodes.Text(closing)]
                parent[place] = nodes.inline("", "", *whole, classes=["unbroken"])


def is_hidden_cell(node) -> bool:
    return isinstance(node, nodes.container) and node.get("hide_mode") == "all"


def mend_lists(app, pagename, templatename, context, doctree) -> None:
    """Lists that a screen reader would announce wrongly: Sphinx writes the parameters of a long signature as
    definitions without a term, and here they are lines; docutils fills the list of references with what is no item.
    """
    parameters = re.compile(r"<dl>\n((?:<dd><em class=\"sig-param\">.*</dd>\n)+)</dl>")
    lines = {"<dd>": '<span class="sig-line">', "</dd>": "</span>"}
    body = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')
    context["body"] = parameters.sub(lambda found: re.sub("</?dd>", lambda tag: lines[tag[0]], found[1]), body)


def keep_numbers_whole(app, pagename, templatename, context, doctree) -> None:
    """A phone wraps what a cell prints, and would break 1e-13 after its hyphen."""
    printed = re.compile(r'<div class="output stream.*?</pre>', re.S)
    number = re.compile(r"\b\d[\d.]*e-\d+")
    context["body"] = printed.sub(
        lambda found: number.sub(r'<span class="unbroken">\g<0></span>', found[0]), context.get("body", "")
    )


def link_equations(app, what, name, obj, options, lines) -> None:
    """In docstrings, (eq-name) becomes a link to that equation, shown by its number as in the chapters."""
    text = "\n".join(lines)
    text = re.sub(r"\((eq-[a-z0-9-]+(?:,\s+eq-[a-z0-9-]+)*)\)", r"\1", text)  # a number brings its own parentheses
    lines[:] = re.sub(r"\beq-[a-z0-9-]*[a-z0-9]", r":eq:`\g<0>`", text).split("\n")


def setup(app):
    # svdgrad, for autodoc here and for the kernels that execute the notebooks, even where it is not installed
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    import svdgrad.oracles  # noqa: F401  (decides JAX's platform, which the kernels inherit)

    # as in conftest.py: figures are drawn inline
    os.environ.pop("MPLBACKEND", None)

    app.connect("config-inited", lambda app, config: setattr(config, "mathjax_path", "mathjax/tex-chtml.js"))
    app.add_post_transform(OneFoldPerSolution)
    app.add_post_transform(PunctuationStaysWithFormula)
    app.connect("autodoc-process-docstring", link_equations)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", mend_lists)
    app.connect("html-page-context", keep_numbers_whole)
    app.connect("build-finished", copy_mathjax)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}
