"""The common phase of u and v: what sees it is refused, what does not passes, and what cannot be told gets it right."""

import math
from itertools import product

import pytest
import torch
from marks import slow_but
from torch.linalg import vecdot

import svdgrad
from svdgrad import matrices
from svdgrad.forward import FORWARDS
from svdgrad.products import mv, outer

DTYPES = [torch.complex64, torch.complex128]


def many(shape, dtype, count=20):
    """That many matrices."""
    parts = [torch.stack([matrices.gaussian(*shape, 2 * seed + k) for seed in range(count)]) for k in (0, 1)]
    return torch.complex(*parts).to(dtype)


def rank_one(t):
    return t.sigma[..., None, None] * outer(t.u, t.v)


#: zero to first order at the triplet: what comes back to u and v is rounding, and no more
STATIONARY = {
    "‖A − σuvᴴ‖²": lambda A, t: (A - rank_one(t)).abs().square().sum(),
    "‖A − (σu)vᴴ‖²": lambda A, t: (A - outer(t.sigma.unsqueeze(-1) * t.u, t.v)).abs().square().sum(),
    "mean of ‖A − u(σv)ᴴ‖²": lambda A, t: (A - outer(t.u, t.sigma.unsqueeze(-1) * t.v)).abs().square().mean(),
    "‖A − uuᴴAvvᴴ‖²": lambda A, t: (
        (A - vecdot(t.u, mv(A, t.v))[..., None, None] * outer(t.u, t.v)).abs().square().sum()
    ),
    "‖Av − σu‖²": lambda A, t: (mv(A, t.v) - t.sigma.unsqueeze(-1) * t.u).abs().square().sum(),
}
#: of the phase
SEEING = {
    "Re u₀": lambda t: t.u[..., 0].real,
    "Im v₁": lambda t: t.v[..., 1].imag,
    "Σ Re u + σ": lambda t: t.u.real.sum(-1) + t.sigma / t.sigma.detach(),
    "Re uᵀu": lambda t: (t.u * t.u).sum(-1).real,
}
SHAPES = [(8, 5), (5, 8), (6, 6), (64, 32)]
# of A and of the loss, where the rounding of a loss of size c a² is a normal number of float32
SCALES = [(a, c) for a, c in product((-60, -30, 0, 30, 60), (-60, -30, 0, 30, 60)) if -80 <= 2 * a + c <= 100]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("forward", "shape"),
    slow_but([*product(["svd", "gram"], SHAPES), ("lanczos", (5, 8))], product(FORWARDS, SHAPES)),
    ids=str,
)
@pytest.mark.parametrize("loss", STATIONARY)
def test_a_loss_whose_cotangents_are_rounding_passes(loss, forward, shape, dtype):
    for a, c in SCALES if shape[0] < 9 else [(0, 0)]:
        A = (many(shape, dtype) * 2.0**a).requires_grad_()
        t = svdgrad.singular_triplet(A, forward=forward)
        (G,) = torch.autograd.grad(STATIONARY[loss](A, t) * 2.0**c, A)
        assert G.isfinite().all(), (a, c)


def test_such_a_gradient_is_that_of_the_rest():
    """∂‖A − σuvᴴ‖²/∂A = 2 (A − σuvᴴ)."""
    A = many((8, 5), torch.complex128).requires_grad_()
    t = svdgrad.singular_triplet(A)
    (G,) = torch.autograd.grad(STATIONARY["‖A − σuvᴴ‖²"](A, t), A)
    S = torch.linalg.svdvals(A.detach())
    bound = 50 * torch.finfo(A.dtype).eps * (S[:, 0] / (S[:, 0] - S[:, 1])).max()
    assert (G - 2 * (A - rank_one(t)).detach()).norm() <= bound * G.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", slow_but([(SHAPES[1],), (SHAPES[2],)], zip(SHAPES)), ids=str)
@pytest.mark.parametrize("loss", SEEING)
def test_a_loss_that_sees_the_phase_is_refused(loss, shape, dtype):
    As = many(shape, dtype, 10)
    for a, c in product((-66, -20, 0, 20, 66), repeat=2):
        for A in As * 2.0**a:
            t = svdgrad.singular_triplet(A.requires_grad_())
            with pytest.raises(svdgrad.PhaseError):
                (SEEING[loss](t) * 2.0**c).backward()
    t = svdgrad.singular_triplet(As.clone().requires_grad_())
    with pytest.raises(svdgrad.PhaseError):  # one member of a batch
        SEEING[loss](t)[3].backward()
    A = As[0].to(torch.complex128).requires_grad_()
    t = svdgrad.singular_triplet(A)
    with pytest.raises(svdgrad.PhaseError):  # beside rounding in both vectors
        (SEEING[loss](t) + STATIONARY["‖A − σuvᴴ‖²"](A, t)).backward()


@pytest.mark.parametrize("start", [None, 1], ids=["largest entry", "v0"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3), (2, 3, 2)], ids=str)
def test_what_cannot_be_told_from_rounding_has_the_derivative_of_the_documented_phase(shape, start):
    """A loss that sees the phase in u and v together: no error, and the numbers are those of central differences."""
    A = torch.complex(*(matrices.gaussian(2, 12, seed).flatten()[: math.prod(shape)] for seed in (2, 3))).reshape(shape)
    v0 = torch.complex(*torch.arange(2.0 * shape[-1]).double().cos().reshape(2, -1)) if start else None

    def value(u, v):
        blind = u[..., 0].abs().square() * v[..., 0].abs().square()
        return (blind + 0.1 * (u[..., 0] * v[..., 1]).real).sum()

    loss = lambda A: value(*svdgrad.singular_triplet(A, v0=v0)[1:])
    u, v = (x.requires_grad_() for x in svdgrad.singular_triplet(A, v0=v0)[1:])
    phi, psi = torch.autograd.grad(value(u, v), (u, v))
    assert (vecdot(u, phi) + vecdot(v, psi)).imag.abs().min() > 1e-4  # it does see the phase
    assert torch.autograd.gradcheck(loss, A.clone().requires_grad_())
    E, X = A.flip(-1), A.clone().requires_grad_()
    (G,) = torch.autograd.grad(loss(X), X)
    torch.testing.assert_close((G.conj() * E).sum().real, torch.func.jvp(loss, (A,), (E,))[1], rtol=1e-11, atol=1e-11)
    _, pull_back = torch.func.vjp(loss, A)
    torch.testing.assert_close(pull_back(torch.tensor(1.0).double())[0], G)
