"""How a reader opens and runs the book: the check of an environment, downloads, launch buttons, the workflow."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from svdgrad import check_env

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "tools")]
import open_and_run  # noqa: E402
import pages  # noqa: E402

ADDRESS = "https://github.com/owner/name"


# --- the environment --------------------------------------------------------------------------------------------------


def test_this_environment_can_run_the_chapters(capsys):
    check_env.main()
    assert capsys.readouterr().out.startswith("OK: Python 3.")


def test_what_is_missing_or_too_old_is_named_with_the_command_that_brings_it(monkeypatch):
    def version_of(name):
        if name == "networkx":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.9.1+cpu" if name == "torch" else importlib.metadata.version(name)

    found = check_env.faults(version_of)
    assert found == ["torch 2.9.1+cpu is installed, 2.11 or newer is needed", "networkx is not installed"]
    monkeypatch.setattr(check_env, "faults", lambda: found)
    with pytest.raises(SystemExit, match=r"pip install 'torch>=2\.11' 'networkx>=3\.6'\n.*make lab"):
        check_env.main()


def test_the_versions_asked_for_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [x for name in ("oracles", "figures", "book") for x in extras[name]] + project["dependencies"]
    asked = dict(line.split(">=") for line in listed if ">=" in line)
    assert asked == check_env.NEEDED


# --- downloads --------------------------------------------------------------------------------------------------------


def test_a_downloaded_notebook_begins_with_the_check(site):
    offered = sorted((site / "_sources").rglob("*.ipynb"))
    assert [path.name for path in offered] == sorted(path.name for path in (ROOT / "book").glob("*.ipynb"))
    for path in offered:
        first, *rest = nbformat.read(path, as_version=4).cells
        assert first.source == open_and_run.first_cell("")
        kept = nbformat.read(ROOT / "book" / path.name, as_version=4).cells
        assert [cell.source for cell in rest] == [cell.source for cell in kept]
        page = BeautifulSoup(
            (site / "book" / path.name).with_suffix(".html").read_text(encoding="utf-8"), "html.parser"
        )
        assert page.select_one(f"a.btn-download-source-button[href$='_sources/book/{path.name}']")


def test_the_first_cell_says_ok_or_what_to_do(monkeypatch, capsys):
    exec(open_and_run.first_cell(""), {})
    assert capsys.readouterr().out.startswith("OK")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="clone the project, and run `make lab`"):
        exec(open_and_run.first_cell(""), {})
    assert f'%pip install --quiet "svdgrad[book] @ git+{ADDRESS}"' in open_and_run.first_cell(ADDRESS)


# --- the address of the repository ------------------------------------------------------------------------------------


def links(site: Path, page: str) -> list[str]:
    soup = BeautifulSoup((site / "book" / page).read_text(encoding="utf-8"), "html.parser")
    return [link.get("href", "") for link in soup.select("a")]


def test_without_an_address_no_page_links_to_a_repository(site):
    if yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]:
        pytest.skip("_config.yml gives an address")
    for page in ("intro.html", "border.html"):
        assert not [link for link in links(site, page) if re.search("github|mybinder|colab", link)]


@pytest.mark.slow
def test_with_an_address_the_buttons_and_links_lead_to_it(tmp_path):
    site = pages.build_site(tmp_path, ADDRESS)
    found = links(site, "border.html")
    assert ADDRESS in found
    assert any(link.startswith(f"{ADDRESS}/issues/new") for link in found)
    assert "https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/book/border.ipynb" in found
    colab = "https://colab.research.google.com/github/owner/name/blob/gh-pages/_sources/book/border.ipynb"
    assert colab in found
    assert (site / "_sources" / "book" / "border.ipynb").exists()
    assert f"{ADDRESS}/issues/new" in links(site, "intro.html")
    intro = BeautifulSoup((site / "book" / "intro.html").read_text(encoding="utf-8"), "html.parser")
    assert f"url     = {{{ADDRESS}}}" in intro.select_one(".book-citation").get_text()
    first = nbformat.read(site / "_sources" / "book" / "border.ipynb", as_version=4).cells[0]
    assert f"git+{ADDRESS}" in first.source


# --- the workflow -----------------------------------------------------------------------------------------------------

WORKFLOW = ROOT / ".github" / "workflows" / "book.yml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "path"), [("github-workflows", WORKFLOW), ("citation-file-format", ROOT / "CITATION.cff")]
)
def test_the_linter_finds_nothing(schema, path):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed: `make slow` installs it")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_auditor_finds_no_hole_in_the_workflow():
    """Credentials left behind, actions that are not pinned, names of others put into a shell."""
    zizmor = Path(sys.executable).with_name("zizmor")
    if not zizmor.exists():
        pytest.skip("zizmor is not installed: `make slow` installs it")
    done = subprocess.run([zizmor, "--offline", "--no-progress", WORKFLOW], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_tests_builds_and_publishes_by_the_targets_of_the_makefile():
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {target for command in commands for target in re.findall(r"\bmake (\w+)", command)}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert {"test", "slow", "book", "pdf"} == called <= targets
    assert jobs["publish"]["needs"] == ["test", "book"]
    assert f" {open_and_run.PUBLISHED}" in commands[-1]


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_page_of_versions_tells_those_that_are_in_use(site):
    text = (site / "book" / "versions.html").read_text(encoding="utf-8")
    shown = dict(
        tuple(cell.get_text().strip() for cell in row.select("td"))
        for row in BeautifulSoup(text, "html.parser").select(".book-versions tr")
        if row.select("td")
    )
    assert shown["torch"] == importlib.metadata.version("torch")
    assert {"cpu", "system", "Python", "jax", "jupyter-book"} <= set(shown)
