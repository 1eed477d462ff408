"""The gain of a layer: what a call leaves behind, the ends of the range of numbers, Modules that are not affine."""

import gc
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from svdgrad import operator_triplet
from svdgrad.nn import operator_norm, spectral_norm, upper_bound
from svdgrad.nn.spectral import fingerprint


def formed(layer, size):
    """The layer as a matrix in float64, column by column, by the layer itself."""
    n = torch.Size(size).numel()
    with torch.no_grad():
        X = torch.eye(n, dtype=layer.weight.dtype).reshape(n, *size)
        return (layer(X) - layer(torch.zeros_like(X))).flatten(1).T.double()


def gain(layer, size):
    return torch.linalg.matrix_norm(formed(layer, size), 2).item()


# --- what a call leaves behind ----------------------------------------------------------------------------------------


def tensors_left(call, calls=4):
    """Tensors more after so many calls, of those that Python's collector does not free."""

    def count():
        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    call()  # what is made once
    before = count()
    for _ in range(calls):
        call()
    return count() - before


def held(make, size, moves=True):
    layer, x = spectral_norm(make(), input_shape=size), torch.randn(1, *size)
    W = layer.parametrizations.weight.original

    def call():
        if moves:
            with torch.no_grad():
                W.add_(0.01 * torch.randn_like(W))
        return layer(x).sum()

    return call


conv, wide = (lambda: nn.Conv1d(8, 4, 3, padding=1)), (lambda: nn.Linear(330, 325))
CALLS = {
    "operator_norm": lambda: lambda: operator_norm(conv(), (8, 20)),
    "operator_norm, matrix": lambda: lambda: operator_norm(wide()),
    "operator_norm, Module": lambda: lambda: operator_norm(nn.Sequential(conv()), (8, 20)),
    "upper_bound": lambda: lambda: upper_bound(conv(), (8, 20)),
    "upper_bound, matrix": lambda: lambda: upper_bound(wide()),
    "spectral_norm": lambda: held(conv, (8, 20)),
    "spectral_norm, matrix": lambda: held(wide, (330,)),
    "spectral_norm, recalled": lambda: held(conv, (8, 20), moves=False),
    "spectral_norm, circle": lambda: held(lambda: nn.Conv1d(8, 4, 3, padding="same", padding_mode="circular"), (8, 20)),
}


def twice(call):
    y = call()
    inputs = [x for x in sources(y) if x.ndim > 1]
    (G,) = torch.autograd.grad(y, inputs[:1], create_graph=True)
    G.square().sum().backward()


def sources(y):
    """The leaves of the graph of y."""
    found, nodes = [], [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes.extend(following for following, _ in node.next_functions if following is not None)
    return found


@pytest.mark.filterwarnings("ignore::svdgrad.NearTieWarning")
@pytest.mark.parametrize(
    "after",
    [
        pytest.param(lambda call: call(), marks=pytest.mark.slow, id="forward"),
        pytest.param(lambda call: call().backward(), marks=pytest.mark.slow, id="backward"),
        pytest.param(twice, id="backward twice"),
    ],
)
@pytest.mark.parametrize("name", CALLS)
def test_no_call_leaves_tensors_behind(name, after):
    torch.manual_seed(0)
    call = CALLS[name]()
    assert tensors_left(lambda: after(call)) < 4  # one a call would be four


# --- the ends of the range of numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, scales",
    [
        (torch.float32, (3e-30, 1e-22, 3e-22, 1e-10, 1.0, 3e19, 1e30, 1e37)),
        (torch.float64, (1e-290, 1e-170, 1.0, 1e160, 1e306)),
    ],
)
@pytest.mark.parametrize("make, size", [(conv, (8, 20)), (wide, (330,))])
def test_an_unchanged_weight_of_any_scale_is_held(make, size, dtype, scales):
    torch.manual_seed(0)
    layer = make().to(dtype)
    layer.bias = None
    spectral_norm(layer, input_shape=size)
    W = layer.parametrizations.weight.original
    start = W.detach().clone()
    for scale in scales:
        with torch.no_grad():
            W.copy_(start / gain(layer, size) * scale)
        for _ in range(3):  # found, and twice recalled
            layer.zero_grad()
            assert 0.997 <= gain(layer, size) <= 1.001, scale
            # along W the divided weight does not change: the gradient is orthogonal to it
            layer.weight.square().sum().backward()
            assert W.grad.isfinite().all(), scale
            assert abs((W.grad * W.detach()).sum()) < 2e-2 * layer.weight.square().sum(), scale


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e25, 1e35])
def test_what_is_exported_is_held_at_any_scale(scale):
    torch.manual_seed(0)
    layer = nn.Conv1d(8, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.mul_(scale)
    spectral_norm(layer, input_shape=(8, 20))
    x = torch.randn(1, 8, 20)
    truth = layer(x)
    assert (torch.export.export(layer.eval(), (x,)).module()(x) - truth).norm() < 1e-5 * truth.norm()


def test_a_change_is_told_at_any_scale():
    for scale in (1e-25, 1.0, 1e25, 1e35):
        W = scale * torch.ones(20, 30).cumsum(1)
        params = W.clone().requires_grad_()
        sigma = operator_triplet(lambda W, x: W @ x, params, torch.ones(30)).sigma
        params.data = 1.01 * W
        with pytest.raises(ValueError, match=r"A v has changed by 1\.0e-02 of it"):
            sigma.backward()


# --- Modules that are not what they seem ------------------------------------------------------------------------------


class Then(nn.Module):
    """A convolution, and what becomes of its output."""

    def __init__(self, after, channels=4):
        super().__init__()
        self.conv, self.after = nn.Conv1d(3, channels, 3, padding=1), after

    def forward(self, x):
        return self.after(self.conv(x))


@pytest.mark.parametrize(
    "after, found",
    [
        (lambda y: y.squeeze(), r"the shape \(4, 8\)"),
        (lambda y: y.flatten(), r"the shape \(32,\)"),
        (lambda y: y.transpose(0, 1), r"the shape \(4, 1, 8\)"),
        (lambda y: y.permute(2, 0, 1), r"the shape \(8, 1, 4\)"),
        (lambda y: y.mean(0), r"the shape \(4, 8\)"),
        (lambda y: y.sum(), r"the shape \(\)"),
        (lambda y: y.repeat(5, 1, 1), r"the shape \(5, 4, 8\)"),
        (lambda y: (y[:, :1], y[:, 1:]), "tuple"),
        (lambda y: [y[:, :1], y[:, 1:]], "list"),
        (lambda y: {"a": y}, "dict"),
        (lambda y: None, "NoneType"),
    ],
)
def test_an_output_without_its_batch_is_refused(after, found):
    layer = Then(after)
    with pytest.raises(ValueError, match=f"with the batch first.* found {found} from a Then: likely causes"):
        operator_norm(layer, (3, 8))
    with pytest.raises(ValueError, match="with the batch first"):
        torch.func.vmap(lambda _: operator_norm(layer, (3, 8)))(torch.zeros(2))


def test_an_output_of_one_number_has_a_gain():
    torch.manual_seed(0)
    for after in (lambda y: y.sum((1, 2)), lambda y: y.sum((1, 2), keepdim=True), lambda y: y.mean(0, keepdim=True)):
        layer = Then(after)
        with torch.no_grad():
            X = torch.eye(24).reshape(24, 1, 3, 8)
            rows = [(layer(x) - layer(torch.zeros(1, 3, 8))).flatten() for x in X]
        assert abs(operator_norm(layer, (3, 8)) / torch.linalg.matrix_norm(torch.stack(rows), 2) - 1) < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e25, 1e30, 1e36])
def test_a_module_of_any_scale_has_a_gradient(scale):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Linear(20, 25, bias=False))
    with torch.no_grad():
        layer[0].weight.mul_(scale)
    truth = [part.weight.detach().double().requires_grad_() for part in layer]
    wanted = torch.autograd.grad(torch.linalg.svdvals(truth[1] @ truth[0])[0], truth)
    found = torch.autograd.grad(operator_norm(layer, (30,)), tuple(layer.parameters()))
    for x, y in zip(found, wanted):
        assert (x.double() - y).norm() < 1e-3 * y.norm()


def test_modules_are_mapped():
    class Gain(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self):
            return operator_norm(self.layer, (30,))

    torch.manual_seed(0)
    W = torch.randn(3, 20, 30)
    layer = Gain(nn.Sequential(nn.Linear(30, 20)))
    value_and_grad = torch.func.grad_and_value(lambda W: torch.func.functional_call(layer, {"layer.0.weight": W}, ()))
    G, sigma = torch.func.vmap(value_and_grad)(W)
    U, S, Vh = torch.linalg.svd(W)
    assert torch.allclose(sigma, S[:, 0], rtol=1e-5)
    assert torch.allclose(G, U[:, :, :1] * Vh[:, :1], atol=1e-3)


# --- whether a weight has changed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 6, 4099, 20_001])
def test_changes_that_cancel_in_a_plain_sum_show_in_the_fingerprint(size, dtype):
    x = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    changed = [x, -x, 2 * x, x / 2]
    for k in range(min(size - 3, 500)):
        for factors in ((2, 0.5, 2, 0.5), (2, 0.5, 0.5, 2), (-1, -1, 1, 1), (1, -1, 1, -1), (4, 4, 0.25, 0.25)):
            y = x.clone()
            y[k : k + 4] *= torch.tensor(factors, dtype=dtype)
            changed.append(y)
        changed.append(torch.cat([x[:k], x[k : k + 2].flip(0), x[k + 2 :]]))
    for k in range(size):
        if k < 8 or size - k < 8 or k % 1000 < 2:
            y = x.clone()
            y[k] *= 1 + 2 * torch.finfo(dtype).eps
            changed.append(y)
    different = {y.view(torch.uint8).numpy().tobytes(): y for y in changed}  # two neighbours may be equal
    assert len({fingerprint(y).item() for y in different.values()}) == len(different) > size / 50


def test_a_fingerprint_knows_nothing_of_how_numbers_lie_in_memory():
    x = torch.randn(4001)
    for y in (x[1:], x[::2], x.reshape(1, -1).expand(2, -1).T, torch.complex(x, -x)[3:]):
        assert fingerprint(y) == fingerprint(y.clone(memory_format=torch.contiguous_format))


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made, views left out."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        found = op(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not op.is_view:
            self.bytes = max(self.bytes, found.nbytes)
        return found


def test_a_fingerprint_makes_no_array_as_large_as_the_weight():
    x = torch.randn(2000, 2000)
    with Largest() as largest:
        fingerprint(x)
    assert 0 < largest.bytes < x.nbytes / 10


def test_one_fingerprint_for_the_weight_and_one_for_the_state(monkeypatch):
    taken = []

    def counted(x, seed=0):
        taken.append(x.numel())
        return fingerprint(x, seed)

    call = held(conv, (8, 20))
    monkeypatch.setattr(sys.modules["svdgrad.nn.spectral"], "fingerprint", counted)
    for _ in range(3):
        call()
    assert taken == 3 * [8 * 4 * 3, 8 * 20 + 1]


def test_numbers_whose_sum_is_too_large_are_finite():
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 1e38)
    assert abs(operator_norm(layer) / 1e38 - 6**0.5) < 1e-5
