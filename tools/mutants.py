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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
#: Each arithmetic operator by its inverse, each comparison by its neighbour and its opposite: the other replacements
#: (<< for +, say) raise an error on tensors of floats, and would only flatter the ratio.
OPERATORS = (
    "BinaryOperator_: Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul BitAnd_BitOr BitOr_BitAnd; "
    "ComparisonOperator_: Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is; "
    "UnaryOperator_: USub_UAdd Delete_Not Delete_Invert; : TrueWithFalse FalseWithTrue AndWithOr OrWithAnd "
    "BreakWithContinue"
)
OTHERS = "core/AddNot core/ExceptionReplacer core/NumberReplacer core/RemoveDecorator core/ZeroIterationForLoop"
#: calls that return something like their last argument, methods and attributes that return something like their object
CALLS = {"project", "off", "_off", "partial"} | {
    f"{library}.{name}" for library in ("torch", "jnp") for name in ("where", "maximum", "minimum")
}
METHODS = {"conj", "abs", "real", "imag", "clone", "contiguous", "detach", "squeeze", "mH", "double", "cpu"}
#: the tests of jax/ by how long XLA compiles for them: seconds, a minute or two, longer
JAX = (
    "named or null_vector or identity or half or (precision and float32-svd) or diagonal or (tie and cg-True) or "
    "start or orthogonal"
    " or maxiter or rank_one or ritz or tol_names or unit_vectors",
    "not (derivatives_in_both_modes or (batch and lanczos))",
    "derivatives_in_both_modes or (batch and lanczos)",
)
#: file of svdgrad/ -> what pytest runs, the quickest and most telling first; "doctest": the examples of the file itself
TESTS = {
    "matrices.py": ["test_matrices", "test_adjoint", "doctest", "test_triplet"],
    "adjoint/krylov.py": ["test_adjoint", "test_operators", "test_triplet", "test_properties"],
    "adjoint/saddle.py": ["test_adjoint", "test_transforms -k autocast", "test_triplet", "test_properties"],
    "adjoint/columns.py": ["test_block", "test_topk"],
    "adjoint/": ["test_adjoint", "test_triplet", "test_properties"],
    "products.py": ["test_matrices", "test_adjoint", "test_triplet", "test_topk"],
    "operator/": ["test_operators", "test_parity", "test_parity_inputs"],
    "rule.py": ["test_triplet", "test_topk", "test_parity", "test_transforms"],
    "solve.py": ["test_topk", "test_parity", "test_transforms"],
    "inside.py": ["test_topk"],
    "triplets.py": ["test_topk", "doctest"],
    "phase.py": ["test_phase"],
    "auto.py": ["test_steps", "test_values", "test_topk"],
    "inputs.py": ["test_inputs", "test_parity_inputs", "test_topk"],
    "lab/checks.py": ["doctest", "test_checks"],
    "oracles.py": ["test_oracles"],
    "compiled.py": ["test_compile"],
    "triplet.py": ["test_triplet", "doctest", "test_transforms", "test_properties"],
    "operators.py": ["test_operators", "doctest"],
    "diagnosis.py": ["test_operators", "doctest"],
    "steps.py": ["test_steps", "test_triplet", "test_operators", "test_properties", "test_transforms"],
    "certificate.py": ["test_certificate"],
    "copies.py": ["test_ties"],
    "numerators.py": ["test_topk"],
    "gap.py": ["test_steps", "test_ties", "test_triplet", "test_operators"],
    "forward/block.py": ["test_block", "test_topk"],
    "forward/evidence.py": ["test_block"],
    "forward/": [
        "test_forward",
        "test_devices",
        "test_triplet",
        "test_properties",
        "test_operators",
        "test_transforms",
    ],
    "lab/contest.py": ["test_compare"],
    "lab/records.py": ["test_compare"],
    "lab/figures.py": ["test_figures"],
    "jax/": [f"test_jax -k '{names}'" for names in JAX],
}
LIMIT = 120  # seconds of processor time for one fault; more counts as killed, as a loop without end is noticed too
LIMITS = {"jax": 1200}  # XLA compiles for minutes


class Mutant(NamedTuple):
    file: str
    line: int
    operator: str
    code: str


def source(file: str) -> str:
    return (ROOT / "svdgrad" / file).read_text(encoding="utf-8")


def diff(mutant: Mutant) -> str:
    lines = difflib.unified_diff(source(mutant.file).splitlines(), mutant.code.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")


def left_out(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where no fault is planted: annotations, imports for type checkers, text."""
    nodes = [getattr(node, name, None) for node in ast.walk(ast.parse(code)) for name in ("annotation", "returns")]
    nodes += [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.JoinedStr) or "TYPE_CHECKING" in ast.unparse(getattr(node, "test", ast.Pass()))
    ]
    char = lambda line, byte: (line, len(code.split("\n")[line - 1].encode()[:byte].decode()))
    return [(char(n.lineno, n.col_offset), char(n.end_lineno, n.end_col_offset)) for n in nodes if n]


def own_faults(code: str):
    """(operator, start, end, new text): a call for its last argument, a method left out, a statement left out."""
    names = lambda tree: {leaf.value for leaf in ast_nodes(tree) if leaf.type == "name"}
    text = lambda parts: "".join(part.get_code(include_prefix=False) for part in parts)
    for node in ast_nodes(parso.parse(code)):
        parts = getattr(node, "children", [])
        for i in range(1, len(parts)) if node.type in ("atom_expr", "power") else ():
            word, start = text(parts[i : i + 1]), parts[i].start_pos
            if word[0] == "(" and text(parts[:i]) in CALLS and parts[i].children[1].type == "arglist":
                yield (
                    "CallToArgument",
                    parts[0].start_pos,
                    parts[i].end_pos,
                    f"({parts[i].children[1].children[-1].get_code()})",
                )
            if word[0] == "." and word[1:] in METHODS and text(parts[:i]) != "jnp":  # a module, not an object
                yield "DropMethod", start, parts[i + (text(parts[i + 1 : i + 2]) == "()")].end_pos, ""
        if (
            node.type == "expr_stmt"
            and parts[1].type == "operator"
            and (parts[1].value != "=" or names(parts[0]) <= names(parts[-1]))
        ):
            yield "DropStatement", node.start_pos, node.end_pos, "pass"
        if node.type == "simple_stmt" and parts[0].type in ("atom_expr", "raise_stmt"):
            yield "DropStatement", parts[0].start_pos, parts[0].end_pos, "pass"


def mutants(file: str, seed: int = 0) -> list[Mutant]:
    """In an order of chance, so that a larger sample holds the smaller."""
    code, groups = source(file), [group.split(":") for group in OPERATORS.split(";")]
    names = [f"core/Replace{start.strip()}{end}" for start, ends in groups for end in ends.split()] + OTHERS.split()
    tree, forbidden, found = parso.parse(code), left_out(code), []
    wanted = lambda start, end: not any(a <= start and end <= b for a, b in forbidden)
    for name in names:
        operator = cosmic_ray.plugins.get_operator(name)()
        for i, (start, end) in enumerate(
            place for node in ast_nodes(tree) for place in operator.mutation_positions(node)
        ):
            if wanted(start, end):
                with suppress(AttributeError):  # ExceptionReplacer does not know a dotted name in a tuple
                    found.append(Mutant(file, start[0], name.removeprefix("core/"), mutate_code(code, operator, i)))
    offset = lambda place: sum(len(x) + 1 for x in code.split("\n")[: place[0] - 1]) + place[1]
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


def verdict(folder: Path, file: str) -> str:
    """Which test notices what is wrong with ``file`` in ``folder``; runs in a process of its own."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, 2 * (LIMITS.get(file.split("/")[0], LIMIT),))
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    how = "-x -q --tb=no -o addopts= -p no:cacheprovider -p no:nbval -W ignore::pytest.PytestAssertRewriteWarning"
    for test in tests_of(file):
        what = (
            f"--doctest-modules svdgrad/{file}"
            if test == "doctest"
            else f"tests/{test.replace(' ', '.py ', 1) if ' ' in test else test + '.py'}"
        )
        if pytest.main([*how.split(), "-k", "not two_million and not convolution", *shlex.split(what)]) not in (
            0,
            5,
        ):  # 5: no tests there
            return f"killed by {test}"
    return "survived"


def attempt(folder: Path, file: str, code: str) -> str:
    """Plant the fault, run the tests, take it out again."""
    (folder / "svdgrad" / file).write_text(code, encoding="utf-8")
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(write, verdict(folder, file).encode())
        except BaseException as error:  # the child must not go on as a second parent
            os.write(write, f"no verdict: {error!r}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read() or "killed: no end, or a crash"
    os.waitpid(child, 0)
    assert not answer.startswith("no verdict"), f"{file}: {answer}"
    (folder / "svdgrad" / file).write_text(source(file), encoding="utf-8")
    return answer


def prepare(folder: Path) -> Path:
    """A copy of the package, its tests and the book they read; and what they import, once, before the first fork."""
    sys.dont_write_bytecode = True
    os.environ.update(OMP_NUM_THREADS="1", HYPOTHESIS_PROFILE="brief")
    # what XLA has compiled for the package as it stands serves every fault that leaves it as it is
    os.environ.update(JAX_COMPILATION_CACHE_DIR=str(folder / "xla"), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    import flint  # noqa: F401, E401

    for part in ("svdgrad", "tests", "book", "conftest.py", "pyproject.toml"):
        copy = (
            partial(shutil.copytree, ignore=shutil.ignore_patterns("_build", "__pycache__"))
            if (ROOT / part).is_dir()
            else shutil.copy
        )
        copy(ROOT / part, folder / part)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "files",
        nargs="*",
        help="of svdgrad/, such as triplet.py or adjoint/schur.py; without any, all that have tests here",
    )
    parser.add_argument("--sample", type=int, help="so many of each file, drawn at random; without it, all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    every = (str(path.relative_to(ROOT / "svdgrad")) for path in sorted(ROOT.glob("svdgrad/**/*.py")))
    survivors, total = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(Path(name))
        for file in options.files or [file for file in every if tests_of(file)]:
            assert (answer := attempt(folder, file, source(file))) == "survived", f"{file} as it stands: {answer}"
            drawn = sorted((all_ := mutants(file, options.seed))[: options.sample])
            left = [mutant for mutant in drawn if attempt(folder, file, mutant.code) == "survived"]
            print(f"{file}: {len(drawn) - len(left)} of {len(drawn)} killed, {len(all_)} in all", flush=True)
            survivors, total = survivors + left, total + len(drawn)
    for mutant in survivors:
        print(f"\nsvdgrad/{mutant.file}:{mutant.line} {mutant.operator}\n{diff(mutant)}")
    print(f"\n{total - len(survivors)} of {total} killed, {100 - 100 * len(survivors) / max(total, 1):.1f} %")


if __name__ == "__main__":
    main()
