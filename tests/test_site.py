"""The rendered book, looked at as a reader would: in a browser, wide and narrow, light and dark, from files alone.

The pages are built from the notebooks' stored outputs, so this takes seconds, not an execution of the book. What was
seen is left as pictures in _build/looks.
"""

import doctest
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from marks import slow_but

import svdgrad
import svdgrad.jax

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "explorer")]
import equation_checks  # noqa: E402
import explorer_build  # noqa: E402
import front_page  # noqa: E402

LOOKS = ROOT / "_build" / "looks"
WIDTHS = {"wide": 1280 - 15, "phone": 390}  # a screen of 1280 pixels, less what a scroll bar takes
THEMES = ("light", "dark")
LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA, for text of normal size


def html_files(site: Path) -> list[Path]:
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def chapters(site: Path) -> list[Path]:
    """The pages a person reads: the book's own and the search."""
    return sorted((site / "book").glob("*.html")) + [site / "search.html"]


@cache
def parsed(page: Path) -> BeautifulSoup:
    """The page, once for all tests, none of which changes it; half a second for a chapter."""
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


# --- the files
# ---------------------------------------------------------------------------------------------------------

LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
REMOTE = re.compile(r"^(https?:)?//", re.I)


def remote_assets(site: Path) -> list[str]:
    """What pages and style sheets would fetch from the network. A link that a reader may click is not fetched."""
    found = []
    for page in html_files(site):
        soup = parsed(page)
        urls = [tag.get(key, "") for name, key in LOADED.items() for tag in soup.find_all(name)]
        urls += [
            tag.get("href", "") for tag in soup.find_all("link") if set(tag.get("rel", [])) - {"canonical", "license"}
        ]
        urls += [
            part.split()[0] for tag in soup.find_all(srcset=True) for part in tag["srcset"].split(",") if part.split()
        ]
        for style in soup.find_all("style"):
            urls += css_urls(style.string or "")
        # an address that a script of the page would load later, as sphinx-thebe does
        urls += [u for s in soup.find_all("script") for u in re.findall(r"https?://[^\s\"'`]+\.js", s.string or "")]
        found += [f"{page.relative_to(site)}: {url}" for url in urls if REMOTE.match(url.strip())]
    for sheet in site.rglob("*.css"):
        urls = css_urls(sheet.read_text(encoding="utf-8", errors="replace"))
        found += [f"{sheet.relative_to(site)}: {url}" for url in urls if REMOTE.match(url)]
    return found


def css_urls(css: str) -> list[str]:
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    return re.findall(r"url\(\s*[\"']?([^\"')]+)", css) + re.findall(r"@import\s+[\"']([^\"']+)", css)


def broken_links(site: Path) -> list[str]:
    """Links to a page, or to a place on a page, that is not there."""
    soups = {page: parsed(page) for page in html_files(site)}
    places = {page: {t.get("id") for t in soup.find_all(id=True)} for page, soup in soups.items()}
    found = []
    for page, soup in soups.items():
        for tag in soup.find_all(["a", "link", "img", "script"]):
            url = urlsplit(tag.get("href") or tag.get("src") or "")
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            fragment = unquote(url.fragment)
            if not target.exists():
                found.append(f"{page.relative_to(site)}: no file {url.path}")
            elif fragment and target in places and fragment not in places[target]:
                found.append(f"{page.relative_to(site)}: no place #{fragment} in {target.name}")
    return found


def undescribed_images(site: Path) -> list[str]:
    """Images in a chapter whose alt text is missing, or is only the name of their file (Sphinx's default)."""
    found = []
    for page in html_files(site):
        soup = parsed(page)
        for image in soup.find_all("img"):
            alt = image.get("alt", "")
            if not alt.strip() or re.search(r"\.(png|jpe?g|svg|gif)$", alt):
                found.append(f"{page.relative_to(site)}: {image.get('src')} has alt {alt!r}")
    return found


def solutions_with_other_folds(site: Path) -> list[str]:
    """Solutions that take more than one click: one that holds a fold, and a hidden cell that is outside of its box."""
    found = []
    for page in html_files(site):
        soup = parsed(page)
        for box in soup.select("div.solution"):
            if "dropdown" not in box["class"] or box.find("details"):
                found.append(f"{page.relative_to(site)}: {box.get_text()[:60]!r} should be the only fold of a solution")
        outside = [cell for cell in soup.select("div.tag_hide-cell") if not cell.find_parent("div", class_="solution")]
        found += [f"{page.relative_to(site)}: {cell.get_text()[:60]!r} is in no solution" for cell in outside]
    return found


def punctuation_apart_from_formulas(site: Path) -> list[str]:
    """Formulas beside which a line could break before a comma, or after a parenthesis."""
    found = []
    for page in html_files(site):
        for formula in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select("span.math"):
            before, after = (str(text or "") for text in (formula.previous_sibling, formula.next_sibling))
            apart = re.search(r"\($", before) or re.match(r"[.,;:)]", after)
            if apart and "unbroken" not in formula.parent.get("class", ()):
                found.append(f"{page.relative_to(site)}: {formula.get_text()}{after[:20]!r}")
    return found


def test_nothing_comes_from_the_network(site):
    assert remote_assets(site) == []


def test_links_lead_somewhere(site):
    assert broken_links(site) == []


def test_images_are_described(site):
    assert undescribed_images(site) == []


def test_a_solution_is_one_fold(site):
    assert solutions_with_other_folds(site) == []


def test_punctuation_stays_with_its_formula(site):
    assert punctuation_apart_from_formulas(site) == []


PLANTED = {
    "script": '<script src="https://example.org/a.js"></script>',
    "any scheme": '<link rel="stylesheet" href="//example.org/a.css">',
    "font": "<style>@font-face { src: url(https://example.org/a.woff2); }</style>",
    "import": '<style>@import "https://example.org/a.css";</style>',
    "image": '<img alt="A picture of something" src="https://example.org/a.png">',
    "later": '<script>const THEBE = "https://example.org/thebe/index.js"</script>',
}


@pytest.mark.parametrize("html", PLANTED.values(), ids=PLANTED)
def test_a_planted_remote_asset_is_found(tmp_path, html):
    (tmp_path / "page.html").write_text(f"<p>text</p>{html}", encoding="utf-8")
    assert len(remote_assets(tmp_path)) == 1


@pytest.mark.parametrize(
    ("faults", "html"),
    [
        (0, '<div class="solution dropdown"><p>why</p><div class="cell tag_hide-cell">code</div></div>'),
        (1, '<div class="solution dropdown"><div class="cell"><details>code</details></div></div>'),
        (1, '<div class="solution">why</div>'),
        (1, '<div class="solution dropdown">why</div><div class="cell tag_hide-cell"><details>code</details></div>'),
    ],
)
def test_planted_folds_are_found(tmp_path, faults, html):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    assert len(solutions_with_other_folds(tmp_path)) == faults


@pytest.mark.parametrize(
    ("faults", "html"),
    [
        (0, '<p>for <span class="unbroken">(<span class="math">x</span>)</span> and <span class="math">y</span> in'),
        (1, '<p>for <span class="math">x</span>, and'),
        (1, '<p>for (<span class="math">x</span> and so on)'),
    ],
)
def test_planted_punctuation_is_found(tmp_path, faults, html):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    assert len(punctuation_apart_from_formulas(tmp_path)) == faults


def test_planted_links_and_images_are_found(tmp_path):
    html = '<a href="no.html">1</a> <a href="#no">2</a> <img src="p.png" alt="p.png"> <img src="p.png">'
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    (tmp_path / "p.png").touch()
    assert len(broken_links(tmp_path)) == 2
    assert len(undescribed_images(tmp_path)) == 2


# --- the front page
# ----------------------------------------------------------------------------------------------------


def test_the_front_page_lists_every_page_of_the_book(site):
    soup = parsed(site / "book" / "intro.html")
    entries = {term.a["href"]: term for term in soup.select(".book-chapters dt")}
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    names = [Path(page["file"]).name for part in toc["parts"] for page in part["chapters"]]
    assert [Path(urlsplit(href).path).stem for href in entries] == names
    for term in entries.values():
        if re.match(r"\d", term.get_text()):
            assert re.search(r"\d\s(min|h)$", term.get_text())
            assert re.fullmatch(r"(?s).{40,}\n+Needs: .{10,}", term.find_next_sibling("dd").get_text().strip())
        assert len(term.find_next_sibling("dd").get_text()) > 40
        assert not term.find_next_sibling("dd").select("a[href*='#term-']")
    assert sum(term.get_text()[0].isdigit() for term in entries.values()) == sum(
        len(part["chapters"]) for part in toc["parts"] if part.get("numbered")
    )
    assert "A letter of the first table" in soup.select_one(".book-chapters").get_text()


def test_the_examples_of_the_extensions_are_right():
    for module in (front_page, equation_checks):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed, module


NOTEBOOK = """(ch-example)=
# An example

**What you will do.**
Count
{term}`words <word>`.

**What you need.**
Fingers."""


def example(*texts: str, cells: int = 0) -> nbformat.NotebookNode:
    new = nbformat.v4
    markdown = [new.new_markdown_cell(text) for text in texts]
    return new.new_notebook(cells=markdown + [new.new_code_cell("1 + 1") for _ in range(cells)])


def test_reading_time_counts_words_formulas_and_cells_but_no_exercises():
    words = " ".join(["word"] * 300)
    assert front_page.reading_minutes(example(words)) == pytest.approx(2.0)
    assert front_page.reading_minutes(example(words, "$$\na + b\n$$ (eq-a)", cells=3)) == pytest.approx(4.0, abs=0.02)
    assert front_page.reading_minutes(example(words, f":::{{exercise}} E\n{words}\n:::")) == pytest.approx(2.0)
    assert front_page.reading_minutes(example("$" + words + "$")) == pytest.approx(1 / 150)


def test_a_chapter_is_read_for_the_front_page_or_says_what_it_lacks(tmp_path):
    def chapter(text):
        nbformat.write(example(text), tmp_path / "example.ipynb")
        return front_page.read_chapter(tmp_path / "example.ipynb")

    found = chapter(NOTEBOOK)
    assert (found.label, found.line, found.needs) == ("ch-example", "Count words.", "Fingers.")
    with pytest.raises(ValueError, match=r"begin with its label, \(ch-example\)="):
        chapter(NOTEBOOK.split("\n", 1)[1])
    with pytest.raises(ValueError, match="paragraph \\*\\*What you need"):
        chapter(NOTEBOOK.replace("What you need.", "What you want."))


def test_the_citation_is_that_of_citation_cff(site):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    soup = parsed(site / "book" / "intro.html")
    shown = " ".join(soup.select_one(".book-citation").get_text().split())
    assert all(value in shown for value in (citation["title"], citation["authors"][0]["name"], citation["version"]))
    assert "url" not in shown
    assert "url     = {https://example.org/a/b}" in front_page.bibtex(citation, "https://example.org/a/b")


# --- links from equations to their checks, and by names
# -----------------------------------------------------------------


def test_every_numbered_equation_links_to_a_cell_that_names_it(site):
    soups = {page: parsed(page) for page in (site / "book").glob("*.html")}
    count = 0
    for page, soup in soups.items():
        for equation in soup.select("div.math[id^=equation-]"):
            link = equation.find_next_sibling()
            assert link and "equation-check" in link["class"], equation["id"]
            file, place = urlsplit(link.a["href"]).path, urlsplit(link.a["href"]).fragment
            found = soups[(page.parent / file).resolve() if file else page].find(id=place)
            cell = found if found.name == "div" else found.find_parent("div", class_="cell")
            assert equation["id"].removeprefix("equation-") in cell.select_one(".cell_input").get_text().lower()
            count += 1
    assert count > 100


def test_the_index_names_every_term_theorem_and_equation(site):
    soup = parsed(site / "book" / "ideas.html")
    linked = {urlsplit(link["href"]).fragment for link in soup.select(".book-ideas a")}
    for page in (site / "book").glob("*.html"):
        place = parsed(page)
        wanted = place.select(
            "div.math[id^=equation-], .glossary dt, .theorem, .lemma, .corollary, .proposition, .definition"
        )
        assert {element["id"] for element in wanted} <= linked, page.name


# --- the page of the package
# ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def api(site) -> BeautifulSoup:
    return parsed(site / "book" / "api.html")


def functions_then_classes_then_errors(module) -> list[list[str]]:
    public = {name: getattr(module, name) for name in module.__all__}
    classes = {name: thing for name, thing in public.items() if inspect.isclass(thing)}
    errors = [name for name, thing in classes.items() if issubclass(thing, Exception)]
    functions = [name for name, thing in public.items() if inspect.isfunction(thing)]
    return [functions, [name for name in classes if name not in errors], errors]


@pytest.mark.parametrize("module", [svdgrad, svdgrad.jax], ids=lambda module: module.__name__)
def test_the_package_page_has_functions_first_then_what_they_return_then_errors(api, module):
    ids = [term["id"] for term in api.select("dt.sig[id]")]
    places = [
        [ids.index(f"{module.__name__}.{name}") for name in kind] for kind in functions_then_classes_then_errors(module)
    ]
    flat = [place for kind in places for place in sorted(kind)]
    assert flat == sorted(flat)
    assert ids[0] == "svdgrad.singular_triplet"


def test_the_package_page_begins_with_a_table_of_its_functions(api):
    listed = {link["title"] for link in api.select("table.autosummary td:first-child a")}
    for module in (svdgrad, svdgrad.jax):
        assert {f"{module.__name__}.{name}" for name in functions_then_classes_then_errors(module)[0]} <= listed
    assert api.select_one("table.autosummary").sourceline < api.select_one("dt.sig").sourceline
    modules = {name for name in svdgrad.__all__ if inspect.ismodule(getattr(svdgrad, name))}
    assert all(api.find("a", string=f"svdgrad.{name}") for name in modules)


def test_the_fields_of_named_tuples_are_described(api):
    assert "Alias for field number" not in api.get_text()
    for term in api.select("dl.py.attribute > dt"):
        assert term.find_next_sibling("dd").get_text().strip(), term["id"]


def test_what_two_parameters_share_is_said_once(api):
    fields = [field for field in api.select("dl.field-list > dt") if field.get_text().startswith("Parameters")]
    assert len(fields) > 10
    for field in fields:
        said = [item.get_text().partition(" – ")[2] for item in field.find_next_sibling("dd").find_all("li")]
        assert len(set(said)) == len(said), field.find_previous("dt", class_="sig").get_text()


def test_equations_on_the_package_page_are_links(api):
    article = api.select_one("article")
    assert not re.findall(r"\beq-[a-z0-9-]+", article.get_text())
    numbered = [link for link in article.select("dd a") if re.fullmatch(r"\(\d+\.\d+\)", link.get_text())]
    assert len(numbered) > 20  # that they lead somewhere is seen by test_links_lead_somewhere
    assert all("#equation-" in link["href"] for link in numbered)


# --- the browser
# -------------------------------------------------------------------------------------------------------

# On file:// Chromium refuses the theme's hint to fetch its icon font early, and then loads the font all the same.
ALLOWED_CONSOLE = re.compile(r"fa-[a-z0-9-]+\.woff2|preloaded using link preload")

# Runs in the page; returns what is wrong with it as it is now, in sentences.
LOOK = r"""
([width, leastContrast]) => {
  const faults = [], article = document.querySelector('article') || document.body;
  const name = e => (e.tagName.toLowerCase() + ' "' + e.textContent.trim().replace(/\s+/g, ' ').slice(0, 40) + '"');
  const shown = e => e.checkVisibility() && e.getClientRects().length > 0;

  // width: neither the document nor what it holds sticks out; a table, and on a phone code, may scroll inside its box
  if (document.documentElement.scrollWidth > width)
    faults.push('the page is ' + document.documentElement.scrollWidth + ' px wide, the screen ' + width);
  const fits = e => e.getBoundingClientRect().right <= width + 1;
  const inBox = e => fits(e) && scrolls(e) || e !== article && inBox(e.parentElement);
  const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  for (const e of article.querySelectorAll('mjx-container, img, svg, table, pre'))
    if (shown(e) && !fits(e) && !inBox(e)) faults.push('sticks out to the right: ' + name(e));

  const phone = width < 576;
  for (const e of article.querySelectorAll(phone ? '.cell_output pre' : 'pre'))
    if (shown(e) && e.scrollWidth > e.clientWidth) faults.push('a line is cut: ' + name(e));

  // formulas: each fits in letters that can be read, nothing above or below it is cut, and no fraction touches another
  const extent = e => {
    const boxes = [...e.querySelectorAll('mjx-c, mjx-line')].map(c => c.getBoundingClientRect()).filter(b => b.height);
    return [Math.min(...boxes.map(b => b.top)), Math.max(...boxes.map(b => b.bottom))];
  };
  for (const e of article.querySelectorAll('div.math mjx-container')) {
    if (!shown(e)) continue;
    const size = parseFloat(getComputedStyle(e).fontSize), box = e.getBoundingClientRect(), [top, bottom] = extent(e);
    if (e.scrollWidth > e.clientWidth) faults.push('a formula is too wide: ' + name(e.parentElement));
    if (size < 11) faults.push('a formula of ' + size.toFixed(1) + ' px: ' + name(e.parentElement));
    if (top < box.top + 2 || bottom > box.bottom - 2)
      faults.push('a formula is cut above or below: ' + name(e.parentElement));
    for (const table of e.querySelectorAll('mjx-itable')) {
      const rows = [...table.children].filter(row => row.querySelector('mjx-mfrac'));
      rows.slice(1).forEach((row, i) => {
        if (rows[i].nextElementSibling === row && extent(row)[0] - extent(rows[i])[1] < 0.4 * size)
          faults.push('fractions touch: ' + name(e.parentElement));
      });
    }
  }

  // mathematics: all of it typeset, none of it an error
  for (const e of document.querySelectorAll('mjx-merror'))
    faults.push('TeX error: ' + e.getAttribute('title') + ' ' + name(e));
  for (const e of document.querySelectorAll('.math'))
    if (!e.querySelector('mjx-container')) faults.push('not typeset: ' + name(e));

  // contrast of every piece of text in the article with what lies behind it
  const rgba = s => { const v = s.match(/[\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const behind = e => {
    if (!e) return [255, 255, 255, 1];
    const c = rgba(getComputedStyle(e).backgroundColor);
    return c[3] === 1 ? c : over(c, behind(e.parentElement));
  };
  const light = c => {
    const [r, g, b] = c.slice(0, 3).map(x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = new Map();
  for (const e of article.querySelectorAll('p, li, td, th, dt, dd, figcaption, code, pre, span, a, em, ' +
    'strong, h1, h2, h3, summary')) {
    if (e.closest('mjx-container, .headerlink, button') || !shown(e)) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const back = behind(e), [x, y] = [over(rgba(getComputedStyle(e).color), back), back].map(light);
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    const kind = e.tagName + '.' + e.className;
    if (ratio < leastContrast && !poor.has(kind))
      poor.set(kind, 'contrast ' + ratio.toFixed(2) + ' of ' + kind + ' ' + name(e));
  }
  return faults.concat([...poor.values()]);
}
"""


# Opens what is folded: code, and the solutions of exercises.
UNFOLD = r"""
() => {
  for (const fold of document.querySelectorAll('article details')) fold.open = true;
  for (const fold of document.querySelectorAll('.toggle-hidden')) fold.classList.remove('toggle-hidden');
  for (const fading of document.getAnimations()) fading.finish();
  // page.js fits the formulas in a frame of its own
  return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}
"""


def console_faults(message) -> list[str]:
    text = f"{message.text} ({message.location['url']})"
    return [f"console: {text}"] if message.type == "error" and not ALLOWED_CONSOLE.search(text) else []


def look(browser, path: Path, size: str, pictures: Path | None = None) -> list[str]:
    """What is wrong with one page at one width, in both themes."""
    faults = []
    page = browser.new_page(viewport={"width": WIDTHS[size], "height": 844})
    page.route(
        re.compile("^(?!file:|data:|blob:)"),
        lambda route: (faults.append(f"asks for {route.request.url}"), route.abort()),
    )
    page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
    page.on("console", lambda m: faults.extend(console_faults(m)))
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")
    page.evaluate(UNFOLD)
    for theme in THEMES:
        page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        faults += [f"{theme}: {fault}" for fault in page.evaluate(LOOK, [WIDTHS[size], LEAST_CONTRAST])]
        if pictures:
            page.screenshot(path=pictures / f"{path.stem}-{size}-{theme}.png", full_page=True)
    page.close()
    return [f"{path.name}, {size}: {fault}" for fault in faults]


@pytest.mark.slow
@pytest.mark.parametrize("size", WIDTHS)
def test_pages_look_right(site, browser, size):
    LOOKS.mkdir(parents=True, exist_ok=True)
    faults = [fault for path in chapters(site) for fault in look(browser, path, size, LOOKS)]
    assert not faults, "\n".join(faults)


LONG = "a = " + "b + " * 25 + "c"
FRACTION = r"\frac{a}{b}"
SEEN = {
    "remote script": ("phone", '<script src="https://example.org/a.js"></script>', "asks for https://example.org/a.js"),
    "TeX error": ("phone", r'<p><span class="math">\(\frac{1}\)</span></p>', "TeX error"),
    "undefined macro": ("phone", r'<p><span class="math">\(\nosuchmacro\)</span></p>', "TeX error"),
    "script error": ("phone", "<script>nosuchname()</script>", "script error"),
    "too wide": ("phone", '<div style="width: 3000px">wide</div>', "px wide"),
    "pale text": ("phone", '<p style="color: #999; background: #fff">pale</p>', "contrast"),
    "cut code": (
        "wide",
        f'<div class="cell_input"><div class="highlight"><pre>{LONG}</pre></div></div>',
        "line is cut",
    ),
    "cut code in a fold": ("wide", f"<details><summary>more</summary><pre>{LONG}</pre></details>", "line is cut"),
    "cut output": (
        "phone",
        f'<div class="cell_output"><pre style="white-space: pre">{LONG}</pre></div>',
        "line is cut",
    ),
    "wide formula": ("phone", rf'<div class="math">\[{LONG + LONG + LONG}\]</div>', "formula is too wide"),
    "tiny formula": ("phone", r'<div class="math" style="font-size: 8px">\[a\]</div>', "formula of"),
    "cut formula": (
        "phone",
        r"<style>mjx-container { padding: 0 !important }</style>"
        r'<div class="math">\[\begin{bmatrix} a \\ b \end{bmatrix}^\top\]</div>',
        "cut above or below",
    ),
    "fractions": (
        "wide",
        rf'<div class="math">\[\begin{{aligned}} a &= {FRACTION} \\ b &= {FRACTION} \end{{aligned}}\]</div>',
        "fractions touch",
    ),
}


@pytest.mark.parametrize("fault", slow_but([("remote script",), ("TeX error",), ("cut code",)], [(x,) for x in SEEN]))
def test_a_planted_fault_is_seen(site, browser, tmp_path, fault):
    """A page of the book with one thing wrong. Its own scripts and styles are found through <base>."""
    size, html, expected = SEEN[fault]
    page = chapters(site)[0]
    text = page.read_text(encoding="utf-8").replace("<head>", f'<head><base href="{page.as_uri()}">', 1)
    (tmp_path / "planted.html").write_text(text.replace("</article>", html + "</article>", 1), encoding="utf-8")
    assert expected in str(look(browser, tmp_path / "planted.html", size))


@pytest.mark.parametrize("theme", THEMES)
def test_the_first_visit_follows_the_theme_of_the_system(site, browser, theme):
    page = browser.new_page(color_scheme=theme)
    page.goto(chapters(site)[0].as_uri())
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.close()


# --- for everybody
# --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def axe() -> Path:
    try:
        return explorer_build.packages() / "axe-core" / "axe.min.js"
    except explorer_build.Unavailable as reason:
        pytest.skip(f"no axe: {reason}")


def serious(browser, axe: Path, path: Path, size: str, theme: str) -> list[str]:
    """What axe calls serious or critical on a page."""
    page = browser.new_page(viewport={"width": WIDTHS[size], "height": 844}, color_scheme=theme)
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")
    page.evaluate(UNFOLD)
    page.add_script_tag(path=axe)
    found = page.evaluate(
        "async () => (await axe.run(document, {preload: false, resultTypes: ['violations']})).violations"
    )
    page.close()
    return [
        f"{path.name}, {size}, {theme}: {violation['id']}: {node['html'][:120]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "theme"), [("wide", "light"), ("phone", "dark")])
def test_axe_finds_nothing_serious(site, browser, axe, size, theme):
    faults = [fault for path in chapters(site) for fault in serious(browser, axe, path, size, theme)]
    assert not faults, "\n".join(faults)


def test_axe_finds_what_is_planted(site, browser, axe, tmp_path):
    page = chapters(site)[0]
    html = '<button aria-label="Search">Find</button><dl><dd>no term</dd></dl>'
    text = page.read_text(encoding="utf-8").replace("<head>", f'<head><base href="{page.as_uri()}">', 1)
    (tmp_path / "planted.html").write_text(text.replace("</article>", html + "</article>", 1), encoding="utf-8")
    found = str(serious(browser, axe, tmp_path / "planted.html", "wide", "light"))
    assert "label-content-name-mismatch" in found and "definition-list" in found


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("equation", "#equation-eq-adjoint-system"),
        ("theorem", "#thm-"),
        ("term", "#term-"),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in (("figure", "#fig-"), ("table", "#tab-"))),
        ("section", "#sec-"),
    ],
)
def test_hovering_over_a_link_shows_what_it_leads_to(site, browser, kind, target):
    if not list((site / "_static").glob("tippy-bundle*.js")):
        pytest.skip("built without previews: sphinx_tippy or npm is missing")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    for path in chapters(site):
        page.goto(path.as_uri(), wait_until="load")
        link = page.locator(f"article p a[href*='{target}']").first
        if link.count():
            break
    page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
    link.hover()
    tip = page.locator(".tippy-box")
    tip.wait_for()
    if kind == "equation":
        tip.locator("mjx-container").first.wait_for()
    assert len(tip.inner_text().strip()) > 5
    page.close()
