"""Parts I and II use little of the package, however much it grows: what a learner has to look up stays small."""

import ast
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"][:2]
CHAPTERS = [ROOT / f"{page['file']}.ipynb" for part in PARTS for page in part["chapters"]]

#: modules of which everything may be used, and single names
MODULES = {"svdgrad.matrices", "svdgrad.oracles", "svdgrad.lab"}
NAMES = {"svdgrad.singular_triplet", "svdgrad.adjoint.SOLVERS", "svdgrad.adjoint.ATTEMPTS"}


def used(cells: list[str]) -> set[str]:
    """Every name of svdgrad that the cells import, or reach through a module that they imported, written in full."""
    text = "\n".join(line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))
    nodes = list(ast.walk(ast.parse(text)))
    modules, found = {}, set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "svdgrad":
                    modules[name.asname or "svdgrad"] = name.name if name.asname else "svdgrad"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "svdgrad":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                if is_module(whole):
                    modules[name.asname or name.name] = whole
                else:
                    found.add(whole)
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            first, *rest = ast.unparse(node).split(".")
            if first in modules and all(name.isidentifier() for name in rest):
                found.add(".".join([modules[first], *rest]))
    return found


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def beyond(names: set[str], allowed: set[str]) -> set[str]:
    """Those that are neither allowed nor an attribute of what is."""
    return {name for name in names if not any(f"{name}.".startswith(f"{a}.") for a in allowed)}


def of_chapter(path: Path) -> set[str]:
    return used([cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_of_parts_one_and_two_keeps_to_the_learners_surface(path):
    assert sorted(beyond(of_chapter(path), MODULES | NAMES)) == []


@pytest.mark.parametrize(
    ("code", "found"),
    {
        "from svdgrad import low_rank": {"svdgrad.low_rank"},
        "import svdgrad\nsvdgrad.diagnose(A)": {"svdgrad.diagnose"},
        "import svdgrad.nn as snn\nsnn.spectral_norm(layer)": {"svdgrad.nn.spectral_norm"},
        "from svdgrad import forward as ways\nways.lanczos": {"svdgrad.forward.lanczos"},
        "import svdgrad\nsvdgrad.singular_triplet(A).u.norm()": set(),
        "from svdgrad.lab.figures import figure\nfrom svdgrad import matrices\nmatrices.K(A, sigma)": set(),
        "%pip install svdgrad\nimport torch\ntorch.linalg.svd": set(),
    }.items(),
)
def test_what_is_beyond_the_surface_is_found(code, found):
    assert beyond(used([code]), MODULES | NAMES) == found
