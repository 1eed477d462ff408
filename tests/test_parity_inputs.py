"""What users hand to an operator: modules, half precision, contexts, sparse tensors; what would be lost in silence."""

import copy
import math

import pytest
import torch
from torch import nn

import svdgrad
from svdgrad import matrices
from svdgrad.lab import relative_error
from svdgrad.operator import Sparse

EPS = torch.finfo(torch.float64).eps


def product(A, x):
    return A @ x


def gradient(loss, *xs):
    xs = [x.detach().clone().requires_grad_() for x in xs]
    return torch.autograd.grad(loss(*xs), xs)


A = matrices.gaussian(12, 9)
v0 = matrices.gaussian(1, 9, seed=1)[0]
# relative gap of A: the tolerance of every comparison with the matrix
S = torch.linalg.svdvals(A)
GAP = ((S[0] - S[1]) / S[0]).item()


def loss(t):
    return t.sigma + t.u.flatten()[0] + t.v.flatten()[1]


# --- modules ----------------------------------------------------------------------------------------------------------


def test_a_module_may_be_the_params():
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    x0 = torch.ones(1, 2, 5, 6, dtype=torch.float64)
    loss(svdgrad.operator_triplet(lambda layer, x: layer(x), layer, x0, maxiter=500)).backward()
    (expected,) = gradient(
        lambda W: loss(svdgrad.operator_triplet(lambda W, x: nn.functional.conv2d(x, W, padding=1), W, x0)),
        layer.weight,
    )
    assert relative_error(layer.weight.grad, expected) <= 1e4 * EPS


def test_a_module_that_is_parametrized_passes_the_gradient_on():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(9, 12, bias=False).double())
    svdgrad.operator_triplet(lambda layer, x: layer(x), layer, v0).sigma.backward()
    twin = copy.deepcopy(layer)
    twin.zero_grad()
    svdgrad.spectral_norm(twin.weight).backward()
    for a, b in zip(layer.parameters(), twin.parameters()):
        assert relative_error(a.grad, b.grad) <= 1e4 * EPS


def test_the_weight_of_a_module_may_be_used_by_name():
    layer = nn.Linear(9, 12).double()
    svdgrad.operator_triplet(lambda layer, x: layer.weight @ x, layer, v0).sigma.backward()
    assert layer.weight.grad is not None and layer.bias.grad is None


# --- nothing is lost in silence ---------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(A.clone())

    def forward(self, x):
        return self.weight @ x


def captured(p, x):
    return captured.layer(x)


captured.layer = Plain()


def with_numpy(A, x):
    return torch.from_numpy(A.detach().numpy() @ x.detach().numpy())


FROM_ELSEWHERE = r"must take what is differentiated from params, found a tensor from elsewhere.*pass it in params"
NO_CONNECTION = r"must depend on params, which require a gradient, found no connection: likely causes: detach\(\)"
LOST = {
    "a tensor from elsewhere": (captured, (), ValueError, FROM_ELSEWHERE),
    "a tensor from elsewhere beside params": (
        lambda p, x: p * captured.layer(x),
        torch.ones((), dtype=torch.float64, requires_grad=True),
        ValueError,
        FROM_ELSEWHERE,
    ),
    "a generator": (captured, captured.layer.parameters(), TypeError, r"found generator, which can be read only once"),
    "a module among others": (
        lambda p, x: p[0](x),
        (captured.layer, 1.0),
        TypeError,
        "must not hold a Module among other things, found Plain: pass the Module alone",
    ),
    "nothing to differentiate": (
        lambda k, x: k * x,
        3,
        TypeError,
        r"must hold a floating point tensor.*found int: pass the tensors.*or params=\(\)",
    ),
    "detached": (lambda A, x: A.detach() @ x, A.clone().requires_grad_(), ValueError, NO_CONNECTION),
    "data": (lambda A, x: A.data @ x, A.clone().requires_grad_(), ValueError, NO_CONNECTION),
    "numpy": (with_numpy, A.clone().requires_grad_(), ValueError, NO_CONNECTION),
    "not used": (lambda p, x: 2 * x, A.clone().requires_grad_(), ValueError, NO_CONNECTION),
    "numpy, without a gradient": (with_numpy, A, ValueError, "differentiable in x.*found no connection"),
    "complex": (
        lambda A, x: (A + 0j) @ x.to(torch.complex128),
        A,
        TypeError,
        "found torch.complex128 for torch.float64: start",
    ),
    "another dtype": (
        lambda A, x: (A @ x).float(),
        A,
        TypeError,
        "must return the dtype of v0, found torch.float32 for",
    ),
    "a tuple": (lambda A, x: (A @ x, x), A, TypeError, "must return a tensor, found tuple"),
    "None": (lambda A, x: None, A, TypeError, "must return a tensor, found NoneType"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_is_refused_at_the_call(name):
    matvec, params, error, message = LOST[name]
    with pytest.raises(error, match=message):
        svdgrad.operator_triplet(matvec, params, v0)


@pytest.mark.parametrize("name", ["grad", "outer grad", "vmap"])
def test_a_tensor_from_elsewhere_is_refused_under_torch_func_too(name):
    def f(W):
        return svdgrad.operator_triplet(lambda _, x: W @ x, (), v0).sigma

    with pytest.raises(ValueError, match=FROM_ELSEWHERE):
        if name == "grad":
            torch.func.grad(f)(A)
        elif name == "outer grad":
            torch.func.grad(lambda W: torch.func.grad(lambda c: c * f(W))(A[0, 0]))(A)
        else:
            torch.func.vmap(f)(torch.stack([A, A]))


def test_where_nothing_is_differentiated_a_tensor_from_elsewhere_is_a_constant():
    with torch.no_grad():
        found = svdgrad.operator_triplet(captured, (), v0)
    assert relative_error(found.sigma, S[0]) <= 10 * EPS and not found.sigma.requires_grad
    frozen = A.clone()
    assert relative_error(svdgrad.operator_triplet(lambda _, x: frozen @ x, None, v0).sigma, S[0]) <= 10 * EPS


def test_the_obvious_warm_start_does_not_break_backward():
    W, x0 = A.clone().requires_grad_(), v0.clone()
    t = svdgrad.operator_triplet(product, W, x0)
    x0.copy_(t.v.detach())
    loss(t).backward()
    (expected,) = gradient(lambda W: loss(svdgrad.operator_triplet(product, W, v0)), A)
    assert torch.equal(W.grad, expected)


def test_a_parameter_made_from_another_is_not_counted_twice():
    (found,) = gradient(lambda W: loss(svdgrad.operator_triplet(lambda p, x: p[0] @ x + p[1] @ x, (W, 2 * W), v0)), A)
    (expected,) = gradient(lambda W: loss(svdgrad.singular_triplet(3 * W, v0=v0)), A)
    assert relative_error(found, expected) <= 100 * EPS / GAP


# --- precision and contexts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(dtype):
    W = A.to(dtype).requires_grad_()
    t = svdgrad.operator_triplet(product, W, v0.to(dtype))
    assert {x.dtype for x in t} == {dtype}
    loss(t).backward()
    X = A.to(dtype).requires_grad_()
    loss(svdgrad.singular_triplet(X, v0=v0.to(dtype))).backward()
    # both are computed in float32, and rounded once
    assert relative_error(W.grad.double(), X.grad.double()) <= 2 * torch.finfo(dtype).eps


def test_autocast_costs_no_digit():
    W = A.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        t = svdgrad.operator_triplet(product, W, v0.float())
        assert t.sigma.dtype == torch.float32
        value = loss(t)
    value.backward()
    (expected,) = gradient(lambda W: loss(svdgrad.operator_triplet(product, W, v0.float())), A.float())
    assert torch.equal(W.grad, expected)


def test_a_grad_scaler_scales_and_unscales():
    layer = nn.Linear(9, 12, bias=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    sigma = svdgrad.operator_triplet(lambda layer, x: layer(x), layer, v0.float()).sigma
    scaler.scale(sigma).backward()
    scaler.step(optimiser)
    (expected,) = gradient(svdgrad.spectral_norm, before)
    assert relative_error(layer.weight.detach(), before - 0.1 * expected) <= 1e-6


def test_in_inference_mode():
    with torch.inference_mode():
        made_there = A.clone()
        for W in (A, made_there):
            t = svdgrad.operator_triplet(product, W, v0.clone())
            assert relative_error(t.sigma, S[0]) <= 10 * EPS


def test_the_smaller_side_has_the_basis():
    """Five rows and many columns: the iteration ends after five steps, which on the longer side it would not know."""
    d = torch.arange(1.0, 6.0, dtype=torch.float64)
    calls = []

    def matvec(d, x):
        calls.append(x.shape)
        return d * x.reshape(5, 400).sum(1)

    t = svdgrad.operator_triplet(matvec, d, matrices.gaussian(1, 2000, seed=3)[0])
    assert relative_error(t.sigma, torch.tensor(5 * 20.0)) <= 10 * EPS and t.v.shape == (2000,)
    assert len(calls) <= 12


def test_an_adjoint_that_is_given_is_used():
    used = []

    def rmatvec(A, y):
        used.append(y)
        return A.T @ y

    (found,) = gradient(lambda W: loss(svdgrad.operator_triplet(product, W, v0, rmatvec=rmatvec)), A)
    (expected,) = gradient(lambda W: loss(svdgrad.operator_triplet(product, W, v0)), A)
    assert len(used) > 5 and relative_error(found, expected) <= 100 * EPS / GAP
    with pytest.raises(ValueError, match="not those of a matrix and its transpose.*an rmatvec of another matrix"):
        svdgrad.operator_triplet(product, A, v0, rmatvec=lambda A, y: 2 * (A.T @ y))


# --- sparse tensors ---------------------------------------------------------------------------------------------------


def thinned(shape=(12, 9), dtype=torch.float64):
    full = matrices.gaussian(*shape, seed=2).to(dtype)
    return full * (matrices.gaussian(*shape, seed=3) > 0) + 3 * torch.eye(*shape, dtype=dtype)


LAYOUTS = {"coo": torch.Tensor.to_sparse_coo, "csr": torch.Tensor.to_sparse_csr}


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (10, 10)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_sparse_tensor_has_its_pattern_and_its_layout(layout, shape):
    M, start = thinned(shape), matrices.gaussian(1, shape[1], seed=1)[0]
    X, Y = LAYOUTS[layout](M).requires_grad_(), M.clone().requires_grad_()
    t = svdgrad.singular_triplet(X, v0=start)
    loss(t).backward()
    loss(svdgrad.singular_triplet(Y, v0=start)).backward()
    G, entries = (x.coalesce() if layout == "coo" else x for x in (X.grad, X.detach()))
    assert G.layout == X.layout and G.values().shape == entries.values().shape
    s = torch.linalg.svdvals(M)
    assert relative_error(X.grad.to_dense(), Y.grad * (M != 0)) <= 100 * EPS * s[0] / (s[0] - s[1])
    assert relative_error(svdgrad.spectral_norm(X), s[0]) <= 10 * EPS
    assert svdgrad.diagnose(X.detach()).forward == "lanczos"


def test_entries_at_one_place_are_added():
    i = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 0]])
    values = torch.tensor([3.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    M = torch.sparse_coo_tensor(i, values, (3, 2), check_invariants=True).to_dense()
    for X in (torch.sparse_coo_tensor(i, values, (3, 2), check_invariants=True), Sparse(*i, (3, 2), values)):
        assert relative_error(svdgrad.spectral_norm(X), torch.linalg.matrix_norm(M, 2)) <= 10 * EPS
    (found,) = gradient(lambda x: svdgrad.spectral_norm(Sparse(*i, (3, 2), x)), values)
    (expected,) = gradient(svdgrad.spectral_norm, M)
    assert relative_error(found, expected[tuple(i)]) <= 100 * EPS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_derivative_that_pytorch_would_lose_is_refused(layout):
    """The constructors of sparse tensors are differentiable once; a leaf has no constructor in its graph."""
    M = thinned()
    places = M.nonzero().T
    values = M[tuple(places)].requires_grad_()
    if layout == "coo":
        X = torch.sparse_coo_tensor(places, values, M.shape, check_invariants=True)
    else:
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), (M != 0).sum(1).cumsum(0)])
        X = torch.sparse_csr_tensor(starts, places[1], values, M.shape, check_invariants=True)
    value = loss(svdgrad.singular_triplet(X))
    with pytest.raises(NotImplementedError, match="a second derivative was asked for.*Sparse"):
        torch.autograd.grad(value, values, create_graph=True)
    (found,) = torch.autograd.grad(loss(svdgrad.singular_triplet(X)), values)
    (expected,) = gradient(lambda M: loss(svdgrad.singular_triplet(M)), M)
    assert relative_error(found, expected[tuple(places)]) <= 1e3 * EPS


SPARSE = thinned().to_sparse_csr()
REFUSED = {
    "an interior index": (
        lambda: svdgrad.singular_triplet(SPARSE, index=1),
        "index must be 0, the largest, for a sparse A",
    ),
    "gram": (
        lambda: svdgrad.singular_triplet(SPARSE, forward="gram"),
        "forward must be 'auto' or 'lanczos' for a sparse A",
    ),
    "saddle": (
        lambda: svdgrad.singular_triplet(SPARSE, adjoint="saddle"),
        "adjoint must be 'auto' or 'cg' for a sparse A",
    ),
    "csc": (
        lambda: svdgrad.singular_triplet(thinned().to_sparse_csc()),
        "or sparse in COO or CSR layout, found layout torch.sparse_csc",
    ),
    "a batch": (lambda: svdgrad.singular_triplet(torch.ones(2, 3, 3).to_sparse_coo()), "one matrix"),
    "integers": (lambda: svdgrad.singular_triplet(torch.eye(3).long().to_sparse_coo()), "must be floating point"),
    "v0": (lambda: svdgrad.singular_triplet(SPARSE, v0=torch.ones(4)), "v0 must have 9 entries"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_sparse_matrix_cannot_have_is_refused_with_what_can(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# --- what was wrong without a word ------------------------------------------------------------------------------------


def test_a_module_that_occurs_twice_is_one_module():
    layer = nn.Linear(9, 9, bias=False).double()
    twice = nn.Sequential(layer, nn.Identity(), layer)
    svdgrad.operator_triplet(lambda m, x: m(x), twice, v0).sigma.backward()
    assert isinstance(layer.weight, nn.Parameter)
    (expected,) = gradient(lambda W: svdgrad.spectral_norm(W @ W), layer.weight)
    assert relative_error(layer.weight.grad, expected) <= 1e4 * EPS


def test_two_modules_that_share_a_parameter():
    one, two = (nn.Linear(9, 9, bias=False).double() for _ in range(2))
    two.weight = one.weight
    svdgrad.operator_triplet(lambda m, x: m(x), nn.Sequential(one, two), v0).sigma.backward()
    (expected,) = gradient(lambda W: svdgrad.spectral_norm(W @ W), one.weight)
    assert relative_error(one.weight.grad, expected) <= 1e4 * EPS


def test_a_tangent_from_elsewhere_is_refused():
    d, ones = A[0].abs() + 1, torch.ones(9, dtype=torch.float64)

    def f(X, p):
        return svdgrad.operator_triplet(lambda p, x: p * X * x, p, v0).sigma

    with pytest.raises(ValueError, match=FROM_ELSEWHERE):
        torch.func.jvp(lambda X: f(X, ones), (d,), (ones,))
    with pytest.raises(ValueError, match=FROM_ELSEWHERE), torch.autograd.forward_ad.dual_level():
        f(torch.autograd.forward_ad.make_dual(d, ones), ones)


def test_an_adjoint_that_reads_constants_does_no_harm_to_derivatives():
    constant = A.clone()

    def f(W):
        return loss(svdgrad.operator_triplet(product, W, v0, rmatvec=lambda _, y: constant.T @ y))

    E = torch.ones_like(A)
    _, found = torch.func.jvp(f, (A,), (E,))
    _, expected = torch.func.jvp(lambda W: loss(svdgrad.singular_triplet(W, v0=v0)), (A,), (E,))
    assert relative_error(found, expected) <= 100 * EPS / GAP


@pytest.mark.parametrize("answer", [lambda y: None, lambda y: y[:3], lambda y: y.new_zeros(9).float()])
def test_an_adjoint_of_another_kind_is_refused(answer):
    with pytest.raises(TypeError, match=r"rmatvec\(params, y\) must return a tensor like v0"):
        svdgrad.operator_triplet(product, A, v0, rmatvec=lambda _, y: answer(y))


def test_linear_in_real_numbers_only_is_refused():
    M = torch.complex(A[:9], A[3:])
    with pytest.raises(ValueError, match="must be linear in x for complex numbers"):
        svdgrad.operator_triplet(lambda M, x: M @ x.conj(), M, v0.to(M.dtype))


def test_a_bias_that_is_zero_is_refused():
    layer = nn.Linear(9, 12).double()
    nn.init.zeros_(layer.bias)
    with pytest.raises(ValueError, match="though it is 0 now: likely cause: a bias"):
        svdgrad.operator_triplet(lambda layer, x: layer(x), layer, v0)


@pytest.mark.parametrize(
    ("rows", "columns", "values", "message"),
    [
        ([0, 1], [0, 2], [1.0, 3.0], "columns must be from 0 to 1 for a matrix of shape 2×2, found 0 to 2"),
        ([-1, 1], [0, 1], [1.0, 3.0], "rows must be from 0 to 1"),
        ([0, 1], [0, 1], [[3.0, 1.0], [10.0, 20.0]], "rows must be integers, one for each of the"),
        ([0.0, 1.0], [0, 1], [1.0, 3.0], "rows must be integers"),
        ([0], [0, 1], [1.0, 3.0], "rows must be integers, one for each of the"),
    ],
)
def test_places_that_a_matrix_does_not_have(rows, columns, values, message):
    M = Sparse(torch.tensor(rows), torch.tensor(columns), (2, 2), torch.tensor(values))
    with pytest.raises(ValueError, match=message):
        svdgrad.singular_triplet(M)


def test_a_csr_leaf_is_differentiable_once():
    X = thinned().to_sparse_csr().requires_grad_()
    with pytest.raises(NotImplementedError, match="a second derivative was asked for"):
        torch.autograd.grad(svdgrad.singular_triplet(X).u[0], X, create_graph=True)


@pytest.mark.parametrize("f", [svdgrad.spectral_norm, lambda W: loss(svdgrad.singular_triplet(W, forward="lanczos"))])
def test_a_checkpoint(f):
    X, Y = A.clone().requires_grad_(), A.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(f, X, use_reentrant=False).backward()
    f(Y).backward()
    assert torch.equal(X.grad, Y.grad)


def test_a_backward_pass_inside_autocast_costs_no_digit():
    W, X = (A.float().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(svdgrad.operator_triplet(product, W, v0.float())).backward()
    loss(svdgrad.operator_triplet(product, X, v0.float())).backward()
    assert torch.equal(W.grad, X.grad)


# --- a function that changes ------------------------------------------------------------------------------------------


class Changing:
    """matvec(p, x) = p k W x, that may change: W and k are read from here, and k doubles after so many calls."""

    def __init__(self, W, last=math.inf):
        self.W, self.k, self.last, self.calls = W.clone(), 1.0, last, 0

    def __call__(self, p, x):
        self.calls += 1
        return p * (self.k if self.calls <= self.last else 2 * self.k) * (self.W @ x)

    def replace(self):
        self.W = self.W * torch.linspace(1, 2, self.W.shape[1]).to(self.W)

    def update(self):
        self.W.mul_(1.01)

    def number(self):
        self.k = 1.01

    def count(self):
        self.last = self.calls

    def nothing(self):
        pass


CHANGES = ["replace", "update", "number", "count"]
OF_SIGMA_OR_ALL = {"sigma": lambda t: t.sigma, "all": loss}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)], ids=str)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("loss", OF_SIGMA_OR_ALL.values(), ids=OF_SIGMA_OR_ALL)
def test_a_function_that_changes_before_backward_is_noticed(loss, change, shape, dtype):
    matvec, p = Changing(matrices.gaussian(*shape, dtype=dtype)), torch.ones((), dtype=dtype, requires_grad=True)
    t = svdgrad.operator_triplet(matvec, p, torch.ones(shape[1], dtype=dtype))
    getattr(matvec, change)()
    with pytest.raises((ValueError, RuntimeError), match="A v has changed by .*|modified by an inplace operation"):
        loss(t).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tol", [None, 1e-2])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (200, 150)], ids=str)
def test_one_that_does_not_change_is_no_error_and_costs_no_product(shape, tol, dtype):
    for loss in OF_SIGMA_OR_ALL.values():
        matvec, p = Changing(matrices.gaussian(*shape, dtype=dtype)), torch.ones((), dtype=dtype, requires_grad=True)
        t = svdgrad.operator_triplet(matvec, p, torch.ones(shape[1], dtype=dtype), tol=tol)
        loss(t).backward()
        assert relative_error(p.grad, t.sigma.detach()) <= (10 * torch.finfo(dtype).eps if tol is None else tol)
    t = svdgrad.operator_triplet(matvec, p, torch.ones(shape[1], dtype=dtype), tol=tol)
    before = matvec.calls
    t.sigma.backward()
    assert matvec.calls == before + 1


@pytest.mark.parametrize("last", [4, 6, 8, 10])
def test_a_function_that_changes_while_it_is_iterated_is_noticed(last):
    matvec, p = Changing(A, last=last), torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"those of one matrix, found ‖Av‖² = .*changes from call to call \(a counter"):
        svdgrad.operator_triplet(matvec, p, v0)


# --- messages that were PyTorch's own ---------------------------------------------------------------------------------

TRIPLETS = {
    "gram": lambda W: svdgrad.singular_triplet(W, v0=v0),
    "lanczos": lambda W: svdgrad.singular_triplet(W, v0=v0, forward="lanczos"),
    "operator": lambda W: svdgrad.operator_triplet(product, W, v0),
}


@pytest.mark.parametrize("f", TRIPLETS.values(), ids=TRIPLETS)
def test_a_tracer_that_hands_out_no_numbers(f):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for g in (lambda W: f(W).sigma, lambda W: loss(f(W))):
        with pytest.raises(NotImplementedError, match="hands it none: use torch.func.jvp or torch.func.vjp in place"):
            torch.func.linearize(g, A)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(NotImplementedError, match="hands it none"):
        f(torch.empty(12, 9, dtype=torch.float64))


@pytest.mark.parametrize("f", TRIPLETS.values(), ids=TRIPLETS)
def test_the_maps_of_autograd_are_right_or_refused(f):
    """Of σ alone a gradient needs no number; in forward mode u and v move along, and an iteration needs some."""
    functional = torch.autograd.functional
    expected = torch.func.grad(lambda W: f(W).sigma)(A)
    assert relative_error(functional.jacobian(lambda W: f(W).sigma, A, vectorize=True), expected) <= 10 * EPS
    W = A.clone().requires_grad_()
    sigma = f(W).sigma
    (found,) = torch.autograd.grad(sigma, W, torch.tensor([1.0, 3.0], dtype=torch.float64), is_grads_batched=True)
    assert relative_error(found, torch.stack([expected, 3 * expected])) <= 10 * EPS
    maps = [
        lambda: functional.jacobian(lambda W: loss(f(W)), A, vectorize=True),
        lambda: functional.hessian(lambda W: loss(f(W)), A, vectorize=True),
        lambda: functional.hessian(lambda W: f(W).sigma, A, vectorize=True),
        lambda: functional.jacobian(lambda W: loss(f(W)), A, vectorize=True, strategy="forward-mode"),
        lambda: functional.jacobian(lambda W: f(W).sigma, A, vectorize=True, strategy="forward-mode"),
        lambda: functional.hessian(lambda W: loss(f(W)), A, vectorize=True, outer_jacobian_strategy="forward-mode").sum(
            (0, 1)
        ),
    ]
    direct = f is TRIPLETS["gram"]
    for g in maps[: 3 if direct else None]:
        with pytest.raises(
            NotImplementedError, match="no number can be read.*use torch.func.jacrev or torch.func.jacf"
        ):
            g()
    if direct:
        gradient = torch.func.grad(lambda W: loss(f(W)))
        truth = [gradient(A), expected, torch.func.jacrev(gradient)(A).sum((0, 1))]
        for g, G in zip(maps[3:], truth):
            assert relative_error(g(), G) <= 100 * EPS / GAP**2


def test_minres_is_refused_too():
    with pytest.raises(NotImplementedError, match="no number can be read"):
        torch.autograd.functional.jacobian(
            lambda W: svdgrad.singular_triplet(W, forward="svd", adjoint="minres").u[0],
            A,
            vectorize=True,
            strategy="forward-mode",
        )


META = {
    "A": lambda x: svdgrad.singular_triplet(x),
    "spectral_norm": lambda x: svdgrad.spectral_norm(x, forward="lanczos"),
    "diagnose": lambda x: svdgrad.diagnose(x),
    "rank two": lambda x: svdgrad.rank_two_gradient(lambda t: t.sigma, x),
    "coo": lambda x: svdgrad.singular_triplet(torch.eye(3).to_sparse_coo().to(x.device)),
    "csr": lambda x: svdgrad.singular_triplet(torch.eye(3).to_sparse_csr().to(x.device)),
    "v0": lambda x: svdgrad.singular_triplet(A, v0=x[0]),
    "v0 of a sparse A": lambda x: svdgrad.singular_triplet(SPARSE, v0=x[0]),
    "v0 of an operator": lambda x: svdgrad.operator_triplet(product, A, x[0]),
    "params": lambda x: svdgrad.operator_triplet(product, x, v0),
    "a module": lambda x: svdgrad.operator_triplet(lambda m, x: m(x), nn.Linear(9, 9, device=x.device), v0),
}


@pytest.mark.parametrize("call", META.values(), ids=META)
def test_a_tensor_without_numbers(call):
    with pytest.raises(ValueError, match="must have numbers, found a tensor on the meta device, which has none"):
        call(A.to("meta"))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex128], ids=str)
@pytest.mark.parametrize("layer", [nn.Linear(9, 12, bias=False), nn.Conv1d(1, 2, 3, bias=False)], ids=repr)
def test_params_of_another_dtype_than_v0(layer, dtype):
    layer, x0 = copy.deepcopy(layer).to(dtype), v0 if isinstance(layer, nn.Linear) else v0[None, None]
    message = r"must take an x like v0, torch.float64 on cpu, found params of .* on cpu, and an error in it: .* Convert"
    for params in (layer, layer.weight):
        matvec = (lambda m, x: m(x)) if params is layer else lambda W, x: W.flatten(1)[:, :1] @ x.flatten()[:1]
        with pytest.raises(TypeError, match=message):
            svdgrad.operator_triplet(matvec, params, x0)
        with pytest.raises(TypeError, match=message):
            torch.func.grad(lambda c: c * svdgrad.operator_triplet(matvec, params, x0).sigma)(torch.ones(()))


def test_an_error_of_matvec_that_no_dtype_explains_is_its_own():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        svdgrad.operator_triplet(lambda m, x: m(x), nn.Linear(7, 12, bias=False).double(), v0)


def test_a_lazy_module_is_called_so():
    with pytest.raises(ValueError, match="params must have entries, found a parameter without a shape: call its lazy"):
        svdgrad.operator_triplet(lambda m, x: m(x), nn.LazyLinear(12, bias=False).double(), v0)


def test_sparse_tensors_under_torch_func():
    """PyTorch itself refuses most; what comes through to a function is right, or refused with what does work."""
    X = thinned().to_sparse_coo().coalesce()
    (found,) = torch.func.vjp(svdgrad.spectral_norm, X)[1](torch.ones((), dtype=torch.float64))
    (expected,) = gradient(svdgrad.spectral_norm, thinned())
    assert relative_error(found.to_dense(), expected * (thinned() != 0)) <= 100 * EPS
    c, message = torch.ones((), dtype=torch.float64), r"made outside, and transform by values"
    assert torch.func.grad(lambda c: c * svdgrad.spectral_norm(X))(c) == svdgrad.spectral_norm(X)
    for transform in (torch.func.grad, torch.func.hessian, lambda f: lambda c: torch.func.vmap(f)(c.expand(2))):
        with pytest.raises(NotImplementedError, match=message):
            transform(lambda c: c * svdgrad.spectral_norm(SPARSE))(c)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.vmap(svdgrad.spectral_norm)(torch.stack([X, X]))
