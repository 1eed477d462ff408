"""The contestants. Each is given A, the cotangents ξ, φ, ψ and a sign, and gives back f(A) = ξσ + φ·u + ψ·v and its
gradient.

``PEERS[name].make(A, xi, phi, psi, v)`` does what need not be timed (conversion, compilation) and returns a function of
no arguments, which computes (value, gradient) anew at each call. One that has no backward returns None for the
gradient. A contestant that answers wrong stays in: its error stands beside its time.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor
from torch.nn.functional import normalize

import svdgrad
from svdgrad import oracles
from svdgrad.adjoint import ATTEMPTS, assemble
from svdgrad.forward import Triplet, lanczos

Answer = tuple[Any, Any]
Run = Callable[[], Answer]


class Peer(NamedTuple):
    make: Callable[..., Run]
    needs: str = ""
    """what to install with pip, where that is optional"""
    module: str = ""
    """by which Python knows it"""
    most: float = float("inf")
    """the largest m + n that it is asked for: some form matrices of that size"""
    note: str = ""
    batched: bool = True
    """whether it takes a batch as a whole"""

    def missing(self) -> str:
        """Why it cannot run here. Empty if it can."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"not installed: pip install {self.needs}"
        return ""


def _autograd(triplet: Callable[[Tensor], Any], A: Tensor, xi: Tensor, phi: Tensor, psi: Tensor, v: Tensor) -> Run:
    """f and its gradient by PyTorch's backward through ``triplet``, A → (σ, u, v); of a batch the sum of all f."""
    A = A.detach().clone()

    def run() -> Answer:
        X = A.requires_grad_()
        sigma, ui, vi = triplet(X)
        sign = torch.sign(vi.detach() @ v)
        value = (xi * sigma + sign * (ui @ phi + vi @ psi)).sum()
        return value.detach(), torch.autograd.grad(value, X)[0]

    return run


def ours(forward: str, adjoint: str) -> Peer:
    return Peer(partial(_autograd, partial(svdgrad.singular_triplet, forward=forward, adjoint=adjoint)))


def _forward_only(A: Tensor, xi: Tensor, phi: Tensor, psi: Tensor, v: Tensor) -> Run:
    def run() -> Answer:
        sigma, ui, vi = svdgrad.singular_triplet(A)
        return xi * sigma + torch.sign(vi @ v) * (ui @ phi + vi @ psi), None

    return run


def _torch_svd(A: Tensor, driver: str | None = None) -> Any:
    U, S, Vh = torch.linalg.svd(A, full_matrices=False, driver=driver)
    return S[..., 0], U[..., 0], Vh[..., 0, :]


def _torch_lowrank(A: Tensor) -> Any:
    torch.manual_seed(0)
    U, S, V = torch.svd_lowrank(A)
    return S[..., 0], U[..., 0], V[..., 0]


def _from_gram(eigenpair: Callable[[Tensor], Any], A: Tensor) -> Any:
    """An eigensolver of symmetric matrices serves through AᵀA v = σ² v and u = Av/σ; a wide A is transposed."""
    if A.shape[0] < A.shape[1]:
        sigma, u, v = _from_gram(eigenpair, A.mT)
        return sigma, v, u
    square, v = eigenpair(A.mT @ A)
    sigma = square.sqrt()
    return sigma, A @ v / sigma, v


def _lobpcg(G: Tensor) -> Any:
    torch.manual_seed(0)
    # by default it stops at a residual of √ε, which halves the digits
    squares, V = torch.lobpcg(G, k=1, largest=True, niter=300, tol=10 * torch.finfo(G.dtype).eps)
    return squares[0], V[:, 0]


def _power(A: Tensor, steps: int = 100) -> Any:
    """Unrolled: PyTorch records every step."""
    v = torch.randn(A.shape[-1], generator=torch.Generator().manual_seed(0), dtype=A.dtype).to(A.device)
    for _ in range(steps):
        v = normalize(_mv(A.mT, normalize(_mv(A, v), dim=-1)), dim=-1)
    u = _mv(A, v)
    return u.norm(dim=-1), normalize(u, dim=-1), v


def _mv(A: Tensor, x: Tensor) -> Tensor:
    """A x, of one matrix, or of each of a batch."""
    return A @ x if A.ndim == 2 else (A @ x.unsqueeze(-1)).squeeze(-1)


def _notebook(A: Tensor, xi: Tensor, phi: Tensor, psi: Tensor, v: Tensor) -> Run:
    """The triplet read off the SVD, the bordered system by least squares, as in the notebook that the book grew
    from.
    """

    def run() -> Answer:
        sigma, ui, vi = _torch_svd(A)
        sign = torch.sign(vi @ v)
        triplet = Triplet(sigma, sign * ui, sign * vi)
        value = xi * sigma + phi @ triplet.u + psi @ triplet.v
        return value, assemble(triplet, xi, *ATTEMPTS["bordered"](A, triplet, phi, psi))

    return run


def _xitorch(method: str, A: Tensor, *rest: Tensor) -> Run:
    import xitorch.linalg

    # where the largest entry of the residual of AᵀA falls below ten ε times the mean eigenvalue; by default an absolute
    # 1e-6
    tol = (10 * torch.finfo(A.dtype).eps * A.square().sum() / min(A.shape)).item()
    options = {"method": method, "min_eps": tol} if method == "davidson" else {"method": method}

    def triplet(A: Tensor) -> Any:
        U, S, Vh = xitorch.linalg.svd(xitorch.LinearOperator.m(A, is_hermitian=False), k=1, **options)
        return S[0], U[:, 0], Vh[0]

    return _autograd(triplet, A, *rest)


def _steps(A: Tensor) -> int:
    """The contestants that want to be told how many steps to take are told what ``svdgrad.forward.lanczos`` needed."""
    return int(lanczos(A)[1].steps)


def _dominant_symeig(A: Tensor, *rest: Tensor) -> Run:
    from DominantSparseEigenAD import Lanczos
    from DominantSparseEigenAD.symeig import DominantSymeig

    # written for a torch.symeig that PyTorch has removed: the one call is answered by its successor
    Lanczos.torch = SimpleNamespace(**{**vars(torch), "symeig": lambda T, eigenvectors: torch.linalg.eigh(T)})
    steps = _steps(A)

    def smallest(G: Tensor) -> Any:
        torch.manual_seed(0)
        minus_square, v = DominantSymeig.apply(-G, steps)
        return -minus_square, v

    return _autograd(partial(_from_gram, smallest), A, *rest)


def _jax(triplet: Callable[[Any], Any], A: Tensor, *rest: Tensor) -> Run:
    """f and its gradient by JAX, compiled beforehand, where A is if JAX can; ``triplet`` is of jax.numpy."""
    import jax
    import jax.numpy as jnp

    wide, where = A.dtype == torch.float64, oracles.jax_device(A)
    # on a card JAX multiplies float32 matrices in fewer digits unless told not to
    with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
        A, xi, phi, psi, v = (jax.device_put(x.cpu().numpy(), where) for x in (A, *rest))

        def f(A: Any) -> Any:
            sigma, ui, vi = triplet(A)
            sign = jnp.sign(jax.lax.stop_gradient(vi) @ v)
            return (xi * sigma + sign * (ui @ phi + vi @ psi)).sum()

        compiled = jax.jit(jax.value_and_grad(f)).lower(A).compile()

    def run() -> Answer:
        with jax.enable_x64(wide):
            answer: Answer = jax.block_until_ready(compiled(A))
        return answer

    return run


def _jax_svd(A: Tensor, *rest: Tensor) -> Run:
    import jax.numpy as jnp

    def triplet(A: Any) -> Any:
        U, S, Vh = jnp.linalg.svd(A, full_matrices=False)
        return S[..., 0], U[..., 0], Vh[..., 0, :]

    return _jax(triplet, A, *rest)


def ours_in_jax(forward: str) -> Peer:
    def make(*asked: Tensor) -> Run:
        import svdgrad.jax

        return _jax(partial(svdgrad.jax.singular_triplet, forward=forward), *asked)

    return Peer(make, "jax", "jax")


def _matfree(method: str, A: Tensor, *rest: Tensor) -> Run:
    """Of AᵀA by "tridiag", whose own adjoint its manual advises, or of A by "bidiag", the loop differentiated."""
    import jax.numpy as jnp
    from matfree import decomp, eig

    steps = _steps(A)
    noise = np.random.default_rng(3).standard_normal(min(A.shape)).astype(A.numpy().dtype)
    wide = A.shape[0] < A.shape[1]

    # y A, and not Aᵀ y, which XLA compiles on CPUs into a product many times as slow
    def forth(x: Any, A: Any) -> Any:
        return x @ A if wide else A @ x

    def gram(x: Any, A: Any) -> Any:
        return A @ (x @ A) if wide else (A @ x) @ A

    def triplet(A: Any) -> Any:
        if method == "bidiag":
            U, S, Vh = eig.svd_partial(decomp.bidiag(steps))(forth, jnp.asarray(noise), A)
            sigma, u, v = S[0], U[0], Vh[0]
        else:
            squares, V = eig.eigh_partial(decomp.tridiag_sym(steps))(gram, jnp.asarray(noise), A)
            sigma, v = jnp.sqrt(squares[-1]), V[-1]
            u = forth(v, A) / sigma
        return (sigma, v, u) if wide else (sigma, u, v)

    return _jax(triplet, A, *rest)


def _scipy(A: Tensor, xi: Tensor, phi: Tensor, psi: Tensor, v: Tensor) -> Run:
    A, xi, phi, psi, v = (x.numpy() for x in (A, xi, phi, psi, v))

    def run() -> Answer:
        U, S, Vh = scipy.sparse.linalg.svds(A, k=1, rng=np.random.default_rng(4))
        return xi * S[0] + np.sign(Vh[0] @ v) * (phi @ U[:, 0] + psi @ Vh[0]), None

    return run


def _torch(triplet: Callable[[Tensor], Any], note: str = "") -> Peer:
    return Peer(partial(_autograd, triplet), note=note)


def torch_svd(driver: str | None = None) -> Peer:
    """By one of the drivers that PyTorch has on CUDA: gesvd, gesvdj, gesvda."""
    return _torch(partial(_torch_svd, driver=driver))


XITORCH = {"needs": "xitorch==0.5.1", "module": "xitorch"}
MATFREE = {"needs": "matfree==0.6.3", "module": "matfree", "note": "told the number of steps"}

#: name -> contestant; ratios are to the first
PEERS: dict[str, Peer] = {
    "svdgrad": ours("auto", "auto"),
    "svdgrad svd": ours("svd", "auto"),
    "svdgrad gram": ours("gram", "auto"),
    "svdgrad lanczos": ours("lanczos", "auto"),
    "svdgrad doubling": ours("auto", "doubling"),
    "svdgrad.jax": ours_in_jax("auto"),
    "notebook: bordered lstsq": Peer(_notebook, most=1024),
    "torch.linalg.svd": torch_svd(),
    "torch.lobpcg": _torch(partial(_from_gram, _lobpcg), "tol=10 ε, at most 300 steps")._replace(batched=False),
    "torch.svd_lowrank": _torch(_torch_lowrank, "two power iterations on six random vectors: its default"),
    "power iteration": _torch(_power, "100 steps, differentiated"),
    "jax.numpy.linalg.svd": Peer(_jax_svd, "jax", "jax"),
    "xitorch exacteig": Peer(partial(_xitorch, "exacteig"), **XITORCH),
    "xitorch davidson": Peer(partial(_xitorch, "davidson"), **XITORCH),
    "DominantSymeig": Peer(
        _dominant_symeig, "dominantsparseeigenad==0.0.1", "DominantSparseEigenAD", note="told the number of steps"
    ),
    "matfree tridiag": Peer(partial(_matfree, "tridiag"), **MATFREE),
    "matfree bidiag": Peer(partial(_matfree, "bidiag"), **MATFREE),
    "svdgrad, forward only": Peer(_forward_only, note="the error is that of f"),
    "scipy svds": Peer(_scipy, note="forward only: the error is that of f"),
}
