"""Sphinx extension of this book: hovering over a link shows the equation, theorem or term that it leads to.

sphinx_tippy makes the previews. It would load popper and tippy.js from the network; here npm fetches the versions of
the lock file when the book is built, and they are kept in _build. Where npm cannot be had the links stay, without
previews.
"""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "explorer"))
from explorer_build import Unavailable, kept, run  # noqa: E402

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


def scripts() -> Path:
    """The folder that holds the two scripts, filled if need be."""

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            for file in LOCKED:
                shutil.copy(file, scratch)
            run("npm", ["ci", "--prefix", scratch])
            for script in SCRIPTS:
                shutil.copy(Path(scratch) / "node_modules" / script, folder)

    return kept("previews", LOCKED, fetch)


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
