"""Docstrings: every equation they cite is in the book; every public function says its errors and has an example."""

import doctest
import inspect
import json
import re
from pathlib import Path

import pytest

import svdgrad
import svdgrad.jax
import svdgrad.nn

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {name: getattr(svdgrad, name) for name in svdgrad.__all__ if callable(getattr(svdgrad, name))}
PUBLIC |= {f"jax.{name}": getattr(svdgrad.jax, name) for name in svdgrad.jax.__all__}
PUBLIC |= {f"{m.__name__}.{name}": getattr(m, name) for m in (svdgrad.nn, svdgrad.jax.nn) for name in m.__all__}


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def numbered_equations() -> set[str]:
    """The labels of MyST's two notations: ``$$ (eq-name)`` after an equation, ``:label: eq-name`` in a directive."""
    pages = [*ROOT.glob("book/*.ipynb"), *ROOT.glob("book/*.md")]
    label = re.compile(r"^(?:.*\$\$ \(|:label: )(eq-[a-z0-9-]+)", re.MULTILINE)
    return {name for page in pages for name in label.findall(markdown(page))}


def test_every_equation_that_the_code_cites_is_in_the_book():
    files = sorted(ROOT.glob("svdgrad/**/*.py"))
    cited = {
        (label, str(path.relative_to(ROOT)))
        for path in files
        for label in re.findall(r"\beq-[a-z0-9-]*[a-z0-9]", path.read_text(encoding="utf-8"))
    }
    assert len(cited) > 20  # or the pattern has gone blind
    equations = numbered_equations()
    assert not sorted((label, path) for label, path in cited if label not in equations)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_of_its_own(name):
    assert len(inspect.cleandoc(PUBLIC[name].__doc__ or "")) > 40
    assert not (PUBLIC[name].__doc__ or "").startswith(f"{name}(")  # what a named tuple gets for nothing


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(PUBLIC[name])])
def test_every_public_function_says_its_errors_and_has_a_doctest(name):
    text = inspect.getdoc(PUBLIC[name])
    assert re.search(r"^Raises$|\berrors\b", text, re.MULTILINE)
    assert doctest.DocTestParser().get_examples(text)
