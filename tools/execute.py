"""Execute the book's notebooks and store their outputs: ``python tools/execute.py [book/name.ipynb ...]``.

The files come out the same on every machine: no timings, no version of the language, one kernel name.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
VOLATILE = ("execution", "collapsed", "scrolled")  # cell metadata of one run, or of one editor

import svdgrad.oracles  # noqa: F401  (decides JAX's platform, which the kernels inherit)

# As in conftest.py: figures are drawn inline.
os.environ.pop("MPLBACKEND", None)


def execute(path: Path) -> None:
    """Run one notebook in its own folder and write it back with its outputs; nothing is written if a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["kernelspec"] = KERNEL
    client = NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True)
    client.execute(cwd=str(path.parent))
    tidy(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def tidy(notebook) -> None:
    """Drop what changes from machine to machine; the cells, their ids, tags and outputs stay."""
    notebook.metadata.clear()
    notebook.metadata.update(kernelspec=KERNEL, language_info={"name": "python"})
    for cell in notebook.cells:
        for key in VOLATILE:
            cell.metadata.pop(key, None)
        if {"hide-cell", "hide-input"} & set(cell.metadata.get("tags", ())):
            cell.metadata["jupyter"] = {"source_hidden": True}  # what the pages fold, JupyterLab folds too
        if "hide-cell" in cell.metadata.get("tags", ()):
            cell.metadata["jupyter"]["outputs_hidden"] = True


def main(names: list[str]) -> None:
    paths = [Path(name).resolve() for name in names] or sorted((ROOT / "book").glob("*.ipynb"))
    for path in paths:
        start = time.perf_counter()
        print(f"notebooks: {path.name}", end=" ", flush=True)
        execute(path)
        print(f"({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main(sys.argv[1:])
