"""The whole book as one PDF: ``python tools/pdf.py [FILE]``, or ``make pdf``.

Chromium prints each page twice, once without the solutions and once the solutions alone, which come last. Those prints
are merged: contents, a footer with the page's number, an outline, and links between pages that stay inside the file.
"""

import html
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pages
import yaml
from bs4 import BeautifulSoup
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject

# A4 at four fifths of a screen's size leaves room for the 92 characters of a line of code
SCALE, MARGIN, WIDTH = 0.8, 18, 210  # millimetres
PRINT = {"format": "A4", "scale": SCALE, "print_background": True}
MARGINS = dict.fromkeys(("top", "bottom", "left", "right"), f"{MARGIN}mm")

# Runs in a page before it is printed. ``places`` are names that other pages link to; Chromium keeps the place of a name
# only if the page itself links to it, so each gets a link that nobody sees.
PREPARE = r"""
([title, solutions, places]) => {
  const article = document.querySelector('article'), url = location.href.split('#')[0];
  document.querySelectorAll('details').forEach(e => e.open = true);
  document.querySelector('#jb-print-docs-body')?.remove();
  article.querySelectorAll('.viewcode-link').forEach(e => e.remove());
  const found = [];
  for (const e of article.querySelectorAll('.solution')) {
    const next = e.nextElementSibling;
    found.push(e, ...(next?.matches('.cell.tag_hide-cell') ? [next] : []));
  }
  found.forEach(e => e.remove());
  const heading = document.createElement('h1');
  heading.textContent = title;
  heading.style.setProperty('display', 'block', 'important');  // the theme prints a title of its own
  article.querySelector('h1')?.remove();
  if (solutions) {
    article.replaceChildren(...found);
    // the places that these link to are in the print of the chapter
    for (const a of article.querySelectorAll('a[href^="#"]')) a.href = url + a.getAttribute('href');
  }
  article.prepend(heading);
  const links = document.createElement('div');
  for (const id of places) {
    const link = links.appendChild(document.createElement('a'));
    link.href = '#' + id;
    link.textContent = '.';
  }
  links.style = 'color: transparent; font-size: 1px; height: 1px; overflow: hidden';
  article.append(links);
  return found.length;
}
"""

# Formulas that are wider than the paper shrink; what sticks out all the same is told, and what leaves a blank.
FIT = r"""
() => {
  const article = document.querySelector('article'), edge = article.getBoundingClientRect().right + 1;
  for (const box of article.querySelectorAll('div.math')) {
    const formula = box.querySelector('mjx-math'), number = box.querySelector('.eqno')?.offsetWidth || 0;
    const ratio = (box.clientWidth - number) / (formula?.getBoundingClientRect().width || 1);
    if (ratio < 1) box.querySelector('mjx-container').style.fontSize = Math.floor(100 * ratio) + '%';
  }
  const wide = e => e.checkVisibility() && e.getBoundingClientRect().right > edge;
  const blank = e => e.checkVisibility() && !e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const seen = [...article.querySelectorAll('pre, table, img, svg, mjx-math, p, li, dt')];
  const told = (fault, is) => seen.filter(is)
    .map(e => fault + ': ' + e.tagName.toLowerCase() + ' ' + e.textContent.trim().replace(/\s+/g, ' ').slice(0, 60));
  return [...told('cut at the right', wide), ...told('blank', blank)];
}
"""


@dataclass
class Part:
    """One print of one page."""

    title: str
    file: Path | None
    reader: PdfReader
    caption: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)
    start: int = 0

    def places(self) -> Iterator[tuple[str, tuple[int, float, float]]]:
        """Name -> (page in the book, left, top) of what is linked to."""
        pages_of = {page.indirect_reference.idnum: n for n, page in enumerate(self.reader.pages)}
        for name, place in self.reader.named_destinations.items():
            page = pages_of.get(getattr(place.raw_get("/Page"), "idnum", None))
            if page is not None:
                yield unquote(name.removeprefix("/")), (self.start + page, float(place.left), float(place.top))


def contents_of(toc: Path) -> list[tuple[str, str]]:
    """(caption of the part, page) in the order of the book."""
    read = yaml.safe_load(toc.read_text(encoding="utf-8"))
    chapters = [(part["caption"], page["file"]) for part in read["parts"] for page in part["chapters"]]
    return [("", read["root"]), *chapters]


def wanted_places(files: Iterable[Path]) -> dict[Path, list[str]]:
    """File -> the names on it that any page links to, and those of its sections."""
    wanted: dict[Path, set[str]] = {file: set() for file in files}
    for file in wanted:
        soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser").select_one("article")
        wanted[file] |= {name for name, _ in sections_of(soup)}
        for link in soup.select("a[href]"):
            address, name = urldefrag(link["href"])
            target = (file.parent / unquote(address)).resolve() if address else file
            if name and target in wanted:
                wanted[target].add(unquote(name))
    return {file: sorted(names) for file, names in wanted.items()}


def sections_of(article) -> list[tuple[str, str]]:
    """(name, title) of the sections of a page."""
    headings = article.select("section > section > h2")
    return [(h.parent["id"], re.sub(r"\s*#?$", "", " ".join(h.get_text().split()))) for h in headings]


class Printer:
    """Prints pages with one browser into a folder; ``faults`` tells what did not fit."""

    def __init__(self, browser, folder: Path) -> None:
        inside = (WIDTH - 2 * MARGIN) / 25.4 * 96 / SCALE
        self.page = browser.new_page(viewport={"width": round(inside), "height": 1000})
        self.page.emulate_media(media="print")
        self.folder, self.faults, self.count = folder, list[str](), 0

    def chapter(self, file: Path, title: str, places: list[str], solutions: bool) -> PdfReader | None:
        """The page without its solutions, or the solutions alone; None where there are none."""
        self.page.goto(file.as_uri(), wait_until="load")
        self.page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")
        found = self.page.evaluate(PREPARE, [title, solutions, places])
        if solutions and not found:
            return None
        self.faults += [f"{file.name}: {fault}" for fault in self.page.evaluate(FIT)]
        return self.save(margin=MARGINS)

    def text(self, body: str, **options) -> PdfReader:
        """A page of ours, in the font of the others."""
        self.page.goto("about:blank")
        self.page.set_content(f"<style>body {{ font-family: sans-serif; margin: 0 }}</style>{body}")
        return self.save(**options)

    def save(self, **options) -> PdfReader:
        self.count += 1
        path = self.folder / f"{self.count}.pdf"
        self.page.pdf(path=path, **PRINT, **options)
        return PdfReader(path)


def contents_page(title: str, author: str, parts: list[Part]) -> str:
    rows, caption = [], ""
    for part in parts:
        title_of_part = part.title
        if part.caption == SOLUTIONS == caption:
            continue  # one line for all of them
        if part.caption == SOLUTIONS:
            caption = title_of_part = SOLUTIONS
        elif part.caption != caption:
            caption = part.caption
            rows.append(f"<tr><th colspan=2>{html.escape(caption)}</th></tr>")
        link = f'<a href="{address(part)}">{html.escape(title_of_part)}</a>'
        rows.append(f"<tr><td>{link}</td><td class=n>{part.start + 1}</td></tr>")
    style = (
        "h1 { font-size: 2.2rem; font-weight: 500; margin: 3rem 0 0.5rem } table { width: 100%; margin-top: 2rem }"
        "th { text-align: left; padding: 0.9rem 0 0.2rem } .n { text-align: right } a { color: inherit }"
    )
    return (
        f"<style>{style}</style><h1>{html.escape(title)}</h1><p>{html.escape(author)}</p><table>{''.join(rows)}</table>"
    )


def address(part: Part) -> str:
    """Where the contents link to; the solutions of a chapter have a name of their own, since their file is its too."""
    return f"{part.file.as_uri()}{'#solutions' if part.caption == SOLUTIONS else ''}"


SOLUTIONS = "Solutions"


def footers(parts: list[Part], count: int) -> str:
    """A page for each page of the book, with its number and the title of its chapter."""
    titles = {n: part.title for part in parts for n in range(part.start, part.start + len(part.reader.pages))}
    style = (
        f"div {{ height: {297 / SCALE}mm; break-after: page; position: relative; font-size: 0.8rem; color: #555 }}"
        f"p {{ position: absolute; bottom: {8 / SCALE}mm; margin: 0; left: {MARGIN / SCALE}mm; "
        f"right: {MARGIN / SCALE}mm; display: flex; justify-content: space-between }}"
        "div:last-child { break-after: auto }"
    )
    lines = [
        f"<div><p><span>{html.escape(titles.get(n, ''))}</span><span>{n + 1}</span></p></div>" for n in range(count)
    ]
    return f"<style>@page {{ size: A4; margin: 0 }} {style}</style>{''.join(lines)}"


def link_inside(writer: PdfWriter, parts: list[Part]) -> int:
    """Turn what leads to a page of the book into a link within the file; how many there are.

    A link to a page that the book does not print, such as the source of a function, goes.
    """
    places: dict[str, tuple[int, float, float]] = {}
    for part in reversed(parts):  # of two prints of a page the first, that of the chapter, decides
        top = float(part.reader.pages[0].mediabox.top)
        uri = part.file.as_uri() if part.file else ""
        places |= {f"{uri}#{name}": place for name, place in part.places()}
        places[address(part) if part.file else ""] = (part.start, 0.0, top)
    inside = 0
    for part in parts:
        uri = part.file.as_uri() if part.file else ""
        for page in writer.pages[part.start : part.start + len(part.reader.pages)]:
            kept = ArrayObject()
            for reference in page.get("/Annots", ()):
                link = reference.get_object()
                action = link.get("/A", {}).get_object() if "/A" in link else {}
                target = (
                    f"{uri}#{unquote(str(link['/Dest']).removeprefix('/'))}"
                    if "/Dest" in link
                    else action.get("/URI", "")
                )
                if place := places.get(unquote(target)):
                    number, left, top = place
                    link.pop("/A", None)
                    link[NameObject("/Dest")] = ArrayObject(
                        [
                            writer.pages[number].indirect_reference,
                            NameObject("/XYZ"),
                            FloatObject(left),
                            FloatObject(top),
                            NullObject(),
                        ]
                    )
                    inside += 1
                elif not target.startswith("http"):
                    continue
                kept.append(reference)
            page[NameObject("/Annots")] = kept
    return inside


def outline(writer: PdfWriter, parts: list[Part]) -> None:
    above, caption = None, ""
    for part in parts:
        if part.caption != caption:
            caption = part.caption
            above = writer.add_outline_item(title=caption, page_number=part.start) if caption else None
        entry = writer.add_outline_item(title=part.title, page_number=part.start, parent=above)
        places = dict(part.places())
        for name, title in part.sections:
            if name in places:
                writer.add_outline_item(title=title, page_number=places[name][0], parent=entry)


def print_book(site: Path, out: Path, browser) -> list[str]:
    """Print the pages under ``site`` into ``out``; what did not fit on the paper."""
    config = yaml.safe_load((pages.ROOT / "_config.yml").read_text(encoding="utf-8"))
    listed = [(caption, site / f"{page}.html") for caption, page in contents_of(pages.ROOT / "_toc.yml")]
    places = wanted_places(file for _, file in listed)
    parts, solutions = [], []
    with tempfile.TemporaryDirectory() as folder:
        printer = Printer(browser, Path(folder))
        for caption, file in listed:
            soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
            title = soup.title.get_text().split(" — ")[0].strip()
            printed = printer.chapter(file, title, places[file], solutions=False)
            parts.append(Part(title, file, printed, caption, sections_of(soup)))
            print(f"pdf: {title}, {len(printed.pages)} pages", flush=True)
            if answers := printer.chapter(file, f"{SOLUTIONS}: {title}", [], solutions=True):
                solutions.append(Part(f"{SOLUTIONS}: {title}", file, answers, SOLUTIONS))
        parts += solutions
        number_pages(parts, 0)
        first = Part(
            "Contents", None, printer.text(contents_page(config["title"], config["author"], parts), margin=MARGINS)
        )
        number_pages(parts, len(first.reader.pages))
        first.reader = printer.text(contents_page(config["title"], config["author"], parts), margin=MARGINS)
        parts.insert(0, first)
        number_pages(parts, 0)

        writer = PdfWriter()
        for part in parts:
            for page in part.reader.pages:
                writer.add_page(page)
        link_inside(writer, parts)
        below = printer.text(footers(parts, len(writer.pages)), margin=dict.fromkeys(MARGINS, "0"))
        for page, footer in zip(writer.pages, below.pages, strict=True):
            page.merge_page(footer)
            page.compress_content_streams()
        outline(writer, parts)
        writer.page_mode = "/UseOutlines"
        writer.add_metadata({"/Title": config["title"], "/Author": config["author"]})
        writer.compress_identical_objects()
        out.parent.mkdir(parents=True, exist_ok=True)
        writer.write(out)
    return printer.faults


def number_pages(parts: list[Part], start: int) -> None:
    for part in parts:
        part.start = start
        start += len(part.reader.pages)


def main(arguments: list[str]) -> None:
    out = Path(arguments[0] if arguments else pages.ROOT / "_build" / "book.pdf").resolve()
    if missing := pages.browser_is_missing():
        raise SystemExit(f"pdf: {missing}")
    with tempfile.TemporaryDirectory() as folder, pages.chromium() as browser:
        print("pdf: rendering the pages from the stored outputs")
        faults = print_book(pages.build_site(Path(folder)), out, browser)
    if faults:
        raise SystemExit("pdf: " + "\npdf: ".join(faults))
    print(f"pdf: {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
