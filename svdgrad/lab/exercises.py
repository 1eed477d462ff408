"""The exercises of the book: what each asks for, what is right, and the mistakes that it foresees.

A truth is computed from the definition that the exercise is about, in NumPy, at small matrices of its own; the formula
that a reader is to find stands in the folded solution only. Where an exercise has many right answers, a judge says what
is wrong with one. An entry's docstring says what is asked for, its parameters are those of the answer, a function,
where ``at`` gives arguments to try it at. ``hint`` says where to begin if nothing better can be said.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np

#: a number, an array, or in a judge whatever the reader answered
Value = Any

#: what is said of an answer that is not there yet
NOTHING = "nothing to check yet: put your answer where None stands"


@dataclass(frozen=True)
class Exercise:
    """What an exercise asks for, and what is right. ``truth`` and ``judge`` take what ``at`` returns, one tuple of
    arguments after the other; with ``at=None`` the answer is no function of anything.
    """

    asks: str
    hint: str
    parameters: tuple[str, ...] = ()
    truth: Callable[..., Value] = lambda: None
    judge: Callable[..., str] | None = None
    """(answer, *arguments) -> what is wrong with it, empty if nothing is"""
    at: Callable[[], list[tuple[Any, ...]]] | None = None
    below: float = 1e-8
    mistakes: dict[str, Callable[..., Value]] = field(default_factory=dict)
    """what to say to one who made this mistake -> the answer that it leads to"""


#: label -> exercise
EXERCISES: dict[str, Exercise] = {}


def exercise(label: str, hint: str, **rest: Any) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    """Enter a function that computes the truth."""

    def enter(truth: Callable[..., Value]) -> Callable[..., Value]:
        parameters = tuple(inspect.signature(truth).parameters)
        EXERCISES[label] = Exercise(_first_line(truth), hint, parameters, truth=truth, **rest)
        return truth

    return enter


def judged(label: str, at: Callable[[], list[tuple[Any, ...]]] | None = None) -> Callable[..., Any]:
    """Enter a function (answer, *arguments) -> what is wrong with the answer."""

    def enter(judge: Callable[..., str]) -> Callable[..., str]:
        _, *parameters = inspect.signature(judge).parameters
        EXERCISES[label] = Exercise(_first_line(judge), "", tuple(parameters), judge=judge, at=at)
        return judge

    return enter


def choice(label: str, **why: str) -> None:
    """Enter a question with lettered answers: what is wrong with each, empty for the right one."""

    def judge(letter: Value) -> str:
        if not isinstance(letter, str):
            return f"answer with one of the letters {', '.join(map(repr, why))}, in quotation marks"
        if letter not in why:
            return f"answer with one of the letters {', '.join(map(repr, why))}, found {letter!r}"
        return why[letter]

    EXERCISES[label] = Exercise("one letter", "", judge=judge)


def _first_line(function: Callable[..., Any]) -> str:
    line = " ".join((function.__doc__ or "").split()).rstrip(".")
    return line[:1].lower() + line[1:]


# --- matrices to try answers at


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    numbers: np.ndarray = np.random.default_rng(seed).standard_normal(shape)
    return numbers


def _complex_normal(*shape: int, seed: int = 0) -> np.ndarray:
    return _normal(*shape, seed=seed) + 1j * _normal(*shape, seed=seed + 100)


def _triplet(A: np.ndarray, index: int = 0) -> tuple[Value, np.ndarray, np.ndarray]:
    U, S, Vh = np.linalg.svd(A, full_matrices=False)
    return S[index], U[:, index], Vh[index].conj()


def _project(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x without its part along the unit vector u."""
    rest: np.ndarray = x - u * np.vdot(u, x)
    return rest


def _K(A: np.ndarray, sigma: Value) -> np.ndarray:
    m, n = A.shape
    return np.block([[sigma * np.eye(m), -A], [-A.T, sigma * np.eye(n)]])


def _adjoint(A: np.ndarray, phi: np.ndarray, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p and q by least squares: the rows of K and the two constraints."""
    sigma, u, v = _triplet(A)
    m, n = A.shape
    W = np.zeros((2, m + n))
    W[0, :m], W[1, m:] = sigma * u, sigma * v
    c = np.concatenate([_project(u, phi), _project(v, psi), [0, 0]])
    x = np.linalg.lstsq(np.vstack([_K(A, sigma), W]), c)[0]
    return x[:m], x[m:]


def _shapes() -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A tall, a wide and a square matrix, and cotangents φ, ψ for each."""
    for seed, (m, n) in enumerate([(7, 5), (5, 7), (6, 6)]):
        yield _normal(m, n, seed=seed), _normal(m, seed=seed + 10), _normal(n, seed=seed + 20)


def _slopes(f: Callable[[np.ndarray], float], A: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """The derivatives of f with respect to all entries of A, by central differences."""
    slopes = np.empty_like(A)
    for place in np.ndindex(A.shape):
        E = np.zeros_like(A)
        E[place] = h
        slopes[place] = (f(A + E) - f(A - E)) / (2 * h)
    return slopes


def _wrong_number(answer: Value, most: int, of_what: str) -> str:
    """What is wrong with a place in a list; empty if it is one."""
    try:
        whole = int(answer) == answer
    except (TypeError, ValueError):
        whole = False
    if not whole or not 0 <= answer <= most:
        return f"{of_what} should be a whole number from 0 to {most}, found {answer!r}"
    return ""


# --- the gradient, perturbation, the adjoint system


def _dominant_u(A: np.ndarray) -> Value:
    u = _triplet(A)[1]
    return u * np.sign(u[0])


@exercise(
    "ex-gradient-by-hand",
    "to first order A Aᵀ is [9, s + 3t; s + 3t, 1]",
    mistakes={"the eigenvalues of A Aᵀ are 9 and 1: by what does the other entry have to be divided?": lambda: (1, 3)},
)
def gradient_by_hand() -> Value:
    """A pair, ∂u₂/∂s and ∂u₂/∂t."""
    slopes = _slopes(lambda A: float(_dominant_u(A)[1]), np.diag([3.0, 1.0]))
    return slopes[0, 1], slopes[1, 0]


def _loss_at_a_triplet() -> list[tuple[Any, ...]]:
    return [(np.float64(0.7), sigma, phi, u, psi, v) for A, phi, psi in _shapes() for sigma, u, v in [_triplet(A)]]


@exercise(
    "ex-scaling",
    "let A grow to (1 + h)A: which of σ, u and v change?",
    at=_loss_at_a_triplet,
    mistakes={
        "this is the loss itself; u and v do not grow with A": lambda xi, sigma, phi, u, psi, v: (
            xi * sigma + phi @ u + psi @ v
        )
    },
)
def scaling(xi: Value, sigma: Value, phi: Value, u: Value, psi: Value, v: Value) -> Value:
    """The inner product ⟨G, A⟩, a number."""
    A = sigma * np.outer(u, v)

    def loss(scale: float) -> Value:
        moved, left, right = _triplet(scale * A)
        sign = np.sign(v @ right)
        return xi * moved + sign * (phi @ left + psi @ right)

    return loss(1.5) - loss(0.5)  # linear in the scale


choice(
    "ex-luck",
    a="the rotation keeps the singular values, up to rounding",
    b="",
    c="PyTorch divides by the differences of all singular values, for this matrix too",
)


@exercise(
    "ex-tilt",
    "dA has ones in its last column and zeros elsewhere",
    at=lambda: [_triplet(A)[1:] for A, _, _ in _shapes()],
    mistakes={
        "this raises the last corner only": lambda u, v: u[-1] * v[-1],
        "this raises every column": lambda u, v: u.sum() * v.sum(),
        "this raises the last row, the southern edge": lambda u, v: u[-1] * v.sum(),
    },
)
def tilt(u: Value, v: Value) -> Value:
    """The change of σ, a number."""
    dA = np.zeros((len(u), len(v)))
    dA[:, -1] = 1
    return u @ dA @ v


@judged("ex-nothing", at=lambda: [(_normal(*A.shape, seed=60), *_triplet(A)[1:]) for A, _, _ in _shapes()])
def nothing(dA: Value, M: Value, u: Value, v: Value) -> str:
    """A matrix dA of the shape of M."""
    dA = _host(dA)
    if dA.shape != M.shape:
        return f"your dA has the shape {dA.shape}, expected {M.shape}"
    size = np.linalg.norm(dA)
    if not size > 1e-8:
        return "your dA is zero, or NaN"
    right, left = np.linalg.norm(dA @ v) / size, np.linalg.norm(u @ dA) / size
    if max(left, right) < 1e-10:
        return ""
    if abs(u @ dA @ v) < 1e-10 * size:
        return "σ does not move, but u or v does: dA v or dAᵀu is not zero"
    return "σ moves: uᵀdA v is not zero"


@exercise(
    "ex-second-order",
    "the moved vector u + h du + h² y has length one, and du is orthogonal to u",
    at=lambda: [(1e-4, _normal(5)), (1e-5, _normal(8, seed=1))],
    below=1e-6,  # what is left out is h² of it
    mistakes={"this is the length, and what is asked for is of second order": lambda h, du: h * np.linalg.norm(du)},
)
def second_order(h: Value, du: Value) -> Value:
    """The inner product of u and the change of u, a number."""
    square = (h * np.linalg.norm(du)) ** 2
    return np.expm1(-np.log1p(square) / 2)  # of the unit vector along u + h du


@exercise(
    "ex-product-loss",
    "the loss is linear in u, and linear in v; where does σ enter?",
    at=lambda: [(_normal(*A.shape, seed=60), *_triplet(A)[1:]) for A, _, _ in _shapes()],
    mistakes={"the loss does not contain σ": lambda M, u, v: (u @ M @ v, M @ v, u @ M)},
)
def product_loss(M: Value, u: Value, v: Value) -> Value:
    """A triple, ξ, φ and ψ."""
    return 0.0, _slopes(lambda u: float(u @ M @ v), u, 1.0), _slopes(lambda v: float(u @ M @ v), v, 1.0)


@exercise(
    "ex-orthogonal",
    "the exercise on directions that move nothing counts the others",
    at=lambda: [(4, 3), (2, 5)],
    mistakes={
        "this is the dimension of what the gradient cannot contain": lambda m, n: (m - 1) * (n - 1),
        "uvᵀ is counted twice: it is of the form xvᵀ and of the form uyᵀ": lambda m, n: m + n,
    },
)
def orthogonal(m: Value, n: Value) -> Value:
    """A dimension, a number."""
    u, v = (np.linalg.qr(_normal(size, 1))[0] for size in (m, n))
    return m * n - np.linalg.matrix_rank(np.kron(np.eye(m) - u @ u.T, np.eye(n) - v @ v.T))


@exercise(
    "ex-undo",
    "uᵀu = 1, at this A and, to first order, everywhere near it",
    at=lambda: [(5.0,), (-0.5,)],
    mistakes={"f grows by c uᵀu": lambda c: (0, 0), "the projection removes c u": lambda c: (c, abs(c))},
)
def undo(c: Value) -> Value:
    """A pair, the change of f and the length of the change of the gradient."""
    A, phi, psi = next(iter(_shapes()))
    u = _triplet(A)[1]
    found, changed = (_adjoint(A, x, psi) for x in (phi, phi + c * u))
    apart = sum(float(np.linalg.norm(x - y)) for x, y in zip(found, changed))
    return (phi + c * u) @ u - phi @ u, round(apart, 9)


# --- the notebook


@exercise(
    "ex-blind-direction",
    "⟨D, E⟩/‖D‖ is a normal number of mean zero and variance one",
    below=1e-2,
    mistakes={
        "this counts positive numbers only: the modulus is to be small": lambda: math.erf(0.1 / 2**0.5) / 2,
        "this is the probability to see more than a tenth": lambda: 1 - math.erf(0.1 / 2**0.5),
    },
)
def blind_direction() -> Value:
    """A probability, a number from 0 to 1."""
    return math.erf(0.1 / 2**0.5)


def _two_parts() -> list[tuple[Any, ...]]:
    """G, and its part ξuvᵀ."""
    found = []
    for A, phi, psi in _shapes():
        _, u, v = _triplet(A)
        p, q = _adjoint(A, phi, psi)
        part = 0.7 * np.outer(u, v)
        found.append((part + np.outer(p, v) + np.outer(u, q), part))
    return found


@exercise(
    "ex-other-sign",
    "which of the terms ξuvᵀ, pvᵀ and uqᵀ change when u, v, and with them p and q, change their sign?",
    at=_two_parts,
    mistakes={"this is the distance to ξuvᵀ alone": lambda G, part: np.linalg.norm(G - part) / np.linalg.norm(G)},
)
def other_sign(G: Value, part: Value) -> Value:
    """The distance that is printed, relative to ‖G‖, a number."""
    with_other_sign = part - (G - part)
    return np.linalg.norm(with_other_sign - G) / np.linalg.norm(G)


@judged("ex-single-step")
def single_step(step: Value) -> str:
    """A step, a positive number."""
    if _is_no_number(step) or not step > 0:
        return f"a step is a positive number, found {step!r}"
    from ..matrices import gaussian
    from .contest import loss_vectors

    A = gaussian().numpy().astype(np.float32)
    xi, phi, psi = (x.numpy().astype(np.float32) for x in loss_vectors(gaussian()))
    u, v = _triplet(A.astype(np.float64))[1:]

    def loss(A: np.ndarray) -> Value:
        U, S, Vh = np.linalg.svd(A, full_matrices=False)
        sign = np.sign(Vh[..., 0, :] @ v.astype(np.float32))
        return xi * S[..., 0] + sign * (U[..., 0] @ phi + Vh[..., 0, :] @ psi)

    p, q = _adjoint(A.astype(np.float64), phi, psi)
    truth = (xi * np.outer(u, v) + np.outer(p, v) + np.outer(u, q))[:6].ravel()  # six rows tell
    E = np.zeros((truth.size, *A.shape), np.float32)
    E[np.arange(truth.size), np.arange(truth.size) // 32, np.arange(truth.size) % 32] = step
    error = np.linalg.norm((loss(A + E) - loss(A - E)) / np.float32(2 * step) - truth) / np.linalg.norm(truth)
    if error < 1e-3:
        return ""
    if step < 0.08:
        return f"the error is {100 * error:.2g}%: the step is too small, the rounding of the losses is divided by it"
    return f"the error is {100 * error:.2g}%: the step is too large, the truncation grows with its square"


def _is_no_number(x: Value) -> bool:
    try:
        return isinstance(x, (str, bool)) or not math.isfinite(float(x))
    except (TypeError, ValueError):
        return True


# --- direct


def _with_vectors() -> list[tuple[Any, ...]]:
    return [(phi, psi, *_triplet(A)[1:]) for A, phi, psi in _shapes()]


@judged("ex-lucky-loss", at=_with_vectors)
def lucky_loss(pair: Value, phi: Value, psi: Value, u: Value, v: Value) -> str:
    """A pair of cotangents (φ, ψ)."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        return "return a pair, the new φ and the new ψ"
    phi, psi = (_host(x) for x in pair)
    if (phi.shape, psi.shape) != (u.shape, v.shape):
        return f"φ and ψ should have the shapes {u.shape} and {v.shape}, found {phi.shape} and {psi.shape}"
    size = np.linalg.norm(np.concatenate([phi, psi]))
    along_u, along_v = u @ phi / size if size else 0.0, v @ psi / size if size else 0.0
    if not size > 0:
        return "φ and ψ are zero, or NaN"
    if max(abs(along_u), abs(along_v)) < 1e-8:
        return "a projected cotangent is not allowed here: keep a part of φ along u, or of ψ along v"
    if abs(along_u - along_v) < 1e-8:
        return "your pair has no part along [u; −v], but the null vector of K is w = [u; v]/√2"
    if abs(along_u + along_v) > 1e-10:
        return "your pair has a part along the null vector w = [u; v]/√2, so that K x = c has no solution"
    return ""


def _host(x: Value) -> np.ndarray:
    """What a reader returned, as an array."""
    array: np.ndarray = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
    return array


@exercise(
    "ex-any-multiple",
    "which eigenvalue moves with ρ, and which two of the others are the outermost?",
    at=lambda: [(rho, np.array([3.0, 2.6, 1.2, 0.5])) for rho in (0.1, 1.0, 40.0)],
    mistakes={
        "without max and min this holds for moderate ρ only": lambda rho, S: 2 * S[0] / (S[0] - S[1]),
        "the smallest eigenvalue is not ρ for every ρ": lambda rho, S: max(rho, 2 * S[0]) / rho,
    },
)
def any_multiple(rho: Value, S: Value) -> Value:
    """The condition number, a number."""
    w = np.concatenate([np.eye(len(S))[0]] * 2) / 2**0.5
    return np.linalg.cond(_K(np.diag(S), S[0]) + rho * np.outer(w, w))


@exercise("ex-interior", "the eigenvalues are σ₃ ± σᵢ, but for that of w: which of them are negative?")
def interior() -> Value:
    """How many eigenvalues are negative, a number."""
    A = _normal(8, 6)
    sigma, u, v = _triplet(A, 2)
    w = np.concatenate([u, v]) / 2**0.5
    return int((np.linalg.eigvalsh(_K(A, sigma) + sigma * np.outer(w, w)) < 0).sum())


# --- border, condition numbers


def _kappa_bordered(beta: Value, s1: float, s2: float) -> Value:
    return np.hypot(2 * s1, beta) / np.minimum(beta, s1 - s2)


@exercise(
    "ex-best-weight",
    "below the gap the denominator is β, above it the gap: how far may the quotient grow on each side?",
    at=lambda: [(13.0, 12.6), (1.0, 0.98)],
    below=1e-2,
    mistakes={"here κ is smallest: how far may β move from there?": lambda s1, s2: (s1 - s2, s1 - s2)},
)
def best_weight(s1: Value, s2: Value) -> Value:
    """A pair of weights, the smallest and the largest."""
    weights = np.geomspace((s1 - s2) / 10, 10 * s1, 100_001)
    values = _kappa_bordered(weights, s1, s2)
    good = weights[values <= 2**0.5 * values.min()]
    return good[0], good[-1]


def _losses() -> list[tuple[Any, ...]]:
    return [(A, triplet, np.float64(0.7), phi, psi) for A, triplet, phi, psi in _solvable()]


@exercise(
    "ex-one-border",
    "solve for x, cut it into p and q, and put them into G = ξuvᵀ + pvᵀ + uqᵀ",
    at=_losses,
    mistakes={"ξuvᵀ is missing": lambda A, triplet, xi, phi, psi: one_border(A, triplet, 0.0, phi, psi)},
)
def one_border(A: Value, triplet: Value, xi: Value, phi: Value, psi: Value) -> Value:
    """The gradient, a matrix."""
    _, u, v = triplet
    p, q = _adjoint(A, phi, psi)
    return xi * np.outer(u, v) + np.outer(p, v) + np.outer(u, q)


@exercise("ex-feet", "for β small against σ, κ(J) is about (2σ/β)²; in feet σ is larger", below=1e-3)
def feet() -> Value:
    """A factor, a number."""
    from ..matrices import elevation

    S = np.linalg.svd(elevation().numpy(), compute_uv=False)

    def kappa(s1: float, s2: float) -> Value:  # with β = 1
        # √(σ² + 1) − σ, without cancellation
        return (np.hypot(s1, 1) + s1) / min(1 / (np.hypot(s1, 1) + s1), s1 - s2)

    return kappa(*S[:2] / 0.3048) / kappa(*S[:2])


def _deflated(S: np.ndarray, index: int = 0) -> Value:
    """K + σwwᵀ for the diagonal matrix of S."""
    w = np.concatenate([np.eye(len(S))[index]] * 2) / 2**0.5
    return _K(np.diag(S), S[index]) + S[index] * np.outer(w, w)


@exercise(
    "ex-smallest-kappa", "take those that are square and of full rank: which has the gap of the squares?", below=1e-4
)
def smallest_kappa() -> Value:
    """A factor, a number."""
    S = np.array([1, 1 - 1e-6, 0.5])
    squares = np.diag(S[0] ** 2 - S**2) + np.diag([S[0] ** 2, 0, 0])  # P̂
    return np.linalg.cond(_deflated(S)) / np.linalg.cond(squares)


@exercise(
    "ex-stack-gap",
    "its singular values are √(σ² + σᵢ²), and σᵢ is between 0 and σ",
    below=1e-6,
    mistakes={"these are squares: the singular values are √(σ² + σᵢ²)": lambda: (1, 2)},
)
def stack_gap() -> Value:
    """A pair of numbers, the lower and the upper end."""
    stacks = [np.vstack([np.eye(2), np.diag([1.0, least])]) for least in (1.0, 0.0)]
    return tuple(np.linalg.cond(stack) for stack in stacks)


@exercise(
    "ex-kappa-interior",
    "the eigenvalues are σ₃ ± σᵢ: which is the largest in modulus, and which the smallest?",
    at=lambda: [(np.array(S),) for S in ([3.0, 2.6, 2.0, 1.7, 0.4], [3.0, 2.1, 2.0, 1.5, 0.4])],
    mistakes={"this is for the largest singular value": lambda S: 2 * S[0] / (S[0] - S[1])},
)
def kappa_interior(S: Value) -> Value:
    """The condition number of the deflated matrix, a number."""
    return np.linalg.cond(_deflated(S, 2))


# --- block inversion


def _any_q() -> list[tuple[Any, ...]]:
    return [(*_triplet(A), phi, _normal(len(psi), seed=30)) for A, phi, psi in _shapes()]


@exercise(
    "ex-other-half",
    "write down uᵀp, and use Aᵀu = σv",
    at=_any_q,
    mistakes={
        "this is without the part that q brings in": lambda sigma, u, v, phi, q: u @ phi / sigma,
        "this holds for φ ⟂ u only": lambda sigma, u, v, phi, q: v @ q,
    },
)
def other_half(sigma: Value, u: Value, v: Value, phi: Value, q: Value) -> Value:
    """The inner product uᵀp, a number."""
    A = sigma * np.outer(u, v)  # whatever else A holds, u does not see it
    return u @ (phi + A @ q) / sigma


@exercise(
    "ex-how-many",
    "take the logarithm of (1 − 10⁻⁶)^(2·2ᵏ) = 10⁻¹⁵, twice",
    mistakes={
        "24 are not quite enough: round up": lambda: 24,
        "the exponent is 2·2ᵏ, not 2ᵏ": lambda: 26,
    },
)
def how_many() -> Value:
    """The number of doublings, a whole number."""
    return next(k for k in range(100) if 2 * 2**k * math.log1p(-1e-6) <= math.log(1e-15))


@exercise(
    "ex-interior-schur",
    "along v₁ the matrix σ₂²I − AᵀA multiplies by one number, and T by another",
    at=lambda: [(3.0, 2.6), (1.0, 0.5)],
)
def interior_schur(s1: Value, s2: Value) -> Value:
    """A pair, the smallest eigenvalue and the largest singular value."""
    A = np.diag([s1, s2, 0.1 * s2])
    return np.linalg.eigvalsh(s2**2 * np.eye(3) - A.T @ A)[0], np.linalg.norm(A / s2, 2)


# --- mixed


@exercise(
    "ex-ils-scalar",
    "set the derivative with respect to y to zero",
    at=lambda: [(0.5, 2.0, 1.0, 3.0), (-1.5, 2.5, -1.0, 2.0)],
    mistakes={
        "this makes the sum of the two squares smallest": lambda a, s, b1, b2: (s * b1 + a * b2) / (s**2 + a**2),
    },
)
def ils_scalar(a: Value, s: Value, b1: Value, b2: Value) -> Value:
    """The y of the stationary point, a number."""
    squares = np.polynomial.Polynomial([-b1, s]) ** 2 - np.polynomial.Polynomial([-b2, a]) ** 2
    return squares.deriv().roots()[0]


@exercise(
    "ex-stack-kappa",
    "AAᵀ + σ⁴I has the eigenvalues σᵢ² + σ⁴, and σ⁴ where Aᵀ sends a direction to zero",
    at=lambda: [(np.array([3.0, 2.6, 1.2]),), (np.array([0.5, 0.3]),)],
)
def stack_kappa(S: Value) -> Value:
    """A pair of condition numbers."""
    A = np.vstack([np.diag(S), np.zeros((2, len(S)))])
    return tuple(np.linalg.cond(np.vstack([M, S[0] ** 2 * np.eye(M.shape[1])])) for M in (A.T, A))


@exercise("ex-hyperbolic", "Θ is symmetric: find its two eigenvalues", at=lambda: [(0.5,), (3.0,)])
def hyperbolic(s: Value) -> Value:
    """The condition number of Θ, a number."""
    return np.linalg.cond(np.array([[np.cosh(s), np.sinh(s)], [np.sinh(s), np.cosh(s)]]))


# --- substitution


@exercise(
    "ex-how-much",
    "AA⁺ is the projection onto the range of A, and the columns of U span it",
    at=lambda: [
        (np.linalg.svd(A, full_matrices=False)[0], phi, np.float64(1.7), _normal(7, seed=40))
        for A, phi, _ in [next(iter(_shapes()))]
    ],
    mistakes={
        "this is the part that is kept": lambda U, phi, sigma, p: np.linalg.norm(U.T @ phi) / sigma / np.linalg.norm(p),
        "p has another unit than φ: which one?": lambda U, phi, sigma, p: (
            np.linalg.norm(phi - U @ (U.T @ phi)) / np.linalg.norm(p)
        ),
    },
)
def how_much(U: Value, phi: Value, sigma: Value, p: Value) -> Value:
    """The lost part of p relative to p, a number."""
    kept = U @ np.linalg.lstsq(U, phi)[0]
    return np.linalg.norm((phi - kept) / sigma) / np.linalg.norm(p)


@exercise(
    "ex-push-through",
    "AAᵀ = UΣ²Uᵀ, and a function of it is U g(Σ²) Uᵀ",
    at=lambda: [(np.array([3.0, 2.6, 1.2]), lambda t: 1 / (12 - t)), (np.array([1.5, 0.5]), lambda t: t**2 - 3 * t)],
    mistakes={
        "g is taken of AAᵀ, whose eigenvalues are the squares of the singular values": lambda S, g: S * g(S),
        "Aᵀ itself is missing": lambda S, g: g(S**2),
    },
)
def push_through(S: Value, g: Value) -> Value:
    """The diagonal of the matrix between V and Uᵀ, an array."""
    U, V = (np.linalg.qr(_normal(len(S), len(S), seed=seed))[0] for seed in (1, 2))
    A = U @ np.diag(S) @ V.T
    w, X = np.linalg.eigh(A @ A.T)
    return np.diag(V.T @ A.T @ (X * g(w)) @ X.T @ U)


@exercise(
    "ex-one-multiplier",
    "multiply the first line of the adjoint system by Aᵀ, and put σp = φ + Aq into the second",
    at=lambda: [
        (A, sigma, _project(u, phi), _project(v, psi)) for A, phi, psi in _shapes() for sigma, u, v in [_triplet(A)]
    ],
    mistakes={"this is what belongs to p": lambda A, sigma, phi, psi: sigma * phi + A @ psi},
)
def one_multiplier(A: Value, sigma: Value, phi: Value, psi: Value) -> Value:
    """The right-hand side b, a vector."""
    q = _adjoint(A, phi, psi)[1]
    return sigma**2 * q - A.T @ (A @ q)


# --- Newton


@exercise(
    "ex-square-root",
    "hold x₀ constant and differentiate N, which is linear in a",
    mistakes={
        "the second number is the derivative of √a itself; N, with x₀ held constant, has another": lambda: (
            1 / (2 * 3**0.5),
            -1 / (4 * 3**1.5),
        )
    },
)
def square_root() -> Value:
    """A pair of numbers, dN/da and d²N/da² at a = 3."""
    x0, h = 3**0.5, 0.125  # N is linear in a: any step will do
    left, middle, right = (x0 - (x0**2 - a) / (2 * x0) for a in (3 - h, 3.0, 3 + h))
    return (right - left) / (2 * h), round((right - 2 * middle + left) / h**2, 9)


choice(
    "ex-newton-units",
    a="the gap is in K; what do the two borders u and v of length one compare with?",
    b="",
    c="the shape does not enter: look at the sizes of the blocks of J",
)


@exercise(
    "ex-curvature",
    "differentiate dσ = uᵀdA v once more along dA; du and dv solve the system for p and q",
    at=lambda: [(A, _normal(*A.shape, seed=50)) for A, _, _ in _shapes()],
)
def curvature(A: Value, dA: Value) -> Value:
    """The second derivative of σ along dA, a number."""
    m, n = A.shape
    sides = [np.block([[np.zeros((m, m)), M], [M.T, np.zeros((n, n))]]) for M in (A, dA)]
    w, X = np.linalg.eigh(sides[0])  # the eigenvalues ±σᵢ
    couplings = X[:, :-1].T @ sides[1] @ X[:, -1]
    return 2 * (couplings**2 / (w[-1] - w[:-1])).sum()


# --- traps


@exercise(
    "ex-loss-scale",
    "the right-hand side is multiplied by the scale, and the tolerance is not",
    at=lambda: [(1e-7, 2.0**16, 1e-3), (1e-5, 8.0, 0.5)],
    mistakes={"this is without the scale": lambda tol, scale, size: tol / size},
)
def loss_scale(tol: Value, scale: Value, size: Value) -> Value:
    """The residual over the right-hand side, a number."""
    right_hand_side = scale * size
    return tol / right_hand_side


@exercise(
    "ex-kept",
    "the eigenvalues of K on that complement are σ₁ ± σᵢ for the triplets that are not kept",
    at=lambda: [(np.array([3.0, 2.6, 1.2, 0.5]), k) for k in (1, 2, 3)],
    mistakes={
        "this is the condition number with nothing kept but the first triplet": lambda S, k: (
            (S[0] + S[1]) / (S[0] - S[1])
        ),
    },
)
def kept(S: Value, k: Value) -> Value:
    """A condition number, a number."""
    rest = np.r_[k : len(S), len(S) + k : 2 * len(S)]  # of a diagonal A: without the kept coordinates
    return np.linalg.cond(_K(np.diag(S), S[0])[np.ix_(rest, rest)])


@exercise("ex-power-steps", "take the logarithm of (1 − 10⁻³)^(2t) = 10⁻¹⁰", below=1e-3)
def power_steps() -> Value:
    """The number of steps, a number."""
    return next(t for t in range(10**6) if 2 * t * math.log1p(-1e-3) <= math.log(1e-10))


# --- witnesses


@exercise(
    "ex-one-sided",
    "the truncation is of order h, the rounding of order ε/h: where are they equal?",
    mistakes={"these are the exponents of the central difference": lambda: (1 / 3, 2 / 3)},
)
def one_sided() -> Value:
    """A pair, the exponent of the best step and that of the best error."""
    order = 1  # of the truncation: h^order = ε/h
    return 1 / (order + 1), order / (order + 1)


@exercise(
    "ex-richardson",
    "D(h) = g + c h² and D(2h) = g + 4 c h²: eliminate c",
    at=lambda: [(1.25, 2.0), (-0.5, 0.75)],
)
def richardson(D_h: Value, D_2h: Value) -> Value:
    """The combination of the two differences, a number."""
    return np.linalg.solve(np.array([[1.0, 1.0], [1.0, 4.0]]), np.array([D_h, D_2h]))[0]


choice(
    "ex-complex-step",
    a="a complex matrix has a singular value decomposition; what does it do to a complex step?",
    b="",
    c="without cancellation no step is too small: that is the point of the trick",
)


# --- contest


@judged("ex-own-matrix")
def own_matrix(names: Value) -> str:
    """A list of names of attempts."""
    from ..adjoint import ATTEMPTS

    if isinstance(names, str) or not isinstance(names, Iterable):
        return f"asked for: a list of names; found {names!r}"
    names = set(names)
    if unknown := names - set(ATTEMPTS):
        return f"no attempt is called {sorted(map(str, unknown))[0]!r}; they are {', '.join(ATTEMPTS)}"
    failing = _failing_attempts()
    if names == failing:
        return ""
    right, wrong, missing = (len(x) for x in (names & failing, names - failing, failing - names))
    return f"of your names {right} fail and {wrong} do not; {missing} that fail are missing"


@cache
def _failing_attempts() -> set[str]:
    """The attempts with an error above 1e-6 on the elevation matrix."""
    import torch

    from ..adjoint import ATTEMPTS, assemble
    from ..forward import svd
    from ..matrices import elevation
    from ..oracles import newton
    from . import device
    from .contest import loss_vectors

    A = elevation().to(device())
    xi, phi, psi = loss_vectors(A)
    triplet, _ = svd(A)
    truth = newton(A, xi, phi, psi, triplet.v)

    def error(name: str) -> float:
        try:
            G = _host(assemble(triplet, xi, *ATTEMPTS[name](A, triplet, phi, psi)))
        except torch.linalg.LinAlgError:
            return math.inf
        return float(np.linalg.norm(G - truth) / np.linalg.norm(truth))

    return {name for name in ATTEMPTS if not error(name) < 1e-6}


@exercise(
    "ex-count-digits",
    "the digits are −log₁₀ of the bound 50 ε σ₁/(σ₁ − σ₂)",
    below=1e-2,
    mistakes={
        "this is without the factor 50 of the bound": lambda: _digits(1),
        "these are all digits of the two precisions: what does the gap cost?": lambda: (
            -math.log10(np.finfo(np.float64).eps),
            -math.log10(np.finfo(np.float32).eps),
        ),
    },
)
def count_digits() -> Value:
    """A pair of numbers, the digits in float64 and in float32."""
    return _digits(50)


def _digits(factor: float) -> Value:
    from ..matrices import gaussian

    S = np.linalg.svd(gaussian().numpy(), compute_uv=False)
    return tuple(-math.log10(factor * np.finfo(t).eps * S[0] / (S[0] - S[1])) for t in (np.float64, np.float32))


def _solvable() -> list[tuple[Any, ...]]:
    from ..forward import Triplet

    return [(A, Triplet._make(_triplet(A)), phi, psi) for A, phi, psi in _shapes()]


@judged("ex-own-way", at=_solvable)
def own_way(pair: Value, A: Value, triplet: Value, phi: Value, psi: Value) -> str:
    """A pair of vectors (p, q)."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        return "return a pair, p and q"
    p, q = (_host(x) for x in pair)
    _, u, v = triplet
    if p.shape == v.shape != q.shape == u.shape:
        return "you have exchanged p and q"
    if (p.shape, q.shape) != (u.shape, v.shape):
        return f"p and q should have the shapes {u.shape} and {v.shape}, found {p.shape} and {q.shape}"
    truth = _adjoint(A, phi, psi)
    size = np.linalg.norm(np.concatenate(truth))

    def off(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.linalg.norm(np.outer(p - truth[0], v) + np.outer(u, q - truth[1])) / size)

    if off(p, q) < 1e-8:
        return ""
    if off(-p, -q) < 1e-8:
        return "only the sign is wrong"
    if p.shape == q.shape and off(q, p) < 1e-8:
        return "you have exchanged p and q"
    if off(_project(u, p), _project(v, q)) < 1e-8:
        return "all that is missing is the projection at the end: p ⟂ u and q ⟂ v"
    return f"relative error {off(p, q):.2g}; are φ and ψ projected before the solve?"


# --- meeting


def _close_pair() -> list[tuple[Any, ...]]:
    return [(phi, np.linalg.svd(A, full_matrices=False)[0]) for A, phi, _ in _shapes()]


@judged("ex-blind", at=_close_pair)
def blind(found: Value, phi: Value, U: Value) -> str:
    """A vector φ."""
    found = _host(found)
    if found.shape != phi.shape:
        return f"your φ has the shape {found.shape}, expected {phi.shape}"
    if not np.linalg.norm(found) > 1e-8:
        return "your φ is zero, or NaN: a loss that depends on nothing has no gradient that could grow"
    size = np.linalg.norm(found)
    if np.linalg.norm(_project(U[:, 0], found)) < 1e-8 * size:
        return "your φ is a multiple of u₁: the loss u₁ᵀu is constant to first order, and has no gradient at all"
    if abs(U[:, 1] @ found) < 1e-8 * size:
        return ""
    if abs(U[:, 0] @ found) < 1e-8 * size:
        return "you have removed the part along u₁; which other vector does u turn to, as σ₂ → σ₁?"
    return "your φ has a part along u₂, and that part of the gradient grows like one over the gap"


@exercise("ex-kink", "σ₁ is the larger of 1 + s and 1 − s", mistakes={"σ₁ is not 1 + s on the left": lambda: (1, 1)})
def kink() -> Value:
    """A pair, the slope left of zero and that right of it."""
    return tuple((np.linalg.norm(np.diag([1 + s, 1 - s]), 2) - 1) / s for s in (-0.5, 0.5))


@exercise(
    "ex-single",
    "one digit is a relative error of a tenth: solve 4 ε/gap = 0.1 with the ε of float32",
    below=1e-2,
    mistakes={"this is the gap for double precision": lambda: 40 * np.finfo(np.float64).eps},
)
def single() -> Value:
    """The relative gap, a number."""
    return 4 * float(np.finfo(np.float32).eps) / 0.1


# --- complex matrices


@judged("ex-complex-blind-test")
def complex_blind_test(loss: Value) -> str:
    """A loss, a function of sigma, u and v."""
    import torch

    from . import device

    if not callable(loss):
        return f"a function of sigma, u and v should be given, found {loss!r}: write it with def or lambda"
    # a random matrix of the chapter's shape, since the loss may know the chapter's
    triplet = [torch.tensor(x, device=device()) for x in _triplet(_complex_normal(8, 6))]
    inputs = [x.clone().requires_grad_() for x in triplet]
    value = loss(*inputs)
    if value is None:
        return NOTHING
    if not torch.is_tensor(value) or value.dim() or value.is_complex():
        return "a loss is a real number: take a modulus or a real part"
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    cotangents = [np.zeros(x.shape, complex) if g is None else _host(g) for g, x in zip(found, triplet)]
    (_, phi, psi), (_, u, v) = cotangents, (_host(x) for x in triplet)
    for name, x, cotangent in (("u", u, phi), ("v", v, psi)):
        if not np.linalg.norm(_project(x, cotangent)) > 1e-8 * max(1.0, float(np.linalg.norm(cotangent))):
            return f"your loss does not change when {name} does: it should depend on u and on v"
    by_u, by_v = np.vdot(u, phi).imag, np.vdot(v, psi).imag
    if abs(by_u + by_v) > 1e-10 * np.linalg.norm(phi):
        return "your loss depends on the common phase of u and v, and svdgrad refuses it"
    if abs(by_u) > 1e-10 * np.linalg.norm(phi):
        return "your loss sees the phase between u and v, so that the test would not pass: η is not zero"
    return ""


@exercise(
    "ex-turned-matrix",
    "which triplet has e^{is}A, if v stays?",
    at=lambda: [_triplet(_complex_normal(5, 4))[:2]],
    mistakes={"σ is real and does not turn": lambda sigma, u: (1j * sigma, 1j * u)},
)
def turned_matrix(sigma: Value, u: Value) -> Value:
    """A pair, dσ/ds and du/ds."""
    return 0.0, (np.exp(1e-6j) * u - np.exp(-1e-6j) * u) / 2e-6


def _under_a_rule() -> list[tuple[Any, ...]]:
    found = []
    for seed in (0, 1):
        _, _, v = _triplet(_complex_normal(5, 4, seed=seed))
        v0, psi = _complex_normal(4, seed=seed + 5), _complex_normal(4, seed=seed + 7)
        found.append((psi, 0.4 - seed, v0, v * np.exp(1j * np.angle(np.vdot(v, v0)))))
    return found


@judged("ex-rule", at=_under_a_rule)
def rule(found: Value, psi: Value, s: Value, v0: Value, v: Value) -> str:
    """The vector that takes the place of ψ."""
    found = _host(found)
    if found.shape != psi.shape:
        return f"your vector has the shape {found.shape}, expected {psi.shape}"

    def off(wanted: np.ndarray) -> float:
        # a part along v makes no difference to the gradient
        return float(np.linalg.norm(_project(v, found - wanted)) / np.linalg.norm(wanted))

    turn = 1j * s * v0 / np.vdot(v0, v)
    if off(psi - turn) < 1e-8:
        return ""
    if off(psi + turn) < 1e-8:
        return "the sign of the new term is wrong"
    if off(psi) < 1e-8:
        return "ψ itself gives the gradient without the rule: what does γ contribute?"
    if off(psi - turn / 1j) < 1e-8 or off(psi + turn / 1j) < 1e-8:
        return "a factor i is missing in the new term"
    return f"relative error {off(psi - turn):.2g}; γ is −Im(v₀ᴴdv)/v₀ᴴv, of the dv without a part along v"


@exercise("ex-real-form", "to each vector x of A belong [Re x; Im x] and, for ix, [−Im x; Re x]")
def real_form() -> Value:
    """How often, a whole number."""
    A = _complex_normal(5, 4)
    S = np.linalg.svd(np.block([[A.real, -A.imag], [A.imag, A.real]]), compute_uv=False)
    return int((abs(S - S[0]) < 1e-10).sum())


# --- complex matrices, in use


@judged("ex-damper")
def damper(number: Value) -> str:
    """The number of a damper."""
    if wrong := _wrong_number(number, 4, "the number of a damper"):
        return wrong
    rates = _damper_rates()
    if number == rates.argmin():
        return ""
    slope = f"{rates[int(number)]:.0f}"
    return f"the slope of this damper is {slope}, that of another one is more negative: which mass swings most?"


@cache
def _damper_rates() -> np.ndarray:
    """How the gain at the peak changes with each of the five dampers."""
    stretch: np.ndarray = np.diff(np.eye(7)[:, 1:6], axis=0)
    L, F, d = (
        stretch.T @ np.diag([1.0, 1.4, 0.9, 1.1, 1.3, 0.8]) @ stretch,
        np.eye(5)[:, [1, 3]],
        np.array([0.1, 0.3, 0.05, 0.2, 0.1]),
    )

    def gain(omega: float, d: np.ndarray) -> float:
        return float(np.linalg.norm(np.linalg.solve(L + 1j * omega * np.diag(d) - omega**2 * np.eye(5), F), 2))

    grid = np.linspace(0.05, 2.5, 2000)
    peak = grid[np.argmax([gain(omega, d) for omega in grid])]
    return np.array([(gain(peak, d + 1e-5 * e) - gain(peak, d - 1e-5 * e)) / 2e-5 for e in np.eye(5)])


@exercise(
    "ex-loop",
    "write the vector as e^{iχ}v(s), and let v₀ᴴv stay real: χ′ = i vᴴv′",
    below=1e-3,
    mistakes={"this is how far the second entry of v(s) turns; vᴴdv = 0 asks for less": lambda: -2 * math.pi},
)
def loop() -> Value:
    """An angle between −π and π."""
    now = start = np.array([3**0.5 / 2, 0.5 + 0j])
    for s in np.linspace(0, 2 * np.pi, 4001):
        v = np.array([start[0], start[1] * np.exp(1j * s)])
        now = v * np.exp(1j * np.angle(np.vdot(v, now)))
    return np.angle(np.vdot(start, now))


@exercise(
    "ex-blind-power",
    "vᴴ is conjugated, u is not",
    at=lambda: [(0.3,), (2.0,)],
    mistakes={"if both are turned, the conjugated one turns back": lambda theta: (np.exp(1j * theta),) * 2},
)
def blind_power(theta: Value) -> Value:
    """A pair of factors, for u turned alone and for both turned."""
    F, u, v = _normal(5, 2), _complex_normal(5, seed=1), _complex_normal(2, seed=2)

    def power(u: np.ndarray, v: np.ndarray) -> Value:
        return v.conj() @ F.T @ u

    c = np.exp(1j * theta)
    return power(c * u, v) / power(u, v), power(c * u, c * v) / power(u, v)


# --- without an SVD


@exercise("ex-floor", "a step takes two products with A, each of 2n² operations")
def floor() -> Value:
    """A number of steps."""
    n = 2000
    return 20 * n**3 / (2 * (2 * n**2))


@exercise(
    "ex-backward",
    "the first equation, A y = θx, is exact; the second misses r",
    at=lambda: [(_triplet(A)[1], _triplet(A)[2], _project(_triplet(A)[2], psi)) for A, _, psi in _shapes()],
    mistakes={"(A − E)v should stay θu: take a matrix that sends v to zero": lambda u, v, r: np.outer(u, v)},
)
def backward(u: Value, v: Value, r: Value) -> Value:
    """The matrix E."""
    # the smallest E with Eᵀu = r, by the pseudoinverse of the equations for its rows
    return np.linalg.pinv(u[None]) @ r[None]


@exercise(
    "ex-steps-by-gap",
    "power iteration takes a number of steps that grows like 1/gap, a Krylov method like its square root",
)
def steps_by_gap() -> Value:
    """Two factors, for power iteration and for the bidiagonalisation."""
    ratio = 1e-1 / 1e-3
    return ratio, ratio**0.5


def _dominant_ritz_vectors() -> list[tuple[Any, ...]]:
    found = []
    for seed in (0, 1):
        T = np.diag(_normal(6, seed=seed) ** 2 + 2)
        T += np.diag(np.ones(5), 1) + np.diag(np.ones(5), -1)
        y = np.linalg.eigh(T)[1][:, -1]
        found.append(((-1) ** seed * y * np.sign(y[0]),))  # one of either sign
    return found


@exercise(
    "ex-in-the-way",
    "the recurrence is T y = θ²y, line by line",
    at=_dominant_ritz_vectors,
    mistakes={
        "c is not negative: y may have either sign": lambda y: y[0],
        "the last entry tells of the residual: which entry belongs to the start?": lambda y: abs(y[-1]),
    },
)
def in_the_way(y: Value) -> Value:
    """The number c(θ²)."""
    return 1 / np.linalg.norm(y / y[0])


# --- layers


def _same_padding(kernel: np.ndarray, side: int = 8) -> np.ndarray:
    """The matrix of a convolution with a border of zeros, from (in, side, side) to (out, side, side)."""
    out, into, k, _ = kernel.shape
    half, columns = k // 2, []
    for channel, i, j in product(range(into), range(side), range(side)):
        image = np.zeros((into, side + 2 * half, side + 2 * half))
        image[channel, i + half, j + half] = 1
        windows = np.lib.stride_tricks.sliding_window_view(image, (k, k), axis=(1, 2))
        columns.append(np.einsum("ixykl,oikl->oxy", windows, kernel).ravel())
    return np.array(columns).T


@exercise(
    "ex-average",
    "along the rows the map is a third of the matrix in the hint; the gain is that of rows times that of columns",
    mistakes={
        "this is the gain; how many times the flattened norm, 1/3, is it?": lambda: _average_gain(),
        "the two directions multiply: the square of that": lambda: _average_gain() ** 0.5 * 3,
        "this is the bound for large images": lambda: 3,
    },
)
def average() -> Value:
    """The ratio, a number."""
    return _average_gain() / (1 / 3)


def _average_gain() -> float:
    return float(np.linalg.norm(_same_padding(np.full((1, 1, 3, 3), 1 / 9)), 2))


@judged("ex-true-gain")
def true_gain(module: Value) -> str:
    """A module, or a function, that takes a weight and returns the divided one."""
    import torch

    from . import device

    if not callable(module):
        return f"a module should be given, an instance and not what it returns, found {module!r}"
    if isinstance(module, type):
        return "this is the class: make an instance, with parentheses"
    kernel = _normal(2, 1, 3, 3, seed=4)
    weight = torch.tensor(kernel, device=device()).requires_grad_()
    divided = module(weight)
    if not torch.is_tensor(divided) or divided.shape != weight.shape:
        return "the module should return a tensor of the shape of the weight"
    gain, flattened = (float(np.linalg.norm(M, 2)) for M in (_same_padding(kernel), kernel.reshape(2, -1)))

    def is_near(factor: float) -> bool:
        return bool(np.linalg.norm(_host(divided) - kernel / factor) < 1e-8 * np.linalg.norm(kernel / factor))

    if is_near(flattened):
        return "this divides by the norm of the flattened kernel, as PyTorch's tool does: take the true gain"
    if is_near(1 / gain):
        return "this multiplies by the gain: divide"
    if not is_near(gain):
        left = float(np.linalg.norm(_same_padding(_host(divided)), 2))
        return f"the gain of the divided weight on images of 8×8 pixels should be one, found {left:.4g}"
    if not divided.requires_grad:
        return "no gradient flows through the division: is a detach or a no_grad in the way?"
    divided.sum().backward()
    found = _host(weight.grad)
    truth = _slopes(lambda W: float(W.sum() / np.linalg.norm(_same_padding(W), 2)), kernel)
    if np.linalg.norm(found - truth) < 1e-6 * np.linalg.norm(truth):
        return ""
    if np.allclose(found, 1 / gain):
        return "the gradient flows through the weight only: the gain depends on the weight too, do not detach it"
    return "the weight is right, and the gradient of its sum is not"


@exercise(
    "ex-five-by-five",
    "in how many patches of 25 pixels does one pixel lie, at the most?",
    mistakes={"25 patches: that is for the squared lengths": lambda: 25},
)
def five_by_five() -> Value:
    """A number."""
    patches = np.lib.stride_tricks.sliding_window_view(
        np.pad(np.arange(121).reshape(11, 11), 2, constant_values=-1), (5, 5)
    )
    return np.sqrt((patches == 60).sum())  # the pixel in the middle of 11×11


# --- in training


@exercise(
    "ex-evidence",
    "solve (eq-above) for c(τ²)",
    at=lambda: [(1024, 1e-3), (65536, 1e-9)],
    mistakes={
        "the square root stands on the other side: divide by it": lambda n, p: p * math.sqrt(2 * n / math.pi),
        "the square root is of n, too": lambda n, p: p * math.sqrt(math.pi / 2) / n,
    },
)
def evidence(n: int, p: float) -> Value:
    """The largest c that is small enough, a number."""
    return p / math.sqrt(2 * n / math.pi)


@exercise(
    "ex-residual-gain",
    "by how much do x and f(x) move, each, when x moves by one?",
    at=lambda: [(0.5,), (1.0,), (3.0,)],
    mistakes={
        "this is the gain of f alone; x itself moves too": lambda g: g,
        "the two may point the same way: lengths add, and not their squares": lambda g: math.hypot(1, g),
    },
)
def residual_gain(g: float) -> Value:
    """The bound, a number."""
    return float(np.linalg.norm(np.eye(2) + g * np.eye(2), 2))


def _outputs() -> list[tuple[Any, ...]]:
    W = _normal(4, 6, seed=8)
    W[3] *= 20  # so that the second largest output is not the nearest
    return [(np.array([2.0, 1.9, -1.0, 1.0]), W, 1.5), (np.array([0.0, 3.0, 2.9, 2.0]), W, 1.0)]


@exercise(
    "ex-pairs",
    "the difference of two outputs is one row less another, times what the layers before hand on",
    at=_outputs,
    mistakes={
        "this is (eq-certified-radius), with the norm of W: take that of the difference of two rows": lambda y, W, g: (
            (np.sort(y)[-1] - np.sort(y)[-2]) / (2**0.5 * g * np.linalg.norm(W, 2))
        ),
        "the second largest output need not be the nearest: take the smallest over all j": lambda y, W, g: (
            np.diff(np.sort(y)[-2:])[0] / (g * np.linalg.norm(np.diff(W[np.argsort(y)[-2:]], axis=0)))
        ),
    },
)
def pairs(y: np.ndarray, W: np.ndarray, g: float) -> Value:
    """The radius, a number."""
    c = int(np.argmax(y))
    return min((y[c] - y[j]) / (g * np.linalg.norm(W[c] - W[j])) for j in range(len(y)) if j != c)


# --- in PyTorch


@cache
def _women() -> tuple[list[str], list[str], np.ndarray]:
    import networkx as nx

    graph = nx.davis_southern_women_graph()
    women, events = graph.graph["top"], graph.graph["bottom"]
    return women, events, nx.bipartite.biadjacency_matrix(graph, women, events).toarray().astype(float)


def _score(A: np.ndarray, side: str, place: int) -> float:
    """One hub or authority score: an entry of u or v, over their sum."""
    _, u, v = _triplet(A)
    x = u if side == "hub" else v
    return float(x[place] / x.sum())


@judged("ex-new-guest")
def new_guest(pair: Value) -> str:
    """A pair of positions (woman, event)."""
    women, events, table = _women()
    if not isinstance(pair, (tuple, list, np.ndarray)) or len(pair) != 2:
        return f"a pair of positions (woman, event) should be given, found {pair!r}"
    wrong = [_wrong_number(x, len(names) - 1, what) for x, names, what in zip(pair, (women, events), _PLACES)]
    if any(wrong):
        return next(filter(None, wrong))
    i, k = map(int, pair)
    flora = women.index("Flora Price")
    if i == flora:
        return "leave Flora Price herself out"
    if table[i, k]:
        return f"{women[i]} has been to {events[k]}: a new link is asked for"
    rates = _rates(table, "hub", flora)
    rates[table == 1] = rates[flora] = -np.inf
    if rates[i, k] == rates.max():
        return ""
    if rates[:, k].max() == rates.max():
        return "the event is right; which woman, who was not there, is the strongest hub?"
    return f"this link has the rate {1e3 * rates[i, k]:.1f} in thousandths, the largest is {1e3 * rates.max():.1f}"


_PLACES = ("the woman's position", "the event's position")


def _rates(table: np.ndarray, side: str, place: int) -> np.ndarray:
    return _slopes(lambda A: _score(A, side, place), table)


@judged("ex-one-woman")
def one_woman(position: Value) -> str:
    """A position in the list of women."""
    women, events, table = _women()
    if wrong := _wrong_number(position, len(women) - 1, _PLACES[0]):
        return wrong
    every = _rates(table, "authority", events.index("E8"))
    rates = (every * table).sum(1)
    if int(position) == abs(rates).argmax():
        return ""
    if int(position) == abs(every.sum(1)).argmax():
        return "only the links that she has can be weakened"
    if int(position) == rates.argmax():
        return "hers is the largest rise; in modulus another change is larger"
    rate = f"{1e3 * rates[int(position)]:.1f} in thousandths"
    return f"for {women[int(position)]} the rate is {rate}, in modulus another is larger"


@judged("ex-second-along")
def second_along(along: Value) -> str:
    """A function of loss, M and E that returns the second derivative along E."""
    import torch

    from . import device

    if not callable(along):
        return f"a function of loss, M and E should be given, found {along!r}: write it with def or lambda"
    if {"hessian", "H"} & set(getattr(getattr(along, "__code__", None), "co_names", ())):
        return "this needs all entries of the Hessian: differentiate twice along E alone"
    M, E = _normal(6, 4), _normal(6, 4, seed=2)
    found = along(lambda M: (M**3).sum() + (M[0] * M[1]).sum(), *(torch.tensor(x, device=device()) for x in (M, E)))
    if found is None:
        return NOTHING
    if _host(found).shape != ():
        return f"a number should be given, found the shape {_host(found).shape}"
    second, slope = 6 * (M * E * E).sum() + 2 * E[0] @ E[1], 3 * (M**2 * E).sum() + E[0] @ M[1] + M[0] @ E[1]
    if abs(float(found) - second) < 1e-8 * abs(second):
        return ""
    for factor, what in ((slope / second, "this is the first derivative"), (0.5, "too small by a factor of 2")):
        if abs(float(found) - factor * second) < 1e-4 * abs(second):
            return what
    return f"relative error {abs(float(found) / second - 1):.2g}; differentiate g(t) = loss(M + tE) twice at t = 0"


# --- in JAX


@exercise(
    "ex-kappa-K-hat",
    "the eigenvalues of K̂ are σ₁, 3σ₁, and σ₁ ± σᵢ",
    at=lambda: [(3.0, 2.6), (1.0, 0.99)],
    mistakes={
        "this is the condition number of K + σwwᵀ; here [u; −v] is moved too": lambda sigma_1, sigma_2: (
            2 * sigma_1 / (sigma_1 - sigma_2)
        )
    },
)
def kappa_K_hat(sigma_1: Value, sigma_2: Value) -> Value:
    """A condition number, a number."""
    A = np.diag([sigma_1, sigma_2, 0.3])
    return np.linalg.cond(_K(A, sigma_1) + sigma_1 * np.diag([1.0, 0, 0, 1, 0, 0]))


@judged("ex-which-damper")
def which_damper(number: Value) -> str:
    """The number of a storey."""
    if wrong := _wrong_number(number, 3, "the number of a storey"):
        return wrong
    rates = _storey_rates()
    if number == rates.argmin():
        return ""
    return f"the rate of that storey is {rates[int(number)]:.0f}; another one is more negative"


@cache
def _storey_rates() -> np.ndarray:
    """How the largest gain changes with the friction of each of the four storeys."""
    mass, springs = np.array([1.0, 1.0, 1.0, 1.0, 0.2]), np.array([1.0, 1.0, 1.0, 1.0, 0.02])
    dampers = np.array([0.02, 0.02, 0.02, 0.02, 0.004])

    def chain(k: np.ndarray) -> np.ndarray:
        return np.diag(k + np.append(k[1:], 0)) - np.diag(k[1:], 1) - np.diag(k[1:], -1)

    def gain(omega: float, dampers: np.ndarray) -> float:
        D = chain(springs) - omega**2 * np.diag(mass) + 1j * omega * chain(dampers)
        return float(np.linalg.norm(np.linalg.inv(D)[:4, :4], 2))

    grid = np.linspace(0.1, 2.2, 4000)
    peak = grid[np.argmax([gain(omega, dampers) for omega in grid])]
    return np.array([(gain(peak, dampers + 1e-6 * e) - gain(peak, dampers - 1e-6 * e)) / 2e-6 for e in np.eye(5)[:4]])


@judged("ex-stop-gradient")
def stop_gradient(norm: Value) -> str:
    """A function of A, in JAX."""
    import jax
    import jax.numpy as jnp

    if not callable(norm):
        return f"a function of A should be given, found {norm!r}"
    A = _normal(4, 3)
    with jax.enable_x64(True):
        value = norm(jnp.asarray(A))
        if value is None:
            return NOTHING
        if jnp.shape(value) != ():
            return f"your function should return a number, found the shape {jnp.shape(value)}"
        sigma, u, v = _triplet(A)
        found = np.asarray(jax.grad(norm)(jnp.asarray(A)))
        second = np.asarray(jax.hessian(norm)(jnp.asarray(A)))
    if np.linalg.norm(found - np.outer(u, v)) > 1e-8:
        if not found.any():
            return "its gradient is zero: A itself must not be inside stop_gradient"
        return "its gradient is not uvᵀ"
    if np.abs(second).max() > 1e-8:
        return "its gradient is right because the SVD is differentiated: hold u and v constant by stop_gradient"
    return "" if abs(value - sigma) < 1e-8 else f"its gradient is right, and its value is {value:.4g}, not σ"


# --- in JAX, without an SVD


@exercise(
    "ex-one-vector",
    "the shortest r is one side of a triangle with a right angle: find the angle between x and (τ − AᵀA)x",
    at=lambda: [(2.0, 0.3, 0.2), (0.5, 1.5, 0.6)],
    below=1e-6,  # the truth is by bisection
    mistakes={
        "this is the distance from θ² to τ": lambda theta_squared, c, delta: c * (1 / delta**2 - 1) ** 0.5,
        "this is where a is δ, and a is a tangent: the length of r is a sine": lambda theta_squared, c, delta: (
            theta_squared + c / delta
        ),
        "the less of every w the start is sure to have, the further away is τ: here it is the other way round": (
            lambda theta_squared, c, delta: theta_squared + c / (1 / delta**2 - 1) ** 0.5
        ),
    },
)
def one_vector(theta_squared: Value, c: Value, delta: Value) -> Value:
    """The number τ."""
    x, product = np.array([1.0, 0.0]), np.array([theta_squared, c])  # what AᵀA makes of x

    def shortest(tau: float) -> float:
        column = (tau * x - product)[:, None]
        return float(np.linalg.norm(x - column @ np.linalg.lstsq(column, x)[0]))

    low, high = theta_squared, theta_squared + 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if shortest(middle) > delta else (low, middle)
    return high


@judged("ex-own-partner")
def own_partner(taps: Value) -> str:
    """Three numbers."""
    try:
        numbers = np.array([float(x) for x in taps])
    except (TypeError, ValueError):
        return f"three numbers should be given, found {taps!r}"
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        return f"three numbers should be given, found {taps!r}"
    waves = np.exp(-2j * np.pi * np.outer(np.arange(1, 24), np.arange(3)) / 24)
    gains = np.abs(waves @ numbers)
    if gains.max() == 0:
        return "this map sends every x to zero"
    first = np.flatnonzero(gains > (1 - 1e-6) * gains.max()) + 1
    if len(first) == 23:
        return "all waves have the same gain: a shift alone tells none of them from another"
    if list(first) == [12]:
        return ""
    k = int(first[0])
    return (
        f"the largest gain, {gains.max():.3g}, is that of the frequencies {k} and {24 - k}: which one has no partner?"
    )


@judged("ex-diagonal-and-product")
def diagonal_and_product(matvec: Value) -> str:
    """A function of params and x, in JAX."""
    import jax
    import jax.numpy as jnp

    if not callable(matvec):
        return f"a function of params and x should be given, found {matvec!r}"
    n = 7
    d, a, b, x = _normal(4, n)
    A = np.diag(d) + np.outer(a, b)
    with jax.enable_x64(True):
        params, at = tuple(map(jnp.asarray, (d, a, b))), jnp.asarray(x)
        found = matvec(params, at)
        if found is None:
            return NOTHING
        if jnp.shape(found) != (n,):
            return f"your function should return a vector as long as x, found the shape {jnp.shape(found)}"
        found, constant = np.asarray(found), np.asarray(matvec(params, 0 * at))
        formed = f"[{n},{n}]" in str(jax.make_jaxpr(matvec)(params, at))
    if np.abs(constant).max() > 0:
        return "at x = 0 it is not zero, so it is not linear in x"
    wrong = {
        "this is Aᵀx: exchange a and b": A.T @ x,
        "this is the diagonal alone: the product abᵀ is missing": d * x,
        "this is the product abᵀ alone: the diagonal is missing": a * (b @ x),
        "bᵀx is one number, the sum of the products of their entries": d * x + a * b * x,
    }
    if np.linalg.norm(found - A @ x) < 1e-8:
        return "right numbers, but it forms an array of n × n numbers: multiply b and x first" if formed else ""
    if sentence := next((words for words, y in wrong.items() if np.linalg.norm(found - y) < 1e-8), None):
        return sentence
    error = np.linalg.norm(found - A @ x) / np.linalg.norm(A @ x)
    return f"relative error {error:.2g}: compare it with (jnp.diag(d) + jnp.outer(a, b)) @ x"


# --- operators


choice(
    "ex-bias",
    a="the bias is no part of what is amplified: what does the difference of two outputs hold?",
    b="",
    c="whether it ends is not the question: of which linear map would the number be a singular value?",
)


@exercise(
    "ex-two-channels",
    "one 2×2 matrix for each frequency: pad each kernel to the side of the image and transform it",
    at=lambda: [(_normal(2, 2, 3, 3, seed=seed), side) for seed, side in ((5, 8), (6, 6))],
    mistakes={
        "this is the largest entry in modulus; each frequency has a 2×2 matrix, and that a norm": lambda kernel, side: (
            np.abs(np.fft.fft2(kernel, s=(side, side))).max()
        )
    },
)
def two_channels(kernel: Value, side: Value) -> Value:
    """The largest singular value, a number."""
    columns = []
    for channel, i, j in product(range(2), range(side), range(side)):
        image = np.zeros((2, side, side))
        image[channel, i, j] = 1
        shifts = product(range(3), range(3))
        moved = sum(
            np.einsum("oi,ixy->oxy", kernel[:, :, a, b], np.roll(image, (1 - a, 1 - b), (1, 2))) for a, b in shifts
        )
        columns.append(np.asarray(moved).ravel())
    return np.linalg.norm(np.array(columns), 2)


@exercise(
    "ex-product-operator",
    "σ = uᵀLRv, and to first order only L changes",
    at=lambda: [(_normal(6), _normal(4, seed=1), _normal(5, 4, seed=2))],
    mistakes={"this is the gradient for the product LR": lambda u, v, R: np.outer(u, v)},
)
def product_operator(u: Value, v: Value, R: Value) -> Value:
    """The gradient of σ for L, a matrix."""
    return _slopes(lambda L: float(u @ L @ R @ v), np.zeros((len(u), len(R))), h=1.0)  # linear in L


@exercise(
    "ex-critical",
    "multiply the three numbers by 32, and factor them",
    at=lambda: [(4,), (6,), (8,)],
    mistakes={"this is what it comes near to for a long ring": lambda N: N**2 / 32},
)
def critical(N: Value) -> Value:
    """The susceptibility χ, a number."""
    states = np.arange(2**N)
    spins = 1 - 2 * ((states[:, None] >> np.arange(N)) & 1)
    H, dH = np.diag(-(spins * np.roll(spins, 1, 1)).sum(1)).astype(float), np.zeros((2**N, 2**N))
    for site in range(N):
        dH[states, states ^ (1 << site)] -= 1
    w, X = np.linalg.eigh(H + dH)
    return (((X[:, 1:].T @ dH @ X[:, 0]) / (w[1:] - w[0])) ** 2).sum()


# --- a case: imports

choice(
    "ex-two-worlds",
    a="one percent is the distance of two singular values, not of two scores",
    b="",
    c="with no import between the camps, A has two blocks: to which of them does the dominant triplet belong?",
)


def _imports() -> Iterable[np.ndarray]:
    """Matrices of zeros and ones, tall and wide."""
    for seed, (m, n) in enumerate([(9, 6), (6, 8)]):
        yield (_normal(m, n, seed=seed + 70) > -0.2).astype(float)


def _two_first(A: np.ndarray) -> tuple[Any, Any]:
    """The two columns with the highest scores."""
    first, second = abs(_triplet(A)[2]).argsort()[::-1][:2]
    return first, second


def _packages() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    found = []
    for A in _imports():
        v = abs(_triplet(A)[2])
        marks = np.zeros((2, len(v)))
        marks[0, :2], marks[1, 2:5] = 1, 1
        found.append((v, *marks))
    return found


@exercise(
    "ex-package-margin",
    "the logarithm of Sᵀv has the derivative of Sᵀv, divided by Sᵀv",
    at=_packages,
    mistakes={
        "this is the cotangent of the difference, not of the logarithms": lambda v, S, T: S - T,
        "the scores of a package are added before the logarithm is taken": lambda v, S, T: (S - T) / v,
    },
)
def package_margin(v: Value, S: Value, T: Value) -> Value:
    """The cotangent ψ, a vector."""
    return _slopes(lambda v: float(np.log(S @ v) - np.log(T @ v)), v)


def _with_adjoint() -> list[tuple[np.ndarray, ...]]:
    found: list[tuple[np.ndarray, ...]] = []
    for A in _imports():
        _, u, v = (abs(x) for x in _triplet(A))
        first, second = _two_first(A)
        psi = np.zeros(len(v))
        psi[first], psi[second] = 1 / v[first], -1 / v[second]
        found.append((A, u, v, *_adjoint(A, np.zeros(len(u)), psi)))
    return found


@exercise(
    "ex-missing-import",
    "an import that is added moves the margin by +G in its place, and only where A is zero can one be added",
    at=_with_adjoint,
    mistakes={
        "this import exists: one that does not is asked for": lambda A, u, v, p, q: _place_of_least(
            np.outer(p, v) + np.outer(u, q)
        ),
        "this one raises the margin most": lambda A, u, v, p, q: _place_of_least(
            np.where(A, np.inf, -np.outer(p, v) - np.outer(u, q))
        ),
    },
)
def missing_import(A: Value, u: Value, v: Value, p: Value, q: Value) -> Value:
    """A pair, the row and the column of a zero of A."""
    first, second = _two_first(A)

    def margin(A: np.ndarray) -> float:
        scores = abs(_triplet(A)[2])
        return float(np.log(scores[first] / scores[second]))

    return _place_of_least(np.where(A, np.inf, _slopes(margin, A)))


def _place_of_least(M: np.ndarray) -> tuple[Any, ...]:
    return np.unravel_index(M.argmin(), M.shape)


# --- more than one triplet


def _kept_vectors() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.linalg.qr(A)[0][:, :3], np.linalg.qr(A.T)[0][:, :3]) for A, _, _ in _shapes()]


def _slopes_of_values(f: Callable[[np.ndarray], float], A: np.ndarray) -> np.ndarray:
    return _slopes(lambda A: f(np.linalg.svd(A, compute_uv=False)), A, 1e-4)


@exercise(
    "ex-ky-fan",
    "the gradient of σᵢ is uᵢvᵢᵀ",
    at=_kept_vectors,
    below=1e-6,  # the truth is by differences
    mistakes={"this is the gradient of σ₁ alone": lambda U, V: np.outer(U[:, 0], V[:, 0])},
)
def ky_fan(U: Value, V: Value) -> Value:
    """The gradient, a matrix."""
    return _slopes_of_values(lambda S: float(S[:3].sum()), U @ np.diag([3.0, 2.5, 2.0]) @ V.T)


@exercise(
    "ex-energy",
    "the loss is half the sum of the squares of the first k values: what are the ξᵢ?",
    at=lambda: [(U, np.array([3.0, 2.5, 2.0]), V) for U, V in _kept_vectors()],
    below=1e-6,  # the truth is by differences
    mistakes={"this is the gradient of the sum of the values, not of their squares": lambda U, S, V: U @ V.T},
)
def energy(U: Value, S: Value, V: Value) -> Value:
    """The gradient, a matrix."""
    return _slopes_of_values(lambda s: float((s[:3] ** 2).sum() / 2), U @ np.diag(S) @ V.T)


@exercise(
    "ex-weighted",
    "along E the values move to 3 + h, 3 and 3 − h, and are sorted again",
    mistakes={"behind, the loss rises too, and the step is negative": lambda: (2, 2)},
)
def weighted() -> Value:
    """A pair of slopes, ahead and behind."""

    def loss(h: float) -> Value:
        return np.sort(np.array([3 + h, 3, 3 - h]))[::-1] @ [3, 2, 1]

    return tuple((loss(h) - loss(0)) / h for h in (0.5, -0.5))


@exercise(
    "ex-factors",
    "as an array mn numbers; the factors are two matrices with 2k columns, of m and of n rows",
    mistakes={"U and V are to be included: the factors have 2k columns": lambda: (10**12, 2 * 10**6 * 16)},
)
def factors() -> Value:
    """A pair of numbers, as an array and as factors."""
    m = n = 10**6
    k = 16
    left, right = (m, 2 * k), (n, 2 * k)  # [U, P] and [V, Q]
    return m * n, math.prod(left) + math.prod(right)
