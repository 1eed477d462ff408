"""The block matrices, and their singular values in closed form, measured."""

import numpy as np
import pytest
import torch

from svdgrad import matrices
from svdgrad.forward import svd


@pytest.mark.parametrize("name", matrices.MATRICES)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7), (1, 4), (4, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("beta", [1.0, 0.01, 50.0])
def test_closed_form_singular_values(name, shape, index, beta):
    A = matrices.gaussian(*shape, seed=2)
    triplet, known = svd(A, index)
    measured = torch.linalg.svdvals(matrices.MATRICES[name](A, *triplet, beta))
    predicted = matrices.predicted_singular_values(name, known.S, *shape, index=index, beta=beta)
    torch.testing.assert_close(measured, predicted, rtol=0, atol=1e-13 * max(beta, *measured, 1))


def test_an_unknown_matrix_is_named():
    with pytest.raises(ValueError, match="no closed form under the name 'X': the names are 'K'"):
        matrices.predicted_singular_values("X", torch.ones(2), 2, 2)


def test_prescribed_singular_values_are_met_and_counted():
    s = np.array([5.0, 2.0, 2.0])
    for m, n in ((3, 3), (3, 7), (7, 3)):
        np.testing.assert_allclose(torch.linalg.svdvals(matrices.with_singular_values(s, m, n)), s, rtol=1e-14)
    with pytest.raises(ValueError, match="a matrix of shape 4×5 has 4 singular values, found 3"):
        matrices.with_singular_values(s, 4, 5)


def test_elevation_is_the_grid_that_matplotlib_ships():
    A = matrices.elevation()
    assert A.shape == (344, 403) and A.dtype == torch.float64
    assert abs(A.mean()) < 1e-10 and 200 < A.max() < 600


def test_what_is_left_unsaid():
    assert matrices.gaussian().shape == (64, 32)
    assert torch.equal(matrices.with_singular_values([2, 1], 3, 2), matrices.with_singular_values([2, 1], 3, 2, seed=0))
    A = matrices.gaussian(5, 3)
    triplet, _ = svd(A)
    for name in ("bordered", "saddle"):  # a border of ones
        assert torch.equal(matrices.MATRICES[name](A, *triplet), matrices.MATRICES[name](A, *triplet, 1.0))
    S = torch.tensor([3.0, 2.0, 1.0])
    assert torch.equal(matrices.predicted_singular_values("saddle", S, 3, 3), matrices.predicted_singular_values("saddle", S, 3, 3, 0, 1.0))
