"""What more than one file of tests needs: the pages of the book, and a browser."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import pages  # noqa: E402


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the book's HTML."""
    return pages.build_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def browser():
    if missing := pages.browser_is_missing():
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    with pages.chromium() as chromium:
        yield chromium
