"""The solvers called by themselves, and the notebook's attempts: not only that they fail, but how."""

import numpy as np
import pytest
import torch
from families import FAMILIES, NARROW, Family, gapped, problem

from svdgrad import adjoint, matrices
from svdgrad.adjoint import ATTEMPTS, SOLVERS, assemble
from svdgrad.adjoint.krylov import _preconditioner, schur_cg
from svdgrad.forward import Triplet, lanczos, svd
from svdgrad.inputs import prepare_many
from svdgrad.lab import loss_vectors, relative_error
from svdgrad.oracles import extended
from svdgrad.products import mv, project
from svdgrad.steps import find_triplet, solve_adjoint


def solved(A, index=0):
    """The triplet, the cotangents, and the gradient in extended precision."""
    xi, phi, psi, v, truth = problem(A, index)
    triplet, _ = svd(A, index, torch.from_numpy(v))
    return triplet, xi, phi, psi, truth


def test_the_names_are_those_of_the_book():
    assert list(ATTEMPTS) == [
        "direct",
        "bordered",
        "block-inversion",
        "mixed",
        "backward-substitution",
        "forward-substitution",
    ]
    assert set(SOLVERS) == {*ATTEMPTS, "saddle", "deflated", "schur", "spectral", "doubling", "cg", "minres"}
    for way in (*SOLVERS.values(), *ATTEMPTS.values()):
        assert way.__doc__, "help() of a wrapped formula is that of the formula"


def orthogonal(name, m, n):
    """What may be left of u in p and of v in q, relative to their lengths, whatever the gap.

    A few roundings, where a projection is the last that is done. Two solvers end without one: "spectral" has u ⟂ uᵢ
    from LAPACK, "cg" has q ⟂ v from its residuals and p ⟂ u from a product with A. Either is as good as sums of m and n
    terms are, a rounding of ε/2 a term, for p and for q.
    """
    eps = torch.finfo(torch.float64).eps
    return (m + n) * eps if name in ("spectral", "cg") else 4 * eps


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("family", ["tall", "wide", "square, gap 0.1", "repeated tail", "square, rank-deficient"])
def test_the_adjoint_system_is_solved(family, seed, name):
    A = FAMILIES[family].matrix(seed=seed)
    triplet, xi, phi, psi, truth = solved(A)
    sigma, u, v = triplet
    p, q = SOLVERS[name](A, triplet, phi, psi)
    c = torch.cat([project(u, phi), project(v, psi)])
    residual = mv(matrices.K(A, sigma), torch.cat([p, q])) - c
    assert residual.norm() <= FAMILIES[family].bound(A.dtype) * c.norm()
    assert abs(u @ p) + abs(v @ q) <= orthogonal(name, *A.shape) * (p.norm() + q.norm())
    assert relative_error(assemble(triplet, xi, p, q), truth) <= FAMILIES[family].bound(A.dtype)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
def test_the_adjoint_system_of_complex_matrices_is_solved(shape, name):
    A = torch.stack(
        [torch.complex(matrices.gaussian(*shape, seed), matrices.gaussian(*shape, seed + 9)) for seed in (0, 1)]
    )
    triplet, known = svd(A)
    sigma, u, v = triplet
    phi, psi = (torch.complex(*torch.from_numpy(np.random.default_rng(k).standard_normal((2, 2, k)))) for k in shape)
    x = torch.cat(SOLVERS[name](A, triplet, phi, psi), -1)
    c = torch.cat([project(u, phi), project(v, psi)], -1)
    gap = (1 - known.S[:, 1] / sigma).min()
    assert (mv(matrices.K(A, sigma), x) - c).norm() <= 50 * torch.finfo(A.dtype).eps / gap * c.norm()


@pytest.mark.parametrize("forward", ["gram", "svd"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)], ids=str)
def test_what_lies_along_the_vectors_is_taken_off(shape, k, forward):
    """A cotangent along u or v, as of a length, leaves its rounding, an ε of it, divided by the gap at the most.

    By the known vectors alone, which are orthogonal to u and v up to several ε, more would be left.
    """
    for seed in range(5):
        A = matrices.gaussian(*shape, seed).float()
        X, how, _ = prepare_many(A, False, k, forward, "auto", None, None, None, 1e-3)
        sigma, u, v, *known = find_triplet(X, None, how)
        p, q = solve_adjoint(X, Triplet(sigma, u, v), u.clone(), v.clone(), how, "loss", known)
        S = torch.linalg.svdvals(A)
        left = torch.linalg.vector_norm(torch.cat([p, q], -1), dim=-1).max()
        assert left <= torch.finfo(A.dtype).eps / (S[k - 1] - S[k])


@pytest.mark.parametrize("name", SOLVERS)
def test_the_cotangent_may_have_any_size(name):
    A = FAMILIES["tall"].matrix(torch.float32)
    triplet, _, phi, psi, _ = solved(A)
    for a, b in ((phi, psi), (phi, 0 * psi), (0 * phi, psi)):
        p, q = SOLVERS[name](A, triplet, a, b)
        for size in (1e-30, 1e-8, 1e30):
            p_size, q_size = SOLVERS[name](A, triplet, size * a, size * b)
            torch.testing.assert_close((p_size / size, q_size / size), (p, q), rtol=1e-4, atol=1e-5)
    p_zero, q_zero = SOLVERS[name](A, triplet, 0 * phi, 0 * psi)
    assert not p_zero.any() and not q_zero.any()


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if hasattr(solver.solve, "__wrapped__")])
@pytest.mark.parametrize("family", ["tall", "wide", "square"])
def test_the_formula_has_units_of_its_own(family, name):
    """What stands in the book holds for any σ, here 7, though a formula is given A/σ and σ = 1."""
    A = FAMILIES[family].matrix()
    (sigma, u, v), _, phi, psi, _ = solved(A)
    phi, psi = project(u, phi), project(v, psi)
    found = SOLVERS[name].solve.__wrapped__(A, sigma, u, v, phi, psi)
    wanted = SOLVERS["saddle"](A, Triplet(sigma, u, v), phi, psi)
    assert relative_error(torch.cat(found), torch.cat(wanted)) <= FAMILIES[family].bound(A.dtype)


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.largest_only])
def test_a_solver_for_the_largest_value_refuses_another(name):
    A = Family(7, 5, gapped(5, 0.3)).matrix()
    triplet, _, phi, psi, _ = solved(A, index=2)
    with pytest.raises(
        ValueError, match="needs σ to be the largest singular value.*use 'saddle', 'spectral' or 'minres'"
    ):
        SOLVERS[name](A, triplet, phi, psi)


@pytest.mark.parametrize("name", ["cg", "minres"])
@pytest.mark.parametrize("shape", [(78, 48), (48, 48)], ids=str)
def test_an_iteration_much_longer_than_the_system_is_large(shape, name):
    """On Strakoš' spectrum rounding delays both methods by hundreds of steps, and what they keep of the residual may
    stray.

    A backward stable solver leaves a true residual of a few ε (‖K‖‖x‖ + ‖c‖); MINRES unrefined leaves 1e4 ε of it.
    """
    k = np.arange(47)
    eigenvalues = 1e-6 + k / 46 * (1 - 1e-6) * 0.8 ** (46 - k)  # of σ²I − AᴴA off v, crowded at the small end
    A = Family(*shape, np.r_[1, np.sqrt(1 - eigenvalues)]).matrix(seed=1)
    (sigma, u, v), _ = triplet, _ = svd(A)
    _, phi, psi = loss_vectors(A)
    x, c = torch.cat(SOLVERS[name](A, triplet, phi, psi)), torch.cat([project(u, phi), project(v, psi)])
    residual = mv(matrices.K(A, sigma), x) - c
    assert residual.norm() <= 50 * torch.finfo(A.dtype).eps * (2 * sigma * x.norm() + c.norm())


# --- how each attempt of the notebook fails --------------------------------------------------------------------------


def attempt_error(name, A):
    triplet, xi, phi, psi, truth = solved(A)
    return relative_error(assemble(triplet, xi, *ATTEMPTS[name](A, triplet, phi, psi)), truth)


GAUSSIANS = [matrices.gaussian(64, 32, seed) for seed in (0, 1, 2)]


@pytest.mark.parametrize("name", ["direct", "block-inversion"])
def test_cancelled_digits(name):
    """The equation is right, for a rank-revealing solver answers it to rounding level; gels answers with noise."""
    for A in GAUSSIANS:
        assert attempt_error(name, A) > 1e-6
        assert attempt_error(name, A.float()) > 1e-2
    triplet, xi, phi, psi, truth = solved(A)
    sigma, u, v = triplet

    def rank_revealing(M, x):
        return torch.linalg.lstsq(M, x[:, None], driver="gelsd").solution[:, 0]

    if name == "direct":
        x = rank_revealing(matrices.K(A, sigma), torch.cat([phi, psi]))
        p, q = x[:64], x[64:]
        by_gels = torch.linalg.lstsq(matrices.K(A, sigma), torch.cat([phi, psi])[:, None], driver="gels").solution[:, 0]
        null = torch.cat([u, v]) / 2**0.5
        assert abs(null @ by_gels) > 1e8 * x.norm()  # the multiple of the null vector that swallows the digits
    else:
        P, Q = matrices.P(A, sigma), matrices.Q(A, sigma)
        p = rank_revealing(P, sigma * phi) + rank_revealing(P, A @ psi)
        q = rank_revealing(Q, A.T @ phi) + rank_revealing(Q, sigma * psi)
    assert relative_error(assemble(triplet, xi, project(u, p), project(v, q)), truth) < 1e-12


def test_a_border_without_units():
    """Right at size one; at other sizes p and q lose their digits. (ξ is left out: its part of the gradient needs no
    border.)
    """
    for A in GAUSSIANS:
        for scale, (least, most) in {1.0: (0, 1e-12), 1e9: (1e-9, 10), 1e-9: (1e-9, 10)}.items():
            triplet, _, phi, psi, _ = solved(scale * A)
            truth = extended(scale * A, 0.0, phi, psi, triplet.v)
            p, q = ATTEMPTS["bordered"](scale * A, triplet, phi, psi)
            assert least <= relative_error(assemble(triplet, None, p, q), truth) < most


def test_mixed_solves_another_equation():
    """Its y solves (AAᵀ + σ⁴I) y = −Aψ to rounding level, and y is not P⁻¹Aψ: no precision could save it."""
    for A in GAUSSIANS:
        assert attempt_error("mixed", A) > 0.1
        triplet, _, _, psi, _ = solved(A)
        y = adjoint.mixed.least_squares_on_stack(A, triplet.sigma, -psi)
        assert relative_error(A @ (A.T @ y) + triplet.sigma**4 * y, -A @ psi) < 1e-12
        wanted = torch.linalg.pinv(matrices.P(A, triplet.sigma), hermitian=True, rtol=1e-10) @ (A @ psi)
        assert relative_error(project(triplet.u, y), wanted) > 0.5


@pytest.mark.parametrize("name", ["mixed", "backward-substitution", "forward-substitution"])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)], ids=str)
def test_the_equations_that_an_attempt_does_solve(shape, name):
    """Term by term, with the normal matrices of the notebook's stacks and pseudoinverses of A; so they are what they
    were.
    """
    A = matrices.gaussian(*shape, seed=3)
    triplet, _, phi, psi, _ = solved(A)
    sigma, u, v = triplet
    P, Q = (torch.linalg.pinv(M, hermitian=True, rtol=1e-10) for M in (matrices.P(A, sigma), matrices.Q(A, sigma)))
    left, right = (torch.linalg.inv(M @ M.T + sigma**4 * torch.eye(len(M)).to(A)) for M in (A, A.T))
    A_plus = torch.linalg.pinv(A)
    if name == "mixed":  # P and Q are singular: with a part along u or v the answer has no digits to compare
        phi, psi = project(u, phi), project(v, psi)
    p, q = {
        "mixed": lambda: (P @ (sigma * phi) - left @ A @ psi, Q @ (sigma * psi) - right @ A.T @ phi),
        "backward-substitution": lambda: (
            -A_plus.T @ right @ A.T @ (sigma * phi) - left @ A @ psi,
            -right @ A.T @ phi - A_plus @ left @ A @ (sigma * psi),
        ),
        "forward-substitution": lambda: (
            -left @ A @ (A_plus @ (sigma * phi) + psi),
            -right @ A.T @ (phi + A_plus.T @ (sigma * psi)),
        ),
    }[name]()
    found = torch.cat(ATTEMPTS[name](A, triplet, phi, psi))
    assert relative_error(found, torch.cat([project(u, p), project(v, q)])) < 1e-10


@pytest.mark.parametrize("name", ["backward-substitution", "forward-substitution"])
def test_substitution_solves_another_equation_and_loses_a_component(name):
    for A in (*GAUSSIANS, *(G.T.contiguous() for G in GAUSSIANS), matrices.gaussian(48, 48)):
        assert attempt_error(name, A) > 0.1
        # with the equation put right, what A cannot reach is still lost, where m ≠ n; at m = n nothing is
        lost = substitution_error(name, A)
        assert lost > 0.02 if A.shape[0] != A.shape[1] else lost < 1e-9, A.shape


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_at_a_batch_is_an_attempt_at_each(name):
    """All members are one matrix, so that even what a singular system makes of its rounding is the same in each."""
    A = matrices.gaussian(5, 3).expand(2, 4, 5, 3)
    triplet, _ = svd(A)
    phi, psi = torch.ones(5).double().expand(2, 4, 5), torch.linspace(1, 2, 3).double().expand(2, 4, 3)
    together = ATTEMPTS[name](A, triplet, phi, psi)
    alone = ATTEMPTS[name](A[0, 0], Triplet(*(x[0, 0] for x in triplet)), phi[0, 0], psi[0, 0])
    for x, y in zip(together, alone):
        torch.testing.assert_close(x, y.expand_as(x), rtol=1e-12, atol=1e-12)


def substitution_error(name, A):
    """The error of the attempt with exact inner solves in place of its own: only what it loses remains."""
    triplet, xi, phi, psi, truth = solved(A)
    sigma, u, v = triplet
    P = torch.linalg.pinv(matrices.P(A, sigma), hermitian=True, rtol=1e-10)
    Q = torch.linalg.pinv(matrices.Q(A, sigma), hermitian=True, rtol=1e-10)
    A_plus = torch.linalg.pinv(A)
    phi, psi = project(u, phi), project(v, psi)
    if name == "backward-substitution":
        p = A_plus.T @ (Q @ (sigma * A.T @ phi)) + P @ (A @ psi)
        q = Q @ (A.T @ phi) + A_plus @ (P @ (sigma * A @ psi))
    else:
        p = P @ (A @ (A_plus @ (sigma * phi))) + P @ (A @ psi)
        q = Q @ (A.T @ phi) + Q @ (A.T @ (A_plus.T @ (sigma * psi)))
    return relative_error(assemble(triplet, xi, p, q), truth)


@pytest.mark.parametrize("family", NARROW)
def test_every_solver_at_narrow_gaps_in_two_seeds(family):
    for seed in (4, 5):
        A = NARROW[family].matrix(seed=seed)
        triplet, xi, phi, psi, truth = solved(A)
        for name, solver in SOLVERS.items():
            p, q = solver(A, triplet, phi, psi)
            assert relative_error(assemble(triplet, xi, p, q), truth) <= NARROW[family].bound(A.dtype), name
            assert abs(triplet.u @ p) + abs(triplet.v @ q) <= orthogonal(name, *A.shape) * (p.norm() + q.norm()), name


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5), (2, 3, 3)], ids=str)
def test_cg_sees_a_tie_by_the_size_of_the_solution(shape):
    """One vector finds one copy, and the Ritz values do not tell of the other: what the solution must not exceed
    does.
    """
    for gap, tie in ((1e-6, True), (1e-4, False)):
        A = torch.zeros(shape)
        A[..., range(3), range(3)] = torch.tensor([1, 1 - gap, 0.5])
        u, v = torch.zeros(A.shape[:-1]), torch.zeros((*shape[:-2], shape[-1]))
        u[..., 0] = v[..., 0] = 1
        psi = v.roll(1, -1)
        triplet = Triplet(torch.ones(shape[:-2]), u, v)
        if tie:
            with pytest.raises(
                ValueError, match="the solution is larger than a relative gap above .*, a tie up to rounding, allows"
            ):
                SOLVERS["cg"](A, triplet, 0 * u, psi)
        else:
            _, q = SOLVERS["cg"](A, triplet, 0 * u, psi)
            assert q[..., 1].sub(1 / (2 * gap - gap**2)).abs().max() < 1e-2 / gap


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)], ids=str)
def test_the_preconditioner_is_exact_on_the_span_of_the_ritz_vectors(shape):
    """M⁻¹ undoes I − AᵀA/σ² as seen from within the span, and leaves alone what is orthogonal to it
    (eq-preconditioner).
    """
    A = matrices.gaussian(*shape)
    triplet, ritz = lanczos(A)
    tall = A if shape[0] > shape[1] else A.mT
    W = ritz.W[:, 1:]
    assert W.shape[1] > 2
    precondition = _preconditioner(triplet.sigma[None], ritz)
    inside = W.T @ (W - tall.T @ (tall @ W) / triplet.sigma**2)
    undone = torch.stack([W.T @ precondition(column) for column in (W @ inside).T], 1)
    assert (undone - torch.eye(W.shape[1])).abs().max() < 1e-10
    off = torch.linalg.qr(torch.cat([ritz.W, matrices.gaussian(60, 1)], 1))[0][:, -1]
    for other in (off, ritz.W[:, 0]):
        assert (precondition(other) - other).norm() < 1e-12


def test_a_batch_takes_the_steps_of_its_slowest_and_no_more():
    """One system on a CPU has a loop of its own; the other stops by the same rule."""
    batch = torch.stack([matrices.gaussian(60, 40, seed) for seed in (0, 1)])
    triplet, _ = svd(batch)
    phi, psi = project(triplet.u, torch.ones_like(triplet.u)), project(triplet.v, torch.ones_like(triplet.v))

    def products_of(which):
        A, calls = batch[which], []
        counting = lambda x: (calls.append(None), mv(A, x))[1]
        schur_cg(counting, lambda y: mv(A.mH, y), Triplet(*(x[which] for x in triplet)), phi[which], psi[which])
        return len(calls)

    alone = [products_of(i) for i in (0, 1)]
    # the two loops sum in another order, so one may stop a step, and start a round, before the other
    assert abs(products_of(slice(None)) - max(alone)) <= 2 and abs(products_of(slice(0, 1)) - alone[0]) <= 2
