"""What is looked at before anything is solved: which method, how large a gap, which phase; each at its threshold."""

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch

import svdgrad
from svdgrad.auto import choose, name_of
from svdgrad.gap import check_gap, expected_error, relative_gap
from svdgrad.inputs import prepare
from svdgrad.phase import check_phase

EPS = torch.finfo(torch.float64).eps


def chosen(A, index=0, forward="auto", adjoint="auto"):
    """The names of the method and of the solver that a call uses."""
    _, how, _ = prepare(A, index, forward, adjoint, None, None, None, 1e-3)
    return how.forward.name, name_of(how.adjoint)


@pytest.mark.parametrize("shape", [(400, 500), (500, 400)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64, torch.complex128], ids=str)
def test_auto_is_gram_while_the_smaller_side_is_small_and_lanczos_beyond(shape, dtype):
    for k, forward, adjoint in ((1, "gram", "spectral"), (320, "gram", "spectral"), (321, "lanczos", "cg")):
        A = torch.empty([k if side == 400 else k + 100 for side in shape], dtype=dtype)
        assert chosen(A) == (forward, adjoint)
        assert chosen(A, -k) == (forward, adjoint)  # the largest, counted from the other end
        assert chosen(A, adjoint="saddle") == (forward, "saddle")
        if k > 1:
            assert chosen(A, 1) == chosen(A, -1) == ("svd", "spectral")
        assert choose(A.expand(3, *A.shape)) == "gram"
        assert chosen(A, forward="svd") == ("svd", "spectral") and chosen(A, forward="lanczos") == ("lanczos", "cg")
    for long, forward in ((16 * 321 - 1, "lanczos"), (16 * 321, "gram")):  # much the smaller side
        A = torch.empty([321 if side == 400 else long for side in shape], dtype=dtype)
        assert choose(A) == forward
    assert choose(torch.empty(451, 451, dtype=torch.float16)) == "lanczos"
    assert choose(torch.empty(300, 300, dtype=torch.float16)) == "gram"


@pytest.mark.parametrize("batch", [False, True], ids=["one matrix", "a batch"])
def test_relative_gap_by_hand(batch):
    def gap(sigma, S, m, n):
        sigma, S = torch.tensor(sigma), torch.tensor(S)
        # one matrix goes by Python's numbers: a batch of it and of its double, with the same gap, by tensors
        return (
            relative_gap(torch.stack([sigma, 2 * sigma]), torch.stack([S, 2 * S]), m, n)
            if batch
            else relative_gap(sigma, S, m, n)
        )

    S = [4.0, 3.0, 1.0]
    for sigma, square, tall in ((4.0, 0.25, 0.25), (3.0, 0.25, 0.25), (1.0, 0.5, 0.25)):
        assert gap(sigma, S, 3, 3) == square
        assert gap(sigma, S, 4, 3) == gap(sigma, S, 3, 4) == tall
    assert gap(2.0, [2.0], 1, 1) == gap(2.0, [2.0], 5, 1) == 1
    for m, n in ((2, 2), (3, 2)):
        assert gap(0.0, [0.0, 0.0], m, n) == 0
    # an approximate σ far above its Ritz values is never further than σ₁ from the next
    assert gap(4.0, [1.0, 0.5], 2, 2) == 1


def test_relative_gap_of_a_batch_is_its_smallest():
    S = torch.tensor([[4.0, 3.0, 1.0], [2.0, 1.5, 0.5]])
    for index, square, tall in ((0, 0.25, 0.25), (1, 0.25, 0.25), (2, 0.5, 0.25)):
        assert relative_gap(S[:, index], S, 3, 3) == square
        assert relative_gap(S[:, index], S, 4, 3) == tall
    S = torch.tensor([[4.0, 1.0], [4.0, 3.0], [4.0, 2.0]])
    assert relative_gap(S[:, 0], S, 2, 2) == 0.25


@pytest.mark.parametrize(("m", "n"), [(1, 1), (50, 14), (9000, 1000)], ids=str)
def test_a_tie_is_a_gap_of_three_roundings_times_the_root_of_the_size_and_sixteen(m, n):
    tie = EPS * max(16, 3 * (m + n) ** 0.5)
    for factor in (0.94, 1.06):
        S = torch.tensor([1.0, 1 - factor * tie], dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", svdgrad.NearTieWarning)
            if factor < 1:
                with pytest.raises(svdgrad.TieError):
                    check_gap(m, n, S[0], S)
            else:
                check_gap(m, n, S[0], S)


def test_the_warning_begins_where_two_digits_are_left():
    assert expected_error(1e-3, 9, 7, torch.float64) == pytest.approx(4 * EPS / 1e-3)
    assert expected_error(1e-3, 900, 700, torch.float64) == pytest.approx(10 * EPS / 1e-3)
    for factor, warned in ((0.95, True), (1.05, False)):
        S = torch.tensor([1.0, 1 - factor * 400 * EPS], dtype=torch.float64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_gap(2, 2, S[0], S)
        assert [w.category for w in caught] == [svdgrad.NearTieWarning] * warned


def test_the_phase_is_checked_in_every_member():
    u = torch.tensor([[0.6, 0.8j], [1.0, 0.0]], dtype=torch.complex128)
    v = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8j]], dtype=torch.complex128)
    check_phase(u, v, 1j * u, -1j * v)  # the two slopes cancel
    check_phase(u, v, 0 * u, 0 * v)
    # one vector alone: to a thousand roundings. Of φ = (1 + iτ)u and ψ = v the slope is τ, and three times
    # √(‖φ‖‖ψ‖/min(m, n)) is reached where τ² = 9/2 √(1 + τ²)
    most = (81 / 8 + ((81 / 8) ** 2 + 81 / 4) ** 0.5) ** 0.5
    for size, member, which, factor in itertools.product((1e-200, 1, 1e200), (0, 1), (0, 1), (0.95, 1.05)):
        alone, both = [0 * u, 0 * v], [u.clone(), v.clone()]
        alone[which][member] = (u, v)[which][member] * (1 + 1j * factor * 1e3 * EPS)
        both[which][member] *= 1 + 1j * factor * most
        for bars in (alone, both):
            bars = [x * size for x in bars]
            if factor < 1:
                check_phase(u, v, *bars)
            else:
                with pytest.raises(svdgrad.PhaseError):
                    check_phase(u, v, *bars)


def test_on_a_gpu_the_gram_matrix_is_faster_up_to_a_larger_size():
    """There an iteration waits for its calls; only the shape and the device decide, so a stand-in has no numbers."""

    def stand_in(n, on_gpu):
        return SimpleNamespace(shape=(n, n), ndim=2, is_cuda=on_gpu)

    assert [choose(stand_in(n, False)) for n in (320, 321)] == ["gram", "lanczos"]
    assert [choose(stand_in(n, True)) for n in (321, 2048, 2049)] == ["gram", "gram", "lanczos"]
