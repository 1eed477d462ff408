"""Sphinx extension of this book: how a reader opens a chapter, and what it was run with.

The notebooks that the pages offer begin with a cell that says whether they can run, and installs svdgrad where the
address of the repository is known. With that address, which has its place in _config.yml, come the buttons: to the
repository, to Binder, and to Colab, which opens those same notebooks from the branch that the pages are published on.
"""

import importlib.metadata
import platform
from pathlib import Path

import nbformat
from front_page import Listing, repository

#: where the workflow publishes the pages, and with them the notebooks
PUBLISHED = "gh-pages"
CELL = """\
# Run this cell first. It prints OK, or what to do.
import importlib.util

if importlib.util.find_spec("svdgrad") is None:
    {install}
from svdgrad import check_env

check_env.main()"""
INSTALL = '%pip install --quiet "svdgrad[book] @ git+{url}"'
REFUSE = 'raise SystemExit("svdgrad is not installed: clone the project, and run `make lab` in it")'


def first_cell(url: str) -> str:
    return CELL.format(install=INSTALL.format(url=url) if url else REFUSE)


def prepare_notebooks(app, exception) -> None:
    """Put the first cell into the notebooks that are offered for download."""
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        if notebook.cells[0].get("id") != "check-env":
            cell = nbformat.v4.new_code_cell(first_cell(repository(app.config)), id="check-env")
            notebook.cells.insert(0, cell)
            nbformat.write(notebook, path)


def buttons_of_the_repository(app, config) -> None:
    """All of them, or, without an address, none."""
    options = config.html_theme_options
    known = bool(repository(config))
    for name in ("use_repository_button", "use_issues_button"):
        options[name] = known
    options["launch_buttons"] = {
        "notebook_interface": "jupyterlab",
        "binderhub_url": "https://mybinder.org" if known else "",
    }


def add_colab(app, pagename, templatename, context, doctree) -> None:
    for group in context.get("header_buttons", ()):
        if group.get("label") == "launch-buttons":
            owner, name = repository(app.config).rsplit("/", 2)[1:]
            address = f"https://colab.research.google.com/github/{owner}/{name}/blob/{PUBLISHED}/_sources"
            group["buttons"].append(
                {
                    "type": "link",
                    "text": "Colab",
                    "tooltip": "Launch on Colab",
                    "icon": "_static/images/logo_colab.png",
                    "url": f"{address}/{pagename}.ipynb",
                }
            )


class Versions(Listing):
    """What the pages were built with."""

    PACKAGES = (
        *("torch", "jax", "jaxlib", "numpy", "scipy", "python-flint", "matplotlib", "scikit-learn", "networkx"),
        *("jupyter-book", "Sphinx", "myst-nb", "ipykernel"),
    )

    def text(self) -> str:
        import torch

        from svdgrad.lab.records import hardware

        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        rows = [(f"{name}", hardware(torch.device(name))) for name in devices]
        rows += [("system", f"{platform.system()} on {platform.machine()}"), ("Python", platform.python_version())]
        rows += [("svdgrad", importlib.metadata.version("svdgrad"))]
        rows += [(name, importlib.metadata.version(name)) for name in self.PACKAGES]
        return "\n".join(["| what | which |", "|---|---|", *(f"| {what} | {which} |" for what, which in rows)])


def setup(app):
    app.add_directive("versions", Versions)
    app.connect("config-inited", buttons_of_the_repository)
    app.connect("html-page-context", add_colab, priority=900)
    app.connect("build-finished", prepare_notebooks)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}
