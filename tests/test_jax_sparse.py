"""A sparse matrix as A in JAX: the dense matrix with the same entries is the witness, under every transform."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from marks import slow_but

import svdgrad.jax as sj
from svdgrad.lab import relative_error

EPS = 2.0**-52
SHAPES = [(6, 4), (4, 6), (5, 5)]


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, complex_=False, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


class Problem:
    """The entries θ of a sparse matrix, some at one place and some at places outside, and the dense matrix of θ."""

    def __init__(self, shape, complex_=False, padded=True):
        self.shape = m, n = shape
        places = np.argwhere(np.random.default_rng(1).random(shape) < 0.7)
        outside = [[m, n], [m, 0], [0, n], [m + 3, 1]] if padded else []
        self.inside = len(places) + 2
        self.indices = jnp.asarray(np.concatenate([places, places[:2], np.array(outside, int).reshape(-1, 2)]))
        theta = normal(len(self.indices), complex_=complex_)
        theta[0] += 6  # a wide gap, so that every tolerance is a few roundings
        self.theta = jnp.asarray(theta)
        self.weights = [jnp.asarray(normal(size, complex_=complex_, seed=k + 2)) for k, size in enumerate((m, n, m, n))]

    def sparse(self, theta):
        return sparse.BCOO((theta, self.indices), shape=self.shape)

    def dense(self, theta):
        rows, columns = self.indices[: self.inside].T
        return jnp.zeros(self.shape, theta.dtype).at[rows, columns].add(theta[: self.inside])

    def loss(self, triplet):
        """Sees σ, u and v, and, if they are complex, not their common phase."""
        sigma, u, v = triplet
        a, b, c, d = self.weights
        return sigma**2 + (jnp.vdot(u, a) * jnp.vdot(b, v)).real + jnp.abs(jnp.vdot(u, c) * jnp.vdot(d, v)) ** 2


def push(f):
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def mapped(f):
    return lambda x: jax.vmap(f)(jnp.stack([x, 2 * x, -x]))


def summed(f):
    return lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])).sum()


TRANSFORMS = {
    "value": lambda f: f,
    "jit": jax.jit,
    "grad": jax.grad,
    "jit grad": lambda f: jax.jit(jax.grad(f)),
    "jvp": push,
    "vmap": mapped,
    "vmap grad": lambda f: mapped(jax.grad(f)),
    "grad vmap": lambda f: jax.grad(summed(f)),
    "vmap jvp": lambda f: mapped(push(f)),
    "jvp grad": lambda f: push(jax.grad(f)),
    "grad jvp": lambda f: jax.grad(push(f)),
    "grad grad": lambda f: jax.grad(lambda x: (jax.grad(f)(x).real ** 2).sum()),
}
SLOW = {
    "hessian": jax.hessian,
    "vmap hessian": lambda f: mapped(jax.hessian(f)),
    "jacrev jacrev": lambda f: jax.jacrev(jax.jacrev(f)),
}


def agree(name, shape, complex_):
    p, transform = Problem(shape, complex_), (TRANSFORMS | SLOW)[name]
    truth = transform(lambda theta: p.loss(sj.singular_triplet(p.dense(theta))))(p.theta)
    found = transform(lambda theta: p.loss(sj.singular_triplet(p.sparse(theta))))(p.theta)
    assert relative_error(found, truth) <= 1e4 * EPS


@pytest.mark.parametrize("name", slow_but([("vmap grad",)], [("jit grad",), ("jvp",), ("vmap grad",), ("grad grad",)]))
def test_a_transform_of_the_entries_is_that_of_the_matrix(name):
    agree(name, (6, 4), False)


@pytest.mark.slow
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TRANSFORMS | SLOW)
def test_every_transform_in_every_shape(name, shape, complex_):
    if not (complex_ and name in SLOW):  # jax.hessian is for real functions of real numbers
        agree(name, shape, complex_)


@pytest.mark.parametrize(("shape", "complex_"), [((4, 6), True)], ids=str)
def test_the_gradient_has_the_pattern_of_the_matrix(shape, complex_):
    """jax.grad by a BCOO matrix, and JAX's own grad for sparse matrices, which returns one."""
    p = Problem(shape, complex_)
    loss, M = (lambda M: p.loss(sj.singular_triplet(M))), p.sparse(p.theta)
    truth = jax.grad(lambda theta: p.loss(sj.singular_triplet(p.dense(theta))))(p.theta)
    G = jax.jit(jax.grad(loss, allow_int=True))(M)
    assert isinstance(G, sparse.BCOO) and relative_error(G.data, truth) <= 1e4 * EPS
    G = sparse.grad(loss)(M)
    assert isinstance(G, sparse.BCOO) and (G.indices == M.indices).all()
    assert relative_error(G.data, truth) <= 1e4 * EPS
    assert not G.data[p.inside :].any()  # of the padding


@pytest.mark.slow
def test_a_number_beside_padding_is_none():
    p = Problem((6, 4))
    theta = p.theta.at[p.inside :].set(jnp.nan)
    G = jax.grad(lambda theta: p.loss(sj.singular_triplet(p.sparse(theta))))(theta)
    truth = jax.grad(lambda theta: p.loss(sj.singular_triplet(p.dense(theta))))(p.theta)
    assert relative_error(G, truth) <= 1e4 * EPS
    M = sparse.BCOO((theta[p.inside :], p.indices[p.inside :]), shape=p.shape)
    assert sj.spectral_norm(M) == 0
    assert sj.spectral_norm(sparse.empty((3, 2))) == 0


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16])
def test_a_side_may_be_longer_than_the_indices_count(dtype):
    n = int(jnp.iinfo(dtype).max) + 45
    indices = jnp.stack(2 * [jnp.arange(100)], 1).astype(dtype)
    sigma = sj.spectral_norm(sparse.BCOO((jnp.arange(1.0, 101.0), indices), shape=(n, n)))
    assert abs(sigma - 100) < 1e-12


def test_a_batch_of_sparse_matrices_is_mapped_over():
    p = Problem((6, 4))
    M = sparse.bcoo_concatenate([p.sparse(c * p.theta)[None] for c in (1, 2)], dimension=0)
    M = sparse.bcoo_update_layout(M, n_batch=1)
    with pytest.raises(ValueError, match=r"one matrix \(m, n\) of numbers, found shape \(2, 6, 4\) with n_batch=1 and"):
        sj.singular_triplet(M)
    sigma = sj.spectral_norm(p.dense(p.theta))
    np.testing.assert_allclose(jax.vmap(sj.spectral_norm)(M), [sigma, 2 * sigma], rtol=1e-14)
    G = jax.vmap(lambda M: jax.grad(sj.spectral_norm, allow_int=True)(M).data)(M)
    for g, M_i in zip(G, (sparse.BCOO((x, i), shape=p.shape) for x, i in zip(M.data, M.indices))):
        assert relative_error(g, jax.grad(sj.spectral_norm, allow_int=True)(M_i).data) <= 100 * EPS


def test_options_reach_the_iteration():
    p = Problem((6, 4))
    M, v0 = p.sparse(p.theta), jnp.ones(4)
    assert sj.singular_triplet(M, v0=-v0).v.sum() < 0
    assert jnp.isnan(sj.spectral_norm(M, maxiter=1))
    assert abs(sj.spectral_norm(M, "lanczos", 1e-3, 9, v0, None) / sj.spectral_norm(M) - 1) < 1e-3


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_dtype_of_the_entries(dtype):
    p = Problem((6, 4))
    theta = p.theta.astype(dtype)
    sigma, u, v = sj.singular_triplet(p.sparse(theta))
    assert {sigma.dtype, u.dtype, v.dtype} == {jnp.dtype(dtype)}
    assert jax.grad(lambda theta: sj.singular_triplet(p.sparse(theta)).u[0])(theta).dtype == dtype


def test_a_tie_gives_nan_and_sigma_has_a_gradient():
    M = sparse.BCOO.fromdense(jnp.eye(3))
    of = lambda x: sj.singular_triplet(sparse.BCOO((x, M.indices), shape=M.shape))
    assert jnp.isnan(jax.grad(lambda x: of(x).u[0])(M.data)).all()
    np.testing.assert_allclose(jax.grad(lambda x: of(x).sigma)(M.data).sum(), 1, rtol=1e-14)


def test_what_xla_takes_for_zero_gives_nan():
    M = sparse.BCOO.fromdense(jnp.asarray(normal(4, 3)))
    M = sparse.BCOO((jnp.asarray(np.asarray(M.data * 1e-40, np.float32)), M.indices), shape=M.shape)
    assert jnp.isnan(sj.spectral_norm(M))


@pytest.mark.parametrize(
    "derivative",
    [jax.grad, lambda f: jax.vmap(jax.grad(f)), lambda f: jax.grad(lambda x: jax.vmap(f)(x).sum())],
    ids=["grad", "vmap grad", "grad vmap"],
)
def test_nothing_dense_is_formed(derivative):
    """The largest array of the program is the basis of the iteration, 49 vectors, and a thousandth of the matrix."""
    size, count, batch = 50000, 1000, 1 if derivative is jax.grad else 2
    rng = np.random.default_rng(0)
    indices = jnp.asarray(rng.integers(0, size, (count, 2)))
    loss = lambda x: sj.singular_triplet(sparse.BCOO((x, indices), shape=(size, size))).u[0]
    x = jax.ShapeDtypeStruct((count,) if batch == 1 else (batch, count), jnp.float64)
    program = jax.jit(derivative(loss)).lower(x).as_text()
    shapes = re.findall(r"tensor<((?:\d+x)+)", program)
    arrays = [np.prod([int(side) for side in shape.split("x")[:-1]]) for shape in shapes]
    assert 49 * size <= max(arrays) <= 2 * 49 * size * batch


EYE = sparse.BCOO.fromdense(np.eye(3, dtype=np.float32))
ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("error", "message", "A", "how"),
    [
        (ValueError, r"index must be 0, .* found 1: .* A.todense\(\)", EYE, {"index": 1}),
        (ValueError, "index must be 0", EYE, {"index": -1}),
        (TypeError, "index must be an integer", EYE, {"index": 0.0}),
        (ValueError, "forward must be 'auto' or 'lanczos' for a sparse A, .* found 'svd'", EYE, {"forward": "svd"}),
        (ValueError, "forward must be 'auto' or 'lanczos'", EYE, {"forward": "gram"}),
        (ValueError, "adjoint must be 'auto' or 'cg' .* found 'spectral'", EYE, {"adjoint": "spectral"}),
        (ValueError, "adjoint must be 'auto' or 'cg'", EYE, {"adjoint": "magic"}),
        (ValueError, "tol must be 0 or more", EYE, {"tol": -1.0}),
        (ValueError, "maxiter must be at least 1", EYE, {"maxiter": 0}),
        (ValueError, "missed must be a probability", EYE, {"missed": 0.0}),
        (ValueError, "v0 must have 3 entries", EYE, {"v0": ONES[:2]}),
        (ValueError, "v0 must be one vector", EYE, {"v0": np.ones((2, 3), np.float32)}),
        (TypeError, "v0 must be real for a real A", EYE, {"v0": 1j * ONES}),
        (TypeError, "floating point, found int32", sparse.BCOO.fromdense(np.eye(3, dtype=np.int32)), {}),
        (ValueError, "at least one row and one column", sparse.empty((0, 3)), {}),
        (ValueError, r"one matrix .* n_batch=1", sparse.BCOO.fromdense(np.ones((2, 3, 3), np.float32), n_batch=1), {}),
        (ValueError, r"one matrix .* n_dense=1", sparse.BCOO.fromdense(np.ones((3, 3), np.float32), n_dense=1), {}),
        (ValueError, r"one matrix .* shape \(3,\)", sparse.BCOO.fromdense(ONES), {}),
        (TypeError, r"a BCOO matrix, found BCSR: convert it, with A.to_bcoo\(\)", sparse.BCSR.from_bcoo(EYE), {}),
    ],
    ids=lambda x: x[:24] if isinstance(x, str) else "",
)  # fmt: skip
def test_what_a_sparse_matrix_cannot_have_is_named(error, message, A, how):
    with pytest.raises(error, match=message):
        sj.singular_triplet(A, **how)
    with pytest.raises(error, match=message):
        jax.jit(lambda A: sj.singular_triplet(A, **how))(A)
