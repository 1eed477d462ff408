"""What every test process, and every notebook kernel it starts, has in common."""

import os
from pathlib import Path

import svdgrad.oracles  # noqa: F401  (decides JAX's platform, which the kernels inherit)

# A backend named by the user's shell would replace the inline one, and the notebooks would draw nothing.
os.environ.pop("MPLBACKEND", None)


def pytest_configure(config):
    config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "sanitize.cfg")
