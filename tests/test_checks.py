"""The book's assertions must be able to fail."""

import numpy as np
import pytest

from svdgrad.checks import check, relative_error


@pytest.mark.parametrize("error", [1e-3, float("nan"), float("inf"), -1e-9, 1e-4])
def test_check_fails_on_a_large_negative_or_undefined_error(error):
    with pytest.raises(AssertionError, match="the error should be below 0.0001"):
        check("a claim", error, below=1e-4)


def test_check_prints_the_bound_and_not_the_error(capsys):
    check("a claim", 3.21e-7, below=1e-4, eq="eq-x")
    assert capsys.readouterr().out == "a claim: error below 0.0001\n"


def test_relative_error_sees_size_shape_and_nan():
    assert relative_error([1.0, 0.0], [0.0, 1.0]) == pytest.approx(2**0.5)
    assert relative_error([1e-200, 0.0], [0.0, 1e-200]) == pytest.approx(2**0.5)
    assert np.isnan(relative_error([np.nan], [1.0]))
    assert relative_error([0.0], [0.0]) == 0 and relative_error([1e-300], [0.0]) == np.inf
    with pytest.raises(ValueError, match="one shape"):
        relative_error(np.ones((2, 1)), np.ones(2))
