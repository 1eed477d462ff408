"""The gain of a layer: what a call leaves behind, the ends of the range of numbers, Modules that are not affine."""

import gc
import sys
from fractions import Fraction

import numpy as np
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


class Spectrum(nn.Linear):
    def forward(self, x):
        return torch.fft.rfft(super().forward(x))


def test_a_complex_output_of_a_real_input_is_named():
    layer = Spectrum(8, 8)
    with pytest.raises(ValueError, match="real numbers for a real input, found torch.complex64 from a Spectrum"):
        operator_norm(layer, (8,))
    as_said = nn.Sequential(layer, Apply(torch.view_as_real))
    whole = torch.view_as_real(torch.fft.rfft(layer.weight.mT)).flatten(1)
    assert abs(operator_norm(as_said, (8,)) / torch.linalg.matrix_norm(whole, 2) - 1) < 1e-5


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("value", [torch.tensor(2.0), "2", None], ids=str)
@pytest.mark.parametrize("name", ["bound", "tol"])
def test_what_is_no_number_is_named(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a number of Python, found {type(value).__name__}"):
        spectral_norm(nn.Linear(3, 3), **{name: value})
    spectral_norm(nn.Linear(3, 3), **{name: np.float32(0.5)})
    with pytest.raises(TypeError, match=r"the shape of an input is input_shape=\(3, 8, 8\)"):
        spectral_norm(nn.Conv2d(3, 8, 3), (3, 8, 8))


def test_where_the_eigenvectors_of_a_gram_matrix_fail_there_are_those_of_the_svd():
    """LAPACK's eigh gives up on one in five of these, of many equal values, in float32."""
    for seed in range(40):
        torch.manual_seed(seed)
        options = {"stride": (1, 3, 1), "padding": (1, 0, 2), "dilation": (2, 2, 1), "padding_mode": "replicate"}
        layer = nn.Conv3d(3, 4, (2, 1, 1), **options)
        found = operator_norm(layer, (3, 4, 3, 3))
        assert abs(found.item() / gain(layer, (3, 4, 3, 3)) - 1) < 1e-5


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


# --- what a layer does not show at first ------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda layer: layer, nn.Sequential])
def test_a_gain_that_float16_does_not_hold_is_an_error(wrap):
    layer = nn.Linear(512, 512, bias=False).half()
    nn.init.constant_(layer.weight, 200.0)
    with pytest.raises(ValueError, match=r"found σ = 1\.024e\+05 for torch\.float16"):
        operator_norm(wrap(layer), (512,))


@pytest.mark.parametrize("dtype, bound, fits", [(torch.float16, 1e5, 6e4), (torch.bfloat16, 3.4e38, 3e38)])
def test_a_bound_that_the_weight_cannot_hold_is_refused(dtype, bound, fits):
    with pytest.raises(ValueError, match=f"bound must be a number between .* for a weight of {dtype}"):
        spectral_norm(nn.Linear(1, 1).to(dtype), bound=bound)
    assert spectral_norm(nn.Linear(1, 1).to(dtype), bound=fits).weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_no_tolerance_below_rounding_is_promised(dtype):
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    with pytest.raises(ValueError, match="tol must be at least .*e-.* for a weight of torch.float"):
        spectral_norm(nn.Linear(3, 3).to(dtype), tol=eps)
    if dtype == torch.float32:
        for make, size in ((lambda: nn.Linear(30, 20), (30,)), (conv, (8, 20)), (wide, (330,))):
            layer = spectral_norm(make(), input_shape=size, tol=4e-6)
            layer.bias = None
            assert gain(layer, size) <= 1 + 4e-6


@pytest.mark.parametrize(
    "make, size, weight",
    [
        (lambda: nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular"), (8, 8, 8), (16, 8, 1, 1)),
        (lambda: nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular"), (8, 8, 8), (16, 8, 5, 5)),
        (lambda: nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect"), (8, 8, 8), (16, 8, 5, 5)),
        (lambda: nn.Conv2d(8, 16, 3, padding=1), (8, 8, 8), (4, 8, 3, 3)),
        (lambda: nn.ConvTranspose2d(8, 16, 3), (8, 8, 8), (8, 4, 3, 3)),
        (lambda: nn.Linear(10, 5), None, (5, 7)),
    ],
)
def test_a_weight_of_another_shape_than_the_layer_says_is_named(make, size, weight):
    layer, kept = make(), spectral_norm(make(), input_shape=size)
    layer.weight = nn.Parameter(torch.randn(weight))
    kept.parametrizations.weight.original = nn.Parameter(torch.randn(weight))
    for call in (
        lambda: operator_norm(layer, size),
        lambda: upper_bound(layer, size),
        lambda: spectral_norm(layer, input_shape=size),
        lambda: kept.weight,
    ):
        with pytest.raises(ValueError, match=rf"must have the shape .* found \({', '.join(map(str, weight))}\)"):
            call()


def test_whatever_changes_a_call_counts():
    class Tripled(nn.Linear):
        def __call__(self, x):
            return 3 * super().__call__(x)

    class Padded(nn.ConvTranspose1d):
        def _output_padding(self, *args, **options):
            return [1]

    torch.manual_seed(0)
    louder = nn.Conv1d(3, 4, 3)
    louder._conv_forward = lambda x, weight, bias: 5 * nn.functional.conv1d(x, weight)
    for layer, size in (
        (Tripled(9, 4, bias=False), (9,)),
        (Padded(3, 4, 3, stride=2, bias=False), (3, 8)),
        (louder, (3, 8)),
    ):
        assert abs(operator_norm(layer, size) / gain(layer, size) - 1) < 1e-5
        with pytest.raises(TypeError, match="takes a Linear"):
            spectral_norm(layer, input_shape=size)
    hook = nn.modules.module.register_module_forward_hook(lambda layer, x, y: 2 * y if type(layer) is nn.Linear else y)
    try:
        layer = nn.Linear(9, 4, bias=False)
        assert abs(operator_norm(layer, (9,)) / torch.linalg.matrix_norm(layer.weight, 2) - 2) < 1e-5
    finally:
        hook.remove()


@pytest.mark.parametrize("mode, taps", [("circular", 3), ("replicate", 3), ("replicate", 5)])
def test_the_bound_is_above_where_taps_cancel(mode, taps):
    """An image of one pixel, which the padding repeats: the gain is the modulus of the sum of the taps."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv1d(1, 1, taps, padding=taps // 2, padding_mode=mode).double()
    for k in range(40):
        weight = 10 * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        weight[0, 0, -1] = -weight[0, 0, :-1].sum() + 10.0 ** -(k % 10)
        layer.weight.data = weight
        truth = abs(sum(map(Fraction, weight.flatten().tolist())))
        bound = Fraction(upper_bound(layer, (1, 1)).item())
        assert truth <= bound < truth + Fraction(1e-12) * sum(map(abs, map(Fraction, weight.flatten().tolist())))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode, length", [("circular", 20), ("zeros", 20), ("zeros", 80)])
def test_a_weight_that_is_not_finite_is_named_under_torch_func(mode, length, bad):
    layer = spectral_norm(nn.Conv1d(3, 4, 3, padding=1, padding_mode=mode), input_shape=(3, length))
    x, W = torch.ones(1, 3, length), torch.randn(4, 3, 3)
    W[0, 0, 0] = bad
    name = "parametrizations.weight.original"
    with pytest.raises(ValueError, match="must be finite, found"):
        torch.func.grad(lambda W: torch.func.functional_call(layer, {name: W}, (x,)).sum())(W)


def test_a_weight_that_moves_with_each_call_is_a_likely_cause():
    layer = nn.utils.spectral_norm(nn.Conv1d(3, 4, 3))
    with pytest.raises(ValueError, match="a hook that changes the weight at each call, as of torch.nn.utils.spect"):
        operator_norm(layer, (3, 60))
    operator_norm(layer.eval(), (3, 60))
