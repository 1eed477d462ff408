"""What more than one file of tests needs: the pages of the book, and a browser."""

import gc
import itertools
import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import pages  # noqa: E402


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the book's HTML, built by the first worker that asks for it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the folder of this run, which holds one for each worker
    folder, built = shared / "site", shared / "site-is-built"
    with FileLock(shared / "site.lock"):
        if not built.exists():
            pages.build_site(folder)
            built.touch()
    return folder / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    if missing := pages.browser_is_missing():
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    with pages.chromium() as chromium:
        yield chromium


#: Linux lets a process map 65,530 pieces of memory by default, and one that wants more is aborted; each program that
#: XLA has compiled takes some
MOST_PIECES = 20_000
TESTS = itertools.count(1)


def pytest_runtest_teardown(item):
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and next(TESTS) % 5 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MOST_PIECES:
        sys.modules["jax"].clear_caches()
        gc.collect()
