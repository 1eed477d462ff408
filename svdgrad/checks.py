"""check(): the book's assertions. They test the true bound and print only the bound.

A computed error such as 3.1e-14 differs from machine to machine; "below 1e-12" does not, so an executed notebook can be
stored with its outputs and compared, word for word, on any machine.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def check(claim: str, error: float, below: float, eq: str | tuple[str, ...] | None = None, what: str = "error") -> None:
    """Assert that ``0 <= error < below`` and print the claim with its bound.

    ``what`` says what kind of number it is, if not an error. ``eq`` names the label, or labels, of the numbered
    equations that the error is a test of; a test of the project lists the equations that no check names.

    >>> check("two is the square root of four", abs(2 - 4**0.5), below=1e-15)
    two is the square root of four: error below 1e-15
    >>> check("three is the square root of four", abs(3 - 4**0.5), below=1e-15)
    Traceback (most recent call last):
    ...
    AssertionError: three is the square root of four: the error should be below 1e-15, found 1
    """
    error = float(error)
    if not (math.isfinite(error) and 0 <= error < below):
        raise AssertionError(f"{claim}: the {what} should be below {below:g}, found {error:g}")
    print(f"{claim}: {what} below {below:g}")


def grade(answer: Any, truth: Any, below: float = 1e-8) -> None:
    """Tell the reader how an exercise stands: an answer of None is not one yet, any other is compared with the truth.

    >>> grade(None, 2.0)
    nothing to check yet: put your answer where None stands
    >>> grade(2.0, 2.0)
    right: relative error below 1e-08
    >>> grade(3.0, 2.0)
    not yet: relative error 0.5
    """
    if answer is None:
        print("nothing to check yet: put your answer where None stands")
    elif (error := relative_error(answer, truth)) < below:
        print(f"right: relative error below {below:g}")
    else:
        print(f"not yet: relative error {error:.2g}")


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
