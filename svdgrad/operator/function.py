"""A linear function, with the matrix never formed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..products import Map, size_of
from ..transforms import (
    alive,
    in_forward_mode,
    pull_back,
    tangent,
    transformed,
    tree_unflatten,
)

LEAF = object()  # stands where a tensor was among the parts of params


def by_rows(product: Map) -> Map:
    """The product with a vector, for vectors as rows too, one by one."""
    return lambda x: product(x) if x.ndim == 1 else torch.stack([product(row) for row in x])


@dataclass(frozen=True)
class Function:
    """x ↦ matvec(params, x), and y ↦ rmatvec(params, y) where that is given; else the adjoint by autograd.

    ``leaves`` are the tensors among params, ``parts`` what params consist of, with a mark in place of each tensor.
    x has the shape of ``zero``, a tensor of zeros, and the result the shape ``out``.
    """

    matvec: Callable[[Any, Tensor], Tensor]
    rmatvec: Callable[[Any, Tensor], Tensor] | None
    parts: tuple[Any, ...]
    spec: Any
    zero: Tensor
    out: torch.Size
    leaves: tuple[Tensor, ...]
    graph: tuple[Tensor, Tensor] | None = None
    """(x, matvec(params, x)) at x = 0, with the graph between them, walked backwards for every product with Aᴴ"""
    seen: tuple[Tensor, float] | None = None
    """what A made of the first vector that ``pull`` takes, and the relative error of that, if known; not of others"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.out.numel(), self.zero.numel()

    @property
    def vector(self) -> Tensor:
        return self.zero

    def at(self, leaves: Sequence[Tensor]) -> Function:
        return replace(self, leaves=tuple(leaves), seen=None)

    def params(self) -> Any:
        """What ``matvec`` takes: the leaves back in their places."""
        leaves = iter(self.leaves)
        return tree_unflatten([next(leaves) if x is LEAF else x for x in self.parts], self.spec)

    def mv(self, x: Tensor) -> Tensor:
        return by_rows(lambda x: self.matvec(self.params(), x.reshape(self.zero.shape)).reshape(-1))(x)

    def rmv(self, y: Tensor) -> Tensor:
        # not by rmatvec, which may read from elsewhere what it should be differentiated by
        _, back = pull_back(self.mv, self.zero.reshape(-1))
        return by_rows(lambda y: back(y)[0])(y)

    def products(self) -> tuple[Map, Map]:
        plain = self.at([x.detach() for x in self.leaves])
        x, y = self.graph or plain.with_graph()
        params = plain.params()  # once: to put a tree together costs as much as a small product

        def forth(w: Tensor) -> Tensor:
            with torch.no_grad():
                try:
                    return self.matvec(params, w.reshape(self.zero.shape)).reshape(-1)
                except RuntimeError as error:
                    if "does not require grad" not in str(error):
                        raise
                    raise RuntimeError(
                        "matvec takes a derivative of its own by torch.autograd.grad, which finds no graph: the "
                        "iteration needs numbers only, and calls matvec with params that require no gradient. Take "
                        "the derivative by torch.func.grad, jvp or vjp, which need no graph"
                    ) from error

        if (rmatvec := self.rmatvec) is not None:

            def adjoint(w: Tensor) -> Tensor:
                with torch.no_grad():
                    found = rmatvec(params, w.reshape(self.out))
                if not isinstance(found, Tensor) or found.shape != self.zero.shape or found.dtype != w.dtype:
                    what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else found
                    raise TypeError(
                        f"rmatvec(params, y) must return a tensor like v0, {w.dtype} of shape "
                        f"{tuple(self.zero.shape)}, found {what}"
                    )
                return found.reshape(-1)

            return by_rows(forth), by_rows(adjoint)

        def back(w: Tensor) -> Tensor:
            along: Tensor | None = None
            if y.requires_grad:
                (along,) = torch.autograd.grad(y, x, w.reshape(self.out), retain_graph=True, allow_unused=True)
            if along is None:  # a function that does not depend on x is zero
                if forth(torch.ones_like(x).reshape(-1)).any():
                    raise ValueError(
                        "matvec must be differentiable in x, whose adjoint autograd then is, found no connection: "
                        "likely causes: detach(), .data, numpy or no_grad inside matvec. Or give the adjoint as rmatvec"
                    )
                along = torch.zeros_like(x)
            return along.reshape(-1)

        return by_rows(forth), by_rows(back)

    def first(self, x: Tensor) -> Tensor:
        """matvec(params, x), or an error that says more than that of the operation that failed."""
        try:
            y = self.matvec(self.params(), x)
        except RuntimeError as error:
            numbers = [leaf for leaf in self.leaves if leaf.is_floating_point() or leaf.is_complex()]
            found = {(str(leaf.dtype), str(leaf.device)) for leaf in numbers} - {(str(x.dtype), str(x.device))}
            if not found:
                raise
            raise TypeError(
                f"matvec(params, x) must take an x like v0, {x.dtype} on {x.device}, found params of "
                f"{', '.join(f'{dtype} on {device}' for dtype, device in sorted(found))}, and an error in it: {error}. "
                "Convert v0 or the params"
            ) from error
        _check_result(x, y)
        return y

    def with_graph(self) -> tuple[Tensor, Tensor]:
        """x = 0 and matvec(params, x), with the graph between them; an error for what is seen not to be linear."""
        x = torch.zeros_like(self.zero).requires_grad_()
        with torch.enable_grad():
            y = self.first(x)
        if not torch.isfinite(y).all():
            if all(x.layout == torch.strided and torch.isfinite(x.detach()).all() for x in self.leaves):
                raise ValueError(
                    "matvec(params, 0) must be 0, found NaN or Inf, and none in params: likely cause: a division by "
                    "the size of x, which is not linear in x"
                )
            raise ValueError(
                "matvec(params, 0) must be 0, found NaN or Inf: likely cause: they are in params; look upstream for "
                "the first"
            )
        if y.detach().any():
            raise ValueError(
                "matvec must be linear in x, found matvec(params, 0) ≠ 0: likely cause: a bias; leave it out"
            )
        if x.is_complex():
            _check_complex(self)
        return x, y

    def moved(self, wanted: Sequence[bool], leaves: Iterable[Tensor]) -> Function:
        """The same with these in place of the leaves that are wanted."""
        given = iter(leaves)
        return self.at([next(given) if want else x for x, want in zip(self.leaves, wanted)])

    def pull(self, X: Sequence[Tensor], Y: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        def value(*chosen: Tensor) -> Tensor:
            A = self.moved(wanted, chosen)
            images = [A.mv(y) for y in Y]
            self.check_seen(images[0])
            terms = [vecdot(x, Ay).real for x, Ay in zip(X, images)]
            return torch.stack(terms).sum()

        chosen = [alive(x) for x, w in zip(self.leaves, wanted) if w]
        found: Iterator[Tensor | None]
        if transformed():
            f, back = pull_back(value, *chosen)
            found = iter(back(torch.ones_like(f)))
        else:
            again = torch.is_grad_enabled() or in_forward_mode()
            with torch.enable_grad():
                # views, so that a leaf that was made from another leaf is not followed back to it
                views = [x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_() for x in chosen]
                found = iter(torch.autograd.grad(value(*views), views, create_graph=again, allow_unused=True))
        return tuple(next(found) if w else None for w in wanted)

    def check_seen(self, image: Tensor) -> None:
        """Raise an error where A v is no longer what it was: at no further product, since ``pull`` asks for A v."""
        if self.seen is None or transformed():
            return
        seen, error = self.seen
        unit = size_of(seen.reshape(-1), image.detach().reshape(-1))  # or squares would leave the range of numbers
        seen, image = seen / unit, image.detach() / unit
        size, change = vector_norm(seen).item(), vector_norm(image - seen).item()
        eps = torch.finfo(image.dtype).eps
        # below that size some terms of a product are subnormal, or taken for zero
        least = torch.finfo(image.dtype).tiny / eps / unit.item()
        if not change <= (eps**0.5 + 2 * error) * max(size, least):
            raise ValueError(
                "A must be the same in backward as it was in the call, found that A v has changed by "
                f"{change / size if size else change:.1e} of its size: likely causes: a weight or another of params "
                "whose numbers were replaced since, by .data = …; a tensor or a number that matvec reads from "
                "elsewhere, and that was replaced or updated; a counter, dropout. Pass what changes in params, or call "
                "backward before it changes"
            )

    def push(self, dleaves: Sequence[Tensor | None]) -> Tangent:
        return Tangent(self, tuple(dleaves))


@dataclass(frozen=True)
class Tangent:
    """dA of a function: how its products move with its leaves; a leaf whose tangent is None stands still."""

    A: Function
    dleaves: tuple[Tensor | None, ...]

    def mv(self, x: Tensor) -> Tensor:
        return self._of(lambda A: A.mv(x))

    def rmv(self, y: Tensor) -> Tensor:
        return self._of(lambda A: A.rmv(y))

    def _of(self, product: Callable[[Function], Tensor]) -> Tensor:
        moves = [d is not None for d in self.dleaves]
        chosen = [x for x, move in zip(self.A.leaves, moves) if move]
        along = lambda *leaves: product(self.A.moved(moves, leaves))
        return tangent(along, chosen, [d for d in self.dleaves if d is not None])


def _check_complex(A: Function) -> None:
    """A(ix) = iAx tells a complex matrix from a function that is linear in real numbers only, such as a conjugate."""
    x = torch.linspace(1, 2, A.zero.numel(), dtype=A.zero.real.dtype, device=A.zero.device).to(A.zero.dtype)
    with torch.no_grad():
        y, turned = A.mv(x), A.mv(1j * x)
    if not (turned - 1j * y).abs().sum() <= torch.finfo(y.dtype).eps ** 0.5 * y.abs().sum():
        raise ValueError(
            "matvec must be linear in x for complex numbers, found matvec(params, ix) ≠ i matvec(params, x): likely "
            "causes: a conjugate, a real or an imaginary part of x"
        )


def _check_result(x: Tensor, y: Any) -> None:
    if not isinstance(y, Tensor):
        raise TypeError(f"matvec(params, x) must return a tensor, found {type(y).__name__}")
    if y.dtype != x.dtype:
        to_complex = y.is_complex() and not x.is_complex()
        advice = "start from a complex v0" if to_complex else f"convert the parameters to {x.dtype}, or v0"
        raise TypeError(f"matvec must return the dtype of v0, found {y.dtype} for {x.dtype}: {advice}")
    if y.numel() == 0:
        raise ValueError(f"matvec must return at least one entry, found shape {tuple(y.shape)}")
