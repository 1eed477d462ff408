"""Every exercise of the book: in its place, its solution accepted, and wrong answers told what is wrong with them."""

import ast
import contextlib
import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
import torch

from svdgrad.adjoint import SOLVERS
from svdgrad.lab import grade
from svdgrad.lab.exercises import EXERCISES, NOTHING
from svdgrad.lab.grading import verdict
from svdgrad.matrices import project

BOOK = Path(__file__).resolve().parent.parent / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
EXERCISE = re.compile(r"^:::\{exercise\} (.*)\n:label: (\S+)$", re.M)
SOLUTION = re.compile(r"^:::\{solution\} (\S+)$", re.M)
MARKS = ("✍", "⌨")


# --- the book


def folded(cell) -> bool:
    return cell.cell_type == "code" and "hide-cell" in cell.metadata.get("tags", [])


def printed(cell) -> str:
    return "".join(o.get("text", "") for o in cell.get("outputs", []))


def graded(cell, label) -> bool:
    return cell.cell_type == "code" and f'grade("{label}", ' in cell.source


def faults(path) -> list[str]:
    """What is wrong with a chapter's exercises: each stands alone in its cell, then a cell that grades it, its solution
    and the folded cell that grades the solution.
    """
    cells, wrong, seen = nbformat.read(path, as_version=4).cells, [], set()
    for k, cell in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        for title, label in EXERCISE.findall(cell.source):
            seen.add(label)
            follows = [*cells[k + 1 : k + 4], *[nbformat.v4.new_markdown_cell()] * 3]
            attempt, solution, answer = follows[:3]
            if not title.startswith(MARKS):
                wrong.append(f"{label}: the title should begin with ✍ or ⌨, found {title!r}")
            if label not in EXERCISES:
                wrong.append(f"{label}: no entry in svdgrad/lab/exercises.py")
            if not graded(attempt, label) or printed(attempt) != f"{NOTHING}\n":
                wrong.append(f"{label}: the next cell should grade it, and print that there is nothing to check")
            if attempt.metadata.get("tags"):
                wrong.append(f"{label}: the cell that grades it should be seen")
            if SOLUTION.findall(solution.source) != [label] or ":class: dropdown" not in solution.source:
                wrong.append(f"{label}: a solution, folded, should follow")
            if not folded(answer) or not graded(answer, label) or not printed(answer).startswith("right"):
                wrong.append(f"{label}: the folded cell after the solution should grade it, and print that it is right")
            if "grade(" in answer.source and attempt.source.strip() == answer.source.strip():
                wrong.append(f"{label}: the visible cell holds the answer")
        wrong += [f"{label}: a solution to nothing" for label in SOLUTION.findall(cell.source) if label not in seen]
    for cell in filter(folded, cells):
        for key in ("source_hidden", "outputs_hidden"):
            if not cell.metadata.get("jupyter", {}).get(key):
                wrong.append(f"jupyter.{key} is missing, so that JupyterLab shows the cell\n{cell.source}")
        if not cell.source.startswith(("def ", "class ", "#")):
            wrong.append(f"JupyterLab shows the first line of a folded cell, and here it is the answer\n{cell.source}")
    return wrong


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_exercise_is_graded_and_solved(path):
    assert faults(path) == []


def test_every_entry_is_an_exercise_of_the_book():
    text = "\n".join(c.source for p in CHAPTERS for c in nbformat.read(p, as_version=4).cells)
    assert set(EXERCISES) == {label for _, label in EXERCISE.findall(text)} == set(WRONG)


def planted(tmp_path, change):
    new = nbformat.v4
    out = [new.new_output("stream", text=f"{NOTHING}\n")], [new.new_output("stream", text="right\n")]
    hidden = {"tags": ["hide-cell"], "jupyter": {"source_hidden": True, "outputs_hidden": True}}
    cells = [
        new.new_markdown_cell(":::{exercise} ✍ A kink\n:label: ex-kink\nText.\n:::"),
        new.new_code_cell('grade("ex-kink", None)', outputs=out[0]),
        new.new_markdown_cell(":::{solution} ex-kink\n:class: dropdown\nText.\n:::"),
        new.new_code_cell('# the answer\ngrade("ex-kink", (-1, 1))', outputs=out[1], metadata=hidden),
    ]
    change(cells)
    path = tmp_path / "planted.ipynb"
    nbformat.write(new.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        (None, lambda cells: None),
        ("begin with ✍", lambda cells: cells[0].update(source=cells[0].source.replace("✍ ", ""))),
        ("no entry", lambda cells: [c.update(source=c.source.replace("kink", "none")) for c in cells]),
        ("should grade it, and print that there is", lambda cells: cells.pop(1)),
        ("should grade it, and print that there is", lambda cells: cells[1].update(source='grade("ex-loop", 1)')),
        ("should be seen", lambda cells: cells[1].metadata.update(tags=["hide-cell"])),
        ("a solution, folded", lambda cells: cells[2].update(source=":::{solution} ex-kink\n:::")),
        ("print that it is right", lambda cells: cells[3].update(outputs=[])),
        ("print that it is right", lambda cells: cells.pop()),
        ("to nothing", lambda cells: cells[0].update(source="")),
        ("source_hidden", lambda cells: cells[3].metadata.pop("jupyter")),
        ("outputs_hidden", lambda cells: cells[3].metadata["jupyter"].pop("outputs_hidden")),
        ("the first line", lambda cells: cells[3].update(source='grade("ex-kink", (-1, 1))')),
    ],
)
def test_a_planted_fault_is_found(tmp_path, expected, change):
    found = faults(planted(tmp_path, change))
    assert found == [] if expected is None else expected in str(found)


# --- the solutions


@pytest.fixture
def settings():
    """Chapters set defaults of PyTorch and JAX."""
    dtype, threads, x64 = torch.get_default_dtype(), torch.get_num_threads(), jax.config.jax_enable_x64
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    jax.config.update("jax_enable_x64", x64)


def definitions(cell, space) -> None:
    """What a chapter's cell imports, defines and sets; without what it computes, some definitions cannot be had."""
    for node in ast.parse(cell.source).body:
        text = ast.unparse(node)
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)) or text.startswith(
            ("torch.set_", "jax.config.update", "where = device()", "where, k = device()")
        ):
            with contextlib.suppress(NameError):
                exec(text, space)


def solution_of(label):
    """The answer in the notebook's folded solution, by running that cell up to where it is graded."""
    for path in CHAPTERS:
        cells = nbformat.read(path, as_version=4).cells
        for k, cell in enumerate(cells):
            if folded(cell) and graded(cell, label):
                space, answers = {}, []
                for before in cells[:k]:
                    if before.cell_type == "code" and not graded(before, label):
                        definitions(before, space)
                body = ast.parse(cell.source).body
                last = next(k for k, node in enumerate(body) if ast.unparse(node).startswith(f"grade('{label}'"))
                space["grade"] = lambda label, answer: answers.append(answer)
                exec(ast.unparse(ast.Module(body[: last + 1], [])), space)
                return answers[0]
    raise LookupError(label)


@pytest.mark.parametrize("label", EXERCISES)
def test_the_solution_in_the_book_is_right(label, settings):
    assert verdict(label, solution_of(label)).startswith("right")


def negative(truth):
    """The same with the other sign, in every part."""
    return lambda *x: tuple(-part for part in y) if isinstance(y := truth(*x), tuple) else -y


@pytest.mark.parametrize("label", [label for label, exercise in EXERCISES.items() if not exercise.judge])
def test_a_truth_with_the_wrong_sign_is_noticed(label, settings, monkeypatch):
    exercise = EXERCISES[label]
    monkeypatch.setitem(EXERCISES, label, dataclasses.replace(exercise, truth=negative(exercise.truth)))
    assert verdict(label, solution_of(label)).startswith("not yet")


# --- wrong answers, and what is said of them


def scaled(factor):
    """The solution in the book, times a factor."""
    return lambda right: (lambda *x: factor * right(*x)) if callable(right) else factor * right


def parts_exchanged(right):
    return (lambda *x: right(*x)[::-1]) if callable(right) else right[::-1]


def raises(*x):
    raise RuntimeError("a mistake of mine\nand more of it")


class ByTheFlattenedNorm(torch.nn.Module):
    def forward(self, weight):
        return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


def gain_of(weight):
    """The gain on images of 8×8 pixels, from the matrix."""
    columns = torch.nn.functional.conv2d(torch.eye(64).to(weight).reshape(64, 1, 8, 8), weight, padding=1)
    return torch.linalg.matrix_norm(columns.flatten(1), 2)


def saddle(A, triplet, phi, psi):
    return SOLVERS["saddle"](A, triplet, phi, psi)


def with_a_part_along_u(A, triplet, phi, psi):
    p, q = saddle(A, triplet, phi, psi)
    return p + triplet.u, q + triplet.v


#: label -> wrong answers, each with words of the hint that it deserves; a function of one argument named ``right`` is
#: applied to the solution in the book
WRONG = {
    "ex-gradient-by-hand": [
        ((3 / 8, 1 / 8), "exchanged"),
        ((1, 3), "divided"),
        ((1 / 8, -3 / 8), "part 2 of 2: only the sign"),
    ],
    "ex-scaling": [
        (lambda right: lambda xi, sigma, phi, u, psi, v: xi * sigma + phi @ u + psi @ v, "loss itself"),
        (lambda right: lambda xi, sigma, phi, u, psi, v: xi, "which of σ, u and v"),
        (lambda right: lambda xi, sigma, phi, u, psi, v: sigma * u, "has the shape"),
    ],
    "ex-luck": [("a", "keeps the singular values"), ("c", "divides by the differences"), ("no", "letters")],
    "ex-tilt": [
        (lambda right: lambda u, v: u[-1] * v[-1], "corner"),
        (lambda right: lambda u, v: u.sum() * v.sum(), "every column"),
        (lambda right: lambda u, v: u[-1] * v.sum(), "last row"),
        (lambda right: lambda u, v: torch.outer(u, v), "has the shape"),
    ],
    "ex-nothing": [
        (lambda right: lambda M, u, v: 0 * M, "is zero"),
        (lambda right: lambda M, u, v: M, "σ moves"),
        (lambda right: lambda M, u, v: M - torch.outer(u, u @ M), "u or v does"),
        (lambda right: lambda M, u, v: right(M, u, v).T, "has the shape"),
    ],
    "ex-second-order": [
        (lambda right: lambda h, du: -right(h, du), "sign"),
        (lambda right: lambda h, du: -(h**2) * du @ du, "too large by a factor of 2"),
        (lambda right: lambda h, du: h * du.norm(), "of second order"),
    ],
    "ex-product-loss": [
        (lambda right: lambda M, u, v: (u @ M @ v, M @ v, M.T @ u), "does not contain σ"),
        (lambda right: lambda M, u, v: (0, M.T @ u, M @ v), "exchanged"),
        (lambda right: lambda M, u, v: (0, M @ v, M @ u), "stopped with"),
        (lambda right: lambda M, u, v: (0, M @ v, -M.T @ u), "part 3 of 3: only the sign"),
    ],
    "ex-orthogonal": [
        (lambda right: lambda m, n: (m - 1) * (n - 1), "cannot contain"),
        (lambda right: lambda m, n: m + n, "counted twice"),
        (lambda right: lambda m, n: m * n, "relative error"),
    ],
    "ex-undo": [
        (lambda right: lambda c: (0, 0), "grows by"),
        (lambda right: lambda c: (c, abs(c)), "removes c u"),
        (lambda right: parts_exchanged(right), "exchanged"),
    ],
    "ex-best-weight": [
        (lambda right: parts_exchanged(right), "exchanged"),
        (lambda right: lambda s1, s2: (s1 - s2, s1 - s2), "smallest: how far"),
        (lambda right: lambda s1, s2: (s1 - s2, 2 * s1), "part 1 of 2: too large by a factor of √2"),
    ],
    "ex-one-border": [
        (lambda right: lambda A, t, xi, phi, psi: right(A, t, xi, phi, psi).T, "transpose"),
        (lambda right: lambda A, t, xi, phi, psi: right(A, t, 0 * xi, phi, psi), "ξuvᵀ is missing"),
        (lambda right: lambda A, t, xi, phi, psi: -right(A, t, xi, phi, psi), "sign"),
    ],
    "ex-feet": [(1 / 0.3048, "square root"), (0.3048**2, "one over"), (10.0, "about")],
    "ex-smallest-kappa": [(2, "too small by a factor of 2"), (1 / 4, "one over"), (-4, "sign")],
    "ex-stack-gap": [((2**0.5, 1), "exchanged"), ((1, 2), "squares"), ((0, 2**0.5), "part 1 of 2")],
    "ex-kappa-interior": [
        (lambda right: lambda S: (S[2] + S[0]) / (S[1] - S[2]), "not with S = \\[3, 2.6"),
        (lambda right: lambda S: 2 * S[0] / (S[0] - S[1]), "for the largest"),
        (lambda right: lambda S: 1 / right(S), "one over"),
    ],
    "ex-ky-fan": [
        (lambda right: lambda U, V: V @ U.T, "exchanged U and V"),
        (lambda right: lambda U, V: torch.outer(U[:, 0], V[:, 0]), "σ₁ alone"),
        (lambda right: lambda U, V: U.T @ V, "stopped with"),
    ],
    "ex-energy": [
        (lambda right: lambda U, S, V: U @ V.T, "not of their squares"),
        (lambda right: lambda U, S, V: 2 * right(U, S, V), "too large by a factor of 2"),
        (lambda right: lambda U, S, V: (S**2).sum() / 2, "has the shape"),
    ],
    "ex-weighted": [((2, 2), "behind"), ((-2, 2), "exchanged"), ((6, -2), "part 1 of 2: too large by a factor of 3")],
    "ex-factors": [
        ((10**12, 32_000_000), "to be included"),
        ((64_000_000, 10**12), "exchanged"),
        ((10**6, 64_000_000), "part 1 of 2: yours is the square root"),
    ],
    "ex-blind-direction": [
        (0.92, "to see more"),
        (0.04, "modulus"),
        (0.16, "too large by a factor of 2"),
        ("8%", "asked for: a probability, a number from 0 to 1; found '8%'"),
    ],
    "ex-other-sign": [
        (lambda right: scaled(0.5)(right), "too small by a factor of 2|ξuvᵀ alone"),
        (lambda right: lambda G, part: 2 * part.norm() / G.norm(), "which of the terms"),
        (lambda right: lambda G, part: 0 * part, "has the shape"),
        (0.5, "asked for: a function of G and part; found a number"),
    ],
    "ex-single-step": [(1e-4, "too small"), (2.0, "too large"), (-0.1, "positive number"), ("0.1", "positive number")],
    "ex-lucky-loss": [
        (lambda right: lambda phi, psi, u, v: (project(u, phi), project(v, psi)), "projected cotangent is not allowed"),
        (lambda right: lambda phi, psi, u, v: (phi, psi), "part along the null vector"),
        (lambda right: lambda phi, psi, u, v: (phi, psi + (u @ phi - v @ psi) * v), "\\[u; −v\\]"),
        (lambda right: lambda phi, psi, u, v: (0 * phi, 0 * psi), "zero"),
        (lambda right: lambda phi, psi, u, v: right(phi, psi, u, v)[::-1], "shapes"),
    ],
    "ex-any-multiple": [
        (lambda right: lambda rho, S: 2 * S[0] / (S[0] - S[1]), "moderate ρ"),
        (lambda right: lambda rho, S: max(rho, 2 * S[0]) / (S[0] - S[1]), "not with rho = 0.1"),
        (lambda right: lambda rho, S: 1 / right(rho, S), "one over"),
        (
            lambda right: raises,
            "stopped with RuntimeError: a mistake of mine; it was called with rho = 0.1 and S = ",
        ),
    ],
    "ex-interior": [(0, "which of them are negative"), (1, "too small by a factor of 2"), (-2, "sign")],
    "ex-other-half": [
        (lambda right: lambda sigma, u, v, phi, q: u @ phi / sigma, "q brings in"),
        (lambda right: lambda sigma, u, v, phi, q: v @ q, "φ ⟂ u only"),
        (lambda right: lambda sigma, u, v, phi, q: v @ phi / sigma + u @ q, "stopped with .* u of shape"),
        (lambda right: scaled(-1)(right), "sign"),
    ],
    "ex-how-many": [(24, "round up"), (26, "exponent"), (25.5, "logarithm"), (None, "nothing to check")],
    "ex-interior-schur": [
        (lambda right: parts_exchanged(right), "exchanged the parts"),
        (lambda right: lambda s1, s2: (s1**2 - s2**2, s1 / s2), "part 1 of 2: only the sign"),
        (lambda right: lambda s1, s2: (s2**2 - s1**2, s2 / s1), "part 2 of 2: yours is one over"),
    ],
    "ex-ils-scalar": [
        (lambda right: lambda a, s, b1, b2: (s * b1 + a * b2) / (s**2 + a**2), "sum of the two squares"),
        (lambda right: lambda a, s, b1, b2: right(a, s, b2, b1), "exchanged a and s, or b1 and b2"),
        (lambda right: scaled(-1)(right), "sign"),
    ],
    "ex-stack-kappa": [
        (lambda right: parts_exchanged(right), "exchanged the parts"),
        (lambda right: lambda S: right(S)[0], "2 parts"),
        (lambda right: lambda S: [k**2 for k in right(S)], "square"),
    ],
    "ex-hyperbolic": [
        (lambda right: lambda s: np.exp(s), "square root"),
        (lambda right: lambda s: np.exp(-2 * s), "one over"),
        (lambda right: lambda s: np.float32(right(s)), "single precision"),
    ],
    "ex-how-much": [
        (lambda right: lambda U, phi, sigma, p: (U.T @ phi).norm() / sigma / p.norm(), "is kept"),
        (lambda right: lambda U, phi, sigma, p: sigma * right(U, phi, sigma, p), "unit"),
        (lambda right: lambda U, phi, sigma, p: right(U, p, sigma, phi), "exchanged phi and p"),
    ],
    "ex-push-through": [
        (lambda right: lambda S, g: S * g(S), "squares of the singular values"),
        (lambda right: lambda S, g: g(S**2), "Aᵀ itself"),
        (lambda right: lambda S, g: torch.diag(S * g(S**2)), "shape"),
    ],
    "ex-one-multiplier": [
        (lambda right: lambda A, sigma, phi, psi: sigma * phi + A @ psi, "belongs to p"),
        (lambda right: lambda A, sigma, phi, psi: A.T @ phi - sigma * psi, "multiply the first line"),
        (lambda right: lambda A, sigma, phi, psi: A @ phi + sigma * psi, "stopped with"),
        (lambda right: lambda *x: right(*x) / 2, "too small by a factor of 2"),
    ],
    "ex-square-root": [
        ((1 / (2 * 3**0.5), -1 / (4 * 3**1.5)), "derivative of √a itself"),
        ((999, 0.0), "part 1 of 2"),
        ((0.0, 1 / (2 * 3**0.5)), "exchanged the parts"),
        ((1 / (2 * 3**0.5), 999), "part 2 of 2"),
    ],
    "ex-newton-units": [("a", "borders"), ("c", "shape"), ("all", "letters"), (2, "letters")],
    "ex-curvature": [
        (lambda right: scaled(0.5)(right), "too small by a factor of 2"),
        (lambda right: scaled(-1)(right), "sign"),
        (lambda right: lambda A, dA: float("nan"), "NaN"),
    ],
    "ex-loss-scale": [
        (lambda right: lambda tol, scale, size: tol / size, "without the scale"),
        (lambda right: lambda tol, scale, size: scale * size / tol, "one over"),
        (lambda right: lambda tol, scale, size: scale / (tol * size), "exchanged tol and scale"),
    ],
    "ex-kept": [
        (lambda right: lambda S, k: (S[0] + S[1]) / (S[0] - S[1]), "nothing kept"),
        (lambda right: lambda S, k: (S[0] - S[k]) / (S[0] + S[k]), "one over"),
        (lambda right: lambda S, k: S[4], "stopped with IndexError"),
    ],
    "ex-power-steps": [(23026, "too large by a factor of 2"), (5000, "logarithm"), (-11510, "sign")],
    "ex-one-sided": [
        ((1 / 3, 2 / 3), "central"),
        ((1, 1), "part 1 of 2: too large by a factor of 2"),
        (0.5, "2 parts"),
    ],
    "ex-richardson": [
        (lambda right: lambda D_h, D_2h: right(D_2h, D_h), "exchanged D_h and D_2h"),
        (lambda right: lambda D_h, D_2h: 4 * D_h - D_2h, "too large by a factor of 3"),
        (lambda right: lambda D_h, D_2h: (D_h + D_2h) / 2, "eliminate c"),
    ],
    "ex-complex-step": [("a", "complex matrix has"), ("c", "no step is too small"), ("d", "letters")],
    "ex-own-matrix": [
        (["direct"], "1 fail and 0 do not; 4 that fail are missing"),
        ("direct", "a list of names"),
        (["schur"], "no attempt is called 'schur'"),
        (lambda right: [*right, "bordered"], "1 do not; 0 that"),
    ],
    "ex-count-digits": [
        ((3.9, 12.6), "exchanged the parts"),
        ((15.65, 6.92), "what does the gap cost"),
        ((14.3, 5.6), "without the factor 50"),
    ],
    "ex-own-way": [
        (lambda right: lambda *x: saddle(*x)[::-1], "exchanged p and q"),
        (lambda right: with_a_part_along_u, "projection at the end"),
        (lambda right: lambda *x: [-y for y in saddle(*x)], "sign"),
        (lambda right: lambda *x: saddle(*x)[0], "a pair"),
        (lambda right: raises, "stopped with RuntimeError"),
    ],
    "ex-blind": [
        (lambda right: lambda phi, U: 0 * phi, "is zero"),
        (lambda right: lambda phi, U: project(U[:, 0], phi), "along u₁"),
        (lambda right: lambda phi, U: phi, "part along u₂"),
        (lambda right: lambda phi, U: U[:, 0], "multiple of u₁"),
    ],
    "ex-kink": [((1, 1), "on the left"), ((1, -1), "exchanged"), ((-2, 2), "too large by a factor of 2")],
    "ex-single": [(8.9e-15, "double precision"), (4.77e-7, "too small by a factor of 10"), (True, "True or False")],
    "ex-complex-blind-test": [
        (lambda right: lambda sigma, u, v: u[0].real, "does not change when v"),
        (lambda right: lambda sigma, u, v: (u[0] * v[0]).real, "common phase"),
        (lambda right: lambda sigma, u, v: (u[0] * v[0].conj()).real, "η is not zero"),
        (lambda right: lambda sigma, u, v: (u.norm() + v.norm()) ** 2, "does not change when u"),
        (lambda right: lambda sigma, u, v: u[0] * v[0], "real number"),
    ],
    "ex-turned-matrix": [
        (lambda right: lambda sigma, u: (0.0, -1j * u), "part 2 of 2: only the sign"),
        (lambda right: lambda sigma, u: (0.0, u), "factor i"),
        (lambda right: lambda sigma, u: (1j * sigma, 1j * u), "does not turn"),
    ],
    "ex-rule": [
        (lambda right: lambda psi, s, v0, v: right(psi, -s, v0, v), "sign of the new term"),
        (lambda right: lambda psi, s, v0, v: psi, "without the rule"),
        (lambda right: lambda psi, s, v0, v: psi - s * v0 / torch.vdot(v0, v), "factor i is missing"),
    ],
    "ex-real-form": [(1, "too small by a factor of 2"), (4, "too large by a factor of 2"), (3, "belong")],
    "ex-damper": [(5, "from 0 to 4"), (1.5, "whole number"), (3, "more negative")],
    "ex-loop": [
        (math.pi / 2, "sign"),
        (-math.pi, "too large by a factor of 2"),
        (-2 * math.pi, "second entry"),
    ],
    "ex-blind-power": [
        (lambda right: parts_exchanged(right), "exchanged the parts"),
        (lambda right: lambda theta: (np.exp(-1j * theta), 1), "conjugate"),
        (lambda right: lambda theta: (np.exp(1j * theta),) * 2, "turns back"),
    ],
    "ex-floor": [(20_000, "too large by a factor of 2"), (5_000, "too small by a factor of 2"), (1e5, "factor of 10")],
    "ex-backward": [
        (lambda right: lambda u, v, r: torch.outer(r, u), "transpose"),
        (lambda right: lambda u, v, r: -torch.outer(u, r), "sign"),
        (lambda right: lambda u, v, r: torch.outer(u, v), "sends v to zero"),
        (lambda right: lambda u, v, r: torch.outer(u, u), "shape"),
    ],
    "ex-steps-by-gap": [((10, 100), "exchanged"), ((100, 100), "part 2 of 2"), (100, "2 parts")],
    "ex-in-the-way": [
        (lambda right: lambda y: y[0], "not negative"),
        (lambda right: lambda y: y[-1].abs(), "last entry"),
        (lambda right: lambda y: y[0] ** 2, "square of"),
    ],
    "ex-average": [
        ((1 + 2 * math.cos(math.pi / 9)) ** 2 / 9, "this is the gain"),
        (3, "large images"),
        (2.76, "relative error"),
    ],
    "ex-true-gain": [
        (lambda right: ByTheFlattenedNorm(), "flattened kernel"),
        (lambda right: lambda w: w / gain_of(w).detach(), "do not detach"),
        (lambda right: lambda w: (w / gain_of(w)).detach(), "no gradient flows"),
        (lambda right: lambda w: w * gain_of(w), "divide"),
        (lambda right: ByTheFlattenedNorm, "make an instance"),
        (lambda right: raises, "your answer stopped with RuntimeError"),
    ],
    "ex-five-by-five": [(25, "squared lengths"), (3, "how many patches"), (2.5, "too small by a factor of 2")],
    "ex-evidence": [
        (lambda n, p: p * (2 * n / math.pi) ** 0.5, "divide by it"),
        (lambda n, p: p * (math.pi / 2) ** 0.5 / n, "of n, too"),
        (1e-9, "function"),
    ],
    "ex-residual-gain": [
        (lambda g: g, "x itself moves too"),
        (lambda g: (1 + g * g) ** 0.5, "lengths add"),
        (2, "function"),
    ],
    "ex-pairs": [
        (
            lambda y, W, g: y.sort().values.diff()[-1] / (2**0.5 * g * torch.linalg.matrix_norm(W, 2)),
            "difference of two rows",
        ),
        (
            lambda y, W, g: y.sort().values.diff()[-1] / (g * W[y.argsort()[-2:]].diff(dim=0).norm()),
            "smallest over all j",
        ),
        (0.5, "function"),
    ],
    "ex-new-guest": [
        ((10, 2), "the largest is"),
        ((2, 14), "from 0 to 13"),
        ((0, 0), "has been to E1"),
        ((17, 0), "Flora Price herself"),
        (3, "a pair of positions"),
    ],
    "ex-one-woman": [(18, "from 0 to 17"), (0, "thousandths"), ("Nora Fayette", "whole number")],
    "ex-second-along": [
        (lambda right: lambda *x: right(*x) / 2, "too small by a factor of 2"),
        (
            lambda right: lambda loss, M, E: E.flatten() @ torch.func.hessian(loss)(M).reshape(24, 24) @ E.flatten(),
            "all entries",
        ),
        (lambda right: lambda loss, M, E: torch.func.jvp(loss, (M,), (E,))[1], "first derivative"),
    ],
    "ex-kappa-K-hat": [
        (lambda right: lambda sigma_1, sigma_2: 2 * sigma_1 / (sigma_1 - sigma_2), "moved too"),
        (lambda right: scaled(-1)(right), "sign"),
        (lambda right: scaled(1 / 3)(right), "too small by a factor of 3"),
    ],
    "ex-which-damper": [(3, "more negative"), (4, "from 0 to 3"), (-1, "from 0 to 3")],
    "ex-stop-gradient": [
        (lambda right: lambda A: jnp.linalg.norm(A, 2), "the SVD is differentiated"),
        (lambda right: lambda A: jax.lax.stop_gradient(jnp.linalg.norm(A, 2)), "gradient is zero"),
        (lambda right: lambda A: 2 * right(A), "not uvᵀ"),
        (lambda right: lambda A: right(A) + 1, "not σ"),
        (lambda right: lambda A: None, "nothing to check"),
    ],
    "ex-one-vector": [
        (lambda right: lambda theta_squared, c, delta: c * (1 / delta**2 - 1) ** 0.5, "distance"),
        (lambda right: lambda theta_squared, c, delta: theta_squared + c / delta, "tangent"),
        (
            lambda right: lambda theta_squared, c, delta: theta_squared + c / (1 / delta**2 - 1) ** 0.5,
            "other way round",
        ),
        (lambda right: lambda theta_squared, c, delta: right(c, theta_squared, delta), "exchanged theta_squared and c"),
        (lambda right: lambda theta_squared, c, delta: theta_squared + c, "right angle"),
        (4.0, "asked for: a function of theta_squared, c and delta"),
    ],
    "ex-own-partner": [
        ((1.0, 1.0, 0.3), "frequencies 1 and 23"),
        ((1, 0, -1), "frequencies 6 and 18"),
        ((0, 1, 0), "all waves"),
        ((0, 0, 0), "to zero"),
        ((1, -1), "three numbers"),
        ((1, -1, math.inf), "three numbers"),
        (None, "nothing to check"),
    ],
    "ex-diagonal-and-product": [
        (lambda right: lambda params, x: right((params[0], params[2], params[1]), x), "exchange a and b"),
        (lambda right: lambda params, x: params[0] * x, "product abᵀ is missing"),
        (lambda right: lambda params, x: right((0 * x, *params[1:]), x), "diagonal is missing"),
        (lambda right: lambda params, x: params[0] * x + params[1] * params[2] * x, "one number"),
        (lambda right: lambda params, x: right(params, x) + params[0], "not linear"),
        (lambda right: lambda params, x: -right(params, x), "compare it with"),
        (lambda right: lambda params, x: params[2] @ x, "found the shape"),
        (lambda right: lambda params, x: (jnp.diag(params[0]) + jnp.outer(*params[1:])) @ x, "n × n numbers"),
        (lambda right: lambda params, x: params[0] @ x + params[1], "not linear"),
        (lambda right: lambda params, x: None, "nothing to check"),
    ],
    "ex-bias": [("a", "difference of two outputs"), ("c", "linear map"), ("x", "letters")],
    "ex-two-channels": [
        (lambda right: lambda kernel, side: torch.fft.fft2(kernel, s=(side, side)).abs().max(), "largest entry"),
        (lambda right: lambda kernel, side: right(kernel, side) ** 2, "square of"),
        (lambda right: lambda kernel, side: right(kernel, 3), "one 2×2 matrix|not with"),
    ],
    "ex-product-operator": [
        (lambda right: lambda u, v, R: torch.outer(R @ v, u), "transpose"),
        (lambda right: lambda u, v, R: torch.outer(u, v), "product LR"),
        (lambda right: lambda u, v, R: torch.outer(u, v @ R), "stopped with"),
    ],
    "ex-critical": [
        (lambda right: lambda N: N**2 / 32, "long ring"),
        (lambda right: lambda N: N * (N - 1) / 16, "too large by a factor of 2"),
        (lambda right: lambda N: 12 / 32, "right with N = 4, but not with N = 6"),
    ],
    "ex-two-worlds": [("a", "one percent"), ("c", "two blocks"), (0.99, "letters")],
    "ex-package-margin": [
        (lambda right: lambda v, S, T: S - T, "not of the logarithms"),
        (lambda right: lambda v, S, T: (S - T) / v, "before the logarithm"),
        (lambda right: lambda v, S, T: right(v, T, S), "exchanged S and T"),
        (lambda right: lambda v, S, T: torch.log(S @ v / (T @ v)), "has the shape"),
    ],
    "ex-missing-import": [
        (lambda right: lambda A, *rest: right(0 * A, *rest), "exists"),
        (lambda right: lambda A, u, v, p, q: right(A, u, v, -p, -q), "raises the margin"),
        (lambda right: parts_exchanged(right), "exchanged"),
        ((0, 1), "a function of A, u, v, p and q"),
    ],
}


@pytest.mark.parametrize(("label", "n"), [(label, n) for label in WRONG for n in range(len(WRONG[label]))])
def test_a_wrong_answer_is_told_what_is_wrong(label, n, settings):
    answer, hint = WRONG[label][n]
    if getattr(answer, "__code__", None) and answer.__code__.co_varnames[:1] == ("right",):
        answer = answer(solution_of(label))
    found = verdict(label, answer)
    assert re.search(hint, found), found
    assert found.startswith("not yet: ") != (found == NOTHING)
    assert len(found.splitlines()) == 1 and "Traceback" not in found


def test_three_wrong_answers_are_tried_for_each_exercise():
    assert {label for label in WRONG if len(WRONG[label]) < 3} == set()


@pytest.mark.parametrize("label", EXERCISES)
def test_what_is_no_answer_is_told_so(label):
    """None is not begun; a string, a list of nothing, NaN and a function that raises or returns NaN are wrong."""
    assert verdict(label, None) == verdict(label, (None, None)) == NOTHING
    for answer in ("?", object(), float("nan"), [], {}, raises, lambda *x: float("nan"), lambda: 0):
        found = verdict(label, answer)
        assert found.startswith("not yet: ") and len(found.splitlines()) == 1, found


# --- the hints


def test_grade_prints_its_verdict(capsys):
    grade("ex-kink", (1, -1))
    assert capsys.readouterr().out == "not yet: you have exchanged the parts of your answer\n"


def test_an_unknown_label_is_an_error_with_the_nearest_one():
    with pytest.raises(ValueError, match="no exercise 'ex-kinks': do you mean 'ex-kink'"):
        grade("ex-kinks", 1)


@pytest.mark.parametrize("answer", [["b"], {}, lambda: "b"], ids=type)
def test_a_letter_is_asked_for_in_words_that_a_reader_knows(answer):
    assert verdict("ex-luck", answer).endswith("answer with one of the letters 'a', 'b', 'c', in quotation marks")


def test_half_an_answer_is_not_begun():
    assert verdict("ex-kink", (-1, None)) == NOTHING


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (10_000.0, "right"),
        (np.int64(10_000), "right"),
        (torch.tensor(10_000.0), "right"),
        (jnp.asarray(10_000), "right"),
        (10_000.1, "close, with a relative error of 1e-05: give the expression itself"),
        (10_040, "relative error of 0.004: .* approximation"),
        (np.float32(10_000.1), "single precision only"),
        (math.inf, "infinite"),
        ([10_000.0], r"has the shape \(1,\), expected a number"),
        ("10000", "asked for: a number of steps; found '10000'"),
        (lambda: 10_000, "found a function: call it"),
    ],
)
def test_what_counts_as_a_number(answer, hint):
    assert re.search(hint, verdict("ex-floor", answer), re.I)
