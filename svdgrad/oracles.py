"""Independent witnesses for the gradient of f(A) = ξσ + φ·u + ψ·v.

None of them uses the code that it judges: not its adjoint, not its forward pass, not its matrices. (PyTorch's autograd
is PyTorch's own, and so is the SVD routine that it shares with ``svdgrad.forward.svd``; the others have not even that.)
Each takes a float array or tensor ``A (m, n)``, the numbers ``xi``, ``phi (m,)``, ``psi (n,)``, and returns the
gradient as a float64 array (m, n). Since f changes with the sign of (u, v), each takes ``v (n,)`` too: the sign in
which the right singular vector is meant. Each serves any simple triplet by its ``index``.
"""

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import LinAlgWarning, lu_factor, lu_solve

if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
    # without its CUDA plugin JAX runs on the CPU; say so first, or it warns on every machine that has a GPU
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

# where it has the plugin, JAX would take three quarters of the GPU's memory at once, and PyTorch needs some too
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

#: a number, or an array of floats: NumPy's or PyTorch's
Array = Any


def value(A: Array, xi: Array, phi: Array, psi: Array, v: Array, index: int = 0) -> Array:
    """f(A) = ξσ + φ·u + ψ·v in float64 by NumPy's SVD, in the sign in which v·vᵢ > 0; a batch of A gives a batch of
    values.
    """
    A, phi, psi, v = (_float64(x) for x in (A, phi, psi, v))
    U, S, Vh = np.linalg.svd(A, full_matrices=False)
    ui, vi = U[..., :, index], Vh[..., index, :]
    sign = np.sign(vi @ v)
    return float(xi) * S[..., index] + sign * (ui @ phi + vi @ psi)


def directional(A: Array, xi: Array, phi: Array, psi: Array, v: Array, E: Array, step: float, index: int = 0) -> float:
    """The central difference (f(A + hE) − f(A − hE))/2h along E, which a gradient G answers with ⟨G, E⟩
    (eq-directional).
    """
    A, E = _float64(A), _float64(E)
    right, left = value(np.stack([A + step * E, A - step * E]), xi, phi, psi, v, index)
    slope: float = (right - left) / (2 * step)
    return slope


def differences(
    A: Array,
    xi: Array,
    phi: Array,
    psi: Array,
    v: Array,
    index: int = 0,
    step: float | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Central differences in every entry of A, in float64: 2mn SVDs (eq-central-difference).

    ``step`` is ε^(1/3) times the largest entry of A unless given, which balances truncation, h², against rounding, ε/h.
    ``progress`` shows a bar, a row of A a tick; by default where standard error is a terminal.
    """
    from tqdm import tqdm

    A = _float64(A)
    m, n = A.shape
    h = step if step is not None else np.finfo(np.float64).eps ** (1 / 3) * np.abs(A).max()
    G = np.empty((m, n))
    quiet = not (sys.stderr.isatty() if progress is None else progress)
    for i in tqdm(range(m), desc="central differences", unit="row", disable=quiet):
        E = np.zeros((n, m, n))
        E[np.arange(n), i, np.arange(n)] = h
        both = value(np.concatenate([A + E, A - E]), xi, phi, psi, v, index)
        G[i] = (both[:n] - both[n:]) / (2 * h)
    return G


def torch_autograd(A: Array, xi: Array, phi: Array, psi: Array, v: Array, index: int = 0) -> np.ndarray:
    """PyTorch's own backward through ``torch.linalg.svd``, in the dtype and on the device of A."""
    import torch

    A = torch.as_tensor(A).detach().clone().requires_grad_()
    xi, phi, psi, v = (torch.as_tensor(x, dtype=A.dtype, device=A.device) for x in (xi, phi, psi, v))
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    ui, vi = U[:, index], Vh[index]
    sign = torch.sign(vi.detach() @ v)
    (xi * S[index] + sign * (phi @ ui + psi @ vi)).backward()
    return _float64(A.grad)


def jax_autograd(A: Array, xi: Array, phi: Array, psi: Array, v: Array, index: int = 0) -> np.ndarray:
    """JAX's own gradient through ``jax.numpy.linalg.svd``, in the dtype of A, on the device of ``jax_device``."""
    import jax
    import jax.numpy as jnp

    where = jax_device(A)
    A, xi, phi, psi, v = (np.asarray(x.detach().cpu() if hasattr(x, "detach") else x) for x in (A, xi, phi, psi, v))

    def f(A: Any) -> Any:
        U, S, Vh = jnp.linalg.svd(A, full_matrices=False)
        ui, vi = U[:, index], Vh[index]
        sign = jnp.sign(jax.lax.stop_gradient(vi) @ v)
        return xi * S[index] + sign * (phi @ ui + psi @ vi)

    # on a card JAX multiplies float32 matrices in fewer digits unless told not to
    with jax.enable_x64(True), jax.default_device(where), jax.default_matmul_precision("highest"):
        return _float64(jax.grad(f)(jnp.asarray(A)))


def jax_device(A: Array) -> Any:
    """Where JAX works on A: on a CUDA device if A is on one and JAX has its CUDA plugin, else on the CPU."""
    import jax

    if hasattr(A, "device") and getattr(A.device, "type", "cpu") == "cuda":
        try:
            return jax.devices("cuda")[A.device.index or 0]
        except RuntimeError:  # no plugin, or a plugin that finds no card
            pass
    return jax.devices("cpu")[0]


def newton_step(A: Any, sigma: Any, u: Any, v: Any) -> tuple[Any, Any, Any]:
    """One step of Newton's method for F(u, v, σ, τ) = 0 (eq-newton-system) from (u, v, σ, σ), in PyTorch: returns (σ,
    u, v).

    Differentiate it with A as the variable and the triplet as constants: where the triplet is exact, F = 0, so the
    derivative of the step is −J⁻¹ ∂F/∂A, that of the triplet itself (eq-one-step).
    """
    import torch

    m, n = A.shape
    I_m, I_n = (torch.eye(size, dtype=A.dtype, device=A.device) for size in (m, n))
    K = torch.cat([torch.cat([sigma * I_m, -A], 1), torch.cat([-A.T, sigma * I_n], 1)])
    W = torch.block_diag(u[:, None], v[:, None])
    J = torch.cat([torch.cat([K, W], 1), torch.cat([W.T, A.new_zeros(2, 2)], 1)])
    F = torch.cat([sigma * u - A @ v, sigma * v - A.T @ u, torch.stack([u @ u - 1, v @ v - 1]) / 2])
    s = torch.linalg.solve(J, -F)
    return sigma + (s[-2] + s[-1]) / 2, u + s[:m], v + s[m:-2]


def newton(A: Array, xi: Array, phi: Array, psi: Array, v: Array, index: int = 0) -> np.ndarray:
    """PyTorch's autograd through one Newton step from NumPy's triplet: the shortest correct implementation there is."""
    import torch

    U, S, Vh = np.linalg.svd(_float64(A), full_matrices=False)
    sign = np.sign(Vh[index] @ _float64(v))
    A = torch.as_tensor(A).detach().clone().requires_grad_()
    xi, phi, psi, sigma, ui, vi = (
        torch.as_tensor(x).to(A) for x in (xi, phi, psi, S[index], sign * U[:, index], sign * Vh[index])
    )
    scale = sigma.clone()  # the constraints ‖u‖ = ‖v‖ = 1 have no units, so A must have none
    ratio, u, v = newton_step(A / scale, sigma / scale, ui, vi)
    (xi * scale * ratio + phi @ u + psi @ v).backward()
    return _float64(A.grad)


def extended(A: Array, xi: Array, phi: Array, psi: Array, v: Array, index: int = 0, digits: int = 40) -> np.ndarray:
    """The gradient to float64's last digit, from a triplet and an adjoint computed with ``digits`` decimal digits.

    Newton's method on F(u, v, σ, τ) = (σu − Av, τv − Aᵀu, (‖u‖² − 1)/2, (‖v‖² − 1)/2) = 0, with F in extended precision
    (python-flint's ball arithmetic) and one float64 factorisation of its Jacobian J; then J [p; q; ·; ·] = [φ; ψ; 0; 0]
    by iterative refinement in the same way. Nothing is believed but the two residuals, which are computed with all
    digits. Raises ArithmeticError where σ is so near to another singular value that the iteration does not converge.
    """
    import flint

    A, phi, psi, v = (_float64(x) for x in (A, phi, psi, v))
    m, n = A.shape
    old, flint.ctx.dps = flint.ctx.dps, digits
    try:
        # a power of two: the entries stay float64 numbers, whose products are the cheapest
        scale = 2.0 ** (np.frexp(np.abs(A).max())[1] - 1)
        exact = flint.arb_mat((A / scale).tolist())
        U, S, Vh = np.linalg.svd(A / scale, full_matrices=False)
        sign = np.sign(Vh[index] @ v)
        x = _column([*(sign * U[:, index]), *(sign * Vh[index]), S[index], S[index]])
        with warnings.catch_warnings(action="ignore", category=LinAlgWarning):
            factors = lu_factor(
                _jacobian(A / scale, x), overwrite_a=True
            )  # an exact tie is reported below, with its reason

        def split(x: Any) -> tuple[Any, Any, Any, Any]:
            rows = [x[i, 0] for i in range(m + n + 2)]
            return _column(rows[:m]), _column(rows[m:-2]), rows[-2], rows[-1]

        def transposed(u: Any) -> Any:
            return (u.transpose() * exact).transpose()

        def newton_residual(x: Any) -> Any:
            u, v, sigma, tau = split(x)
            norms = [(1 - (w.transpose() * w)[0, 0]) / 2 for w in (u, v)]
            return _column([*_list(exact * v - u * sigma), *_list(transposed(u) - v * tau), *norms])

        x = _refine(newton_residual, factors, x, digits)
        u, v, sigma, _ = split(x)
        c = flint.arb(float(max(np.abs(phi).max(), np.abs(psi).max(), np.finfo(float).tiny)))
        phi, psi = _column(phi.tolist()) / c, _column(psi.tolist()) / c

        def adjoint_residual(y: Any) -> Any:
            p, q, lam, mu = split(y)
            top = phi - p * sigma + exact * q - u * lam
            bottom = psi - q * sigma + transposed(p) - v * mu
            return _column([*_list(top), *_list(bottom), *(-(a.transpose() * b)[0, 0] for a, b in ((u, p), (v, q)))])

        y = _refine(adjoint_residual, factors, _column([0] * (m + n + 2)), digits)
        p, q, _, _ = split(y)
        back = c / flint.arb(scale)
        left, v, right = u * flint.arb(float(xi)) + p * back, v.transpose(), (q * back).transpose()
        rows = (v * left[i, 0] + right * u[i, 0] for i in range(m))  # one at a time: the whole of G would not fit
        return np.array([[float(row[0, j].mid()) for j in range(n)] for row in rows])
    finally:
        flint.ctx.dps = old


def _refine(residual: Callable[[Any], Any], factors: Any, x: Any, digits: int, most: int = 60) -> Any:
    """x ← x + J⁻¹ residual(x) until the step is below 10^(−0.6 digits); each step is worth log10(1/(ε κ(J))) digits."""
    for _ in range(most):
        r = residual(x)
        size = max(abs(float(e.mid())) for e in _list(r)) or 1.0
        step = lu_solve(factors, np.array([float((e / size).mid()) for e in _list(r)]), check_finite=False)
        if not np.isfinite(step).all():
            break
        x = _column([e.mid() + float(d) * e.__class__(size) for e, d in zip(_list(x), step)])
        if np.abs(step).max() * size <= 10.0 ** (-0.6 * digits) * max(1.0, *(abs(float(e.mid())) for e in _list(x))):
            return x
    raise ArithmeticError(
        f"the refinement did not converge, its last step was of size {np.abs(step).max() * size:.1e}: "
        "σ is too near to another singular value for a float64 factorisation to separate them"
    )


def _jacobian(A: np.ndarray, x: Any) -> np.ndarray:
    m, n = A.shape
    u, v, sigma = (np.array([float(e.mid()) for e in _list(x)])[s] for s in (slice(m), slice(m, m + n), -1))
    J = np.zeros((m + n + 2, m + n + 2))
    J[: m + n, : m + n] = np.block([[sigma * np.eye(m), -A], [-A.T, sigma * np.eye(n)]])
    J[:m, -2] = J[-2, :m] = u
    J[m:-2, -1] = J[-1, m:-2] = v
    return J


def _column(entries: Any) -> Any:
    import flint

    entries = list(entries)
    return flint.arb_mat(len(entries), 1, [e if isinstance(e, flint.arb) else flint.arb(float(e)) for e in entries])


def _list(column: Any) -> list[Any]:
    return [column[i, 0] for i in range(column.nrows())]


def _float64(x: Array) -> np.ndarray:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64)


#: name -> oracle(A, xi, phi, psi, v, index) -> gradient, a float64 array
ORACLES: dict[str, Callable[..., np.ndarray]] = {
    "extended": extended,
    "differences": differences,
    "torch": torch_autograd,
    "jax": jax_autograd,
    "newton": newton,
}
