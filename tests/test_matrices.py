"""The block matrices, and their singular values in closed form, measured."""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from svdgrad import matrices
from svdgrad.forward import svd
from svdgrad.lab import relative_error


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
    pytest.importorskip("matplotlib", reason="the grid is one of matplotlib's sample files")
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
    assert torch.equal(
        matrices.predicted_singular_values("saddle", S, 3, 3),
        matrices.predicted_singular_values("saddle", S, 3, 3, 0, 1.0),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", ["rows", "columns", "conjugate", "every other", "small", "two rows"])
def test_products_of_an_iteration_are_those_of_the_matrix(layout, threads, dtype):
    """Whatever the layout and the number of blocks, the last of them shorter; and for a batch of vectors too."""
    m, n = {"small": (5, 3), "two rows": (2, 40_000)}.get(layout, (301, 260))
    A = matrices.gaussian(m, n).to(dtype)
    A = A + 1j * matrices.gaussian(m, n, seed=1) if dtype.is_complex else A
    A = {"columns": A.mT.contiguous().mT, "conjugate": A.conj().mT, "every other": A[::2, ::2]}.get(layout, A)
    x, y = (matrices.gaussian(k, 2, seed=2).T.to(dtype) for k in reversed(A.shape))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matvec, rmatvec = matrices.products(A)
        found = [matvec(x[0]), rmatvec(y[0]), matvec(x), rmatvec(y)]
    finally:
        torch.set_num_threads(before)
    exact = A.to(torch.complex128).resolve_conj().numpy()
    wanted = [exact @ x[0].numpy(), exact.conj().T @ y[0].numpy(), x.numpy() @ exact.T, y.numpy() @ exact.conj()]
    for one, other, given in zip(found, wanted, (x[0], y[0], x, y)):
        assert one.dtype == dtype and one.shape == other.shape
        rounding = torch.finfo(dtype).eps * np.linalg.norm(exact) * given.norm()
        assert np.linalg.norm(one.resolve_conj().numpy() - other) <= rounding


def test_products_of_what_is_recorded_are_recorded():
    A = matrices.gaussian(300, 300).requires_grad_()
    matvec, rmatvec = matrices.products(A)
    (matvec(A[0].detach()).sum() + rmatvec(A[1].detach()).sum()).backward()
    assert relative_error(A.grad, A[0].detach().expand(300, 300) + A[1].detach()[:, None]) < 1e-13
    x = matrices.gaussian(300, 1)[:, 0]
    with forward_ad.dual_level():
        dual = matrices.products(forward_ad.make_dual(A.detach(), torch.ones(300, 300).double()))[0](x)
        assert relative_error(forward_ad.unpack_dual(dual).tangent, x.sum().expand(300)) < 1e-13
