"""check(): the book's assertions. They test the true bound and print it, beside the decade of what was found.

A computed error such as 3.1e-14 differs from machine to machine, and so may its decade; "below 1e-12" does not. The
tests compare an executed notebook with its stored outputs word for word, the decades left out (tests/sanitize.cfg).
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def check(
    claim: str,
    error: float,
    below: float = math.inf,
    eq: str | tuple[str, ...] | None = None,
    what: str = "error",
    above: float = 0.0,
) -> None:
    """Assert that ``above <= error < below`` and print the claim with the bound and, if it is within, the decade of the
    error.

    ``above`` is for the wrong way, which has to be shown wrong. ``what`` says what kind of number it is, if not an
    error. ``eq`` names the label, or labels, of the numbered equations that the error is a test of; a test of the
    project lists the equations that no check names.

    >>> check("two is the square root of four", abs(2 - 4**0.5), below=1e-15)
    two is the square root of four: error about 0, below 1e-15
    >>> check("1.4 is the square root of two", abs(1.4 - 2**0.5), above=1e-3)
    1.4 is the square root of two: error about 0.01, above 0.001
    >>> check("three is the square root of four", abs(3 - 4**0.5), below=1e-15)
    Traceback (most recent call last):
    ...
    AssertionError: three is the square root of four: the error should be below 1e-15, found 1
    """
    error = float(error)
    bounds = [f"above {above:g}"] * (above > 0) + [f"below {below:g}"] * (below < math.inf)
    if not bounds:
        raise ValueError("a check without a bound cannot fail: give below=, above= or both")
    if not (math.isfinite(error) and above <= error < below):
        raise AssertionError(f"{claim}: the {what} should be {' and '.join(bounds)}, found {error:g}")
    decade = 10.0 ** round(math.log10(error)) if error else 0
    about = f"about {decade:g}, " if above <= decade < below else ""  # or "about 1, above 2" might be read
    print(f"{claim}: {what} {about}{' and '.join(bounds)}")


def relative_error(found: Any, truth: Any) -> float:
    """‖found − truth‖ / ‖truth‖ in the Frobenius norm, in float64 on the CPU, for tensors and arrays alike; 0/0 counts
    as 0.

    >>> import numpy as np
    >>> relative_error(np.array([1.0, 1.0]), np.array([1.0, 0.0]))
    1.0
    """
    import numpy as np

    found, truth = (_to_numpy(x) for x in (found, truth))
    if found.shape != truth.shape:
        raise ValueError(f"only arrays of one shape can be compared, found {found.shape} and {truth.shape}")
    # dividing by the largest entry first keeps the squares inside the norms from over- and underflowing
    scale = np.abs(truth).max()
    if scale == 0:
        return 0.0 if not np.any(found) else math.inf
    return float(np.linalg.norm((found - truth) / scale) / np.linalg.norm(truth / scale))


def _to_numpy(x: Any) -> "np.ndarray":
    import numpy as np

    array: np.ndarray = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
