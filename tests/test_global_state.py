"""What is set for a whole process, or thread, changes no answer: default device and dtype, determinism, modes."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
import torch

import svdgrad
from svdgrad import matrices
from svdgrad.adjoint import SOLVERS
from svdgrad.forward import FORWARDS


@contextmanager
def set_to(put, value, back):
    put(value)
    try:
        yield
    finally:
        put(back)


@contextmanager
def deterministic():
    """Where PyTorch also fills with NaN what is allocated and not written."""
    with set_to(torch.use_deterministic_algorithms, True, False):
        assert torch.empty(3).isnan().all()
        yield


STATES = {
    # a device that is not the matrix's own, and on which no number can be read
    "default device": lambda: set_to(torch.set_default_device, "meta", None),
    "a device for a block": lambda: torch.device("meta"),
    **{
        f"default {dtype}": lambda dtype=dtype: set_to(torch.set_default_dtype, dtype, torch.float32)
        for dtype in (torch.float64, torch.float16, torch.bfloat16)
    },
    "deterministic": deterministic,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomalies": torch.autograd.detect_anomaly,
    "flush denormals": lambda: set_to(torch.set_flush_denormal, True, False),
    "one thread": lambda: set_to(torch.set_num_threads, 1, torch.get_num_threads()),
    "three threads": lambda: set_to(torch.set_num_threads, 3, torch.get_num_threads()),
}
#: where nothing is recorded, and a gradient cannot be asked for
VALUES_ONLY = {"no gradients", "inference"}
#: what changes float32 only; the others are tried in float64, where more could be lost
IN_FLOAT32 = {"autocast"}
SHAPES = [(8, 5), (5, 8), (260, 256)]  # the last has products by blocks, one for each thread


def gradient(f, A):
    A = A.clone().requires_grad_()
    return torch.autograd.grad(f(A), A)[0]


def loss(triplet):
    sigma, u, v = triplet
    return sigma + u[..., 0].sum() + v[..., -1].sum()


def all_answers(A, batch, v0, values_only=False):
    """What every public function says of A: all tensors and numbers there are, by name."""
    answers = {}
    for forward in ("auto", *FORWARDS):
        how = {"forward": forward}
        answers[forward, "triplet"] = svdgrad.singular_triplet(A, **how)
        answers[forward, "triplet from v0"] = svdgrad.singular_triplet(A, v0=v0, **how)
        answers[forward, "batch"] = svdgrad.singular_triplet(batch, **how)
        answers[forward, "zero"] = svdgrad.spectral_norm(torch.zeros_like(A), **how)
        answers[forward, "report"] = tuple(svdgrad.diagnose(A, **how)[:4])
        answers[forward, "rank two"] = svdgrad.rank_two_gradient(loss, A, **how)[1]
        if not values_only:
            answers[forward, "norm"] = gradient(lambda A: svdgrad.spectral_norm(A, **how), A)
            for adjoint in ("auto", *SOLVERS) if A.numel() < 100 else ("auto", "cg"):
                f = lambda A: loss(svdgrad.singular_triplet(A, adjoint=adjoint, **how))
                answers[forward, adjoint] = gradient(f, A)
            answers[forward, "gradient of a batch"] = gradient(
                lambda A: loss(svdgrad.singular_triplet(A, **how)._replace(sigma=0)).sum(), batch
            )
    if not values_only:
        answers["operator"] = gradient(lambda A: loss(svdgrad.operator_triplet(torch.mv, A, v0)), A)
        answers["operator, values"] = svdgrad.operator_triplet(torch.mv, A, v0)
    return answers


def data(shape, dtype=torch.float64):
    A = matrices.gaussian(*shape, dtype=dtype)
    batch = torch.stack([A[:8, :8], 2 * A[:8, :8].flip(0)])
    return A, batch, torch.ones(shape[1], dtype=dtype, device="cpu")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_no_answer_depends_on(state, shape):
    dtype = torch.float32 if state in IN_FLOAT32 else torch.float64
    given, values_only = data(shape, dtype), state in VALUES_ONLY
    plain = all_answers(*given, values_only)
    with STATES[state]():
        found = all_answers(*given, values_only)
    # to rounding, since sums may run in another order, over gaps from 1e-2 up
    tolerance = 1e4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)


def test_a_matrix_made_in_inference_mode():
    with torch.inference_mode():
        A = matrices.gaussian(6, 4) * 1
    assert A.is_inference()
    for forward in FORWARDS:
        svdgrad.singular_triplet(A, forward=forward)
        svdgrad.rank_two_gradient(loss, A, forward=forward)
        svdgrad.diagnose(A, forward=forward)


@pytest.mark.parametrize("forward", FORWARDS)
def test_many_threads_at_once(forward):
    """Each with its own matrix, and every other one where no gradient is recorded."""
    given = [matrices.gaussian(80, 60, seed) for seed in range(24)]
    f = lambda A: loss(svdgrad.singular_triplet(A, forward=forward))

    def answer(which):
        with torch.no_grad() if which % 2 else nullcontext():
            return f(given[which]) if which % 2 else gradient(f, given[which])

    alone = [answer(which) for which in range(24)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(answer, range(24)))
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_a_warning_of_one_thread_is_not_lost_to_another(recwarn):
    near = torch.diag(torch.tensor([1.0, 1 - 4e-5, 0.5])).requires_grad_()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: svdgrad.singular_triplet(near).u.sum().backward()).result()
    assert [w.category for w in recwarn] == [svdgrad.NearTieWarning]
