"""Device discipline, shown without a GPU: nothing of the host slips in, and nothing waits for the host inside a step.

Three kinds of test. On PyTorch's meta device, which knows shapes and devices and no numbers; on a card that is not
there (``card.py``), which has numbers and counts what crosses to the host; and, marked ``cuda``, on a GPU where there
is one.
"""

import importlib.metadata
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from card import DEVICE, Card, Mixed, OnCard
from families import FAMILIES, problem

import svdgrad
from svdgrad import matrices, oracles
from svdgrad.adjoint import ATTEMPTS, SOLVERS, assemble
from svdgrad.adjoint.krylov import CHECK_EVERY
from svdgrad.forward import FORWARDS, Triplet, svd
from svdgrad.gap import relative_gap
from svdgrad.lab import loss_vectors, relative_error
from svdgrad.operator import Dense, Sparse

ROOT = Path(__file__).resolve().parent.parent
WAYS = {("attempt", name): way for name, way in ATTEMPTS.items()} | {
    ("solver", name): way for name, way in SOLVERS.items()
}
SHAPES = {
    "tall": (24, 10),
    "wide": (10, 24),
    "square": (14, 14),
    "one column": (8, 1),
    "one row": (1, 8),
    "one entry": (1, 1),
}
DTYPES = [torch.float32, torch.float64]
WAY = [pytest.param(way, id="-".join(name)) for name, way in WAYS.items()]


def find(method, A, v0=None):
    """The triplet by a method with its default options, and what it leaves behind."""
    return method().find(Dense(A), 0, v0)


def arguments(m, n, dtype=torch.float64):
    """What a way to (p, q) is called with."""
    A = matrices.gaussian(m, n, dtype=dtype)
    _, phi, psi = loss_vectors(A)
    return A, svd(A)[0], phi, psi


def same(x, y, way):
    """Bit for bit; but on the host cg calculates in NumPy, whose sums run in another order."""
    if way is SOLVERS["cg"]:
        return torch.allclose(x, y, rtol=0, atol=50 * torch.finfo(y.dtype).eps * float(y.abs().max()))
    return torch.equal(x, y)


# --- on the meta device ----------------------------------------------------------------------------------------------

A = torch.empty(4, 3, device="meta")

#: what a tensor without numbers cannot do, by the name that PyTorch's error gives it: why, and the smallest example
NO_FAKE = {
    "linalg_lstsq": ("no meta kernel", lambda: torch.linalg.lstsq(A, A, driver="gels")),
    "Tensor.item()": ("a look at a number: a stopping test", lambda: A.sum().item()),
}


def on_meta(run):
    """The result of ``run``, or the names in ``NO_FAKE`` of the operation that it cannot do without numbers."""
    try:
        return run(), []
    except (RuntimeError, NotImplementedError) as problem:
        names = [name for name in NO_FAKE if name in str(problem)]
        if not names:
            raise
        return None, names


def every_run_on_meta():
    empty = lambda x: torch.empty_like(x, device="meta")
    A, triplet, phi, psi = arguments(12, 8)
    fake = empty(A), Triplet(*map(empty, triplet)), empty(phi), empty(psi)
    yield from (("-".join(name), lambda way=way: way(*fake)) for name, way in WAYS.items())
    yield from ((f"forward-{name}", lambda way=way: find(way, fake[0])[0]) for name, way in FORWARDS.items())


@pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in every_run_on_meta()])
def test_on_the_meta_device_all_stays_there(run):
    """PyTorch raises an error where a tensor of the host meets one of the device; only what is listed may stop a
    run.
    """
    result, stopped_by = on_meta(run)
    assert stopped_by or all(x.device.type == "meta" for x in result)


def test_the_list_of_what_fake_tensors_cannot_run_is_not_stale():
    for name, (_, example) in NO_FAKE.items():
        assert on_meta(example) == (None, [name]), f"{name} runs on fake tensors now: take it off the list"
    needed = {name for _, run in every_run_on_meta() for name in on_meta(run)[1]}
    assert needed == set(NO_FAKE)


# --- on a card that is not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAY)
def test_on_the_card_the_answer_is_that_of_the_host_and_stays_there(way, shape, dtype):
    given = arguments(*SHAPES[shape], dtype)
    try:
        wanted = way(*given)
    except torch.linalg.LinAlgError:
        wanted = None
    with Card() as card, torch.no_grad():
        A, triplet, phi, psi = card.put(given)
        if wanted is None:
            with pytest.raises(torch.linalg.LinAlgError):
                way(A, Triplet(*triplet), phi, psi)
            return
        found = way(A, Triplet(*triplet), phi, psi)
    for x, y in zip(found, wanted):
        assert isinstance(x, OnCard) and same(x.numbers.nan_to_num(), y.nan_to_num(), way)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", FORWARDS)
def test_on_the_card_the_triplet_is_that_of_the_host_and_stays_there(method, shape, dtype):
    A = matrices.gaussian(*SHAPES[shape], dtype=dtype)
    wanted, _ = find(FORWARDS[method], A)
    with Card() as card, torch.no_grad():
        found, known = find(FORWARDS[method], card.put(A))
        assert isinstance(known.S, OnCard)
    S = torch.linalg.svdvals(A)
    # on a card lanczos takes every new vector off the others twice, on the host where it must: not the same bits
    apart = 50 * torch.finfo(dtype).eps / relative_gap(S[0], S, *A.shape) if method == "lanczos" else 0
    for x, y in zip(found, wanted):
        assert isinstance(x, OnCard) and (x.numbers - y).norm() <= apart * y.norm()


@pytest.mark.parametrize("name", SOLVERS)
def test_on_the_card_a_batch_stays_there(name):
    A = torch.stack([matrices.gaussian(12, 8, seed) for seed in (0, 1, 2)])
    triplet, _ = svd(A)
    phi, psi = torch.ones_like(triplet.u), torch.ones_like(triplet.v)
    wanted = SOLVERS[name](A, triplet, phi, psi)
    with Card() as card, torch.no_grad():
        A, triplet, phi, psi = card.put((A, triplet, phi, psi))
        found = SOLVERS[name](A, Triplet(*triplet), phi, psi)
    assert all(same(x.numbers, y, SOLVERS[name]) for x, y in zip(found, wanted))


#: of what iterates: steps between two looks, numbers read at a look, numbers read besides; of the rest: none at all
CHECKS = {
    ("solver", "cg"): (CHECK_EVERY, 1, 6),  # three runs of the iteration, each with a first look and a last
    ("solver", "minres"): (CHECK_EVERY, 1, 3),
    ("solver", "doubling"): (1, 1, 0),  # a step squares a matrix, beside which a look is nothing
    ("forward", "lanczos"): (5, 3, 4),
}


@pytest.mark.parametrize("shape", [(200, 150), (150, 200)], ids=str)
@pytest.mark.parametrize("kind, name", [*WAYS, *(("forward", name) for name in FORWARDS)])
def test_the_host_reads_a_number_only_at_a_check(kind, name, shape):
    given = arguments(*shape)
    with Card() as card, torch.no_grad():
        A, triplet, phi, psi = card.put(given)
        find(FORWARDS[name], A) if kind == "forward" else WAYS[kind, name](A, Triplet(*triplet), phi, psi)
    read = card.to_host.total()
    if (kind, name) in CHECKS:
        every, at_a_check, besides = CHECKS[kind, name]
        steps = card.products[150, 150] if name == "doubling" else card.products[150, 200] / 2
        assert steps > 5
        assert read <= at_a_check * steps / every + besides, (card.to_host, steps)
    else:
        assert read <= (2 if kind == "forward" else 0), card.to_host  # a forward method may look once at what it found
    # what is sent is at most a number, or a vector to start from, and not again in every step
    assert card.to_card.total() <= 8, card.to_card


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", FORWARDS)
def test_the_whole_map_and_its_gradient_stay_on_the_card(method, shape, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it knows no card that is not there
    A = matrices.gaussian(*SHAPES[shape])

    def gradient(A):
        A = A.requires_grad_()
        sigma, u, v = svdgrad.singular_triplet(A, forward=method)
        return torch.autograd.grad(sigma + u[..., 0] + v[..., -1] + svdgrad.spectral_norm(A), A)[0]

    with Card() as card:
        found = gradient(card.put(A))
    if method == "svd":
        # extremes of A (twice) and of its Gram matrix; is there a cotangent, a gap, a σ beyond zero, or of zero
        assert card.to_host.total() <= 10
    S = torch.linalg.svdvals(A.detach())
    bound = 50 * torch.finfo(A.dtype).eps / relative_gap(S[0], S, *A.shape)
    assert isinstance(found, OnCard) and relative_error(found.numbers, gradient(A)) <= bound


def test_a_layer_is_held_on_the_card(monkeypatch):
    """The card claims the device of tensors without numbers, whose weights nobody can divide; it has numbers."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)

    def weight(device):
        torch.manual_seed(0)
        layer = svdgrad.nn.spectral_norm(torch.nn.Conv2d(3, 4, 3), input_shape=(3, 8, 8)).to(device)
        layer.parametrizations.weight.original.data.mul_(7)
        return layer.weight.detach()

    with Card():
        found = weight(DEVICE)
    assert isinstance(found, OnCard) and relative_error(found.numbers, weight("cpu")) < 1e-5


@pytest.mark.parametrize("name", matrices.MATRICES)
def test_on_the_card_singular_values_in_closed_form_stay_there(name):
    S = torch.tensor([3.0, 2.0, 1.0])
    with Card() as card:
        found = matrices.predicted_singular_values(name, card.put(S), 4, 3)
    assert isinstance(found, OnCard) and torch.equal(found.numbers, matrices.predicted_singular_values(name, S, 4, 3))


def test_cg_stops_a_matrix_that_is_refused_at_the_next_look():
    A, triplet, phi, psi = arguments(200, 150)
    smaller = Triplet(0.5 * triplet.sigma, triplet.u, triplet.v)
    with Card() as card, torch.no_grad(), pytest.raises(ValueError, match="negative curvature"):
        A, triplet, phi, psi = card.put((A, smaller, phi, psi))
        SOLVERS["cg"](A, Triplet(*triplet), phi, psi)
    assert card.products[150, 200] / 2 <= 2 * CHECK_EVERY


@pytest.mark.parametrize(
    "slip",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.zeros(2)]),
        lambda x: torch.where(torch.tensor([True, False, True]), x, 0),
        lambda x: torch.eye(3) @ x,
    ],
)
def test_the_card_notices_a_tensor_of_the_host(slip):
    with Card() as card, pytest.raises(Mixed):
        slip(card.put(torch.ones(3)))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: float(x[0]),
        lambda x: 1 if x[0] > 0 else 0,
        lambda x: x.cpu(),
        lambda x: x.to("cpu", torch.float64),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ],
)
def test_the_card_counts_what_the_host_reads(read):
    with Card() as card:
        read(card.put(torch.ones(3)))
    assert card.to_host.total() == 1


def test_the_card_counts_what_the_host_sends():
    with Card() as card:
        x = card.put(torch.ones(3))
        for sent in (torch.ones(3).to(x), torch.ones(3).to(x.device), torch.tensor([1.0, 2.0], device=x.device)):
            assert isinstance(sent, OnCard)
        x[1] = 2.0  # a number comes along with the operation and is not sent
        assert isinstance(torch.zeros(3, device=x.device), OnCard) and isinstance(torch.zeros_like(x), OnCard)
    assert card.to_card.total() == 3 and not card.to_host
    assert x.numbers.tolist() == [1, 2, 1]
    with card:
        assert x[torch.tensor([1, 0])].numbers.tolist() == [2, 1]  # CUDA takes indices from the host
    assert card.to_card["index"] == 1


@pytest.mark.parametrize(
    ("problem", "refused"),
    [
        (Mixed, lambda: torch.randn(3, generator=torch.Generator(), device=DEVICE)),
        (RuntimeError, lambda: torch.linalg.lstsq(*2 * [torch.eye(3, device=DEVICE)], driver="gelsd")),
        (RuntimeError, lambda: np.asarray(torch.ones(3, device=DEVICE))),
        (RuntimeError, lambda: torch.ones(3, device=DEVICE).numpy()),
    ],
    ids=["generator", "driver", "array", "numpy"],
)
def test_the_card_refuses_what_cuda_refuses(problem, refused):
    with Card(), pytest.raises(problem):
        refused()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # which PyTorch's own forward mode uses
@pytest.mark.parametrize(
    "done",
    [
        lambda A, x: x @ A @ x,  # squeezes in place
        lambda A, x: torch.func.jvp(lambda B: torch.linalg.solve(B, x), (A,), (A,))[1],  # a tangent of zeros
        lambda A, x: torch.func.hessian(lambda y: torch.cat([y, x]) @ torch.cat([A @ y, x * y]))(x),
        lambda A, x: (torch.outer(x, (1j * x + x).conj()).imag + (1j * A).mH.imag) @ x,  # conjugated and negated later
        lambda A, x: torch.autograd.functional.jacobian(Squared.apply, x),
        lambda A, x: Sparse(places := torch.arange(3, device=x.device), places, (3, 3), x).products()[0](x),
    ],
    ids=["shape", "tangent", "Hessian", "conjugate", "inside a backward", "sparse"],
)
def test_the_card_computes_what_the_host_does(done):
    A, x = matrices.gaussian(3, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    wanted = done(A, x)
    with Card() as card:
        found = done(*card.put((A, x)))
    assert isinstance(found, OnCard) and found.shape == wanted.shape and torch.equal(found.numbers, wanted)


class Squared(torch.autograd.Function):
    """x², whose backward makes a number for the device of x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.as_tensor([2.0], dtype=x.dtype, device=x.device) * x * g


def test_the_card_prints_a_number_as_cuda_does():
    with Card() as card:
        x = card.put(torch.tensor([1.0, 2.5]))
        assert f"{x[1]:.2f}" == "2.50" and x.tolist() == [1, 2.5]


# --- JAX, the witness -----------------------------------------------------------------------------------------------


def test_the_witness_in_jax_is_lowered_for_cuda_without_a_call_of_the_host(monkeypatch):
    """JAX translates for a platform that is not there, and would refuse to trace a look at a number."""
    import jax
    import jax.export

    traced, grad = [], jax.grad
    monkeypatch.setattr(jax, "grad", lambda f: traced.append(f) or grad(f))
    A = matrices.gaussian(6, 4)
    oracles.jax_autograd(A, *loss_vectors(A), torch.ones(4))
    with jax.enable_x64(True):
        program = jax.export.export(jax.jit(grad(*traced)), platforms=["cuda"])(jax.ShapeDtypeStruct((6, 4), "float64"))
    assert program.platforms == ("cuda",) and [x.shape for x in program.out_avals] == [(6, 4)]
    text = program.mlir_module()
    assert "cusolver" in text and "callback" not in text and "lapack" not in text


def test_jax_works_on_the_cpu_where_a_is_or_where_it_has_no_plugin():
    assert oracles.jax_device(A=torch.ones(2, 2)).platform == oracles.jax_device(np.ones((2, 2))).platform == "cpu"
    on_cuda = SimpleNamespace(device=torch.device("cuda", 0))
    assert oracles.jax_device(on_cuda).platform == ("gpu" if jax_has_cuda() else "cpu")


def test_the_extra_cuda_brings_the_plugin_of_jax():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (requirement,) = pyproject["project"]["optional-dependencies"]["cuda"]
    assert requirement.startswith("jax[cuda13]>=")
    plugins = [r for r in importlib.metadata.requires("jax") if 'extra == "cuda13"' in r and "plugin" in r]
    assert [name.split("[")[0] for name in plugins] == ["jax-cuda13-plugin"]


def jax_has_cuda() -> bool:
    import jax

    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


# --- on a GPU --------------------------------------------------------------------------------------------------------

cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: this test runs where there is one"),
]


@pytest.mark.parametrize("dtype", [pytest.param(dtype, id=str(dtype), marks=cuda) for dtype in DTYPES])
@pytest.mark.parametrize(
    "family", ["tall", "wide", "square", "tall, gap 0.1", "square, rank-deficient", "repeated tail"]
)
class TestCUDA:
    """On a GPU, against the extended-precision gradient, within the same bounds as on the CPU."""

    @pytest.mark.parametrize("name", SOLVERS)
    def test_solver(self, name, family, dtype):
        A = FAMILIES[family].matrix(dtype)
        xi, phi, psi, v, truth = problem(A)
        triplet, _ = svd(A.cuda(), 0, torch.from_numpy(v).cuda())
        p, q = SOLVERS[name](A.cuda(), triplet, phi.cuda(), psi.cuda())
        assert p.is_cuda and q.is_cuda
        assert relative_error(assemble(triplet, xi.cuda(), p, q), truth) <= FAMILIES[family].bound(dtype)

    @pytest.mark.parametrize("method", FORWARDS)
    def test_forward(self, method, family, dtype):
        A = FAMILIES[family].matrix(dtype)
        xi, phi, psi, v, truth = problem(A)
        triplet, known = find(FORWARDS[method], A.cuda(), torch.from_numpy(v).cuda().to(dtype))
        assert all(x.is_cuda for x in (*triplet, known.S))
        p, q = SOLVERS["saddle"](A.cuda(), triplet, phi.cuda(), psi.cuda())
        assert relative_error(assemble(triplet, xi.cuda(), p, q), truth) <= FAMILIES[family].bound(dtype)

    def test_attempts(self, family, dtype):
        """They run, and answer on the GPU: how right they are is a matter of the contest."""
        A = FAMILIES[family].matrix(dtype)
        _, phi, psi = loss_vectors(A)
        triplet, _ = svd(A.cuda())
        for name, attempt in ATTEMPTS.items():
            assert all(x.is_cuda for x in attempt(A.cuda(), triplet, phi.cuda(), psi.cuda())), name
