"""Under torch.compile each call is right, in one graph or with a clean break, or refused with a reason."""

from itertools import product

import pytest
import torch
from marks import slow_but
from test_transforms import ROUNDING, complex_matrix, f, invariants, matrix
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import svdgrad
from svdgrad import compiled, matrices
from svdgrad.lab import relative_error

# torch.compile asks for it, not svdgrad
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


# --- in one graph -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 4)], ids=str)
def test_compiled_in_one_graph_as_eager(shape, backend):
    A = torch.stack([matrix(*shape[-2:], seed=seed) for seed in range(2)])
    A = A if len(shape) == 3 else A[0]

    def g(A):
        return f(2 * A).sum() + svdgrad.spectral_norm(A).sum()

    results = []
    for h in (torch.compile(g, backend=backend, fullgraph=True), g):
        X = A.clone().requires_grad_()
        value = h(X)
        value.backward()
        results.append((value.detach(), X.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
def test_a_complex_matrix_compiled_as_eager(shape, backend):
    """In its first call a compiled function runs an operation without what applies the conjugate bit of a tensor."""

    def g(A):
        sigma, outer, squares = invariants(A)
        return sigma + outer[0, 1].abs() + squares[2]

    gradients = []
    for h in (torch.compile(g, backend=backend, fullgraph=True), g):
        X = complex_matrix(*shape).requires_grad_()
        h(X).backward()
        gradients.append(X.grad)
    assert relative_error(*gradients) <= ROUNDING


@pytest.mark.parametrize("forward", ["svd", "gram"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 5, 3)], ids=str)
def test_the_compiled_operations_are_what_they_announce(shape, dtype, forward):
    """Shapes, dtypes and strides, on which a compiler relies; u, v and their cotangents may come in any layout."""
    A = matrices.gaussian(*shape[-2:]).expand(shape).to(dtype)
    checks = {"test_utils": ("test_faketensor",)}
    for k, core in ((None, False), (2, False), (3, True)):
        named = (forward, "spectral", k, core, 2.0**-52)
        torch.library.opcheck(compiled.triplet, (A, None, 0, *named), **checks)
        found = compiled.triplet(A, None, 0, *named)
        values, u, v = found[:3]
        zeros = [x.new_zeros(x.shape[::-1]).permute(*reversed(range(x.ndim))) for x in (u, v)]
        for phi, psi in (zeros, (u**3, v**2)):
            torch.library.opcheck(compiled.solve, (A, found, [values, phi, psi], None, *named), **checks)


def several(A, k):
    """Of the triplets and of their matrix, what no sign and no phase changes."""
    sigma, U, V = svdgrad.singular_triplets(A, k)
    L = svdgrad.low_rank(A, k)
    square = L.U @ L.core @ L.core @ L.U.mH
    weights = torch.arange(1, k + 1).to(A)
    return (
        sigma.sum()
        + ((U * weights) @ V.mH)[..., 0, 1].abs().sum()
        + L.dense()[..., 1, 1].abs().sum()
        + square.abs()[..., 0, 1].sum()
    )


@pytest.mark.parametrize(
    ("shape", "k"),
    slow_but([((5, 3), 1), ((3, 5), 2), ((2, 4, 4), 2)], product([(5, 3), (3, 5), (2, 4, 4)], [1, 2, 3])),
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_several_triplets_in_one_graph_as_eager(dtype, shape, k):
    A = torch.stack([matrix(*shape[-2:], seed=seed) for seed in (0, 1)])
    A = A if dtype.is_floating_point else torch.complex(A, A.flip(0))
    gradients = []
    for g in (torch.compile(several, backend="aot_eager", fullgraph=True), several):
        X = (A if len(shape) == 3 else A[0]).clone().requires_grad_()
        g(2 * X, k).backward()
        gradients.append(X.grad)
    assert relative_error(*gradients) <= ROUNDING


@pytest.mark.parametrize("dynamic", [None, True], ids=["as it comes", "dynamic"])
def test_a_second_shape_in_one_graph(dynamic):
    compiled_f = torch.compile(lambda A: f(A).sum(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for shape in ((5, 3), (6, 4), (4, 7), (30, 20)):
        X, Y = (matrices.gaussian(*shape).requires_grad_() for _ in range(2))
        compiled_f(X).backward()
        f(Y).sum().backward()
        assert relative_error(X.grad, Y.grad) <= ROUNDING, shape


def test_several_triplets_of_a_second_shape_and_of_a_tie_in_one_graph():
    compiled_f = torch.compile(several, backend="aot_eager", fullgraph=True, dynamic=True)
    for A in (
        matrices.gaussian(5, 3),
        matrices.gaussian(4, 7),
        torch.diag(torch.tensor([3.0, 3.0, 1.0, 0.5])).double(),
    ):
        X, Y = (A.clone().requires_grad_() for _ in range(2))
        g = several if A.shape != (4, 4) else lambda A, k: svdgrad.low_rank(A, k).dense()[0, 1]
        h = compiled_f if g is several else torch.compile(g, backend="aot_eager", fullgraph=True)
        h(X, 2).backward()
        g(Y, 2).backward()
        assert relative_error(X.grad, Y.grad) <= ROUNDING, A.shape


# --- transforms -------------------------------------------------------------------------------------------------------

TRANSFORMS = {
    "jvp": lambda g, A: jvp(g, (A,), (torch.ones_like(A),))[1],
    "grad": lambda g, A: grad(g)(A),
    "vjp": lambda g, A: vjp(g, A)[1](torch.ones((), dtype=A.dtype))[0],
    "jacrev": lambda g, A: jacrev(g)(A),
    "jacfwd": lambda g, A: jacfwd(g)(A),
    "hessian": lambda g, A: hessian(g)(A),
    "vmap": lambda g, A: vmap(g)(torch.stack([A, 2 * A])),
    "vmap of grad": lambda g, A: vmap(grad(g))(torch.stack([A, 2 * A])),
    "grad of grad": lambda g, A: grad(lambda B: grad(g)(B).square().sum())(A),
}


def norm(A):
    return svdgrad.spectral_norm(A) ** 2


def of_operator(A):
    t = svdgrad.operator_triplet(lambda A, x: A @ x, A, A[0].detach())
    return t.sigma + t.u[0]


CALLS = {"triplet": f, "norm": norm, "operator": of_operator}


@pytest.mark.parametrize(
    ("call", "name"),
    slow_but([*product(["triplet"], TRANSFORMS), *product(CALLS, ["jvp", "grad"])], product(CALLS, TRANSFORMS)),
)
def test_a_transform_inside_is_right_or_refused(call, name):
    g = CALLS[call]
    A, transform = matrix(), TRANSFORMS[name]
    truth = transform(g, A)
    found = torch.compile(lambda A: transform(g, A), backend="aot_eager")(A)
    assert relative_error(found, truth) <= ROUNDING
    torch._dynamo.reset()
    with pytest.raises(Exception, match="cannot be traced inside a transform of torch.func: leave out fullgraph"):
        torch.compile(lambda A: transform(g, A), backend="aot_eager", fullgraph=True)(A)


@pytest.mark.parametrize("name", ["jvp", "grad", "vmap"])
def test_a_transform_outside_is_right_or_refused(name):
    A, transform = matrix(), TRANSFORMS[name]
    try:
        found = transform(torch.compile(f, backend="aot_eager"), A)
    except Exception as refusal:  # torch.compile's own: it does not trace under a transform
        assert "torch.func" in str(refusal) or "functorch" in str(refusal)
    else:
        assert relative_error(found, transform(f, A)) <= ROUNDING


def test_a_second_derivative_is_refused():
    A = matrix().requires_grad_()
    value = torch.compile(f, backend="aot_eager", fullgraph=True)(A)
    with pytest.raises(RuntimeError):
        (G,) = torch.autograd.grad(value, A, create_graph=True)
        torch.autograd.grad(G.sum(), A)


# --- outside the graph ------------------------------------------------------------------------------------------------


def test_options_are_not_dropped():
    g = torch.compile(lambda A: svdgrad.singular_triplet(A, forward="lanczos", maxiter=1).sigma, backend="aot_eager")
    with pytest.raises(svdgrad.ConvergenceError):
        g(matrix())
    with pytest.raises(Exception, match="outside the compiled region"):
        torch.compile(lambda A: svdgrad.spectral_norm(A, forward="lanczos"), backend="aot_eager", fullgraph=True)(
            matrix()
        )


def test_an_operator_is_one_call_that_is_not_traced_into():
    traced, calls, graphs = [], [], []

    def matvec(A, x):
        calls.append(1)
        if torch.compiler.is_compiling():
            traced.append(1)
        return A @ x

    def g(A):
        t = svdgrad.operator_triplet(matvec, 2 * A, A[0].detach())
        return t.sigma + t.u[0] + t.v[1]

    compiled_g = torch.compile(g, backend="aot_eager")
    for seed in range(3):
        counts = []
        for h in (compiled_g, g):
            calls.clear()
            X = matrix(seed=seed).requires_grad_()
            h(X).backward()
            counts.append((len(calls), X.grad))
        assert counts[0][0] == counts[1][0] and torch.equal(counts[0][1], counts[1][1])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert not traced and graphs[0] == graphs[-1] > 0  # nothing is compiled anew after the first call


@pytest.mark.parametrize("inside", [False, True])
def test_forward_mode_is_not_dropped(inside):
    A, E = matrix(), torch.ones(5, 3, dtype=torch.float64)

    def tangent(A, g):
        with torch.autograd.forward_ad.dual_level():
            return torch.autograd.forward_ad.unpack_dual(g(torch.autograd.forward_ad.make_dual(A, E))).tangent

    if inside:
        found = torch.compile(lambda A: tangent(A, norm), backend="aot_eager")(A)
    else:
        found = tangent(A, torch.compile(norm, backend="aot_eager"))
    assert relative_error(found, tangent(A, norm)) <= ROUNDING


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_the_obvious_warm_start_does_not_break_backward(dtype):
    """A loop overwrites v0 by v before it calls backward."""

    def g(A, v0):
        t = svdgrad.singular_triplet(A, v0=v0)
        return t.sigma + (t.u[0] * t.v[1].conj()).abs(), t.v

    gradients = []
    for h in (torch.compile(g, backend="aot_eager", fullgraph=True), g):
        X = matrices.gaussian(5, 3).to(dtype).requires_grad_()
        v0 = torch.ones(3, dtype=dtype)
        value, v = h(X, v0)
        v0.copy_(v.detach())
        value.backward()
        gradients.append(X.grad)
    assert relative_error(*gradients) <= ROUNDING
