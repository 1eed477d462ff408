"""The explorer, driven in Chromium: what it draws is what svdgrad computes.

Everything is read from the page as a reader sees it: the place of a point on its axis, the text of a cell, and beside
it the same number to all digits.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import slow_but
from test_site import THEMES, WIDTHS, look

import svdgrad
from svdgrad import matrices, oracles
from svdgrad.adjoint import ATTEMPTS, SOLVERS, assemble
from svdgrad.forward import Triplet
from svdgrad.lab import relative_error
from svdgrad.matrices import MATRICES, predicted_singular_values, project

ROOT = Path(__file__).resolve().parent.parent
SPECIFICATION = importlib.util.spec_from_file_location("explorer_build", ROOT / "explorer" / "explorer_build.py")
explorer_build = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(explorer_build)

PAGE = """<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>The explorer</title>
<style>
body {{ margin: 0; font-family: sans-serif; color: #222832; background: #fff; }}
html[data-theme="dark"] body {{ color: #ced6dd; background: #14181e; }}
html[data-theme="dark"] {{ --pst-color-surface: #29313d; --pst-color-text-muted: #9ca4af; }}
</style>
<link rel="stylesheet" href="{bundle}/explorer.css"><script defer src="{bundle}/explorer.js"></script>
</head>
<body><article class="bd-content">
<h1>The explorer</h1>
<div class="explorer" id="explorer-spectrum-figure"></div>
<div class="explorer" id="explorer-ellipse-figure"></div>
<p class="explorer-still">A still picture.</p>
</article></body>
</html>"""


@pytest.fixture(scope="session")
def bundle() -> Path:
    try:
        return explorer_build.bundle()
    except explorer_build.Unavailable as reason:
        missing = f"the explorer cannot be bundled here: {reason}"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


@pytest.fixture(scope="session")
def path(bundle, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    path.write_text(PAGE.format(bundle=bundle.as_uri()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def window(browser):
    """An empty page, and what goes wrong in it. All of the network is refused."""
    faults = []
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.route(re.compile("^(?!file:)"), lambda route: (faults.append(route.request.url), route.abort()))
    page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield page, faults
    page.close()


@pytest.fixture
def page(window, path):
    """The explorer at its first position, from a file."""
    page, faults = window
    faults.clear()
    page.goto(path.as_uri())
    yield page
    assert faults == []


# --- what is drawn
# --------------------------------------------------------------------------------------------------------


def move(page, precision=None, moving=None, **sliders) -> None:
    """Put sliders to places on their scales, which are powers of ten for all but the tail and the entries."""
    for name, place in sliders.items():
        page.locator(f"#explorer-{name}").fill(f"{place:g}")
    for group, value in (("precision", precision), ("moving", moving)):
        if value:
            page.locator(f"input[name=explorer-{group}][value='{value}']").check()


RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def shown(text: str) -> float:
    """The number that a text such as 2.41·10⁵, −0.5, 10⁻⁸ or ∞ stands for."""
    if text in ("∞", "none"):
        return math.inf if text == "∞" else math.nan
    factor, power = re.fullmatch(r"(?:([−.\d]+?)(?:·|$))?(?:10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?", text.strip()).groups()
    return float((factor or "1").replace("−", "-") + "e" + (power or "0").translate(RAISED))


def cells(locator, digits: int) -> list[float]:
    """The numbers of table cells, to all digits; what the cells say must be the same to ``digits`` of them."""
    values = []
    for text, value in locator.evaluate_all("cells => cells.map(cell => [cell.textContent, cell.dataset.value])"):
        value = float(value)
        assert shown(text) == pytest.approx(value, rel=0.6 * 10 ** (1 - digits), nan_ok=True), (text, value)
        values.append(value)
    return values


def matrix(page, name: str) -> np.ndarray:
    rows = page.locator(f".explorer-matrix[data-name='{name}'] tr").all()
    return np.array([cells(row.locator("td"), 4) for row in rows])


ROWS = """
table => [...table.querySelectorAll('tbody tr')].map(row => ({
  name: row.dataset.name,
  points: [...row.querySelectorAll('circle')].map(point => {
    const box = point.getBoundingClientRect();
    return [Number(point.dataset.value), (box.left + box.right) / 2];
  }),
}))
"""
TICKS = """
table => [...table.querySelectorAll('[data-tick]')].map(tick => {
  const box = tick.getBoundingClientRect();
  return [Number(tick.dataset.tick), (box.left + box.right) / 2, tick.textContent];
})
"""


def drawn(page, table: str) -> dict[str, list[float]]:
    """The numbers of the points in each row of a figure. Each must lie where the axis has it, to a pixel."""
    table = page.locator(f"#explorer-{table}")
    ticks = {value: x for value, x, text in table.evaluate(TICKS) if shown(text) == pytest.approx(value)}
    decades = sorted((math.log10(value), x) for value, x in ticks.items() if value)
    (low, left), (high, right) = decades[0], decades[-1]
    found = {}
    for row in table.evaluate(ROWS):
        values = [value for value, _ in row["points"]]
        unit = max(values) if 0.0 in ticks else 1.0  # with a place for zero, the axis is relative to the largest
        for value, x in row["points"]:
            place = left + (math.log10(value / unit) - low) / (high - low) * (right - left) if value else ticks[0.0]
            assert x == pytest.approx(place, abs=1), (row["name"], value)
        found[row["name"]] = sorted(values, reverse=True)
    return found


def last_column(page, table: str, digits: int) -> dict[str, float]:
    rows = page.locator(f"#explorer-{table} tbody tr")
    names = rows.evaluate_all("rows => rows.map(row => row.dataset.name)")
    return dict(zip(names, cells(rows.locator("td:last-child"), digits)))


def problem(page) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, ξ, φ and ψ, as the page shows them."""
    return tuple(
        torch.from_numpy(x) for x in (matrix(page, "A"), *(matrix(page, name).squeeze(0) for name in ("ξ", "φ", "ψ")))
    )


def setting(page, name: str) -> float:
    return float(page.locator(f"label[for=explorer-{name}] ~ output").get_attribute("data-value"))


# --- the first figure
# -----------------------------------------------------------------------------------------------------

SETTINGS = {
    "the start": {},
    "a small gap": {"gap": -5},
    "a wide gap": {"gap": -0.2, "tail": 0.2},
    "a repeated tail": {"gap": -2, "tail": 1},
    "rank two": {"tail": 0},
    "a small border": {"scale": 2, "beta": -2},
    "a large border": {"scale": -2, "beta": 2},
    "a border in units": {"scale": 1, "beta": 1, "gap": -3},
}
everywhere = pytest.mark.parametrize("sliders", SETTINGS.values(), ids=SETTINGS)


@everywhere
@pytest.mark.parametrize("precision", slow_but([("float64",)], [("float64",), ("float32",)]))
def test_spectra_and_condition_numbers(page, sliders, precision):
    """Against the closed forms, to 1e-6: rounding moves the smallest value of κ = 4e8 by 1e-7 of itself."""
    move(page, precision, **sliders)
    A, *_ = problem(page)
    assert precision == "float64" or torch.equal(A, A.float().double())
    spectra, kappas = drawn(page, "spectra"), last_column(page, "spectra", 3)
    assert list(spectra) == list(kappas) == list(MATRICES)
    S = torch.linalg.svdvals(A)
    for name in MATRICES:
        expected = predicted_singular_values(name, S, *A.shape, beta=setting(page, "beta")).numpy()
        assert spectra[name] == pytest.approx(expected, rel=1e-6, abs=0), name
        least = expected.min()
        assert kappas[name] == (pytest.approx(expected.max() / least, rel=1e-6) if least else math.inf), name


def test_sliders_describe_the_matrix(page):
    move(page, gap=-2, tail=0.3, scale=1)
    A, *_ = problem(page)
    expected = 10 * np.array([1, 0.99, 0.99 * 0.3, 0.99 * 0.09])
    assert torch.linalg.svdvals(A).numpy() == pytest.approx(expected, rel=1e-13)
    assert (setting(page, "gap"), setting(page, "tail"), setting(page, "scale")) == pytest.approx((0.01, 0.3, 10))


@everywhere
@pytest.mark.parametrize("way", ["saddle", "spectral"])
def test_gradients(page, sliders, way):
    move(page, **sliders)
    A, xi, phi, psi = problem(page)
    X = A.clone().requires_grad_()
    sigma, u, v = svdgrad.singular_triplet(X, adjoint=way)
    (xi * sigma + phi @ u + psi @ v).sum().backward()
    gap = setting(page, "gap")
    below = max(1e-10, 50 * np.finfo(float).eps / gap)  # the book's bound (eq-error-bound), which two answers share
    assert relative_error(matrix(page, f"G by {way}"), X.grad) < below


def neighbours(A: torch.Tensor, dtype: torch.dtype, count: int = 40):
    """A itself, and matrices that rounding could have made of it."""
    yield A.to(dtype)
    for seed in range(count):
        turn = 1 + torch.finfo(dtype).eps * torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, A.shape))
        yield (A * turn).to(dtype)


def bordered_attempt(A, triplet, phi, psi, beta):
    """The attempt with another weight than one."""
    B = matrices.bordered(A, *triplet, beta)
    x = torch.linalg.lstsq(B.mT, torch.cat([phi, psi])[:, None], driver="gels").solution[:, 0]
    return project(triplet.u, x[: len(phi)]), project(triplet.v, x[len(phi) : -2])


def errors_nearby(page, precision: str) -> dict[str, list[float]]:
    """The errors of svdgrad's attempts and solvers, for the page's matrix and its neighbours; NaN where one refuses."""
    dtype = getattr(torch, precision)
    A, xi, phi, psi = problem(page)
    beta = setting(page, "beta")
    xi, phi, psi = (x.to(dtype) for x in (xi[0], phi, psi))
    ways = {
        **ATTEMPTS,
        "bordered": lambda *problem: bordered_attempt(*problem, beta),
        **{name: SOLVERS[name] for name in ("saddle", "spectral")},
    }
    found = {name: [] for name in ways}
    for B in neighbours(A, dtype):
        triplet = Triplet(*(x.to(dtype) for x in svdgrad.singular_triplet(B.double())))
        truth = oracles.extended(B, xi, phi, psi, triplet.v)
        for name, solve in ways.items():
            try:
                error = relative_error(assemble(triplet, xi, *solve(B, triplet, phi, psi)), truth)
            except torch.linalg.LinAlgError:
                error = math.nan
            found[name].append(error)
    return found


@pytest.mark.parametrize("precision", slow_but([("float64",)], [("float64",), ("float32",)]))
@pytest.mark.parametrize("where", [name for name in SETTINGS if name != "rank two"])
def test_errors_by_decade(page, where, precision):
    """An error is a matter of rounding, which is another in each program: the page's lies within a decade of those that
    svdgrad makes with the same matrix and with its neighbours. What solves with a singular matrix may have no answer.
    """
    move(page, precision, **SETTINGS[where])
    errors, points = last_column(page, "errors", 1), drawn(page, "errors")
    expected = errors_nearby(page, precision)
    assert list(errors) == list(points) == list(expected)
    for name, nearby in expected.items():
        if math.isnan(errors[name]):
            assert name in ("direct", "block-inversion", "mixed") and points[name] == []
            continue
        assert points[name] == [errors[name]]
        least, most = np.nanmin(nearby), np.nanmax(nearby)
        assert least / 10 <= errors[name] <= most * 10, (name, errors[name], least, most)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("where", ["the start", "a small gap", "a large border"])
def test_errors_are_measured_against_enough_digits(page, where, precision):
    """The error that is shown is that of the gradient that is shown, against forty digits."""
    move(page, precision, **SETTINGS[where])
    A, xi, phi, psi = problem(page)
    truth = oracles.extended(A, xi[0], phi, psi, svdgrad.singular_triplet(A).v)
    errors = last_column(page, "errors", 1)
    for name in ("saddle", "spectral"):
        found = matrix(page, f"G by {name}")
        assert precision == "float64" or np.array_equal(found, found.astype(np.float32))
        # the truth is rounded to float64, here and there
        assert errors[name] == pytest.approx(relative_error(found, truth), rel=1e-3, abs=1e-16), name


ARITHMETIC = """
import { doubled, float32 } from "ARITHMETIC";
const pairs = JSON.parse(process.argv[1]);
const results = (R, [a, b]) => [R.add(a, b), R.sub(a, b), R.mul(a, b), R.div(a, b), R.sqrt(R.mul(a, a)), R.sqrt(b)];
const numbers = pairs.map((pair) => results(float32, pair.map(Math.fround)));
const sums = pairs.map(([a, b]) => results(doubled, [[a, a * 2 ** -55], [b, b * 2 ** -56]]));
console.log(JSON.stringify([numbers, sums]));
"""


def test_arithmetic(bundle):
    """float32 is NumPy's, operation by operation; the doubled one has thirty digits, by exact fractions."""
    pairs = np.random.default_rng(0).uniform(0.5, 2, (200, 2)) * 10.0 ** np.random.default_rng(1).integers(
        -4, 5, (200, 2)
    )
    script = ARITHMETIC.replace("ARITHMETIC", (ROOT / "explorer" / "src" / "arithmetic.js").as_uri())
    node = [*explorer_build.command("node"), "--input-type=module", "-e", script]
    done = subprocess.run([*node, json.dumps(pairs.tolist())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers, sums = json.loads(done.stdout)
    a, b = pairs.astype(np.float32).T
    expected = np.array([a + b, a - b, a * b, a / b, np.sqrt(a * a), np.sqrt(b)])
    assert expected.dtype == np.float32 and np.array_equal(np.array(numbers).T, expected)
    for (a, b), found in zip(pairs.tolist(), sums):
        x, y = Fraction(a) + Fraction(a * 2**-55), Fraction(b) + Fraction(b * 2**-56)
        *found, root = (Fraction(high) + Fraction(low) for high, low in found)
        few = Fraction(2) ** -99  # a few roundings to 2·53 bits; a difference is as exact as its terms
        for value, exact, size in zip(found, (x + y, x - y, x * y, x / y, x), (x + y, x + y, x * y, x / y, x)):
            assert abs(value - exact) <= few * size
        assert abs(root**2 - y) <= few * y


# --- what the page promises
# -----------------------------------------------------------------------------------------------


def test_closing_the_gap(page):
    kappas, errors = last_column(page, "spectra", 3), last_column(page, "errors", 1)
    for name in ("bordered", "saddle", "spectral"):
        assert 1e-16 < errors[name] < 1e-14
    move(page, gap=-5)
    closed, worse = last_column(page, "spectra", 3), last_column(page, "errors", 1)
    for name in ("bordered", "saddle", "deflated", "middle"):
        assert 0.99e5 < closed[name] < 3e5
    for name in ("stack", "notebook-stack"):
        assert f"{kappas[name]:.2f}" == f"{closed[name]:.2f}" == "1.41"
    for name in ("bordered", "saddle", "spectral"):
        assert 1e-11 < worse[name] < 1e-9
    move(page, tail=1)
    repeated = last_column(page, "errors", 1)
    for name in ("bordered", "saddle", "spectral"):
        assert repeated[name] < 4 * worse[name]


def test_changing_the_unit(page):
    def now():
        return last_column(page, "spectra", 3), last_column(page, "errors", 1)

    start, errors = now()
    large = {"saddle": "4·10⁴", "bordered": "200", "deflated": "20"}
    assert [f"{start[name]:.3g}" for name in large] == ["24.1", "22.4", "20"]
    move(page, scale=2)
    kappas, same = now()
    assert kappas == pytest.approx({**kappas, **{name: shown(text) for name, text in large.items()}}, rel=5e-3)
    for name in ("bordered", "saddle", "spectral"):
        assert same[name] < 4 * errors[name]
    move(page, scale=-2, beta=2)
    _, worse = now()
    assert worse["bordered"] > 100 * errors["bordered"]
    move(page, beta=-2)
    kappas, errors_in_units = now()
    assert kappas["saddle"] == pytest.approx(start["saddle"]) and errors_in_units["bordered"] < 4 * errors["bordered"]


def test_changing_the_precision(page):
    double = last_column(page, "errors", 1)
    move(page, "float32")
    single = last_column(page, "errors", 1)
    for name in ("bordered", "saddle", "spectral"):
        assert 1e-8 < single[name] < 1e-5
    for name in ("backward-substitution", "forward-substitution"):
        assert single[name] == pytest.approx(double[name], rel=1e-4)
        assert f"{double[name]:.0f}" == "2"
    for name in ("direct", "block-inversion"):
        assert single[name] > 0.1 and double[name] > 0.1


# --- the second figure
# ----------------------------------------------------------------------------------------------------


def of_the_ellipse(page) -> tuple[torch.Tensor, dict[str, list[float]]]:
    entries = [float(page.locator(f"#explorer-a{entry}").input_value()) for entry in ("11", "12", "21", "22")]
    rows = page.locator("#explorer-triplet tr")
    names = rows.evaluate_all("rows => rows.map(row => row.dataset.name)")
    numbers = {name: cells(row.locator("td"), 4) for name, row in zip(names, rows.all())}
    return torch.tensor(entries, dtype=torch.float64).reshape(2, 2), numbers


def arrow(page, drawing: str, name: str) -> np.ndarray:
    """The step of an arrow, as it is drawn."""
    line = page.locator(f"#explorer-{drawing} line[data-name=explorer-{name}]")
    x1, y1, x2, y2 = (float(line.get_attribute(key)) for key in ("x1", "y1", "x2", "y2"))
    return np.array([x2 - x1, y1 - y2])


def check_ellipse(page, moving: str) -> None:
    A, numbers = of_the_ellipse(page)
    dA = torch.zeros(2, 2, dtype=torch.float64)
    dA[int(moving[0]) - 1, int(moving[1]) - 1] = 1
    (_, u, v), (dsigma, du, dv) = torch.func.jvp(svdgrad.singular_triplet, (A,), (dA,))
    expected = {"σ₁, σ₂": torch.linalg.svdvals(A), "u": u, "v": v, "du": du, "dv": dv, "dσ": dsigma[None]}
    assert list(numbers) == list(expected)
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value.numpy(), rel=1e-10, abs=1e-12), name
    for drawing, name, vector in (
        ("circle", "v", v),
        ("circle", "dv", dv),
        ("ellipse", "u", u),
        ("ellipse", "du", du),
    ):
        length = vector.norm().clamp_max(1.4)  # a longer arrow is cut
        if length > 1e-9:
            assert arrow(page, drawing, name) == pytest.approx((length * vector / vector.norm()).numpy(), abs=1e-9)


@pytest.mark.parametrize("moving", ["11", "12", "21", "22"])
def test_the_ellipse(page, moving):
    move(page, moving=moving)
    check_ellipse(page, moving)
    move(page, a11=-1.3, a12=1.25, a21=0.4, a22=-1.9)
    check_ellipse(page, moving)


def test_dragging_a_column(page):
    handle = page.locator("#explorer-ellipse [data-column='2']")
    handle.scroll_into_view_if_needed()
    box, picture = handle.bounding_box(), page.locator("#explorer-ellipse").bounding_box()
    before, _ = of_the_ellipse(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] - 20)
    page.mouse.up()
    page.mouse.move(box["x"] - 200, box["y"] + 200)  # let go: nothing follows any more
    after, _ = of_the_ellipse(page)
    unit = 5.2 / picture["width"]
    step = (after - before)[:, 1].numpy()
    assert step == pytest.approx([(60 - box["width"] / 2) * unit, (20 + box["height"] / 2) * unit], abs=0.02)
    assert torch.equal(before[:, 0], after[:, 0])
    check_ellipse(page, "21")


def test_a_rounder_ellipse(page):
    move(page, a11=1.01, a12=0, a21=0, a22=1)
    status = page.locator("#explorer-ellipse-figure [role=status]")
    assert "u turns at the rate 50.2" in status.inner_text()
    check_ellipse(page, "21")
    move(page, a11=1)
    assert "not determined" in status.inner_text()
    assert page.locator("[data-name=explorer-du]").count() == 0


# --- for everybody
# --------------------------------------------------------------------------------------------------------


def test_by_keyboard_alone(page):
    """Tab reaches each control, arrows move it, and what changed is announced."""
    status = page.locator("#explorer-spectrum-figure [role=status]")
    before = status.inner_text()
    page.keyboard.press("Tab")
    focused = "document.activeElement.labels[0].textContent.trim().replace(/\\s+/g, ' ')"
    assert page.evaluate(focused) == "relative gap 1 − σ₂/σ₁"
    page.keyboard.press("ArrowLeft")
    assert setting(page, "gap") == pytest.approx(10**-1.1)
    assert status.inner_text() != before
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        order.append(page.evaluate(focused))
    assert order == ["tail σ₃/σ₂ = σ₄/σ₃", "border weight β", "scale of A σ₁", "float64"]
    page.keyboard.press("ArrowRight")
    assert "float32" in status.inner_text()
    page.get_by_role("button", name="back to the start").first.click()
    page.wait_for_function("!document.querySelector('[role=status]').textContent.includes('float32')")
    assert status.inner_text() == before


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_serious(page, theme):
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    page.add_script_tag(path=explorer_build.packages() / "axe-core/axe.min.js")
    page.locator("summary").click()
    found = page.evaluate("async () => (await axe.run('article', {preload: false})).violations")
    serious = [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


@pytest.mark.parametrize("size", WIDTHS)
def test_it_fits_and_can_be_read(browser, path, size):
    assert look(browser, path, size) == []


# --- in the book
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def book_page(bundle, tmp_path_factory) -> Path:
    """The page of the explorer in a book that has no other."""
    import yaml

    folder = tmp_path_factory.mktemp("book")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["execute"]["execute_notebooks"] = "off"
    extensions = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = {name: str(ROOT / path) for name, path in extensions.items()}
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "_toc.yml").write_text(json.dumps({"format": "jb-book", "root": "book/explorer"}), encoding="utf-8")
    options = ["--config", folder / "_config.yml", "--toc", folder / "_toc.yml", "--path-output", folder]
    build = subprocess.run(
        [Path(sys.executable).with_name("jupyter-book"), "build", *options, ROOT],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    return folder / "_build" / "html" / "book" / "explorer.html"


def visible(page) -> dict[str, list[bool]]:
    return {
        name: [element.is_visible() for element in page.locator(f".{name}").all()]
        for name in ("explorer form", "explorer-still img")
    }


def test_with_scripts_it_runs_and_on_paper_it_is_still(browser, book_page):
    page = browser.new_page()
    page.goto(book_page.as_uri())
    assert visible(page) == {"explorer form": [True, True], "explorer-still img": [False, False]}
    page.emulate_media(media="print")
    assert visible(page) == {"explorer form": [False, False], "explorer-still img": [True, True]}
    page.close()


def test_without_scripts_a_still_picture_stands_in_its_place(browser, book_page):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(book_page.as_uri())
    assert visible(page) == {"explorer form": [], "explorer-still img": [True, True]}
    assert not any(box.is_visible() for box in page.locator(".explorer").all())
    context.close()


def test_the_still_pictures_say_what_svdgrad_computes():
    """As text and not as curves: rounding differs from machine to machine."""
    text = (ROOT / "explorer" / "spectrum.svg").read_text(encoding="utf-8")
    S = torch.tensor([1.0, 0.9, 0.45, 0.225], dtype=torch.float64)
    for name in MATRICES:
        kappa = matrices.kappa(predicted_singular_values(name, S, 5, 4))
        assert f">{name}<" in text and f">{kappa:.3g}<".replace(">inf<", ">∞<") in text


# --- the build
# ------------------------------------------------------------------------------------------------------------


def test_the_lock_file_names_no_registry():
    lock = json.loads((ROOT / "explorer" / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all(package["integrity"] for package in packages.values())
    assert {name for name, package in packages.items() if "resolved" in package} == set()
    assert {name for name, package in packages.items() if package.get("license") not in ("MIT", "MPL-2.0")} == set()


class Config:
    def __init__(self):
        self.html_static_path = ["book/_static"]


def without_npm(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")


def without_network(monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        (without_npm, "npm was not found"),
        pytest.param(without_network, "npm failed: code E", marks=pytest.mark.slow),  # npm tries for ten seconds
    ],
)
def test_where_npm_cannot_be_had_the_build_says_so(monkeypatch, tmp_path, caplog, bundle, without, reason):
    """In one line, which is no warning: warnings are errors."""
    import sphinx.util.logging  # noqa: F401  (while modules can still be found)

    monkeypatch.setattr(explorer_build, "KEPT", tmp_path / "kept")
    without(monkeypatch)
    config = Config()
    with caplog.at_level("INFO"):
        explorer_build.add_bundle(None, config)
    assert config.html_static_path == ["book/_static"]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "still pictures" in caplog.text and reason in caplog.text
