"""Whatever can be had of a dense matrix can be had of a sparse one and of a function, by every transform.

The witness is the dense matrix with the same entries, which the other test files hold to forty digits.
"""

import itertools

import pytest
import torch
from marks import slow_but
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import svdgrad
from svdgrad import matrices
from svdgrad.lab import relative_error
from svdgrad.operator import Sparse

EPS = torch.finfo(torch.float64).eps
SHAPES = [(6, 4), (4, 6), (5, 5)]


class Problem:
    """A matrix A(θ) of 6 parameters, linear in some and not in others, dense and in every other form."""

    def __init__(self, shape, complex_=False, seed=0):
        m, n = self.shape = shape
        self.mask = torch.ones(shape, dtype=torch.bool)
        self.mask[1, 2] = self.mask[3, 0] = False  # two entries that a sparse matrix does not have
        parts = [matrices.gaussian(m, n, seed=seed + k) for k in range(14)]
        if complex_:
            parts = [torch.complex(a, b) for a, b in zip(parts[:7], parts[7:])]
        self.fixed, *self.slopes = (a * self.mask for a in parts[:7])
        self.fixed[0, 0] += 8  # a wide gap, so that every tolerance is a few roundings
        self.theta = matrices.gaussian(1, 6, seed=seed + 20)[0] / 4
        self.v0 = matrices.gaussian(1, n, seed=seed + 21)[0].to(self.fixed)
        self.weights = [x.to(self.fixed) for x in matrices.gaussian(2, m + n, seed=seed + 22)]

    def dense(self, theta):
        return self.fixed + sum(t.sin() * slope for t, slope in zip(theta, self.slopes))

    def values(self, theta):
        return self.dense(theta)[self.mask]

    def loss(self, triplet):
        """Sees σ, u and v, and, if they are complex, not their common phase."""
        sigma, u, v = triplet
        a, b = (w.split(self.shape) for w in self.weights)
        seen = (a[0] @ u.conj()) * (a[1] @ v)
        other = (b[0] @ u.conj()) * (b[1] @ v)
        return sigma**2 + (seen.real if seen.is_complex() else seen) + other.abs() ** 2


def of_dense(p, theta):
    return svdgrad.singular_triplet(p.dense(theta), v0=p.v0)


def of_entries(p, theta):
    A = Sparse(*p.mask.nonzero().T, p.shape, p.values(theta))
    return svdgrad.singular_triplet(A, v0=p.v0)


def of_function(p, theta):
    return svdgrad.operator_triplet(lambda theta, x: p.dense(theta) @ x, theta, p.v0)


def of_shaped_function(p, theta):
    """Arguments and results with two dimensions, and parameters in a dict beside what is no tensor."""
    m, n = p.shape

    def matvec(params, x):
        return params["scale"] * (p.dense(params["theta"]) @ x.reshape(n)).reshape(1, m)

    t = svdgrad.operator_triplet(matvec, {"theta": theta, "scale": 1.0}, p.v0.reshape(n, 1))
    return svdgrad.Triplet(t.sigma, t.u.reshape(m), t.v.reshape(n))


def of_both_products(p, theta):
    return svdgrad.operator_triplet(
        lambda theta, x: p.dense(theta) @ x, theta, p.v0, rmatvec=lambda theta, y: p.dense(theta).mH @ y
    )


FORMS = {
    "sparse": of_entries,
    "function": of_function,
    "shaped": of_shaped_function,
    "both products": of_both_products,
}


def double_backward(f, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x), x, create_graph=True)
    return torch.stack([torch.autograd.grad(gi, x, retain_graph=True)[0] for gi in g])


def backward(f, x):
    x = x.clone().requires_grad_()
    f(x).backward()
    return x.grad


def forward_mode(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def forward_over_backward(f, x):
    x = x.clone()
    with forward_ad.dual_level():
        y = forward_ad.make_dual(x.requires_grad_(), torch.ones_like(x))
        (g,) = torch.autograd.grad(f(y), y, create_graph=True)
        return forward_ad.unpack_dual(g).tangent


TRANSFORMS = {
    "backward": backward,
    "grad": lambda f, x: grad(f)(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.tensor(2.0).double())[0],
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "forward mode": forward_mode,
    "hessian": lambda f, x: hessian(f)(x),
    "reverse over reverse": lambda f, x: jacrev(jacrev(f))(x),
    "reverse over forward": lambda f, x: jacrev(jacfwd(f))(x),
    "forward over forward": lambda f, x: jacfwd(jacfwd(f))(x),
    "double backward": double_backward,
    "forward over backward": forward_over_backward,
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x, -x])),
    "vmap of grad": lambda f, x: vmap(grad(f))(torch.stack([x, 2 * x])),
    "grad of vmap": lambda f, x: grad(lambda xs: vmap(f)(xs).sum())(torch.stack([x, 2 * x])),
    "vmap of jvp": lambda f, x: vmap(lambda y: jvp(f, (y,), (x,))[1])(torch.stack([x, 2 * x])),
    "vmap of hessian": lambda f, x: vmap(hessian(f))(torch.stack([x, 2 * x])),
    "vmap of vmap": lambda f, x: vmap(vmap(grad(f)))(torch.stack([x, 2 * x])[None]),
}


@pytest.mark.parametrize(
    ("shape", "complex_"),
    slow_but([((6, 4), False), ((4, 6), True), ((5, 5), True)], itertools.product(SHAPES, [False, True])),
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_every_form_is_that_of_the_matrix(name, form, shape, complex_):
    p, transform = Problem(shape, complex_), TRANSFORMS[name]
    truth = transform(lambda theta: p.loss(of_dense(p, theta)), p.theta)
    found = transform(lambda theta: p.loss(FORMS[form](p, theta)), p.theta)
    assert relative_error(found, truth) <= 1e4 * EPS


@pytest.mark.parametrize("forward", ["svd", "gram", "lanczos"])
def test_forward_mode_over_a_backward_pass_that_is_not_recorded(forward):
    """Dual numbers go through backward() without create_graph too: its solve must not be taken apart for them."""
    p, x = Problem((6, 4)), Problem((6, 4)).theta
    forms = {**FORMS, "dense": lambda p, theta: svdgrad.singular_triplet(p.dense(theta), v0=p.v0, forward=forward)}
    H = hessian(lambda theta: p.loss(of_dense(p, theta)))(x)
    for form, of in forms.items():
        with forward_ad.dual_level():
            y = forward_ad.make_dual(x.clone().requires_grad_(), torch.ones_like(x))
            (g,) = torch.autograd.grad(p.loss(of(p, y)), y)
            tangent = forward_ad.unpack_dual(g).tangent
        assert relative_error(tangent, H.sum(0)) <= 1e4 * EPS, form
