"""The pages of the book from the notebooks' stored outputs, and a browser for them: for the tests and for tools/pdf.py.

Nothing is executed, so that the pages take seconds.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def build_site(folder: Path, repository: str | None = None) -> Path:
    """The folder of the book's HTML, built into ``folder`` with warnings as errors; with another address of the
    repository if that is given.
    """
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["execute"]["execute_notebooks"] = "off"
    if repository is not None:
        config["repository"]["url"] = repository
    extensions = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = {name: str(ROOT / path) for name, path in extensions.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--config", folder / "_config.yml", "--toc", ROOT / "_toc.yml", "--path-output", folder]
    build = subprocess.run(
        [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "--keep-going", *options, ROOT],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if build.returncode != 0:
        raise RuntimeError(build.stdout[-3000:] + build.stderr[-3000:])
    return folder / "_build" / "html"


def runs(*command) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def find_chromium() -> str | None:
    """The first browser that runs: on Ubuntu a command of that name may exist and only ask for a snap."""
    for name in filter(None, [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]):
        path = shutil.which(name)
        if path and runs(path, "--version"):
            return path
    return None


def browser_is_missing() -> str:
    """What a browser wants that is not there, and where to get it; empty if there is one."""
    if not find_chromium():
        return "no Chromium found: install Chromium or Google Chrome, or set CHROMIUM to its path"
    if not runs(sys.executable, "-m", "playwright", "--version"):
        return (
            "Playwright's driver does not run: install the package libatomic1 "
            "(`python -m playwright --version` says why)"
        )
    return ""


@contextmanager
def chromium() -> Iterator:
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
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        yield browser
        browser.close()
