"""The whole book as one PDF: its pages, numbers, outline and links, and nothing cut at the edge of the paper."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed: `make pdf` and `make slow` install it")
import pdf  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def printed(site, browser, tmp_path_factory):
    """The book, and what its printing found to be cut."""
    out = tmp_path_factory.mktemp("pdf") / "book.pdf"
    faults = pdf.print_book(site, out, browser)
    return pypdf.PdfReader(out), faults


@pytest.fixture(scope="module")
def book(printed):
    return printed[0]


@pytest.fixture(scope="module")
def texts(book) -> list[str]:
    return [page.extract_text() for page in book.pages]


def entries(book) -> list[tuple[int, str, int]]:
    """(depth, title, page) of the outline, in order."""

    def walk(items, depth):
        for item in items:
            if isinstance(item, list):
                yield from walk(item, depth + 1)
            else:
                yield depth, item.title, book.get_destination_page_number(item)

    return list(walk(book.outline, 0))


def test_nothing_is_cut_at_the_edge_of_the_paper(printed):
    assert printed[1] == []


def test_every_page_has_its_number_at_its_foot(texts):
    for number, text in enumerate(texts, 1):
        assert re.search(rf"(?<!\d){number}$", text.strip()), number


def test_the_outline_holds_every_page_and_section_of_the_book(book, texts):
    found = entries(book)
    listed = pdf.contents_of(ROOT / "_toc.yml")
    captions = list(dict.fromkeys(caption for caption, _ in listed if caption))
    assert [title for depth, title, _ in found if depth == 0][2:] == [*captions, "Solutions"]
    assert sum(depth == 1 for depth, *_ in found) > len(listed)
    assert [page for *_, page in found] == sorted(page for *_, page in found)
    for _, title, page in found:
        if re.match(r"\d+\.\d+\. ", title):
            words = "".join(re.findall(r"\w", title.split(". ", 1)[1]))[:12]
            assert words in "".join(re.findall(r"\w", texts[page])), title


def test_links_stay_inside_the_book_and_lead_to_the_equation_that_they_name(book, texts):
    numbers = {page.indirect_reference.idnum: n for n, page in enumerate(book.pages)}
    chapter_starts = sorted(page for depth, title, page in entries(book) if depth == 1)
    inside = across = 0
    for source, page in enumerate(book.pages):
        for link in (reference.get_object() for reference in page.get("/Annots", ())):
            if "/Dest" in link:
                target = numbers[link["/Dest"][0].idnum]
                inside += 1
                across += any(min(source, target) < start <= max(source, target) for start in chapter_starts)
            else:
                assert link["/A"]["/URI"].startswith("http"), link
    assert inside > 500 and across > 100
    # the first equation that the chapter on conditions needs is in another chapter, on the page that the link leads to
    start = next(page for _, title, page in entries(book) if title.startswith("4. "))
    links = [reference.get_object() for reference in book.pages[start]["/Annots"]]
    targets = [numbers[link["/Dest"][0].idnum] for link in links if "/Dest" in link]
    assert any(target < start and "(3.5)" in texts[target] for target in targets)


def test_solutions_come_last(book, texts):
    start = next(page for depth, title, page in entries(book) if title == "Solutions")
    having = [n for n, text in enumerate(texts) if "Solution to Exercise" in text]
    assert len(having) > 20 and min(having) == start and start > 0.8 * len(texts)
