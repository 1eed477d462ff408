"""Whether an iteration from a random start has missed a larger singular value (chapter *Without an SVD*).

Lanczos's iteration writes M = AᴴA as a tridiagonal matrix T in the orthonormal basis v₁, v₂, …, which starts from
v₁ = (v0 + noise)/‖v0 + noise‖. For any eigenpair (λ, w) of M, the recurrence says ⟨w, vᵢ₊₁⟩ = πᵢ(λ)⟨w, v₁⟩, with
polynomials πᵢ that T alone determines. The squares of ⟨w, vᵢ⟩ sum to at most 1. So a value λ can have escaped notice
only if ⟨w, v₁⟩ is tiny, and that is unlikely, since the noise knows nothing of w.
"""

import math

#: a value that exceeds σ by less than this part of it is not counted as larger: it would cost many steps to exclude
RESOLUTION = 1e-3


#: the most noise beside a v0 of length one, where evidence is wanted
NOISE = 0.05


def noise_beside(tol: float) -> float:
    """The length of the noise beside a v0 of length one, where evidence is wanted: a twentieth, or tol^¼ if less.

    Evidence takes about as many steps with noise of any length from a hundredth of v0 up. The residual takes those that
    bring it down to ``tol`` from the noise, or from what is wrong with v0, whichever is larger. So a small ``tol``,
    which leaves evidence many steps to grow, wants little noise.
    """
    return min(NOISE, math.sqrt(math.sqrt(tol)))


def check_missed(missed: float | None) -> None:
    """Raise an error for what is not a probability."""
    if missed is not None and not (isinstance(missed, (int, float)) and 0 < missed <= 1):
        raise ValueError(
            f"missed must be a probability above 0 and up to 1, or None to trust v0, found {missed!r}: it is the risk "
            "to accept that a value above 1.001 σ was missed; 1e-3 is the default"
        )


def hidden(diagonal: list[float], off: list[float], value: float) -> float:
    """The largest abs⟨w, v₁⟩ that an eigenvector w for ``value`` can have: 1/√Σ πᵢ(λ)², i = 0 … k (eq-hidden).

    ``diagonal (k,)`` and ``off (k,)`` are those of T, the last of ``off`` the length of what the next vector was before
    it was normalised. Where ``value`` does not exceed the eigenvalues of T, nothing is known, and the answer is 1.
    """
    d, pi, total, before = 1.0, 1.0, 1.0, 0.0
    for alpha, beta in zip(diagonal, off):
        d = value - alpha - before * before / d  # βᵢ πᵢ(λ)/πᵢ₋₁(λ), by the three-term recurrence
        if d <= 0:
            return 1.0
        if beta == 0:  # the space is exhausted: w would have to lie in it, and does not
            return 0.0
        pi *= d / beta  # it grows, but for the first steps: 1/∞ is 0, far below all that is asked for
        total += pi * pi
        before = beta
    return 1 / math.sqrt(total)


def probability(share: float, size: int, noise: float, is_complex: bool) -> float:
    """A bound for the probability that abs⟨w, v₁⟩ ≤ ``share``, for any w of length one (eq-missed).

    ⟨w, v₁⟩ is normally distributed, with standard deviation ``noise``/√size about whatever v0 has of w. So the
    probability is at most the largest density times the length of an interval, or for complex numbers the area of a
    disc.
    """
    if is_complex:
        return min(1.0, size * (share / noise) ** 2)
    return min(1.0, math.sqrt(2 * size / math.pi) * share / noise)


def allowed(missed: float, size: int, noise: float, is_complex: bool) -> float:
    """The share for which ``probability`` is ``missed``."""
    if is_complex:
        return noise * math.sqrt(missed / size)
    return missed * noise * math.sqrt(math.pi / (2 * size))


def least_excess(diagonal: list[float], off: list[float], square: float, share: float, known: float) -> float:
    """The least δ, to a hundredth of it, for which a value σ(1 + δ) can hide no more than ``share`` (eq-above).

    ``square`` is σ², the largest eigenvalue of T; ``known`` a δ to begin from, which need not be enough.
    """
    low, high = 0.0, known
    while hidden(diagonal, off, square * (1 + high) ** 2) > share:
        low, high = high, 2 * high
    while high - low > 0.01 * high and high > 1e-15:
        middle = math.sqrt(low * high) if low > 0 else high / 8
        if hidden(diagonal, off, square * (1 + middle) ** 2) > share:
            low = middle
        else:
            high = middle
    return high
