"""An orthonormal basis that grows by a vector a step, or by rows, the noise that an iteration starts from, and when it
is looked at.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

_SEED = 1_936_024_167


def noise(size: int, like: Tensor, seed: int = 0) -> Tensor:
    """Seeded normal numbers, real or complex, of length about one, the same on every device."""
    dtype = torch.complex128 if like.is_complex() else torch.float64
    # no seed that a caller may have taken, whose A would hold these very numbers; devices named, since another may be
    # the default
    generator = torch.Generator("cpu").manual_seed(_SEED + seed)
    return torch.randn(size, generator=generator, dtype=dtype, device="cpu").div_(size**0.5).to(like)


class Basis:
    """Orthonormal vectors as the rows of one tensor, which doubles when it is full, ``first`` after those ``before``
    it; and the tridiagonal matrix T that AᴴA is in those from ``first`` on. ``size_of_operator`` is what rounding
    is judged by where A may be small off ``before``: a lower bound of ‖AᴴA‖.
    """

    def __init__(self, first: Tensor, before: Tensor | None = None, size_of_operator: float = 0.0) -> None:
        self.size = 1 if before is None else len(before) + 1
        # memory is taken as rows are written: a first megabyte is free, and spares most from being moved
        self.array = first.new_empty((max(16, 2 * self.size, 2**18 // first.numel()), first.numel()))
        if before is not None:
            self.array[: len(before)] = before
        self.array[self.size - 1] = first
        self.largest: Any = size_of_operator
        self.diagonal: list[Any] = []
        self.off: list[Any] = []

    def rows(self, size: int | None = None) -> Tensor:
        return self.array[: size or self.size]

    def last(self) -> Tensor:
        return self.array[self.size - 1]

    def extend(self, w: Tensor) -> None:
        """Append w = AᴴA v, v the last row, without its components along the rows, at length one; T gets its component
        along v on the diagonal, and that length beside it.

        In exact arithmetic AᴴA v has components along the last two rows only. They are taken off first, so that what is
        left of the others is taken off a vector of its own size. Where that is small, it is rounding for the most part,
        and needs a second round. On a GPU it always gets one, since to look at the length would make the GPU wait, and
        the two stay there; on a CPU they are Python's numbers, with which the calls that follow cost half.
        """
        rows = self.rows()
        w, along = _off(rows[-2:], w)
        w, _ = _off(rows, w)
        alpha: Any = along[-1].real
        length: Any = vector_norm(w)
        if w.is_cpu:
            alpha, length = alpha.item(), length.item()
        if not w.is_cpu or length < 0.1 * abs(alpha):
            w, _ = _off(rows, w)
            length = vector_norm(w).item() if w.is_cpu else vector_norm(w)
        # what is left of an exhausted space is rounding, to which no vector can be made orthogonal: it ends in zeros
        rounding = 4 * torch.finfo(w.dtype).eps
        if w.is_cpu:
            self.largest = max(self.largest, abs(alpha))
            if length <= rounding * self.largest:
                w, length = torch.zeros_like(w), 0.0
        else:
            self.largest = alpha.abs().clamp_min(self.largest)
            length = length * (length > rounding * self.largest)
            w = w * (length > 0)
        if self.size == len(self.array):
            rows, self.array = self.array, w.new_empty((2 * self.size, w.numel()))
            self.array[: self.size] = rows
        torch.div(w, length + 1e-37, out=self.array[self.size])  # a vector of zeros stays one
        self.size += 1
        self.diagonal.append(alpha)
        self.off.append(length)

    def tridiagonal(self) -> tuple[Tensor, Tensor]:
        """The diagonal of T and what is beside it, the last of which leads out of the space, in float64 on the CPU;
        from a GPU in one piece.
        """
        xs = self.diagonal + self.off
        if isinstance(xs[0], Tensor):
            found = torch.stack(xs).double().cpu()
        else:
            found = torch.tensor(xs, dtype=torch.float64, device="cpu")
        return found[: len(self.off)], found[len(self.off) :]


def eigenpairs(diagonal: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of T, ascending, and their vectors as columns."""
    values, Y = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off[:-1], -1))
    return values, Y


def _off(rows: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    along = torch.mv(rows, w.conj()).conj()
    return torch.addmv(w, rows.mT, along, alpha=-1), along


def orthonormal(W: Tensor, rows: Tensor, near: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(C, R, Q) with W = C·rows + R Q, the rows of Q orthonormal and orthogonal to ``rows``.

    In exact arithmetic W has components along the last ``near`` rows only; see ``Basis.extend``. Where nothing but
    rounding is left of a row, noise takes its place, since what a QR factorisation makes of zeros are the first axes,
    which may lie along ``rows``. Where what is left of a row is small, it is rounding for the most part, and needs
    another round. On a GPU there are always two, since to look at a number would make it wait.
    """
    length = vector_norm(W, dim=1).max()
    size = length.item() if W.is_cpu else 0.0
    close, W = _off_rows(rows[len(rows) - near :], W)
    C, rest = _off_rows(rows, W)
    C[:, len(rows) - near :] += close
    R, W = _qr(rest)
    nothing = R.diagonal().abs() <= 10 * torch.finfo(length.dtype).eps * length
    filled = not W.is_cpu or bool(nothing.any())
    if filled:
        some = noise(W.numel(), W, seed=2).view_as(W) * torch.where(length > 0, length, 1)
        _, W = _qr(torch.where(nothing.unsqueeze(1), some, rest))
        size = math.inf  # which asks for another round, off rows
    left = R
    for _ in range(3 if W.is_cpu else 1):
        if W.is_cpu and left.diagonal().abs().min().item() >= 0.1 * size:
            break
        D, W = _off_rows(rows, W)
        left, W = _qr(W)
        C, R, size = C + R @ D, R @ left, 5.0
    return (C, rest @ W.mH, W) if filled else (C, R, W)


def _off_rows(rows: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    along = W @ rows.mH
    return along, torch.addmm(W, along, rows, alpha=-1)


def _qr(W: Tensor) -> tuple[Tensor, Tensor]:
    """W = R Q with orthonormal rows of Q."""
    Q, R = torch.linalg.qr(W.mT)
    return R.mT, Q.mT


def over(x: float, allowed: float) -> float:
    """x/allowed, where zero is allowed even if nothing is."""
    return x / allowed if allowed > 0 else math.inf if x > 0 else 0.0


def steps_to_go(history: list[tuple[int, float]], step: int, excess: float, least: int) -> int:
    """From ``least`` to step/4 + 3: as many as the ``excess`` needs to fall to one, at its rate since the last look."""
    most = step // 4 + 3
    history.append((step, excess))
    if len(history) < 2 or not 0 < excess < history[-2][1]:
        return most
    rate = math.log(history[-2][1] / excess) / (step - history[-2][0])
    return max(least, min(most, math.ceil(math.log(excess) / rate)))
