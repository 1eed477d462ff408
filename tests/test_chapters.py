"""Every chapter on a card that is not there: it asks for the device, keeps to it, and prints what it prints on a CPU.

The card (``card.py``) holds real numbers and answers as CUDA does: tensors of the host among its own are an error, and
so are a figure or an array made of a tensor that is still on it. What it cannot show is the rounding of a real one.
"""

import json
import re
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
QUICK = "mixed"

SANITIZE = ConfigParser()
SANITIZE.read(ROOT / "tests" / "sanitize.cfg")
DECADE, WITHOUT = re.compile(SANITIZE["decade"]["regex"]), SANITIZE["decade"]["replace"]

#: chapters that factorise something on the host too, and what
ON_THE_HOST = {
    "block-inversion": "least squares by a driver that a card does not have, and small matrices with a given gap",
    "border": "small matrices with a given gap",
    "case-imports": "LOBPCG, a rival",
    "contest": "the contest of the CPU, beside that of the card",
    "direct": "least squares by a driver that a card does not have, and small matrices",
    "gradient": "diag(3, 1, 1)",
    "mixed": "a rotation of two dimensions",
    "more-than-one": "the small matrices of block Lanczos, and LOBPCG, a rival",
    "without-an-svd": "the miss rates: over a thousand runs on matrices too small for a card",
}
#: what is no factorisation, and what Lanczos steps hand to the host on purpose, a matrix as small as their number
EXCUSED = {"linalg_vector_norm", "_linalg_check_errors", "_linalg_eigh"}

CARD_IN = f"""
import sys

sys.path.insert(0, {str(ROOT / "tests")!r})
import card as card_module
import torch

import svdgrad.lab

svdgrad.lab.device = lambda wanted="auto": torch.device(card_module.DEVICE)  # a chapter may name something `card`
torch.is_autocast_enabled = lambda device=None: False  # it knows no card that is not there
torch.compile = lambda function, **options: function  # it refuses to run where operations are watched
the_card = card_module.Card()
the_card.__enter__()
"""

CARD_OUT = """
import json

the_card.__exit__(None, None, None)
print(json.dumps({"sent": the_card.to_card.total(), "beside": list(the_card.beside)}))
"""


def on_card(notebook, folder):
    """The notebook's outputs, cell by cell, when it runs on the card, and what the card counted."""
    new = nbformat.v4.new_code_cell
    run = nbformat.v4.new_notebook(cells=[new(CARD_IN), *(new(cell.source) for cell in code(notebook)), new(CARD_OUT)])
    NotebookClient(run, timeout=600, kernel_name="python3", coalesce_streams=True).execute(cwd=str(folder))
    return [words(cell) for cell in run.cells[1:-1]], json.loads(words(run.cells[-1])[0])


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(cell):
    """What a cell shows, its pictures apart, and the decades of its checks, as nbval leaves them out."""
    shown = [
        DECADE.sub(WITHOUT, o.text) if "text" in o else {k: v for k, v in o.data.items() if "image" not in k}
        for o in cell.outputs
    ]
    return [x for x in shown if x]


def faults(notebook, folder, on_host=False):
    """What a chapter does otherwise on the card than stored, or not there at all; ``on_host`` if it may factorise on
    the host too.
    """
    try:
        found, counted = on_card(notebook, folder)
    except CellExecutionError as problem:
        return [str(problem)]
    compared = [cell for cell in code(notebook) if "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    seen = dict(zip((cell.id for cell in code(notebook)), found, strict=True))
    wrong = [f"{cell.source}\nshows {seen[cell.id]}" for cell in compared if seen[cell.id] != words(cell)]
    if not counted["sent"]:
        wrong.append("nothing ran on the card: does the chapter ask svdgrad.lab.device()?")
    factorised = {name for name in counted["beside"] if "linalg" in name} - EXCUSED
    if factorised and not on_host:
        wrong.append(f"on the host, where .to(device()) is missing: {sorted(factorised)}")
    return wrong


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[] if p.stem == QUICK else pytest.mark.slow) for p in CHAPTERS]
)
def test_a_chapter_on_the_card_shows_what_is_stored(path):
    assert faults(nbformat.read(path, as_version=4), path.parent, on_host=path.stem in ON_THE_HOST) == []


SOUND = """
import torch
from svdgrad import matrices
from svdgrad.lab import device
A = matrices.gaussian(3, 2).to(device())
print(f"{torch.linalg.svdvals(A)[0]:.3f}")
"""


PLANTED = {
    "sound": (None, SOUND),
    "never asks": ("does the chapter ask", SOUND.replace("device())", "'cpu')")),
    "asks, and goes on without": ("_linalg_svd", SOUND + "torch.linalg.svd(A.cpu())"),
    "a tensor of the host": ("Mixed", SOUND + "A @ torch.ones(2, dtype=A.dtype)"),
    "a figure of what is on the card": ("numpy", SOUND + "import matplotlib.pyplot as plt\nplt.plot(A[0])"),
    "another number": ("shows", SOUND.replace("(3, 2)", "(3, 2, seed=1)")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("expected", "source"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(tmp_path, expected, source):
    stored = [nbformat.v4.new_output("stream", text="0.865\n")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, outputs=stored)])
    found = faults(notebook, tmp_path)
    assert found == [] if expected is None else expected in str(found)
