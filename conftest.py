"""What every test process, and every notebook kernel it starts, has in common."""

import os
from pathlib import Path

import pytest

import svdgrad.oracles  # noqa: F401  (decides JAX's platform, which the kernels inherit)

# A backend named by the user's shell would replace the inline one, and the notebooks would draw nothing.
os.environ.pop("MPLBACKEND", None)

#: chapters that train networks, or compile some hundred programs of JAX: half of the time of all
SLOW_CHAPTERS = {"in-jax", "in-jax-without-an-svd", "in-training", "layers"}


def pytest_configure(config):
    config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "sanitize.cfg")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.stem in SLOW_CHAPTERS:
            item.add_marker("slow")
