"""A → cA and L → dL: σ grows with c, the gradient of a loss of u and v like d/c, and nothing loses a digit on the way.

All scales are powers of two, so that a scaled matrix is the matrix, exactly, in other units. The judge is PyTorch's
backward through its own full SVD, in float64 and at scale one; every singular value of the matrices here is simple.
"""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from marks import slow_but
from torch import Tensor

import svdgrad
from svdgrad import adjoint, matrices
from svdgrad.forward import FORWARDS

METHODS = ["auto", *FORWARDS]
SHAPES = [(6, 4), (4, 6), (5, 5)]
#: powers of two: in float32 from 1e-30 to 1e30, with cotangents from 1e-34 on; in float64 from 1e-271 to 1e271
A_SCALES = {torch.float32: [-100, -40, 0, 40, 100], torch.float64: [-900, -300, 0, 300, 900]}
LOSS_SCALES = {
    dtype: [{torch.float32: -113, torch.float64: -1000}[dtype], *scales] for dtype, scales in A_SCALES.items()
}
DTYPES = [torch.float32, torch.complex64, torch.float64, torch.complex128]


def real(dtype: torch.dtype) -> torch.dtype:
    return torch.empty(0, dtype=dtype).real.dtype


def times(x: Tensor, power: int) -> Tensor:
    """2^power x, in float64, and in two steps: neither 2^1500 nor 2^-1500 is a number."""
    x = x.to(torch.complex128 if x.is_complex() else torch.float64)
    return x * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)


class Problem(NamedTuple):
    """A and the cotangents, in float64 numbers that the dtype holds exactly; G and the bound are for scale one."""

    dtype: torch.dtype
    A: Tensor
    xi: Tensor
    phi: Tensor
    psi: Tensor
    v: Tensor
    G: Tensor
    bound: float

    def at(self, a: int, d: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor] | None:
        """A at 2^a, (φ, ψ) at 2^d and ξ at 2^(d − a), where all three parts of the gradient are at 2^(d − a), and v0;
        None where that is no normal number.
        """
        limits = torch.finfo(self.dtype)
        sizes = [math.log2(x.abs().max()) + d - a for x in (self.G, self.xi)]
        if not (math.log2(limits.tiny) < min(sizes) and max(sizes) < math.log2(limits.max) - 1):
            return None
        A, phi, psi = (times(x, k).to(self.dtype) for x, k in ((self.A, a), (self.phi, d), (self.psi, d)))
        return A, (times(self.xi, d - a).to(real(self.dtype)), phi, psi), self.v.to(self.dtype)


def problem(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> Problem:
    numbers = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    A, phi, psi = (torch.randn(size, dtype=dtype, generator=numbers).to(wide) for size in (shape, *shape))
    xi = torch.tensor(0.75, dtype=torch.float64)
    A.requires_grad_()
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    u, v = U[:, 0], Vh[0].conj()
    if dtype.is_complex:  # a loss that is blind to the common phase
        with torch.no_grad():
            psi = psi - 1j * v * (torch.vdot(u, phi) + torch.vdot(v, psi)).imag
    (G,) = torch.autograd.grad((S[0], u, v), A, (xi, phi, psi), retain_graph=True)
    S = S.detach()
    return Problem(
        dtype, A.detach(), xi, phi, psi, v.detach(), G, 50 * torch.finfo(dtype).eps * float(S[0] / (S[0] - S[1]))
    )


PROBLEMS = {(shape, dtype): problem(shape, dtype) for shape in SHAPES for dtype in DTYPES}


def error(found: Tensor, power: int, truth: Tensor) -> float:
    """‖2^(−power) found − truth‖/‖truth‖."""
    return float((times(found, -power) - truth).norm() / truth.norm())


def scales(one: Problem) -> list[tuple[int, int]]:
    """Those of A and of the loss at which the gradient is a normal number."""
    both = itertools.product(A_SCALES[real(one.dtype)], LOSS_SCALES[real(one.dtype)])
    return [(a, d) for a, d in both if one.at(a, d) is not None]


ADJOINTS = ["auto", *adjoint.SOLVERS]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("forward", "name"),
    slow_but(
        [*itertools.product(["auto", "svd", "gram"], ADJOINTS), ("lanczos", "auto"), ("lanczos", "mixed")],
        itertools.product(METHODS, ADJOINTS),
    ),
)
def test_reverse_mode(forward, name, dtype):
    """All scales in one batch, each member with its own, and one with no cotangent; and some matrices alone."""
    for shape in SHAPES:
        one = PROBLEMS[shape, dtype]
        assert len(scales(one)) >= 17
        As, bars, v0s = zip(*(one.at(a, d) for a, d in scales(one)))
        bars = [torch.stack([*bar, 0 * bar[0]]) for bar in zip(*bars)]
        G = gradient(torch.stack([*As, As[0]]), bars, v0s[0], forward=forward, adjoint=name)
        for G_one, (a, d) in zip(G, scales(one)):
            assert error(G_one, d - a, one.G) <= one.bound, (shape, a, d)
        assert not G[-1].any()
        for a, d in scales(one)[:: 1 if name == "auto" else 4]:
            A, bars, v0 = one.at(a, d)
            G = gradient(A, bars, v0, forward=forward, adjoint=name)
            assert error(G, d - a, one.G) <= one.bound, (shape, a, d)


def gradient(A, bars, v0, **how):
    A.requires_grad_()
    return torch.autograd.grad(tuple(svdgrad.singular_triplet(A, v0=v0, **how)), A, bars)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("forward", METHODS)
def test_forward_mode(forward, dtype):
    """Along E the change of the loss is Re⟨G, E⟩: here of all three parts together. E is at 2^e, so du at 2^(e − a)."""
    for shape in SHAPES:
        one, E = PROBLEMS[shape, dtype], problem(shape, dtype, seed=1).A
        truth = torch.vdot(one.G.flatten(), E.flatten()).real
        for a, e in scales(one):
            A, _, v0 = one.at(a, e)
            for size in (-a // 2, 0, a // 2):  # of v0, which is a direction only
                f = lambda X: tuple(svdgrad.singular_triplet(X, forward=forward, v0=times(v0, size).to(dtype)))
                _, (dsigma, du, dv) = torch.func.jvp(f, (A,), (times(E, e).to(dtype),))
                along = torch.vdot(one.phi, times(du, a - e)) + torch.vdot(one.psi, times(dv, a - e))
                found = one.xi * times(dsigma, -e) + along.real
                assert abs(found - truth) <= one.bound * one.G.norm() * E.norm(), (shape, a, e, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("forward", METHODS)
def test_the_largest_value_alone(forward, dtype):
    for shape in SHAPES:
        one = PROBLEMS[shape, dtype]
        U, S, Vh = torch.linalg.svd(one.A, full_matrices=False)
        for a, d in itertools.product(A_SCALES[real(dtype)], LOSS_SCALES[real(dtype)]):
            A = times(one.A, a).to(dtype).requires_grad_()
            sigma = svdgrad.spectral_norm(A, forward=forward)
            (G,) = torch.autograd.grad(sigma, A, times(torch.ones(()), d).to(real(dtype)))
            assert error(sigma.detach(), a, S[0]) <= one.bound
            assert error(G, d, torch.outer(U[:, 0], Vh[0])) <= one.bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("forward", METHODS)
def test_reverse_over_reverse(forward, dtype):
    """⟨∇L, E⟩ differentiated, for L = d (σ/c + Re (xᴴu)(vᴴy)), A at c and E at e: in units of d e/c², which at scale
    one is 1.
    """
    unit = 60 if real(dtype) == torch.float32 else 500
    for shape in SHAPES:
        one, other = PROBLEMS[shape, dtype], problem(shape, dtype, seed=1)

        def curvature(a, d, e):
            A, _, v0 = one.at(a, d)
            x, y, E, over = (
                times(z, k).to(dtype) for z, k in ((one.phi, d), (one.psi, 0), (other.A, e), (one.xi, d - a))
            )
            A.requires_grad_()
            sigma, u, v = svdgrad.singular_triplet(A, forward=forward, v0=v0)
            loss = over.real * sigma + (torch.vdot(x, u) * torch.vdot(v, y)).real
            (G,) = torch.autograd.grad(loss, A, create_graph=True)
            return torch.autograd.grad(G, A, E)[0]

        at_one = times(curvature(0, 0, 0), 0)
        for a, d, e in itertools.product((-unit, 0, unit), repeat=3):
            # what backward meets on its way are cotangents of (p, q), of u and v, and the derivative of 1/σ
            if all(abs(k) <= 2 * unit for k in (d - a, d - 2 * a, e + d, e + d - a, e + d - 2 * a)):
                # the gap enters twice
                bound = one.bound**2 / 50 / torch.finfo(dtype).eps
                assert error(curvature(a, d, e), d + e - 2 * a, at_one) <= bound, (shape, a, d, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("forward", METHODS)
def test_a_subnormal_matrix_has_values_and_a_gradient_of_sigma_and_no_other(forward, dtype):
    """Its entries are numbers like others, but fewer; σ is right to the last of them, u and v to all their digits."""
    tiny = torch.finfo(dtype).tiny
    for shape in SHAPES:
        for power in (-3, -12):
            A = times(PROBLEMS[shape, dtype].A / 8, power + round(math.log2(tiny))).to(dtype)
            exact = times(A, -power - round(math.log2(tiny)))
            U, S, Vh = torch.linalg.svd(exact, full_matrices=False)
            A.requires_grad_()
            sigma, u, v = svdgrad.singular_triplet(A, forward=forward, v0=Vh[0].conj())
            assert 0 < sigma < tiny
            assert (
                abs(times(sigma.detach(), -power - round(math.log2(tiny))) - S[0])
                <= 2.0**-power * torch.finfo(dtype).eps
            )
            (G,) = torch.autograd.grad(sigma, A, retain_graph=True)
            bound = 50 * torch.finfo(dtype).eps * S[0] / (S[0] - S[1])
            assert (G - torch.outer(U[:, 0], Vh[0])).norm() <= bound
            with pytest.raises(svdgrad.TieError, match="below the smallest normal number of .*σ alone has a gradient"):
                u[0].abs().backward()


@pytest.mark.parametrize("forward", METHODS)
def test_a_subnormal_member_of_a_batch(forward):
    one = PROBLEMS[(6, 4), torch.float32]
    A = torch.stack([times(one.A, a).float() for a in (-130, 0)]).requires_grad_()
    sigma = svdgrad.spectral_norm(A, forward=forward)
    (G,) = torch.autograd.grad(sigma.sum(), A)
    assert (G[0] - G[1]).norm() <= one.bound * 2**5  # so many digits fewer
    assert error(sigma[1].detach(), 0, torch.linalg.matrix_norm(one.A, 2)) <= one.bound


BY_PRODUCTS = {
    "lanczos": lambda A: svdgrad.singular_triplet(A, forward="lanczos"),
    "a batch": lambda A: [x[0] for x in svdgrad.singular_triplet(torch.stack([A, A]), forward="lanczos")],
    "operator": lambda A: svdgrad.operator_triplet(lambda A, x: A @ x, A, torch.ones(A.shape[1])),
    "sparse": lambda A: svdgrad.singular_triplet(
        svdgrad.operator.Sparse(*(i.flatten() for i in torch.where(A == A)), A.shape, A.flatten())
    ),
}


@pytest.mark.parametrize("way", BY_PRODUCTS)
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 2e-4])
def test_near_the_ends_of_the_range_a_small_gap_is_no_tie(gap, way):
    """A direction of an iteration may be 1/2gap as long as its right-hand side: in units of A it would overflow."""
    for shape, power in itertools.product([(12, 9), (9, 12), (40, 40)], (-125, -120, 0, 120, 123, 126)):
        k = min(shape)
        A = matrices.with_singular_values([1, 1 - gap, *(0.8 - 0.7 * i / k for i in range(k - 2))], *shape)
        A = times(A, power).float().requires_grad_()
        _, u, v = BY_PRODUCTS[way](A)
        cotangent = times(torch.ones(()), power - 12 if power < 0 else power).float()
        (G,) = torch.autograd.grad(cotangent * u[0] + cotangent * v[1], A)
        X = times(A.detach(), -power).requires_grad_()
        _, u, v = svdgrad.singular_triplet(X, forward="svd", v0=v.detach().double())
        (truth,) = torch.autograd.grad(u[0] + v[1], X)
        error = (times(G, 12 if power < 0 else 0) - truth).norm() / truth.norm()
        assert error <= 50 * torch.finfo(torch.float32).eps / gap, (shape, power)
