"""Every transform on both sides of every threshold of "auto": what works for a small matrix works for a large one."""

import pytest
import torch
from torch.func import grad, jacrev, jvp, vjp, vmap

import svdgrad
from svdgrad import matrices
from svdgrad.auto import GRAM_UP_TO, LONG
from svdgrad.lab import relative_error

EPS = torch.finfo(torch.float64).eps
GAP = 0.3
#: the last shape that goes to the Gram matrix, and the first that does not, in size and in shape
SHAPES = {
    "small enough": (GRAM_UP_TO, GRAM_UP_TO),
    "too large": (GRAM_UP_TO + 1, GRAM_UP_TO + 1),
    "too large, wide": (GRAM_UP_TO + 1, GRAM_UP_TO + 20),
    "long enough": (LONG * (GRAM_UP_TO + 1), GRAM_UP_TO + 1),
    "not long enough": (LONG * (GRAM_UP_TO + 1) - 1, GRAM_UP_TO + 1),
}


def matrix(m, n):
    """A gap of 0.3 σ₁ and a tail, by two Householder reflections: no factorisation of a large matrix."""
    k = min(m, n)
    A = torch.zeros(m, n, dtype=torch.float64)
    A.diagonal()[:] = torch.cat([torch.ones(1), torch.linspace(1 - GAP, 0.1, k - 1)])
    x, y = (matrices.gaussian(1, size, seed=size)[0] for size in (m, n))
    A = A - 2 * matrices.outer(x / x.norm(), (x / x.norm()) @ A)
    return A - 2 * matrices.outer(A @ (y / y.norm()), y / y.norm())


def of_v(A):
    return svdgrad.singular_triplet(A).v[:3]


def of_u(A):
    return svdgrad.singular_triplet(A).u[:3]


def rows(A, f):
    """The derivatives of three outputs, one by one, by plain reverse mode."""
    X = A.clone().requires_grad_()
    y = f(X)
    return torch.stack([torch.autograd.grad(yi, X, retain_graph=True)[0] for yi in y])


TRANSFORMS = {
    "jacrev": lambda f, A: jacrev(f)(A),
    "vmap of vjp": lambda f, A: vmap(vjp(f, A)[1])(torch.eye(3, dtype=A.dtype))[0],
    "grad": lambda f, A: torch.stack([grad(lambda A, i=i: f(A)[i])(A) for i in range(3)]),
}


@pytest.mark.parametrize("f", [of_v, of_u])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_reverse_mode(name, shape, f):
    A = matrix(*SHAPES[shape])
    assert relative_error(TRANSFORMS[name](f, A), rows(A, f)) <= 50 * EPS / GAP


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_mode_and_a_second_derivative(shape):
    A = matrix(*SHAPES[shape])
    # a direction along u and v too: of one that is next to orthogonal to them, Aᵀu is a sum that cancels
    x, y = (matrices.gaussian(1, size, seed=1)[0] for size in A.shape)
    E = matrices.outer(A @ y, x @ A)
    _, tangent = jvp(of_v, (A,), (E,))
    assert relative_error(tangent, (rows(A, of_v) * E).sum((-2, -1))) <= 50 * EPS / GAP
    G = grad(lambda A: svdgrad.spectral_norm(A))
    _, along = jvp(G, (A,), (E,))
    X = A.clone().requires_grad_()
    (g,) = torch.autograd.grad(svdgrad.spectral_norm(X), X, create_graph=True)
    (back,) = torch.autograd.grad((g * E).sum(), X)
    assert relative_error(along, back) <= 100 * EPS / GAP
