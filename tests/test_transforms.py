"""torch.func and its nestings, forward mode, autocast: the same derivatives on every way to them."""

from itertools import product

import flint
import numpy as np
import pytest
import torch
from marks import slow_but
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import svdgrad
from svdgrad import matrices
from svdgrad.adjoint import SOLVERS
from svdgrad.lab import relative_error
from svdgrad.oracles import extended

SHAPES = [(5, 3), (3, 5), (4, 4)]
#: for results that differ by rounding only; the matrices here have gaps of a quarter of σ₁ or more
ROUNDING = 1e3 * torch.finfo(torch.float64).eps


def matrix(m=5, n=3, seed=0):
    """Singular values 4, 3, 2, …"""
    return matrices.with_singular_values(np.arange(4.0, 4 - min(m, n), -1), m, n, seed)


def complex_matrix(m=5, n=3):
    return torch.complex(matrix(m, n), matrix(m, n, seed=1))


def f(A, **how):
    """A loss of all three outputs, not linear in any."""
    sigma, u, v = svdgrad.singular_triplet(A, **how)
    return sigma * u[..., 0] ** 2 + v[..., 1] ** 3


def invariants(A, **how):
    """Of a complex triplet, what does not depend on its phase."""
    sigma, u, v = svdgrad.singular_triplet(A, **how)
    return sigma, matrices.outer(u, v), u.abs() ** 2


# --- against differences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_mode_and_second_derivatives_of_every_solver(shape, name):
    A = matrix(*shape).requires_grad_()

    def triplet(A):
        return tuple(svdgrad.singular_triplet(A, adjoint=name))

    # reverse mode, once and twice, has its test in test_triplet.py
    assert gradcheck(triplet, (A,), check_forward_ad=True, check_backward_ad=False, check_undefined_grad=False)
    assert gradgradcheck(triplet, (A,), check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False)


@pytest.mark.parametrize(
    ("shape", "index"), slow_but([((5, 3), 0), ((3, 5), -1), ((4, 4), 1)], product(SHAPES, [0, 1, -1])), ids=str
)
def test_complex_first_and_second_derivatives(shape, index):
    A = complex_matrix(*shape).requires_grad_()
    assert gradcheck(lambda A: invariants(A, index=index), (A,), check_forward_ad=True)
    assert gradgradcheck(lambda A: invariants(A, index=index), (A,), check_fwd_over_rev=True)


@pytest.mark.parametrize("v0", [None, torch.tensor([1.0, 2j, -1.0])], ids=["largest entry", "v0"])
def test_the_complex_tangent_keeps_the_documented_gauge(v0):
    A, E = complex_matrix(), complex_matrix().flip(0, 1)
    h = 1e-5  # central differences are right to h² and ε/h
    _, tangent = jvp(lambda A: tuple(svdgrad.singular_triplet(A, v0=v0)), (A,), (E,))
    right, left = svdgrad.singular_triplet(A + h * E, v0=v0), svdgrad.singular_triplet(A - h * E, v0=v0)
    for found, b, a in zip(tangent, right, left):
        assert relative_error(found, (b - a) / (2 * h)) <= 1e-8


# --- torch.func -------------------------------------------------------------------------------------------------------


def truth(A):
    """∇f in extended precision: f's own cotangents, then the witness that shares no code with the package."""
    sigma, u, v = svdgrad.singular_triplet(A)
    xi, phi, psi = u[0] ** 2, torch.zeros_like(u), torch.zeros_like(v)
    phi[0], psi[1] = 2 * sigma * u[0], 3 * v[1] ** 2
    return extended(A, xi, phi, psi, v)


def differences_of_the_gradient(A, h=1e-5):
    """The Hessian of f, (m, n, m, n), by central differences of the gradient in extended precision."""
    H = np.empty((*A.shape, *A.shape))
    for i, j in product(*map(range, A.shape)):
        E = torch.zeros_like(A)
        E[i, j] = h
        H[:, :, i, j] = (truth(A + E) - truth(A - E)) / (2 * h)
    return H


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_to_the_gradient(shape):
    A, E = matrix(*shape), matrices.gaussian(*shape)
    G = truth(A)
    value, pullback = vjp(f, A)
    for found in (grad(f)(A), pullback(torch.ones_like(value))[0], jacrev(f)(A), jacfwd(f)(A)):
        assert relative_error(found, G) <= ROUNDING
    assert (
        abs(jvp(f, (A,), (E,))[1].item() - (torch.from_numpy(G) * E).sum().item())
        <= ROUNDING * np.linalg.norm(G) * E.norm()
    )


SECOND = {f"{a.__name__}({b.__name__})": (lambda f, a=a, b=b: a(b(f))) for a, b in product((jacrev, jacfwd), repeat=2)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_to_the_hessian(shape):
    A = matrix(*shape)
    H = differences_of_the_gradient(A)
    for name, second in {**SECOND, "hessian": hessian}.items():
        found = second(f)(A)
        assert relative_error(found, H) <= 1e-8, (
            name
        )  # the differences are right to h² = 1e-10, times a factor of the gap
        assert relative_error(found, hessian(f)(A)) <= ROUNDING, name


@pytest.mark.parametrize("modes", ["".join(modes) for modes in product("fr", repeat=3)])
def test_every_way_to_the_third_derivatives(modes):
    """PyTorch drops outer tangents inside a custom jvp, in silence; here none may be missing. "fr": jacfwd(jacrev)."""
    A, E, h = matrix(), matrices.gaussian(5, 3), 1e-5
    third = f
    for mode in reversed(modes):
        third = {"f": jacfwd, "r": jacrev}[mode](third)
    H = hessian(f)
    assert relative_error((third(A) * E).sum((-2, -1)), (H(A + h * E) - H(A - h * E)) / (2 * h)) <= 1e-7


def in_sixty_digits(A, v0=None, index=0):
    """(σ, u, v) of a complex matrix of python-flint's numbers, from its eigenvectors: it shares no code with the
    package.
    """
    A_H = A.conjugate().transpose()
    wide = A.nrows() < A.ncols()
    values, vectors = (A * A_H if wide else A_H * A).eig(right=True)
    at = sorted(range(len(values)), key=lambda i: -float(values[i].real))[index]
    sigma = values[at].real.sqrt()
    x = flint.acb_mat([[vectors[i, at]] for i in range(vectors.nrows())])
    u, v = (x, A_H * x / sigma) if wide else (A * x / sigma, x)
    u, v = ([y[i, 0] for i in range(y.nrows())] for y in (u, v))
    if v0 is None:
        anchor = max(v, key=lambda y: float(abs(y)))
    else:
        anchor = sum(flint.acb(a.real, -a.imag) * y for a, y in zip(v0.tolist(), v))
    c = abs(anchor) / anchor / sum(abs(y) ** 2 for y in v).sqrt()
    return [sigma, *(y * c for y in u), *(y * c for y in v)]


def differences_in_sixty_digits(f, A, directions):
    """The mixed derivative along all directions, by central differences right to h² = 1e-18; f takes flint's
    matrices.
    """
    old, flint.ctx.dps = flint.ctx.dps, 60

    def exact(X):
        return flint.acb_mat([[flint.acb(z.real, z.imag) for z in row] for row in X.tolist()])

    try:
        h = flint.arb(10) ** -9
        total = 0
        for signs in product((1, -1), repeat=len(directions)):
            values = f(sum((exact(E) * (h * s) for s, E in zip(signs, directions)), exact(A)))
            total = total + np.array(values, dtype=object) * int(np.prod(signs)) / (2 * h) ** len(directions)
        return total.astype(complex)
    finally:
        flint.ctx.dps = old


def along(f, directions):
    """f's derivative along all of them, by jvp of jvp of …"""
    if not directions:
        return f
    return lambda A: jvp(along(f, directions[1:]), (A,), (directions[0],))[1]


def random_complex(*shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((*shape, 2))).view(torch.complex128).squeeze(-1)


@pytest.mark.parametrize(
    "shape, how, order",
    slow_but(
        product(SHAPES, ["largest entry", "v0", "smallest"], [2]),
        [*product(SHAPES, ["largest entry", "v0", "smallest"], [2, 3]), ((5, 3), "v0", 4)],
    ),
    ids=str,
)
def test_forward_mode_nested_in_forward_mode_of_a_complex_matrix(shape, how, order):
    """All of σ, u and v, in the documented phase; matrix by matrix, as a batch, and under vmap, with a v0 each."""
    index = -1 if how == "smallest" else 0
    A = complex_matrix(*shape)
    A = torch.stack([A, random_complex(*shape, seed=7) + 2 * A, -1j * A])
    v0s = [random_complex(shape[1], seed=seed) if how == "v0" else None for seed in range(3)]
    E = [random_complex(*shape, seed=seed) for seed in range(10, 10 + order)]

    def g(A, v0=None):
        def f(A):
            sigma, u, v = svdgrad.singular_triplet(A, v0=v0, index=index)
            return torch.cat([sigma.unsqueeze(-1), u, v], -1)

        return along(f, [X.expand_as(A) for X in E])(A)

    batch = (A, torch.stack(v0s)) if how == "v0" else (A,)
    together, mapped = g(*batch), vmap(g)(*batch)
    for i, v0 in enumerate(v0s):
        truth = differences_in_sixty_digits(lambda A: in_sixty_digits(A, v0, index), A[i], E)
        for found in (g(A[i], v0), together[i], mapped[i]):
            assert relative_error(found, truth) <= ROUNDING


@pytest.mark.parametrize("modes", ["".join(modes) for modes in product("fr", repeat=3)])
def test_every_way_to_the_third_derivatives_of_a_complex_matrix(modes):
    """Where a loss is blind to the phase, reverse mode may join in; no rounding may pass for a loss that is not."""
    A, M, *E = (random_complex(5, 3, seed=seed) for seed in range(4))
    A = A + 2 * complex_matrix()

    def third(x):
        sigma, u, v = svdgrad.singular_triplet(A + x[0] * E[0] + x[1] * E[1])
        return (sigma * (u.conj() @ M @ v)).real + (u[0].conj() * u[1]).imag

    def in_digits(A):
        sigma, *uv = in_sixty_digits(A)
        u, v = [x.conjugate() for x in uv[:5]], uv[5:]
        uMv = sum(
            u[i] * flint.acb(m.real, m.imag) * v[j] for i, row in enumerate(M.tolist()) for j, m in enumerate(row)
        )
        return [(sigma * uMv).real + (u[0] * uv[1]).imag]

    for mode in reversed(modes):
        third = {"f": jacfwd, "r": jacrev}[mode](third)
    found = third(torch.zeros(2, dtype=torch.float64))
    truth = [
        differences_in_sixty_digits(in_digits, A, [E[i] for i in places]).real for places in product(range(2), repeat=3)
    ]
    assert relative_error(found.flatten(), np.concatenate(truth)) <= ROUNDING


def test_v0_is_a_constant_to_nested_forward_modes():
    A, E = complex_matrix(), random_complex(5, 3, seed=1)
    moving = along(lambda X: svdgrad.singular_triplet(X, v0=X[0]).v, [E, E])(A)
    assert relative_error(moving, along(lambda X: svdgrad.singular_triplet(X, v0=A[0]).v, [E, E])(A)) <= ROUNDING


TRANSFORMS = {"value": lambda f: f, "grad": grad, "jacfwd": jacfwd, "hessian": hessian, **SECOND}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_under_vmap_as_one_by_one(name):
    g = TRANSFORMS[name](f)
    A = torch.stack([matrix(seed=seed) for seed in range(6)])
    one_by_one = torch.stack([g(a) for a in A])
    assert relative_error(vmap(g)(A), one_by_one) <= ROUNDING
    assert relative_error(vmap(g, in_dims=2)(A.permute(1, 2, 0)), one_by_one) <= ROUNDING
    assert relative_error(vmap(vmap(g))(A.unflatten(0, (2, 3))).flatten(0, 1), one_by_one) <= ROUNDING


@pytest.mark.parametrize("shape", [(4,), (4, 3)], ids=["one v0 each", "v0 for each of a batch"])
def test_vmap_over_v0(shape):
    """v0 decides the sign of each; over a batch of v0 alone, too."""
    A = matrices.gaussian(5, 3)
    v0 = torch.from_numpy(np.random.default_rng(0).standard_normal((*shape, 3)))
    flat = v0.reshape(-1, 3)
    assert len({(x @ svdgrad.singular_triplet(A).v > 0).item() for x in flat}) == 2  # both signs occur

    def g(A, v0):
        return grad(lambda A: svdgrad.singular_triplet(A, v0=v0).u.sum())(A)

    one_by_one = torch.stack([g(A, x) for x in flat]).reshape(*shape, 5, 3)
    for _ in shape:
        g = vmap(g, in_dims=(None, 0))
    assert relative_error(g(A, v0), one_by_one) <= ROUNDING
    batch = torch.stack([A, 2 * A, -A])
    together = vmap(lambda x: svdgrad.singular_triplet(batch, v0=x).v)(flat)
    assert (torch.einsum("bij,bj->bi", together, flat) > 0).all()


def test_a_batch_of_cotangents_for_one_matrix():
    A = matrix()
    t, pullback = vjp(lambda A: tuple(svdgrad.singular_triplet(A)), A)
    bars = tuple(torch.from_numpy(np.random.default_rng(i).standard_normal((7, *x.shape))) for i, x in enumerate(t))
    (together,) = vmap(pullback)(bars)
    for i in range(7):
        assert relative_error(together[i], extended(A, *(bar[i] for bar in bars), t[2])) <= ROUNDING


def test_the_derivative_of_a_batch_of_gradients_of_one_matrix():
    """One matrix meets a batch of right-hand sides, and its second derivative is a sum over them."""
    A, E = matrix(), matrices.gaussian(5, 3)
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 5)))

    def slope(A, w):
        return (grad(lambda X: (svdgrad.singular_triplet(X).u * w).sum() ** 2)(A) * E).sum()

    together = grad(lambda A: vmap(lambda w: slope(A, w))(weights).sum())(A)
    assert relative_error(together, sum(grad(slope)(A, w) for w in weights)) <= ROUNDING


@pytest.mark.parametrize("name", ["spectral", "saddle", "minres"])
def test_forward_over_reverse_on_a_batch_without_vmap(name):
    A = torch.stack([matrix(seed=seed) for seed in range(4)])
    E = torch.stack([matrices.gaussian(5, 3, seed) for seed in range(4)])

    def tangent(A, E):
        return jvp(grad(lambda X: f(X, adjoint=name).sum()), (A,), (E,))[1]

    assert relative_error(tangent(A, E), torch.stack([tangent(a, e) for a, e in zip(A, E)])) <= ROUNDING


@pytest.mark.parametrize("batch", [(0,), (2, 0)], ids=str)
def test_an_empty_batch_has_derivatives(batch):
    A = torch.zeros(*batch, 4, 3)
    assert grad(lambda A: f(A).sum())(A).shape == A.shape
    for x, dx in zip(*jvp(lambda A: tuple(svdgrad.singular_triplet(A)), (A,), (A,))):
        assert x.shape == dx.shape


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [lambda t: t.u[0].real, lambda t: t.v[1].imag, lambda t: t.u.real.sum() + t.sigma],
    ids=["Re u₀", "Im v₁", "Σ Re u"],
)
def test_a_loss_that_depends_on_the_phase_is_refused(loss):
    A = complex_matrix().requires_grad_()
    message = (
        r"common phase of u and v, which is not determined by A.*at a relative rate of .*Likely cause: .*Use moduli"
    )
    with pytest.raises(svdgrad.PhaseError, match=message):
        loss(svdgrad.singular_triplet(A)).backward()


@pytest.mark.parametrize("A", [torch.eye(3), torch.zeros(3, 2), -torch.eye(2, 4)], ids=["identity", "zero", "wide"])
def test_spectral_norm_needs_no_gap_under_torch_func(A):
    A = A.double()
    for G in (
        grad(svdgrad.spectral_norm)(A),
        jacrev(svdgrad.spectral_norm)(A),
        vmap(grad(svdgrad.spectral_norm))(A[None])[0],
    ):
        assert abs((G * A).sum() - torch.linalg.matrix_norm(A, 2)) <= 1e-14
        assert torch.linalg.svdvals(G).sum() <= 1 + 1e-14


def test_a_tie_is_refused_under_torch_func_if_the_loss_depends_on_the_vectors():
    with pytest.raises(svdgrad.TieError):
        grad(lambda A: svdgrad.singular_triplet(A).u[0])(torch.eye(3).double())


# --- autocast ---------------------------------------------------------------------------------------------------------


def test_autocast_costs_no_digit_of_a_tangent():
    A, dA = matrices.gaussian(6, 4, dtype=torch.float32), matrices.gaussian(6, 4, seed=1, dtype=torch.float32)
    once = lambda X: torch.func.jvp(svdgrad.singular_triplet, (X,), (dA,))[1]
    twice = lambda X: torch.func.jvp(once, (X,), (dA,))[1]
    for tangents in (once, twice):
        wanted = tangents(A)
        with torch.autocast("cpu", torch.bfloat16):
            found = tangents(A)
        for x, y in zip(found, wanted):
            assert x.dtype == torch.float32 and torch.equal(x, y)


def test_autocast_costs_no_digit():
    A = matrix(5, 3).float()
    X, Y = A.clone().requires_grad_(), A.clone().requires_grad_()
    for x, enabled in ((X, True), (Y, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            t = svdgrad.singular_triplet(x, adjoint="saddle")
        assert {y.dtype for y in t} == {torch.float32}
        (t.sigma + t.u[0] + t.v[1]).backward()
    assert torch.equal(X.grad, Y.grad)


def test_a_batch_of_cotangents_in_one_backward_is_refused_and_told_what_does_it():
    A = matrix(5, 3).requires_grad_()
    u = svdgrad.singular_triplet(A).u
    with pytest.raises(NotImplementedError, match="use torch.func.jacrev"):
        torch.autograd.grad(u, A, torch.eye(5, dtype=A.dtype), is_grads_batched=True)
