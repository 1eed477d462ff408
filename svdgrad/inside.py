"""The k×k part of the derivative of k triplets: how the kept vectors turn among themselves (chapter *More than one*).

Vectors are rows here: σ (..., k), U (..., k, m), V (..., k, n), so that uᵢᴴφⱼ is an entry of ``U.conj() @ Phi.mT``.
"""

from operator import sub

import torch
from torch import Tensor

from .forward import Triplet, fix_sign
from .gap import TieError, expected_error, near_tie, tie, warn, warn_of_gap
from .numerators import Numerator, along, antihermitian, by_entries, far, numerators, rounding, spaces
from .products import extremes, length
from .transforms import in_forward_mode, transformed

#: values within so many roundings of themselves count as equal, no more than a tie is: half as much is the residual
EQUAL = 16


def hermitian(X: Tensor) -> Tensor:
    """(X + Xᴴ)/2."""
    return (X + X.mH) / 2


def off(U: Tensor, X: Tensor) -> Tensor:
    """(I − UUᴴ)X of rows."""
    return X - (X @ U.mH) @ U


def closest(sigma: Tensor) -> float:
    """The smallest distance of two kept values, over σ₁; infinite for one."""
    if sigma.shape[-1] == 1 or sigma.numel() == 0:
        return float("inf")
    if sigma.ndim == 1:  # one look, and the rest by Python's numbers
        values: list[float] = sigma.tolist()
        return min(map(sub, values, values[1:])) / values[0] if values[0] > 0 else 0.0
    return (-sigma.diff(dim=-1).amax(-1) / sigma[..., 0]).nan_to_num(0.0).min().item()


def apart(sigma: Tensor, m: int, n: int) -> Tensor:
    """Whether σᵢ and σⱼ differ by more than rounding can make them."""
    return spaces(sigma).abs() > tie(m, n, sigma.dtype) * sigma[..., :1, None]


def in_generic_bases(found: Triplet) -> Triplet:
    """The same triplets with the vectors of equal values reflected, uⱼ − 2 Σᵢ uᵢ wᵢw̄ⱼ/‖w‖² and vⱼ alike, by a fixed w.

    What a loss of U S Vᴴ needs at a tie is in no cotangent, but in nearly every basis it shows in those of the tied
    values, which differ (see ``check_values``). The basis of a tie that a diagonal matrix comes with, or one of blocks,
    is one of the few. Its values may be some roundings of themselves apart, and as long as all of them lie within
    ``EQUAL``, the triplets stay triplets as they are mixed. A longer chain of values keeps its basis, but for copies.
    """
    sigma, U, V = found
    equal = EQUAL * torch.finfo(sigma.dtype).eps
    if closest(sigma) > equal:
        return found
    group = (-sigma.diff(dim=-1) > equal * sigma[..., :-1]).cumsum(-1)
    group = torch.cat([torch.zeros_like(group[..., :1]), group], -1)
    distance = spaces(sigma).abs()
    same = group.unsqueeze(-1) == group.unsqueeze(-2)
    chain = (same & (distance > equal * sigma.unsqueeze(-1))).any(-1, keepdim=True)  # longer than any two may be apart
    same = same & ((distance == 0) | ~(chain | chain.mT))
    tied = same.sum(-1, keepdim=True) > 1
    j = torch.arange(sigma.shape[-1], dtype=torch.float64, device=sigma.device)
    w = torch.polar(1 + (0.618034 * j).frac(), j**2)
    w = (w if U.is_complex() else w.abs()).to(U.dtype)
    lengths = (same.to(w.real.dtype) @ w.abs() ** 2).unsqueeze(-1)
    mirror = torch.where(same, w.unsqueeze(-1) * w.conj() / lengths, 0).mT
    reflected = fix_sign(U - 2 * mirror @ U, V - 2 * mirror @ V)
    return Triplet(sigma, *(torch.where(tied, x, y) for x, y in zip(reflected, (U, V))))


def divisors(sigma: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    """σⱼ − σᵢ and σᵢ + σⱼ at i, j, to divide by: infinite for two that are equal up to rounding, and for two below the
    smallest normal number, whose vectors no loss reads (``check_normal``): a complex zero over such a number is NaN.
    """
    space, total = spaces(sigma), sigma.unsqueeze(-2) + sigma.unsqueeze(-1)
    tiny = torch.finfo(sigma.dtype).tiny
    if sigma.ndim == 1 and not transformed() and closest(sigma) > tie(m, n, sigma.dtype) and extremes(sigma)[0] > tiny:
        return space.fill_diagonal_(torch.inf), total
    normal = (sigma >= tiny).unsqueeze(-2) | (sigma >= tiny).unsqueeze(-1)
    return torch.where(apart(sigma, m, n) & normal, space, torch.inf), torch.where(normal, total, torch.inf)


def turned(U: Tensor, sigma: Tensor, h: Tensor, Phi: Tensor) -> Tensor:
    """Φ + U[S, h]: what a cotangent h of the core asks of the rotation, in the form of a cotangent of U.

    Off U nothing changes. [S, h]ᵢⱼ = (σᵢ − σⱼ) hᵢⱼ.
    """
    return Phi - (spaces(sigma) * h).mT @ U


def rotation(sigma: Tensor, U: Tensor, V: Tensor, h: Tensor | None, Phi: Tensor, Psi: Tensor, eps: float) -> Tensor:
    """M of the gradient (U M + P)Vᴴ + U Qᴴ (eq-core):

    Mᵢⱼ = hᵢⱼ + (a − b)ᵢⱼ/(σᵢ + σⱼ) + wᵢⱼ/(σⱼ − σᵢ),   w = a + b + [S, h] where that is more than rounding, else 0.

    Without h, a loss of σ, U and V, the same for h = 0.
    """
    given = Phi
    if h is not None:
        Phi = turned(U, sigma, h, Phi)
    W, difference, size = numerators(U, V, Phi, Psi)
    if h is not None:  # what [S, h] adds to a − b cancels but for rounding, which a small σₖ would divide
        difference = antihermitian(along(U, given) - along(V, Psi))
    nothing: Tensor | int = 0
    if in_forward_mode():  # a numerator that is zero may have a derivative
        moving = W - W.detach()
        nothing = torch.where(far(sigma), moving, Numerator.apply(moving, U, V, Phi, Psi, eps))
    elif torch.is_grad_enabled():
        # near a tie to which the loss is blind that derivative is rounding, and would be divided by the gap twice
        nothing = torch.where(far(sigma) | (size == 0), W - W.detach(), 0)
    W = torch.where(W.abs() > rounding(U, V, Phi, Psi, size, eps), W, nothing)
    space, total = divisors(sigma, U.shape[-1], V.shape[-1])
    M = W / space + difference / total
    return M if h is None else h + M


def turning(sigma: Tensor, U: Tensor, V: Tensor, dA_V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dH, and how U and V turn within their spaces, UᴴdU and VᴴdV, from the rows dA vᵢ (eq-inside-tangent).

    With C = UᴴdA V, X⁺ᵢⱼ = (C + Cᴴ)ᵢⱼ/(σⱼ − σᵢ), zero within a tie, X⁻ᵢⱼ = (C − Cᴴ)ᵢⱼ/(σᵢ + σⱼ): UᴴdU = (X⁺ + X⁻)/2,
    VᴴdV = (X⁺ − X⁻)/2 and dH = herm C − (X⁺S − SX⁺)/2, which is diagonal but within a tie.
    """
    C = along(U, dA_V)
    both, (space, total) = hermitian(C), divisors(sigma, U.shape[-1], V.shape[-1])
    plus, minus = both / space, antihermitian(C) / total
    return both - plus * spaces(sigma), plus + minus, plus - minus


def check_inside(sigma: Tensor, U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor, eps: float) -> None:
    """Raise a TieError for a loss that sees single vectors of values that are tied; warn where they nearly are.

    Such a loss is no function of A: the vectors of a tie are any orthonormal ones of their space. A loss may be
    stationary at the triplets, as ‖A − USVᴴ‖² is: then Φ and Ψ are rounding, and what is seen of a turn is a sum of
    independent errors. Up to three standard deviations of that there is no error but a warning.
    """
    m, n = U.shape[-1], V.shape[-1]
    if closest(sigma) >= near_tie(m, n, sigma.dtype):
        return
    W, _, size = numerators(U, V, Phi, Psi)
    real, distance = W.abs() > rounding(U, V, Phi, Psi, size, eps), spaces(sigma).abs() / sigma[..., :1, None]
    real = real & ~torch.eye(sigma.shape[-1], dtype=torch.bool, device=sigma.device)
    if not (real & (distance < near_tie(m, n, sigma.dtype))).any():
        return
    tied = real & ~apart(sigma, m, n)
    a, b = length(Phi).unsqueeze(-1), length(Psi).unsqueeze(-1)
    chance = 3 * (a + a.mT).sqrt() * (b + b.mT).sqrt() / min(m, n) ** 0.5
    worst = (W.abs() / size.clamp_min(torch.finfo(size.dtype).tiny))[tied].max().item() if tied.any() else 0.0
    if eps > torch.finfo(size.dtype).eps:  # in half precision terms that cancel leave more
        chance = torch.maximum(chance, rounding(U, V, Phi, Psi, size, 20 * eps))
    if (tied & (W.abs() > chance)).any():
        raise TieError(
            "the loss depends on single vectors of singular values that are tied, which A does not determine: turning "
            f"them into each other changes it, at a relative rate of {worst:.1e}. Likely causes: one column of U or V, "
            "or different weights for the columns. Use what no turn changes, such as U Uᴴ, V Vᴴ, U Vᴴ or a sum of "
            "f(σᵢ), or low_rank for U f(S) Vᴴ"
        )
    if tied.any():
        warn(
            f"the loss seems to depend on single vectors of tied singular values, at a relative rate of {worst:.1e}, "
            "which may be rounding, as at a minimum; their turning is left out of the gradient"
        )
        return
    gap = distance[real].min().item()
    warn_of_gap(
        "the loss depends on single vectors of singular values that are close to each other", gap, m, n, sigma.dtype
    )


def check_values(sigma: Tensor, U: Tensor, V: Tensor, xi: Tensor, Phi: Tensor, Psi: Tensor) -> None:
    """Warn of a loss of U or V that tells tied values apart: what its derivative needs is in none of U, σ, V.

    Along the axes their cotangents may be alike. There most terms of a numerator are zero: what is real, and as small
    as the distance of two values, may count as rounding of whole cotangents, and exceeds that of their entries. Between
    vectors that share no entry, of a chain that ``in_generic_bases`` keeps, half an ε is more than rounding.
    """
    near = near_tie(Phi.shape[-1], Psi.shape[-1], sigma.dtype)
    if closest(sigma) >= near or not (Phi.any() or Psi.any()):
        return
    different = (xi.unsqueeze(-1) - xi.unsqueeze(-2)).abs()
    size = xi.abs().unsqueeze(-1) + xi.abs().unsqueeze(-2)
    distance = spaces(sigma).abs()
    distant = distance >= near * sigma[..., :1, None]
    worst = torch.where(distant | (size == 0), 0, different / torch.where(size == 0, 1, size)).max().item()
    W, _, lengths = numerators(U, V, Phi, Psi)
    own = torch.finfo(sigma.dtype).eps
    hidden = (W.abs() <= 4 * own * lengths) & (W.abs() > 4 * own * by_entries(U, V, Phi, Psi, lengths)) & ~distant
    hidden = hidden & (xi != 0).unsqueeze(-1) & (xi != 0).unsqueeze(-2)
    separate = (U.abs() @ U.abs().mT + V.abs() @ V.abs().mT == 0) & (distance <= EQUAL * own * sigma.unsqueeze(-1))
    hidden = hidden | separate & (W.abs() > own * lengths / 2)
    if (told := worst > 1e3 * own) or hidden.any():
        rate = f", at a relative rate of {worst:.1e}" if told else ""
        warn(
            f"the loss tells singular values apart that are tied, or nearly, or may do so{rate}. If it is a function "
            "of U S Vᴴ or U f(S) Uᴴ, the gradient lacks what (U, σ, V) cannot carry there: take them from "
            "svdgrad.low_rank. Otherwise it has no gradient at a tie, and one of many subgradients is returned"
        )


def check_again(sigma: Tensor, m: int, n: int, power: int, from_zero: bool = False) -> None:
    """Raise a TieError for a second derivative at a tie of kept values; warn where it loses digits close to one.

    The error is about ε/gapᵖ, measured for losses that are blind to turns inside: of the second derivative with p = 2
    in reverse mode over forward mode, which divides by σⱼ − σᵢ before the loss is known; with p = 3 of a third one;
    with p = d + 1 of d derivatives in nested forward modes, since each triplet has its own there, and about ε/σₖᵈ in
    units of σ₁ where zero is all that is left out, so that it counts as another value ``from_zero``. For a second one,
    forward over reverse or reverse over reverse, ``power`` is 0, and the error of a loss that is blind, or of a core,
    is 16 ε/gap at most. What others lose is told by ``check_divided``, and what reverse over reverse may lack by
    ``check_still``.
    """
    gap, eps = closest(sigma), torch.finfo(sigma.dtype).eps
    if gap <= tie(m, n, sigma.dtype):
        raise TieError(
            f"a second derivative needs kept singular values that are distinct, found a relative gap of {gap:.1e}, "
            "which is a tie up to rounding. The first derivative is given there; otherwise choose another k, or "
            "perturb A"
        )
    least = (sigma[..., -1] / sigma[..., 0]).min().item() if from_zero and sigma.numel() else 1.0
    error = max(eps / gap**power, eps / max(least, eps) ** (power - 1)) if power else 16 * eps / gap
    if error > 1e-2 and not power:
        warn(
            f"two kept singular values are close, relative gap {gap:.1e}, and a second derivative is asked for: its "
            f"relative error is up to about {error:.0e}, the most for a loss of the core of low_rank alone"
        )
    elif error > 1e-2:
        what = "the distance of two kept singular values" if gap <= least else "the last singular value"
        warn(
            "reverse mode over forward mode, forward mode inside forward mode, and third derivatives divide by "
            f"{what}, {min(gap, least):.1e} of the first, more often than the result needs: a "
            f"relative error of about {error:.0e} is to be expected. A second derivative by reverse mode "
            "over reverse mode, or by forward over reverse, as in torch.func.hessian, does not"
        )


def check_divided(sigma: Tensor, xi: Tensor, Phi: Tensor, Psi: Tensor) -> None:
    """Warn in a second derivative of a loss that reads close σ and their vectors, which may be one of U S Vᴴ.

    The numerators of such a loss are as small as the distances that divide them. A second derivative divides their
    rounding by the square of a distance, and the result is not as large. It was seen to lose from a fortieth of ε/gap²
    up to all of that.
    """
    own = torch.finfo(sigma.dtype).eps
    if closest(sigma) ** 2 > 100 * own:
        return
    read = (xi != 0) & ((Phi != 0).any(-1) | (Psi != 0).any(-1))
    distance = spaces(sigma).abs() / sigma[..., :1, None]
    close = read.unsqueeze(-1) & read.unsqueeze(-2) & (distance**2 < 100 * own)
    close = close & ~torch.eye(sigma.shape[-1], dtype=torch.bool, device=sigma.device)
    if close.any():
        gap = torch.where(close, distance, 1).min().item()
        error = own / max(gap, own) ** 2
        warn(
            f"two kept singular values are close, relative gap {gap:.1e}, and the loss reads both and their vectors. "
            "If it is a function of U S Vᴴ or U f(S) Uᴴ, its second derivative divides rounding by the square of that "
            f"gap: a relative error of up to about {min(1.0, error):.0e}. Take these from svdgrad.low_rank, which does "
            "not divide by it"
        )


def check_still(sigma: Tensor, U: Tensor, V: Tensor, Phi: Tensor, Psi: Tensor, eps: float) -> None:
    """Warn in reverse mode over reverse mode where ``rotation`` takes a loss for blind that may be stationary."""
    gap = closest(sigma)
    if gap > torch.finfo(sigma.dtype).eps ** (1 / 3):
        return
    W, _, size = numerators(U, V, Phi, Psi)
    still = ~far(sigma) & (W.abs() <= rounding(U, V, Phi, Psi, size, eps)) & (size > 0)
    if (still & ~torch.eye(sigma.shape[-1], dtype=torch.bool, device=sigma.device)).any():
        warn(
            f"two kept singular values are close, relative gap {gap:.1e}, and the loss does not change as their "
            "vectors turn into each other. It is taken to be blind to that turn, as U Uᴴ and A_k are. The second "
            "derivative of a loss that is only stationary there, as an alignment at its optimum, lacks a large part: "
            "forward mode over reverse mode, as in torch.func.hessian, has it"
        )


def check_forward(sigma: Tensor, m: int, n: int) -> None:
    """Warn of a tie among the kept values in forward mode, which does not know the loss, and of a near tie."""
    gap = closest(sigma)
    if gap <= tie(m, n, sigma.dtype):
        warn(
            "two of the kept singular values are tied: the tangents of U and V are those of a basis that does not turn "
            "within the tie, right for what no turn changes, such as U Uᴴ or U Vᴴ, and for nothing else"
        )
    elif gap < near_tie(m, n, sigma.dtype):
        error = expected_error(gap, m, n, sigma.dtype)
        warn(
            f"two kept singular values are close, relative gap {gap:.1e}, and forward mode divides by it before it "
            f"knows the loss: a relative error of about {error:.0e} is to be expected where the tangents of U, V or "
            "the core are put together, as in U Uᴴ. That of σ has none, and neither has reverse mode"
        )


def warn_of_lost() -> None:
    """Warn in forward mode of tangents that are NaN, since those triplets are tied with what is left out."""
    warn(
        "some of the kept singular values equal the first left out up to rounding: those have no derivative, and NaN "
        "for a tangent, as their vectors have; that of the others is given"
    )
