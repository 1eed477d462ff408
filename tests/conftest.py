"""What more than one file of tests needs: a browser."""

import os
import shutil
import subprocess
import sys

import pytest


def runs(*command) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def find_chromium() -> str | None:
    """The first browser that runs: on Ubuntu a command of that name may exist and only ask for a snap."""
    for name in filter(None, [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]):
        path = shutil.which(name)
        if path and runs(path, "--version"):
            return path
    return None


@pytest.fixture(scope="session")
def browser():
    path = find_chromium()
    missing = "" if path else "no Chromium found: install Chromium or Google Chrome, or set CHROMIUM to its path"
    if path and not runs(sys.executable, "-m", "playwright", "--version"):
        missing = (
            "Playwright's driver does not run: install the package libatomic1 "
            "(`python -m playwright --version` says why)"
        )
    if missing:
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    # no sandbox, because root has none; no background networking, so that a request is the page's
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-proxy-server",
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()
