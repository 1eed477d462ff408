"""Input that could pass for something else gets one error: the rule, what was found, what to do."""

import warnings

import numpy as np
import pytest
import torch

import svdgrad
from svdgrad.forward import FORWARDS

A = torch.arange(24.0).sin().reshape(6, 4)
ones = torch.ones(4)
TAKE_A_MATRIX = {
    "singular_triplet": svdgrad.singular_triplet,
    "rank_two_gradient": lambda A, **how: svdgrad.rank_two_gradient(lambda t: t.sigma + t.u[0], A, **how),
    "diagnose": svdgrad.diagnose,
}


def unusual():
    """Tensors that are no dense matrices; making some warns, of features that are new or old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sparse_csc": A.to_sparse_csc(),
            "_mkldnn": A.to_mkldnn(),
            "a nested tensor": torch.nested.nested_tensor([A, A[:2]]),
        }


DENSE = [
    (A.numpy(), TypeError, "A must be a torch.Tensor, found ndarray: convert it with torch.as_tensor"),
    (np.float64(1.0), TypeError, "A must be a torch.Tensor, found float64"),
    (A > 0, TypeError, "A must be floating point, found torch.bool: derivatives need real entries, try A.double"),
    (A.to(torch.uint8), TypeError, "A must be floating point, found torch.uint8"),
    (A.to(torch.float8_e4m3fn), TypeError, "found torch.float8_e4m3fn: eight bits hold no derivative, try A.double"),
    (torch.nn.UninitializedParameter(), ValueError, "found a parameter without a shape: call its lazy module once"),
    *((x, TypeError, f"A must be one dense tensor.*found .*{name}: ") for name, x in unusual().items()),
]


@pytest.mark.parametrize("function", TAKE_A_MATRIX)
@pytest.mark.parametrize(("matrix", "error", "message"), DENSE, ids=[message[:40] for *_, message in DENSE])
def test_only_a_dense_matrix_of_real_or_complex_numbers(matrix, error, message, function):
    with pytest.raises(error, match=message):
        TAKE_A_MATRIX[function](matrix)


def test_a_quantized_matrix():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the feature is to be removed
        matrix = torch.quantize_per_tensor(A, 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="found a quantized tensor, torch.qint8: convert it with A.dequantize"):
        svdgrad.singular_triplet(matrix)


@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.nn.Buffer, lambda A: A.as_subclass(Renamed)])
def test_parameters_buffers_and_subclasses_are_tensors(kind):
    torch.testing.assert_close(
        svdgrad.spectral_norm(kind(A.clone())).detach().as_subclass(torch.Tensor), torch.linalg.matrix_norm(A, 2)
    )


class Renamed(torch.Tensor):
    pass


OPTIONS = [
    ({"index": True}, TypeError, "index must be an integer, found True: one triplet at a time, 0 the largest"),
    ({"index": "0"}, TypeError, "index must be an integer, found '0'"),
    ({"index": 1.0}, TypeError, r"index must be an integer, found 1\.0"),
    ({"index": slice(2)}, TypeError, "index must be an integer, found slice"),
    ({"index": None}, TypeError, "index must be an integer, found None"),
    ({"index": 4}, ValueError, "index must be from -4 to 3 for a matrix of shape 6×4, found 4"),
    ({"forward": None}, ValueError, "unknown forward None: the names are 'auto', 'svd', 'gram', 'lanczos'"),
    ({"adjoint": ["cg"]}, ValueError, r"unknown adjoint \['cg'\]: the names are 'auto', 'direct'"),
    *(
        (how | {name: value}, error, message)
        for how in ({}, *({"forward": forward} for forward in FORWARDS))
        for name, value, error, message in (
            (
                "tol",
                -1e-3,
                ValueError,
                r"tol must be finite and not negative, found -0\.001: .*the residual to stop at",
            ),
            ("tol", float("nan"), ValueError, "tol must be finite and not negative, found nan"),
            ("tol", float("inf"), ValueError, "tol must be finite and not negative, found inf"),
            ("tol", "1e-3", TypeError, "tol must be a number, found '1e-3'"),
            ("tol", True, TypeError, "tol must be a number, found True"),
            ("maxiter", 0, ValueError, "maxiter must be at least 1, found 0: it counts steps"),
            ("maxiter", -3, ValueError, "maxiter must be at least 1, found -3"),
            ("maxiter", 10.0, TypeError, r"maxiter must be an integer, found 10\.0"),
            ("maxiter", True, TypeError, "maxiter must be an integer, found True"),
            ("v0", np.ones(4), TypeError, "v0 must be a torch.Tensor, found ndarray: convert it with torch.as_tensor"),
            ("v0", [1.0] * 4, TypeError, "v0 must be a torch.Tensor, found list"),
            ("v0", torch.tensor(1.0), ValueError, r"v0 must have 4 entries.*found shape \(\)"),
            ("v0", torch.ones(6), ValueError, r"v0 must have 4 entries, one for each column of A, found shape \(6,\)"),
            (
                "v0",
                torch.ones(4, 4),
                ValueError,
                r"one vector \(4,\), or.*of a batch \(\), found shape \(4, 4\): for se",
            ),
            ("v0", 1j * ones, TypeError, "v0 must be real for a real A, found torch.complex64: take its real part"),
            ("v0", 0 * ones, ValueError, "v0 must be finite and not zero: it fixes the sign, .*random numbers will do"),
            ("v0", ones / 0, ValueError, "v0 must be finite and not zero"),
            ("v0", torch.tensor([1, 2, float("nan"), 3]), ValueError, "v0 must be finite and not zero"),
        )
    ),
    (
        {"forward": "gram", "tol": 1e-3},
        ValueError,
        r"'gram' does not iterate, found tol=0\.001: leave it out, or use 'lanczos'",
    ),
    ({"forward": "svd", "maxiter": 9}, ValueError, "'svd' does not iterate, found maxiter=9"),
]


@pytest.mark.parametrize("function", TAKE_A_MATRIX)
@pytest.mark.parametrize(("how", "error", "message"), OPTIONS, ids=[f"{h} {m[:20]}" for h, _, m in OPTIONS])
def test_an_option_that_cannot_be(how, error, message, function):
    with pytest.raises(error, match=message):
        TAKE_A_MATRIX[function](A, **how)


@pytest.mark.parametrize("name", ["tol", "maxiter", "v0"])
def test_spectral_norm_checks_its_options_too(name):
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        svdgrad.spectral_norm(A, **{name: -1})


def test_auto_takes_what_some_of_its_methods_do_not_need():
    """A loop over the layers of a model passes tol to all of them, whatever their sizes."""
    for shape in ((6, 4), (400, 350)):
        A = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        sigma = svdgrad.spectral_norm(A, tol=1e-4, maxiter=300)
        assert abs(sigma / torch.linalg.matrix_norm(A, 2) - 1) <= 1e-4


@pytest.mark.parametrize("forward", ["auto", *FORWARDS])
def test_what_is_like_a_number_or_a_vector_is_one(forward):
    sigma, u, v = svdgrad.singular_triplet(A, forward=forward, v0=-ones)
    for v0 in (-1e30 * ones, -1e-30 * ones, -1e300 * ones.double(), -ones.long(), -ones.half()):
        torch.testing.assert_close(svdgrad.singular_triplet(A, np.int64(0), forward, v0=v0), (sigma, u, v))
    X = A + 0j
    torch.testing.assert_close(svdgrad.singular_triplet(X, forward=forward, v0=-ones), (sigma, u + 0j, v + 0j))


@pytest.mark.parametrize("forward", ["auto", *FORWARDS])
def test_v0_for_a_batch(forward):
    batch = torch.stack([A, A.flip(0), 2 * A, -A, A.exp(), A.cos()]).reshape(2, 3, 6, 4)
    alone = svdgrad.singular_triplet(batch, forward=forward, v0=-ones)
    for shape in ((4,), (1, 4), (3, 4), (2, 1, 4), (2, 3, 4)):
        torch.testing.assert_close(svdgrad.singular_triplet(batch, forward=forward, v0=-ones.expand(shape)), alone)
    for shape in ((2, 4), (4, 4), (3, 2, 4), (1, 2, 3, 4)):
        with pytest.raises(
            ValueError, match=r"v0 must be one vector \(4,\), or one for each matrix of a batch \(2, 3\)"
        ):
            svdgrad.singular_triplet(batch, forward=forward, v0=ones.expand(shape))
    starts = ones.repeat(2, 3, 1)
    starts[1, 2] = 0
    with pytest.raises(ValueError, match="v0 must be finite and not zero"):
        svdgrad.singular_triplet(batch, forward=forward, v0=starts)


@pytest.mark.parametrize("forward", ["auto", *FORWARDS])
def test_a_value_beyond_float16(forward):
    for dtype in (torch.float16, torch.complex32):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # complex32 is said to be new
            X = torch.full((2, 2, 2), 2.0**14).to(dtype)
            X[1] *= 3
        assert svdgrad.spectral_norm(X[0], forward=forward) == 2.0**15
        for big in (X, X[1]):
            with pytest.raises(ValueError, match=r"found σ = 98304 for .*, which ends at 65504: .*A\.float\(\)"):
                svdgrad.spectral_norm(big, forward=forward)
    assert torch.func.vmap(lambda X: svdgrad.spectral_norm(X, forward=forward))(X.real).tolist() == [
        2.0**15,
        torch.inf,
    ]
    svdgrad.spectral_norm(X[1].real.to(torch.bfloat16), forward=forward)  # which has the range of float32


LOSSES = [
    (None, "loss must be a function of a triplet, found NoneType"),
    (lambda t: 1.0, r"loss\(triplet\) must be one real number.* found float"),
    (lambda t: t.u, r"loss\(triplet\) must be one real number.* found torch.float32 of shape \(6,\): end it with .sum"),
    (lambda t: 1j * t.sigma, "found torch.complex64"),
    (lambda t: torch.tensor(1.0), r"found torch.float32 of shape \(\) without a graph"),
    (lambda t: t.sigma.detach(), "without a graph"),
]


@pytest.mark.parametrize(("loss", "message"), LOSSES, ids=[message[:50] for _, message in LOSSES])
def test_a_loss_that_is_none(loss, message):
    with pytest.raises(TypeError, match=message):
        svdgrad.rank_two_gradient(loss, A)


OPERATORS = [
    ((None, A, ones), TypeError, r"matvec must be a function of \(params, x\), found NoneType"),
    ((torch.mv, A, np.ones(4)), TypeError, "v0 must be a .*floating point tensor, .*found float64"),
    ((torch.mv, A, torch.ones(0)), ValueError, r"v0 must have at least one entry, found shape \(0,\)"),
    ((lambda A, x: A[:0] @ x, A, ones), ValueError, r"matvec must return at least one entry, found shape \(0,\)"),
    ((torch.mv, A, ones, -1.0), ValueError, "tol must be finite and not negative, found -1"),
    ((torch.mv, A, ones, None, 0), ValueError, "maxiter must be at least 1, found 0"),
    ((torch.mv, A, ones, None, 2.5), TypeError, r"maxiter must be an integer, found 2\.5"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), OPERATORS, ids=[message[:50] for *_, message in OPERATORS])
def test_an_operator_that_is_none(arguments, error, message):
    with pytest.raises(error, match=message):
        svdgrad.operator_triplet(*arguments)
