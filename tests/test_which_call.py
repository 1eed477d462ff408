"""The page "Which call do I want?": each of its snippets runs by itself and prints what the page says."""

import doctest
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import svdgrad
import svdgrad.jax

PAGE = (Path(__file__).resolve().parent.parent / "book" / "which-call.md").read_text(encoding="utf-8")
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def snippets(page: str) -> dict[str, str]:
    """Section and framework -> the code between the fences."""
    parts = re.findall(r"^\((call-[a-z-]+)\)=$|^:sync: (\w+)$|^```python\n(.*?)^```$", page, flags=re.M | re.S)
    found, section, framework = {}, "", ""
    for label, tab, code in parts:
        section, framework = label or section, tab or framework
        if code:
            assert (name := f"{section} {framework}") not in found
            found[name] = code
    return found


SNIPPETS = snippets(PAGE)


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_prints_what_the_page_says(name, monkeypatch):
    # the code that the default backend makes needs a compiler for C++, and ten seconds; what is traced is the same
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    test = doctest.DocTestParser().get_doctest(SNIPPETS[name], {}, name, None, None)
    report = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


def test_every_snippet_stands_by_itself_and_in_its_own_framework():
    for name, code in SNIPPETS.items():
        assert ("import torch" in code) == name.endswith("torch"), name
        assert ("import jax" in code) == name.endswith("jax"), name


def test_every_question_has_a_snippet_for_both_frameworks_or_says_so():
    links = re.findall(r"\]\(#(call-[a-z-]+)\)", PAGE)
    assert len(links) == 14
    assert {f"{link} torch" for link in links} <= set(SNIPPETS)
    assert {link for link in links if f"{link} jax" not in SNIPPETS} == {"call-factors"}


def test_every_function_is_on_the_page_and_what_jax_lacks_is_said():
    in_jax = set(svdgrad.jax.__all__)
    functions = [name for name in svdgrad.__all__ if name.islower() and callable(getattr(svdgrad, name))]
    lacking = PAGE.split("## What JAX lacks")[1]
    for name in functions:
        assert f"`{name}" in PAGE or f"svdgrad.{name}(" in PAGE
        assert name in in_jax or f"`{name}`" in lacking


def test_a_snippet_that_prints_otherwise_is_seen(monkeypatch):
    monkeypatch.setitem(SNIPPETS, "planted", SNIPPETS["call-sigma torch"].replace("3.0 1.0", "3.0 2.0"))
    with pytest.raises(AssertionError, match="Expected"):
        test_a_snippet_prints_what_the_page_says("planted", monkeypatch)
