"""Either framework without the other: what is imported, and what is said where one is missing."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import svdgrad
import svdgrad.jax as sj

ROOT = Path(__file__).resolve().parent.parent
IN_JAX = """
import sys
sys.modules["torch"] = None  # which Python takes for a package that is not there
import jax, svdgrad.jax as sj
print(jax.grad(lambda A: sj.singular_triplet(A).u[1])(jax.numpy.diag(jax.numpy.array([3.0, 1.0])))[1, 0])
"""
IN_TORCH = """
import sys
sys.modules["jax"] = None
import torch, svdgrad
A = torch.diag(torch.tensor([3.0, 1.0])).requires_grad_()
svdgrad.singular_triplet(A).u[1].backward()
print(A.grad[1, 0].item())
"""


def run(program: str, *python: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *python, "-c", program], capture_output=True, text=True, **options)


def test_jax_without_torch_and_torch_without_jax():
    for program in (IN_JAX, IN_TORCH):
        answer = run(program)
        assert answer.stdout == "0.375\n", answer.stderr


def test_who_lacks_the_framework_reads_which_extra_to_install():
    for module, use, extra in (
        ("torch", "import svdgrad; svdgrad.singular_triplet", "svdgrad[torch]"),
        ("torch", "from svdgrad import diagnose", "svdgrad[torch]"),
        ("jax", "import svdgrad.jax", "svdgrad[jax]"),
    ):
        answer = run(f"import sys; sys.modules[{module!r}] = None; {use}")
        assert f"which is not installed: pip install '{extra}'" in answer.stderr
        assert answer.stderr.count("Traceback") == 1


def test_the_package_itself_imports_neither():
    """So it costs nothing, and what is asked for first decides what is imported."""
    program = "import sys, svdgrad; dir(svdgrad); print({'torch', 'jax', 'numpy'} & set(sys.modules) or 'none')"
    assert run(program).stdout == "none\n"


def test_every_public_name_is_there_and_no_other():
    assert set(svdgrad.__all__) <= set(dir(svdgrad))
    for name in svdgrad.__all__:
        assert getattr(svdgrad, name) is not None
    listed = {name for names in svdgrad._MODULES.values() for name in names}
    assert listed <= set(svdgrad.__all__)
    with pytest.raises(AttributeError, match="module 'svdgrad' has no attribute 'norm'"):
        svdgrad.norm  # noqa: B018


def test_svdgrad_jax_shares_nothing_with_what_it_witnesses_for():
    for path in Path(sj.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                name = getattr(node, "module", None) or node.names[0].name
                assert name.split(".")[0] in sys.stdlib_module_names | {"jax", "numpy"}, path


@pytest.mark.slow
def test_the_wheel_works_with_either_framework_alone(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "svdgrad", source / "svdgrad", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("svdgrad-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    (metadata,) = site.glob("svdgrad-*.dist-info/METADATA")
    needs = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist:")]
    assert [line for line in needs if "extra ==" not in line] == ["Requires-Dist: numpy>=2"]
    for extra in ("torch", "jax"):
        assert any(line.startswith(f"Requires-Dist: {extra}>=") and f'extra == "{extra}"' in line for line in needs)
    for program in (IN_JAX, IN_TORCH):
        # from the wheel alone: -I leaves out PYTHONPATH and this folder, and what is put first is found first
        own = f"import sys; sys.path.insert(0, {str(site)!r})\n"
        answer = run(own + program + "print(svdgrad.__file__ if 'svdgrad' in globals() else sj.__file__)", "-I")
        assert answer.stdout.startswith(f"0.375\n{site}"), answer.stderr
