"""Which cases of a table run in `make test`, and which in `make slow` alone."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """All cases, each a tuple, and those that are not quick marked slow."""
    return [pytest.param(*x, marks=[] if x in quick else pytest.mark.slow) for x in cases]
