"""How far σ is from the other singular values, and what is said where it is too near for a derivative of u and v."""

import os
import sys
import warnings
from bisect import bisect
from functools import cache
from operator import neg

import torch
from torch import Tensor

from .products import extremes


class TieError(ArithmeticError):
    """A gradient through u or v was asked for, and σ equals another singular value (or zero, if m ≠ n) up to
    rounding.
    """


class NearTieWarning(UserWarning):
    """A gradient through u or v has few right digits: σ is close to another singular value, or tol is too loose for
    their distance.
    """


@cache
def tie(m: int, n: int, dtype: torch.dtype) -> float:
    """3 ε √(m + n), and at least 16 ε, relative to σ₁: what is closer cannot be told apart.

    Two equal singular values were seen to come out up to 4 ε apart for few rows, and up to ε √(m + n) for thousands.
    """
    return float(torch.finfo(dtype).eps * max(16.0, 3 * (m + n) ** 0.5))


@cache
def near_tie(m: int, n: int, dtype: torch.dtype) -> float:
    """Where ``expected_error`` passes 1%: below it comes the warning. At least eight times as far as a tie."""
    return 100 * rounding_error(m, n, dtype)


@cache
def rounding_error(m: int, n: int, dtype: torch.dtype) -> float:
    """4 ε, or ε √(m + n)/4 if that is more: what rounding makes of a product with A, over σ₁."""
    return float(torch.finfo(dtype).eps * max(4.0, (m + n) ** 0.5 / 4))


def relative_gap(sigma: Tensor, S: Tensor, m: int, n: int, is_complex: bool = False) -> float:
    """The distance from σ to the nearest other singular value, and to zero if m ≠ n or A is complex, over σ₁; of a
    batch the smallest.

    Of a square complex matrix the phase of u relative to v moves with Im uᴴdA v/σ (eq-relative-phase).
    """
    zero = m != n or is_complex
    if S.ndim == 1:
        # one look at the device, and the rest by Python's numbers: each call on tensors would cost as much as all of
        # this
        value, values = sigma.item(), sorted(S.tolist(), reverse=True)
        at = bisect(values, -value, key=neg)  # two on either side are enough, and the smallest is that of σ from itself
        distances = sorted(abs(x - value) for x in values[max(0, at - 2) : at + 2])[1:2]
        nearest = min([*distances, values[0], *[value] * zero])
        return nearest / values[0] if values[0] > 0 else 0.0
    distance = (S - sigma.unsqueeze(-1)).abs()
    largest = nearest = S[..., 0]
    if S.shape[-1] > 1:
        nearest = torch.minimum(distance.kthvalue(2).values, largest)
    if zero:
        nearest = torch.minimum(nearest, sigma)
    return (nearest / largest).nan_to_num(0.0).min().item()  # 0/0 for a zero matrix


def expected_error(gap: float, m: int, n: int, dtype: torch.dtype, residual: float = 0.0) -> float:
    """The relative error to expect of the gradient of a loss of u or v: ``rounding_error`` over the gap, within a
    factor of 30 of what is measured; or residual/gap, where an iteration stopped at a residual above its default
    tolerance.
    """
    return max(rounding_error(m, n, dtype), residual if residual > 20 * torch.finfo(dtype).eps else 0.0) / gap


def check_gap(m: int, n: int, sigma: Tensor, S: Tensor, residual: float = 0.0, is_complex: bool = False) -> None:
    """Raise a TieError or warn, once for a batch, by its smallest gap, and the largest residual of an iteration."""
    if sigma.numel() == 0:
        return  # an empty batch
    gap = relative_gap(sigma.detach(), S, m, n, is_complex)
    if is_zero(m, n, sigma, S):
        raise TieError(
            "σ is zero, or no more than rounding, where u and v have signs of their own and A v = σ u says nothing of "
            "u. Likely cause: a singular matrix and index −1. A loss of σ alone has a gradient here. So has the "
            "projector on the null vector, I − V Vᴴ with V of svdgrad.singular_triplets(A, k), k the rank"
        )
    if not gap > tie(m, n, S.dtype):
        raise tied(f"found a relative gap of {gap:.1e}, which is a tie up to rounding")
    check_digits("σ is close to another singular value, or to zero", m, n, S.dtype, gap, residual)


def is_zero(m: int, n: int, sigma: Tensor, S: Tensor) -> bool:
    """Whether some σ of a square A is zero up to rounding: there u and v have signs of their own. (If m ≠ n or A is
    complex, zero counts as another value, and the gap tells.)
    """
    return m == n and not (sigma > 0.25 * tie(m, n, S.dtype) * S[..., 0]).all()


def check_digits(close: str, m: int, n: int, dtype: torch.dtype, gap: float, residual: float) -> None:
    """Warn of a near tie, said by ``close``, or of a tolerance that is too loose for the distance of the values."""
    if gap < near_tie(m, n, dtype):
        warn_of_gap(close, gap, m, n, dtype, residual)
    elif residual > max(0.01 * gap, 20 * torch.finfo(dtype).eps):  # at the default tol there is little to lower
        warn(
            f"the iteration stopped at a residual of {residual:.0e} σ, and the relative gap is {gap:.0e}, so a "
            f"relative error of about {min(1.0, residual / gap):.0e} is to be expected in the gradient through u or v: "
            "lower tol"
        )


def warn_of_gap(close: str, gap: float, m: int, n: int, dtype: torch.dtype, residual: float = 0.0) -> None:
    """Warn of two values that are ``close``, with the error to expect."""
    error = expected_error(gap, m, n, dtype, residual)
    by_all = error * gap <= rounding_error(m, n, dtype)
    warn(
        f"{close}: relative gap {gap:.1e}, so a relative error of about {min(1.0, error):.0e} is to be expected in the "
        f"gradient with {str(dtype).removeprefix('torch.')}, "
        + ("by any method" if by_all else f"since the iteration stopped at a residual of {residual:.0e} σ: lower tol")
    )


def warn(message: str) -> None:
    """A NearTieWarning at the line that called ``backward()``."""
    warnings.warn(message, NearTieWarning, stacklevel=level_of_the_caller())


def check_zero(sigma: Tensor, xi: Tensor, phi: Tensor, psi: Tensor, many: bool, read: bool = False) -> None:
    """Warn of a loss of u or v where σ is exactly zero and has a cotangent, and they have none there.

    A loss of σ u then has a cotangent σ φ = 0 of u: the derivative of u, of the size of 1/σ, is left out of a product
    of which it is half. It cannot be told from a loss of that σ alone. Whether the loss has ``read`` any vector is
    known to autograd; torch.func and torch.compile hand zeros to those that were not, and there the vectors count as
    read where any of the k has a cotangent, or where every σ is zero.
    """
    if not sigma.numel() or extremes(sigma)[0] > 0:
        return
    seen = (phi != 0).any(-1) | (psi != 0).any(-1)
    told = (sigma == 0) & (xi != 0) & ~seen
    if many and not read:
        told = told & (seen.any(-1, keepdim=True) | (sigma == 0).all(-1, keepdim=True))
    if told.any():
        warn(
            "the loss reads a σ that is exactly zero, where it has no derivative. A loss of σ alone gets one of its "
            "subgradients; but a loss of σ u or σ v, as U diag(σ), lacks what u and v add there, and its gradient is "
            "wrong. Likely causes: a row or a column of zeros, a rank below k. Leave it out, with a smaller k or "
            "another index, or perturb A"
        )


def check_cut(m: int, n: int, sigma: Tensor, following: Tensor | None, wanted: Tensor, residual: float = 0.0) -> None:
    """``check_gap`` for k triplets: by the distance to σₖ₊₁ of those that are ``wanted (..., k)``, with 0 for the value
    after min(m, n) of them if m ≠ n.

    With k = m = n there is nothing outside, and σₖ itself is what may not be zero.
    """
    if sigma.numel() == 0:
        return
    gap = relative_cut(sigma.detach(), following, wanted)
    if not gap > tie(m, n, sigma.dtype):
        where = "zero" if following is None or not following.any() else "σₖ₊₁"
        raise TieError(
            "the kept triplets that the loss reads have no derivative where one of their values is tied with what is "
            f"left out; found, with k = {sigma.shape[-1]}, one at a relative distance of {gap:.1e} from {where}, which "
            "is a tie up to rounding. Likely causes: a cut through a multiple singular value, or a rank below k. A "
            "loss of σ alone has a gradient here; otherwise choose another k, which takes all of the tied values or "
            "none"
        )
    close = "a kept singular value that the loss reads is close to the first left out"
    check_digits(close, m, n, sigma.dtype, gap, residual)


def relative_cut(sigma: Tensor, following: Tensor | None, wanted: Tensor | None = None) -> float:
    """(σᵢ − σₖ₊₁)/σ₁, the smallest of those wanted, and of a batch; infinite where none is."""
    if wanted is None and sigma.ndim == 1:  # by Python's numbers, of which each costs less than a call
        values, beyond = sigma.tolist(), 0.0 if following is None else following.item()
        return float(max(0.0, values[-1] - beyond) / values[0]) if values[0] > 0 else 0.0
    last = sigma[..., -1] if wanted is None else torch.where(wanted, sigma, torch.inf).amin(-1)
    gap = (last if following is None else last - following) / sigma[..., 0]
    return gap.nan_to_num(0.0, torch.inf).min().clamp_min(0).item()


def tied_with_the_rest(m: int, n: int, sigma: Tensor, following: Tensor | None) -> Tensor:
    """Which of k triplets are no functions of A, since σᵢ equals σₖ₊₁ up to rounding: of the shape of σ."""
    distance = sigma if following is None else sigma - following.unsqueeze(-1)
    return ~(distance > tie(m, n, sigma.dtype) * sigma[..., :1])


def following(m: int, n: int, k: int, S: Tensor) -> Tensor | None:
    """σₖ₊₁ from the known singular values: zero after the last of m ≠ n, None where there is nothing outside."""
    if S.shape[-1] > k:
        return S[..., k]
    return None if m == n else torch.zeros_like(S[..., 0])


def tied(found: str) -> TieError:
    """The error of a tie, with what was found."""
    return TieError(
        f"u and v have no derivative where σ is not simple; {found}. "
        "Likely causes: an orthogonal or zero matrix, a σ of zero, a symmetry, an initialisation with equal singular "
        "values, or a tol that is larger than the distance of the values; in float32, values that float64 can tell "
        "apart. A loss of σ alone has a gradient here, and so has one of the space of the tied values, as of U Uᴴ with "
        "U of svdgrad.singular_triplets; otherwise perturb A"
    )


def level_of_the_caller() -> int:
    """The ``stacklevel`` for a warning, seen from the function that asks, of the first line that is neither this
    package's nor PyTorch's: that of ``backward()``.
    """
    own = tuple(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))
    frame, level = sys._getframe(1), 1
    while frame.f_code.co_filename.startswith(own) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    return level
