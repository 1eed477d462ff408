"""Mutation testing: plant one small fault at a time in a copy of svdgrad/ and see whether a test turns red.

The faults are those of cosmic-ray's operators that have a chance to survive, and three of our own. cosmic-ray starts a
process for each; here a process that has imported PyTorch forks for each, which takes seconds off.
"""

import argparse
import ast
import difflib
import os
import random
import resource
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]

#: Each arithmetic operator by its inverse, each comparison by its neighbour and its opposite: the other replacements
#: (<< for +, say) raise an error on tensors of floats, and would only flatter the ratio.
OPERATORS = [
    *(f"core/ReplaceBinaryOperator_{x}" for x in "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul BitAnd_BitOr BitOr_BitAnd".split()),
    *(f"core/ReplaceComparisonOperator_{x}" for x in "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is".split()),
    *(f"core/ReplaceUnaryOperator_{x}" for x in "USub_UAdd Delete_Not Delete_Invert".split()),
    *(f"core/{x}" for x in "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd".split()),
    *(f"core/{x}" for x in "ReplaceBreakWithContinue ExceptionReplacer NumberReplacer RemoveDecorator ZeroIterationForLoop".split()),
]
#: calls that return something like their last argument, methods and attributes that return something like their object
CALLS = {"project", "off", "torch.where", "torch.maximum", "torch.minimum", "partial"}
METHODS = {"conj", "abs", "real", "imag", "clone", "contiguous", "detach", "squeeze", "mH", "double", "cpu"}

#: file of svdgrad/ -> what pytest runs, the quickest and most telling first; "doctest": the examples of the file itself
TESTS = {
    "matrices.py": ["test_matrices", "test_adjoint", "doctest", "test_triplet"],
    "adjoint/krylov.py": ["test_adjoint", "test_operators", "test_triplet", "test_properties"],
    "adjoint/saddle.py": ["test_adjoint", "test_transforms -k 'refine or autocast'", "test_triplet", "test_properties"],
    "adjoint/": ["test_adjoint", "test_triplet", "test_properties"],
    "checks.py": ["doctest", "test_checks"],
    "oracles.py": ["test_oracles"],
    "compiled.py": ["test_transforms -k compiled"],
    "triplet.py": ["test_triplet", "doctest", "test_transforms", "test_properties"],
    "operators.py": ["test_operators", "doctest"],
    "diagnosis.py": ["test_operators -k 'diagnose or predicted'", "doctest"],
    "steps.py": ["test_triplet", "test_operators", "test_properties", "test_transforms"],
    "forward.py": ["test_forward", "test_triplet", "test_properties", "test_operators", "test_transforms"],
    "compare.py": ["test_compare"],
}
LONG = "-k 'not two_million and not convolution'"
LIMIT = 120  # seconds of processor time for one fault; more counts as killed, as a loop without end is noticed too


class Mutant(NamedTuple):
    file: str
    line: int
    operator: str
    code: str

    def diff(self) -> str:
        """The lines that differ."""
        lines = difflib.unified_diff(source(self.file).splitlines(), self.code.splitlines(), n=0, lineterm="")
        return "\n".join(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")


def source(file: str) -> str:
    return (ROOT / "svdgrad" / file).read_text(encoding="utf-8")


def left_out(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where no fault is planted: annotations, imports for type checkers, text."""
    lines, nodes = code.split("\n"), []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr) or isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes.append(node)
        nodes += [x for name in ("annotation", "returns") if (x := getattr(node, name, None))]
    char = lambda line, byte: (line, len(lines[line - 1].encode()[:byte].decode()))
    return [(char(n.lineno, n.col_offset), char(n.end_lineno, n.end_col_offset)) for n in nodes]


def own_faults(code: str):
    """(operator, start, end, new text): a call for its last argument, a method left out, a statement left out."""
    names = lambda tree: {leaf.value for leaf in ast_nodes(tree) if leaf.type == "name"}
    for node in ast_nodes(parso.parse(code)):
        parts = getattr(node, "children", [])
        for i, part in enumerate(parts[1:], 1) if node.type in ("atom_expr", "power") else ():
            words = part.get_code(include_prefix=False)
            if words[0] == "(" and code_of(parts[:i]) in CALLS and part.children[1].type == "arglist":
                yield "CallToArgument", parts[0].start_pos, part.end_pos, f"({part.children[1].children[-1].get_code()})"
            if words[0] == "." and words[1:] in METHODS:
                yield "DropMethod", part.start_pos, parts[i + (code_of(parts[i + 1 : i + 2]) == "()")].end_pos, ""
        if node.type == "expr_stmt" and parts[1].type == "operator" and (parts[1].value != "=" or names(parts[0]) <= names(parts[-1])):
            yield "DropStatement", node.start_pos, node.end_pos, "pass"
        if node.type == "simple_stmt" and parts[0].type in ("atom_expr", "raise_stmt"):
            yield "DropStatement", parts[0].start_pos, parts[0].end_pos, "pass"


def code_of(parts) -> str:
    return "".join(part.get_code(include_prefix=False) for part in parts)


def mutants(file: str, seed: int = 0) -> list[Mutant]:
    """In an order of chance, so that a larger sample holds the smaller."""
    code, found = source(file), []
    tree, lines, forbidden = parso.parse(code), code.split("\n"), left_out(code)
    wanted = lambda start, end: not any(a <= start and end <= b for a, b in forbidden)
    for name in OPERATORS:
        operator = cosmic_ray.plugins.get_operator(name)()
        for i, (start, end) in enumerate(place for node in ast_nodes(tree) for place in operator.mutation_positions(node)):
            if wanted(start, end):
                found.append(Mutant(file, start[0], name.removeprefix("core/"), mutate_code(code, operator, i)))
    offset = lambda pos: sum(len(x) + 1 for x in lines[: pos[0] - 1]) + pos[1]
    for name, start, end, text in own_faults(code):
        if wanted(start, end):
            found.append(Mutant(file, start[0], name, code[: offset(start)] + text + code[offset(end) :]))
    # each once; not what says the same (minus a zero), nor what is no Python (a product of keywords)
    found = list({m.code: m for m in found if parsed(m.code) not in (None, parsed(code))}.values())
    random.Random(seed).shuffle(found)
    return found


def parsed(code: str) -> str | None:
    try:
        return ast.dump(ast.parse(code))
    except SyntaxError:
        return None


def tests_of(file: str) -> list[str] | None:
    return next((tests for start, tests in TESTS.items() if file.startswith(start)), None)


def tests(folder: Path, file: str) -> str:
    """Which test notices what is wrong with ``file`` in ``folder``; runs in a process of its own."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    how = "-x -q --tb=no -o addopts= -p no:cacheprovider -p no:nbval -W ignore::pytest.PytestAssertRewriteWarning"
    for test in tests_of(file):
        name, *words = f"--doctest-modules svdgrad/{file}".split() if test == "doctest" else shlex.split(test if "-k" in test else f"{test} {LONG}")
        answer = int(pytest.main([*how.split(), name if test == "doctest" else f"tests/{name}.py", *words]))
        if answer not in (0, 5):  # 5: no tests there
            return f"killed by {test}"
    return "survived"


def run(folder: Path, file: str) -> str:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(write, tests(folder, file).encode())
        except BaseException as error:  # the child must not go on as a second parent
            os.write(write, f"pytest raised {error!r}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read() or "killed: no end, or a crash"
    os.waitpid(child, 0)
    assert not answer.startswith("pytest"), f"{file}: {answer}"
    return answer


def attempt(folder: Path, mutant: Mutant) -> str:
    """Plant the fault, run the tests, take it out again."""
    path = folder / "svdgrad" / mutant.file
    path.write_text(mutant.code, encoding="utf-8")
    answer = run(folder, mutant.file)
    path.write_text(source(mutant.file), encoding="utf-8")
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="of svdgrad/, such as triplet.py or adjoint/schur.py; without any, all that have tests here")
    parser.add_argument("--sample", type=int, help="so many of each file, drawn at random; without it, all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    every = (str(path.relative_to(ROOT / "svdgrad")) for path in sorted(ROOT.glob("svdgrad/**/*.py")))
    files = options.files or [file for file in every if tests_of(file)]
    survivors, total = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(Path(name))
        for file in files:
            assert (answer := run(folder, file)) == "survived", f"{file} as it stands: {answer}"
            all_ = mutants(file, options.seed)
            drawn = sorted(all_[: options.sample])
            left = [mutant for mutant in drawn if attempt(folder, mutant) == "survived"]
            print(f"{file}: {len(drawn) - len(left)} of {len(drawn)} killed, {len(all_)} in all", flush=True)
            survivors, total = survivors + left, total + len(drawn)
    for mutant in survivors:
        print(f"\nsvdgrad/{mutant.file}:{mutant.line} {mutant.operator}\n{mutant.diff()}")
    print(f"\n{total - len(survivors)} of {total} killed, {100 - 100 * len(survivors) / max(total, 1):.1f} %")


def prepare(folder: Path) -> Path:
    """A copy of the package and its tests; and what they import, once, before the first fork."""
    sys.dont_write_bytecode = True
    os.environ["OMP_NUM_THREADS"] = "1"
    import flint, hypothesis, pytest, scipy.linalg, torch._dynamo  # noqa: F401, E401

    for part in ("svdgrad", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / part, folder)
    return folder


if __name__ == "__main__":
    main()
