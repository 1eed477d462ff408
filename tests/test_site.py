"""The rendered book, looked at as a reader would: in a browser, wide and narrow, light and dark, from files alone.

The pages are built from the notebooks' stored outputs, so this takes seconds, not an execution of the book. What was
seen is left as pictures in _build/looks.
"""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
LOOKS = ROOT / "_build" / "looks"
WIDTHS = {"wide": 1280, "phone": 390}
THEMES = ("light", "dark")
LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA, for text of normal size


# --- building
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the book's HTML, built with warnings as errors and without executing anything."""
    folder = tmp_path_factory.mktemp("site")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["execute"]["execute_notebooks"] = "off"
    extensions = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = {name: str(ROOT / path) for name, path in extensions.items()}
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--config", folder / "_config.yml", "--toc", ROOT / "_toc.yml", "--path-output", folder]
    build = subprocess.run(
        [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "--keep-going", *options, ROOT],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    return folder / "_build" / "html"


def html_files(site: Path) -> list[Path]:
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def chapters(site: Path) -> list[Path]:
    """The pages a person reads: the book's own and the search."""
    return sorted((site / "book").glob("*.html")) + [site / "search.html"]


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
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
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
    soups = {page: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in html_files(site)}
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
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        for image in soup.find_all("img"):
            alt = image.get("alt", "")
            if not alt.strip() or re.search(r"\.(png|jpe?g|svg|gif)$", alt):
                found.append(f"{page.relative_to(site)}: {image.get('src')} has alt {alt!r}")
    return found


def solutions_with_other_folds(site: Path) -> list[str]:
    """Solutions that take more than one click: one that holds a fold, and a hidden cell that is outside of its box."""
    found = []
    for page in html_files(site):
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        for box in soup.select("div.solution"):
            if "dropdown" not in box["class"] or box.find("details"):
                found.append(f"{page.relative_to(site)}: {box.get_text()[:60]!r} should be the only fold of a solution")
        outside = [cell for cell in soup.select("div.tag_hide-cell") if not cell.find_parent("div", class_="solution")]
        found += [f"{page.relative_to(site)}: {cell.get_text()[:60]!r} is in no solution" for cell in outside]
    return found


def test_nothing_comes_from_the_network(site):
    assert remote_assets(site) == []


def test_links_lead_somewhere(site):
    assert broken_links(site) == []


def test_images_are_described(site):
    assert undescribed_images(site) == []


def test_a_solution_is_one_fold(site):
    assert solutions_with_other_folds(site) == []


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


def test_planted_links_and_images_are_found(tmp_path):
    html = '<a href="no.html">1</a> <a href="#no">2</a> <img src="p.png" alt="p.png"> <img src="p.png">'
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    (tmp_path / "p.png").touch()
    assert len(broken_links(tmp_path)) == 2
    assert len(undescribed_images(tmp_path)) == 2


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

  // width: neither the document nor a formula sticks out; a formula may scroll inside its own box
  if (document.documentElement.scrollWidth > width)
    faults.push('the page is ' + document.documentElement.scrollWidth + ' px wide, the screen ' + width);
  const fits = e => e.getBoundingClientRect().right <= width + 1;
  const inBox = e => fits(e) && scrolls(e) || e !== article && inBox(e.parentElement);
  const scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  for (const e of article.querySelectorAll('mjx-container, img, svg, table, pre'))
    if (shown(e) && !fits(e) && !inBox(e)) faults.push('sticks out to the right: ' + name(e));

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


@pytest.mark.parametrize(
    ("html", "expected"),
    {
        "remote script": ('<script src="https://example.org/a.js"></script>', "asks for https://example.org/a.js"),
        "TeX error": (r'<p><span class="math">\(\frac{1}\)</span></p>', "TeX error"),
        "undefined macro": (r'<p><span class="math">\(\nosuchmacro\)</span></p>', "TeX error"),
        "script error": ("<script>nosuchname()</script>", "script error"),
        "too wide": ('<div style="width: 3000px">wide</div>', "px wide"),
        "pale text": ('<p style="color: #999; background: #fff">pale</p>', "contrast"),
    }.values(),
)
def test_a_planted_fault_is_seen(site, browser, tmp_path, html, expected):
    """A page of the book with one thing wrong. Its own scripts and styles are found through <base>."""
    page = chapters(site)[0]
    text = page.read_text(encoding="utf-8").replace("<head>", f'<head><base href="{page.as_uri()}">', 1)
    (tmp_path / "planted.html").write_text(text.replace("</article>", html + "</article>", 1), encoding="utf-8")
    assert expected in str(look(browser, tmp_path / "planted.html", "phone"))
