"""The book's assertions must be able to fail."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from svdgrad.lab import check, relative_error


@pytest.mark.parametrize("error", [1e-3, float("nan"), float("inf"), -1e-9, 1e-4])
def test_check_fails_on_a_large_negative_or_undefined_error(error):
    with pytest.raises(AssertionError, match="the error should be below 0.0001"):
        check("a claim", error, below=1e-4)


@pytest.mark.parametrize("error", [0.09, 0.0, -1.0, float("nan"), float("inf")])
def test_check_fails_on_an_error_that_is_too_small(error):
    with pytest.raises(AssertionError, match="the error should be above 0.1, found"):
        check("a wrong way", error, above=0.1)


def test_check_prints_the_bound_and_the_decade_but_not_the_error(capsys):
    check("a claim", 3.21e-7, below=1e-4, eq="eq-x")
    check("a claim", 3.11e-7, below=1e-4)
    check("a wrong way", 0.7, above=0.1, what="residual")
    check("between", 2.0, above=1, below=30, what="factor")
    assert capsys.readouterr().out.splitlines() == [
        "a claim: error about 1e-06, below 0.0001",
        "a claim: error about 1e-07, below 0.0001",
        "a wrong way: residual about 1, above 0.1",
        "between: factor about 1, above 1 and below 30",
    ]


def test_a_check_without_a_bound_cannot_fail():
    with pytest.raises(ValueError, match="give below=, above= or both"):
        check("anything", 1.0)


def test_what_nbval_compares_is_the_bound_and_not_the_decade():
    config = (Path(__file__).parent / "sanitize.cfg").read_text(encoding="utf-8")
    ((pattern, replacement),) = re.findall(r"^regex: (.*)$\n^replace: (.*)$", config, flags=re.M)  # as nbval reads it
    compared = [
        re.sub(pattern, replacement, f"p ⟂ u: error about {decade}, {bound}")
        for decade, bound in (("1e-14", "below 1e-12"), ("0", "below 1e-12"), ("0.01", "above 0.001"), ("1", "above 1"))
    ]
    assert compared == [f"p ⟂ u: error {bound}" for bound in ("below 1e-12", "below 1e-12", "above 0.001", "above 1")]


def test_relative_error_sees_size_shape_and_nan():
    assert relative_error([1.0, 0.0], [0.0, 1.0]) == pytest.approx(2**0.5)
    assert relative_error([1e-200, 0.0], [0.0, 1e-200]) == pytest.approx(2**0.5)
    assert np.isnan(relative_error([np.nan], [1.0]))
    assert relative_error([4.0, 4.0], [2.0, 2.0]) == pytest.approx(1)  # ‖truth‖ divides, not its largest entry
    assert relative_error([0.0], [0.0]) == 0 and relative_error([1e-300], [0.0]) == np.inf
    with pytest.raises(ValueError, match="one shape"):
        relative_error(np.ones((2, 1)), np.ones(2))


def test_relative_error_takes_what_autograd_and_complex_arithmetic_give():
    assert relative_error(torch.ones(2, requires_grad=True), np.ones(2)) == 0
    assert relative_error([1 + 1j], [1.0]) == 1


def test_an_error_of_one_entry_is_a_number():
    with pytest.raises(AssertionError, match="found 1$"):
        check("a claim", torch.ones(1), below=1e-4)
