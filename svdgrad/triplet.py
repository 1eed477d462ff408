"""The differentiable map A → (σ, u, v) in PyTorch: start reading here.

    A ──forward──▶ Triplet(sigma, u, v) ──loss──▶ (xi, phi, psi) ──adjoint solver──▶ (p, q) ──▶ ∂L/∂A = (ξu + p)vᴴ + uqᴴ

A method of ``svdgrad.forward`` finds the triplet, a solver of ``svdgrad.adjoint`` finds (p, q), on plain tensors and
with all that is to be looked at, in steps.py; this file ties the two steps into one ``torch.autograd.Function``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from .adjoint.saddle import refined
from .forward import KNOWN, Triplet
from .matrices import mv, outer, saddle
from .steps import (
    check_gap,
    check_phase,
    check_range,
    direction,
    find_triplet,
    full_precision,
    gradient,
    keep_phase,
    solve_adjoint,
    validate,
)


def singular_triplet(
    A: Tensor,
    index: int = 0,
    forward: str = "auto",
    adjoint: str = "auto",
    tol: float | None = None,
    maxiter: int | None = None,
    v0: Tensor | None = None,
    refine: bool = False,
) -> Triplet:
    """The singular triplet (σ, u, v) of A, differentiable: A v = σ u, Aᴴ u = σ v, ‖u‖ = ‖v‖ = 1.

    For a loss L with cotangents ξ = ∂L/∂σ, φ = ∂L/∂u, ψ = ∂L/∂v the gradient is

        ∂L/∂A = (ξu + p)vᴴ + uqᴴ,   where   K [p; q] = [(I − uuᴴ)φ; (I − vvᴴ)ψ],   K = [σI, −A; −Aᴴ, σI].

    It is finite and right whenever σ itself is simple; that other singular values coincide does not matter.

    Parameters
    ----------
    A : Tensor
        Shape (..., m, n), floating point, on any device. float16 and bfloat16 are computed in float32. Its entries, and
        the cotangents, may have any size at which σ and the gradient are normal numbers.
    index : int
        Which triplet, in descending order of σ; −1 is the smallest.
    forward : str
        How the triplet is found: "svd" (the full SVD), "gram" (eigenvectors of AᴴA or AAᴴ, whichever is smaller; index
        0),
        "lanczos" (products with A; index 0), or "auto": "svd" for another index than 0, else "gram" while one side is
        small or much the smaller (``svdgrad.steps.choose``), and "lanczos" where it is not.
    adjoint : str
        How the adjoint system is solved: a name in ``svdgrad.adjoint.SOLVERS``, or "auto": "spectral", in closed form,
        where the forward method knows all singular vectors, and "cg" after "lanczos".
    tol, maxiter : float, int, optional
        For "lanczos": it stops where ‖Aᴴu − σv‖ ≤ tol σ (default: ten times the unit roundoff), and raises a
        ConvergenceError after maxiter steps (default: min(m, n), where it ends for certain). "auto" takes them for the
        matrices for which it chooses "lanczos"; for others it needs neither. "svd" and "gram" refuse them.
    v0 : Tensor, optional
        Shape (n,) or (..., n), fixes the sign, or phase: of all pairs c(u, v) with c of modulus one, that with v0ᴴv > 0
        is returned (eq-phase).
        Without it the entry of v that is largest in modulus is positive. "lanczos" also starts from it. A constant to
        all derivatives.
    refine : bool
        Polish the triplet by a Newton step before the adjoint is solved, with one factorisation for both: the error of
        a loose forward pass then enters the gradient squared. One dense system of size m + n + 2. Not under
        torch.compile.

    Returns
    -------
    Triplet
        Named tuple of ``sigma (...)``, ``u (..., m)`` and ``v (..., n)``, with the dtype and device of A.

    Raises
    ------
    TypeError
        A is not a dense floating point tensor; index, tol, maxiter or v0 is of a type that it cannot have.
    ValueError
        A is not a matrix, has an empty side, or holds NaN or Inf; index, tol, maxiter or the shape of v0 is out of
        range; v0 is zero or not finite; an unknown name; tol or maxiter with a method that does not iterate; an index
        other than 0 with a solver that serves the largest singular value only. A is float16, and σ is above 65504, the
        largest number of float16; under torch.func and torch.compile it is Inf instead.
    TieError
        In backward, if the loss depends on u or v and σ equals another singular value up to rounding: then u and v are
        not functions of A. Also if σ is subnormal, where their derivatives, of the size of 1/σ, leave the range of
        numbers. The value, and the gradient of a loss of σ alone, are always given.
    PhaseError
        In backward, if A is complex and the loss changes with the common phase of u and v, which A does not determine
        (eq-phase-blind). Where that is by so little that it may be rounding of both cotangents, as it is for
        ‖A − σuvᴴ‖², there is no error: a loss that sees the phase in u and v together can pass for one. Its gradient is
        that at the phase described at v0, to which forward mode keeps, and what is nested in two of them.
    ConvergenceError
        "lanczos" ran out of steps; the message names the residual that was reached.
    NotImplementedError
        is_grads_batched=True.

    Warns
    -----
    NearTieWarning
        In backward, if the loss depends on u or v and σ is so close to another singular value that fewer than two
        digits of the gradient can be right. It names the gap and the error to expect.

    Notes
    -----
    Cost: forward one symmetric eigendecomposition of size min(m, n) ("gram") or two products with A a step ("lanczos");
    backward four products with a vector ("spectral") or two products with A a step ("cg"); and one rank-two update.
    The gradient grows like 1/(σ₁ − σ₂), and its relative error like ε σ₁/(σ₁ − σ₂), ε the unit roundoff.
    Backward is differentiable in turn. Source: the book, chapter *The adjoint system* (eq-adjoint-system, eq-gradient);
    for complex A the chapter *Complex matrices: a sign becomes a phase* (eq-complex-gradient).

    Examples
    --------
    >>> A = torch.tensor([[3.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> sigma, u, v = singular_triplet(A)
    >>> (sigma + u[1]).backward()
    >>> A.grad
    tensor([[1.0000, 0.1250],
            [0.3750, 0.0000]])
    """
    forward, adjoint = validate(A, index, forward, adjoint, v0, tol, maxiter)
    if refine:
        adjoint = "refined"
    work = torch.promote_types(A.dtype, torch.float32)
    X = A.to(work)
    if torch.compiler.is_compiling():
        from .compiled import triplet

        if refine:
            raise ValueError(
                "refine=True is not supported under torch.compile: call singular_triplet outside the compiled region"
            )
        sigma, u, v, *_ = triplet(X, v0, index, forward, adjoint)
        return Triplet(sigma.to(A.real.dtype), u.to(A.dtype), v.to(A.dtype))
    function: Any = _SingularTriplet if torch._C._are_functorch_transforms_active() else _Untransformed
    with full_precision(X):  # not only what is calculated now: a forward mode differentiates it on the spot
        sigma, u, v, *_ = function.apply(X, v0, index, forward, adjoint, tol, maxiter)
        if function is _SingularTriplet and (steps := _newton_steps_wanted()):
            sigma, u, v = _newton(X, sigma, u, v, v0, steps)
    check_range(sigma, A.dtype)
    return Triplet(sigma.to(A.real.dtype), u.to(A.dtype), v.to(A.dtype))


def spectral_norm(
    A: Tensor, forward: str = "auto", tol: float | None = None, maxiter: int | None = None, v0: Tensor | None = None
) -> Tensor:
    """The largest singular value σ = ‖A‖₂, differentiable: ∂σ/∂A = u vᴴ, with no system to solve and no gap needed.

    Parameters, errors and cost are those of ``singular_triplet``; shapes (..., m, n) -> (...).
    Where σ₁ repeats, u vᴴ is one of many subgradients. Source: the book (eq-dsigma).

    >>> A = torch.eye(2, requires_grad=True)
    >>> spectral_norm(A).backward()
    >>> A.grad.trace()
    tensor(1.)
    """
    return singular_triplet(A, forward=forward, tol=tol, maxiter=maxiter, v0=v0).sigma


class _SingularTriplet(torch.autograd.Function):
    """A → (σ, u, v, *known), where ``known`` is what the forward method leaves behind for the adjoint solver."""

    @staticmethod
    def forward(
        A: Tensor, v0: Tensor | None, index: int, forward: str, adjoint: str, tol: float | None, maxiter: int | None
    ) -> tuple[Tensor, ...]:
        return find_triplet(A, v0, index, forward, tol, maxiter)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        A, v0, _, ctx.forward, ctx.adjoint, *_ = inputs
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)
        ctx.v0 = v0
        ctx.save_for_backward(A, *output)
        ctx.save_for_forward(A, *output)

    @staticmethod
    def backward(
        ctx: Any, xi: Tensor | None, phi: Tensor | None, psi: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        A, sigma, u, v, *known = ctx.saved_tensors
        if phi is None and psi is None:
            # no cotangent for the vectors, no system to solve: this is why ∂σ/∂A needs no gap (eq-dsigma)
            return (None if xi is None else outer(xi.unsqueeze(-1) * u, v),) + (None,) * 6
        if any(torch._C._functorch.is_legacy_batchedtensor(x) for x in (phi, psi) if x is not None):
            raise NotImplementedError(
                "is_grads_batched=True (also torch.autograd.functional with vectorize=True) maps the backward pass in "
                "a way that "
                "no number can be looked at, and the gap has to be: use torch.func.jacrev, or torch.func.vmap over "
                "torch.func.vjp"
            )
        phi = torch.zeros_like(u) if phi is None else phi
        psi = torch.zeros_like(v) if psi is None else psi
        triplet = Triplet(sigma, u, v)
        # a function of its own only where the solve may itself be differentiated: each costs as much as a small solve
        step = _AdjointSolve.apply if torch.is_grad_enabled() else _AdjointSolve.forward
        if A.is_complex():
            if step is _AdjointSolve.forward:
                seen = check_phase(u, v, phi, psi)
            else:
                seen = True  # as far as can be known here, and kept as it is where it is not
                step(A, sigma, u, v, phi, psi, ctx.adjoint, "phase", ctx.forward, *known)
            psi = keep_phase(u, v, phi, psi, ctx.v0) if seen else psi
        if ctx.adjoint == "refined" and (phi.any() or psi.any()):
            m, n = A.shape[-2:]
            check_gap(m, n, sigma, KNOWN[ctx.forward](*known).S)
            triplet, p, q = refined(A, triplet, phi, psi)
        else:
            p, q = step(A, sigma, u, v, phi, psi, ctx.adjoint, "loss", ctx.forward, *known)
        return (gradient(triplet, xi, phi, p, q),) + (None,) * 6

    @staticmethod
    def jvp(ctx: Any, dA: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        A, sigma, u, v, *known = ctx.saved_tensors
        adjoint = "saddle" if ctx.adjoint == "refined" else ctx.adjoint
        dA_v, dA_u = mv(dA, v), mv(dA.mH, u)
        dsigma = vecdot(u, dA_v)
        du, dv = _AdjointSolve.apply(A, sigma, u, v, dA_v, dA_u, adjoint, "tangent", ctx.forward, *known)
        if A.is_complex():
            # turn the common phase so that the anchor of the sign rule stays real, then u relative to v
            # (eq-relative-phase)
            turn = -1j * _anchor(dv, v, ctx.v0).imag / _anchor(v, v, ctx.v0).real
            dv = dv + turn * v
            du = du + (turn + 1j * (dsigma.imag / sigma).unsqueeze(-1)) * u
        return (dsigma.real, du, dv) + (None,) * len(known)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        A: Tensor,
        v0: Tensor | None,
        index: int,
        forward: str,
        adjoint: str,
        tol: float | None,
        maxiter: int | None,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        A, v0 = _to_front(info.batch_size, (A, v0), in_dims[:2])
        if v0 is not None:
            v0 = v0.reshape(v0.shape[0], *(1,) * (A.ndim - v0.ndim - 1), *v0.shape[1:])
        outputs = _SingularTriplet.apply(A, v0, index, forward, adjoint, tol, maxiter)
        return outputs, (0,) * len(outputs)


class _Untransformed(torch.autograd.Function):
    """The same for plain PyTorch, where torch.func is not at work.

    A function whose context is set up apart from forward, as torch.func wants, costs 40 µs more: at 64×32 a tenth of
    all.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _SingularTriplet.forward(*inputs)
        _SingularTriplet.setup_context(ctx, inputs, output)
        return output

    backward = _SingularTriplet.backward
    jvp = _SingularTriplet.jvp


class _AdjointSolve(torch.autograd.Function):
    """(A, σ, u, v, φ, ψ) → (p, q), differentiable by the same solve, so that second derivatives need nothing new.

    The pair (p, q) belongs to the square bordered system J [p; q; λ; μ] = [φ; ψ; 0; 0], J = [K, W; Wᴴ, 0], with λ = uᴴφ
    and μ = vᴴψ. A cotangent (p̄, q̄) is pulled back by J [y; z; α; γ] = [p̄; q̄; 0; 0], the same system; then φ̄ = y,
    ψ̄ = z, and what multiplies dJ is −(y, z, α, γ)(p, q, λ, μ)ᴴ. A tangent is pushed forward by J dx = dc − dJ x.
    ``role`` says what (φ, ψ) is: "loss", "tangent", or "again" for the derivative of a solve; it decides what is looked
    at. With "phase" that is the phase of the loss, and nothing is solved.
    """

    @staticmethod
    def forward(
        A: Tensor,
        sigma: Tensor,
        u: Tensor,
        v: Tensor,
        phi: Tensor,
        psi: Tensor,
        adjoint: str,
        role: str,
        forward: str,
        *known: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return solve_adjoint(A, sigma, u, v, phi, psi, adjoint, role, KNOWN[forward](*known))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.adjoint, _, ctx.forward = inputs[:9]
        ctx.count = len(inputs)
        ctx.save_for_backward(*tensors, *output, *inputs[9:])
        ctx.save_for_forward(*tensors, *output, *inputs[9:])

    @staticmethod
    def backward(ctx: Any, p_bar: Tensor, q_bar: Tensor) -> tuple[Tensor | None, ...]:
        A, sigma, u, v, phi, psi, p, q, *known = ctx.saved_tensors
        y, z = _AdjointSolve.apply(A, sigma, u, v, p_bar, q_bar, ctx.adjoint, "again", ctx.forward, *known)
        lam, mu = vecdot(phi, u).unsqueeze(-1), vecdot(psi, v).unsqueeze(-1)
        alpha, gamma = vecdot(p_bar, u).unsqueeze(-1), vecdot(q_bar, v).unsqueeze(-1)
        A_bar = outer(y, q) + outer(p, z)
        sigma_bar = -(vecdot(y, p) + vecdot(z, q)).real
        u_bar, v_bar = -(y * lam + p * alpha), -(z * mu + q * gamma)
        # where one matrix has met a batch of right-hand sides, autograd sums over them
        return A_bar, sigma_bar, u_bar, v_bar, y, z, *(None,) * (ctx.count - 6)

    @staticmethod
    def jvp(
        ctx: Any,
        dA: Tensor | None,
        dsigma: Tensor | None,
        du: Tensor | None,
        dv: Tensor | None,
        dphi: Tensor | None,
        dpsi: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, Tensor]:
        A, sigma, u, v, phi, psi, p, q, *known = ctx.saved_tensors
        top, bottom = torch.zeros_like(p), torch.zeros_like(q)
        if dphi is not None:
            top = top + dphi
        if dpsi is not None:
            bottom = bottom + dpsi
        if dA is not None:
            top, bottom = top + mv(dA, q), bottom + mv(dA.mH, p)
        if dsigma is not None:
            top, bottom = top - dsigma.unsqueeze(-1) * p, bottom - dsigma.unsqueeze(-1) * q
        if du is not None:
            top = top - du * vecdot(u, phi).unsqueeze(-1)
        if dv is not None:
            bottom = bottom - dv * vecdot(v, psi).unsqueeze(-1)
        dp, dq = _AdjointSolve.apply(A, sigma, u, v, top, bottom, ctx.adjoint, "again", ctx.forward, *known)
        if du is not None:
            dp = dp - u * vecdot(du, p).unsqueeze(-1)
        if dv is not None:
            dq = dq - v * vecdot(dv, q).unsqueeze(-1)
        return dp, dq

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        A: Tensor,
        sigma: Tensor,
        u: Tensor,
        v: Tensor,
        phi: Tensor,
        psi: Tensor,
        adjoint: str,
        role: str,
        forward: str,
        *known: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        # one matrix with a batch of right-hand sides stays one matrix: the solvers broadcast
        phi, psi = _to_front(info.batch_size, (phi, psi), in_dims[4:6])
        matrix: Sequence[Tensor] = (A, sigma, u, v, *known)
        dims = (*in_dims[:4], *in_dims[9:])
        if any(dim is not None for dim in dims):
            matrix = _to_front(info.batch_size, matrix, dims)
            extra = (phi.ndim - 1) - matrix[1].ndim
            matrix = [x.reshape(x.shape[0], *(1,) * extra, *x.shape[1:]) for x in matrix]
        return _AdjointSolve.apply(*matrix[:4], phi, psi, adjoint, role, forward, *matrix[4:]), (0, 0)


def _newton_steps_wanted() -> int:
    """None, unless torch.func's forward modes (jvp, jacfwd) are nested: then k with 2ᵏ > d, for d derivatives under
    way.

    PyTorch drops the outer tangent inside the jvp of an autograd.Function, in silence: of what comes out only the value
    is sure to be right. k Newton steps from a right value are right to the order 2ᵏ − 1 (chapter *One Newton step*).
    """
    from torch._functorch.pyfunctorch import TransformType, retrieve_all_functorch_interpreters

    kinds = [level.key() for level in retrieve_all_functorch_interpreters()]
    if kinds.count(TransformType.Jvp) < 2:
        return 0
    return (kinds.count(TransformType.Jvp) + kinds.count(TransformType.Grad)).bit_length()


def _newton(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor, v0: Tensor | None, steps: int) -> Triplet:
    """So many Newton steps; for complex A then the common phase of the sign rule, which no equation of the triplet
    fixes.
    """
    start = v
    if A.is_complex():
        # a step forgets where it came from: to backward only rounding would come back, and pass for a loss that sees
        # the phase
        sigma, u, v = (x.detach() for x in (sigma, u, v))
    for _ in range(steps):
        sigma, u, v = _newton_step(A, sigma, u, v)
    if A.is_complex():
        anchor = _anchor(v, start, v0)
        # not torch.sgn: in torch 2.13 reverse over forward over forward mode through it is an error
        turn = anchor.abs() / anchor
        u, v = u * turn, v * turn
    return Triplet(sigma, u, v)


def _newton_step(A: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Triplet:
    """One Newton step for the triplet, of differentiable operations (eq-newton-system, with the border weight σ).

    J [du; dv; λ; μ] = −F says A(v + dv) = σ(u + du + λu) and Aᴴ(u + du) = σ(v + dv + μv), with Re uᴴdu = Re vᴴdv = 0
    for vectors of length one; its last two rows ask for Im uᴴdu = Im vᴴdv = 0 as well. So if A is complex it is λ and μ
    = λ̄ that hold what the phase of u relative to v has to move by, i Im λ (eq-relative-phase), and Re λ is what is
    left for σ: σ ← σ(1 + Re λ), u ← (1 + i Im λ)(u + du), v ← v + dv, with the mean of λ and μ̄ in place of λ. The
    error is squared.
    """
    m = A.shape[-2]
    J = saddle(A, sigma, u, v, beta=sigma)
    lengths = sigma.unsqueeze(-1) * torch.stack([vecdot(u, u) - 1, vecdot(v, v) - 1], -1) / 2
    s = sigma.unsqueeze(-1)
    F = torch.cat([s * u - mv(A, v), s * v - mv(A.mH, u), lengths], -1)
    # not torch.linalg.solve: in torch 2.13 its second forward derivative under vmap is NaN from the second matrix on
    d = mv(torch.linalg.inv(J), -F)
    u, v, lam = u + d[..., :m], v + d[..., m:-2], (d[..., -2] + d[..., -1].conj()) / 2
    if A.is_complex():
        u = u * (1 + 1j * lam.imag.unsqueeze(-1))
    return Triplet(sigma * (1 + lam.real), u, v)


def _anchor(x: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
    """What the sign rule makes positive for x = v: v0ᴴx, or the entry of x where v is largest in modulus (eq-phase)."""
    if v0 is None:
        return x.gather(-1, v.abs().argmax(-1, keepdim=True))
    along: Tensor = vecdot(direction(v0.detach()).to(v), x)
    return along.unsqueeze(-1)


def _to_front(size: int, tensors: Sequence[Any], dims: Sequence[int | None]) -> tuple[Any, ...]:
    """Each tensor with the dimension that vmap maps in front; a tensor without one is expanded, None stays None."""
    return tuple(
        x if x is None else x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims)
    )
