"""What an operator of JAX must be, a linear map with its own adjoint, and what becomes of one that is not."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_devices import output_on_four_devices
from jax import lax
from marks import slow_but

import svdgrad.jax as sj
from svdgrad.jax.nn import gain_step, init_state, operator_norm, upper_bound
from svdgrad.jax.operators import operator_of


def normal(*shape, dtype=np.float32):
    X = np.random.default_rng(0).standard_normal((2, *shape))
    return jnp.asarray(X[0] + 1j * X[1] if np.dtype(dtype).kind == "c" else X[0], dtype)


def quantised(x):
    return (jnp.round(x * 127).astype(jnp.int8) / 127).astype(x.dtype)


def solved(A, x):
    """A is not symmetric, but JAX is told so."""
    return lax.custom_linear_solve(lambda y: A @ y, x, lambda _, b: jnp.linalg.solve(A, b), symmetric=True)


#: maps with a transpose that is not their adjoint
MAPS = {
    "quantised": (lambda A, x: A @ quantised(x), np.float32),
    "partly quantised": (lambda A, x: A @ x + A @ quantised(x), np.float32),
    "real part": (lambda A, x: A @ (x.real + 0j), np.complex64),
    "conjugate": (lambda A, x: A @ x.conj(), np.complex64),
    "symmetric in name": (solved, np.float32),
}
CALLS = {
    "triplet": lambda f, A: sj.operator_triplet(f, A, jnp.ones(4, A.dtype)).sigma,
    "triplets": lambda f, A: sj.operator_triplets(f, A, jnp.ones(4, A.dtype), 2).sigma[0],
    "norm": lambda f, A: operator_norm(f, A, 4),
    "gain": lambda f, A: gain_step(f, A, init_state(4, A.dtype))[0],
    "bound": lambda f, A: upper_bound(f, A, 4, failure=0.1),
}


@pytest.mark.parametrize(
    ("name", "call"),
    slow_but(
        [*((name, "triplet") for name in MAPS), ("quantised", "norm")],
        [(name, call) for name in MAPS for call in CALLS],
    ),
)
def test_a_map_that_is_not_linear_is_named_and_nan_under_jit(name, call):
    f, dtype = MAPS[name]
    A = normal(4, 4, dtype=dtype)
    with pytest.raises(ValueError, match="not linear"):
        CALLS[call](f, A)
    assert jnp.isnan(jax.jit(lambda A: CALLS[call](f, A))(A))


@pytest.mark.parametrize(
    ("scale", "dtype"), slow_but([(1e-30, np.float32)], product([1e-30, 1e-3, 1e30], [np.float32, np.complex64]))
)
def test_no_linear_map_is_taken_for_another(scale, dtype):
    """Of rank one, wide and tall, at any scale; and one that rounds to half precision within."""
    for m, n in ((1, 90), (90, 1), (7, 5)):
        A = scale * jnp.outer(normal(m, dtype=dtype), normal(n, dtype=dtype))
        v0 = jnp.ones(n, dtype)
        sigma = sj.operator_triplet(lambda A, x: A @ x, A, v0).sigma
        assert (
            abs(sigma / (scale * np.linalg.norm(normal(m, dtype=dtype)) * np.linalg.norm(normal(n, dtype=dtype))) - 1)
            < 1e-5
        )


def in_half(W, x):
    """A matrix product as a GPU or TPU may form it."""
    return (W.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)).astype(x.dtype)


@pytest.mark.slow
def test_a_layer_may_round_to_half_precision_within():
    for m, n in ((4, 4), (3, 50), (40, 6)):
        for seed in range(10):
            W = jax.random.normal(jax.random.key(seed), (m, n))
            b = jax.random.normal(jax.random.key(seed + 50), (m,))
            sigma = operator_norm(lambda p, x: in_half(p[0], x) + p[1], (W, b), n, tol=1e-2)
            assert abs(sigma / jnp.linalg.norm(W, 2) - 1) < 0.02


def test_the_look_costs_one_product_and_one_transpose():
    A = normal(5, 4)
    steps = str(jax.make_jaxpr(lambda A: operator_of(lambda A, x: A @ x, A, jnp.ones(4))[2])(A))
    # beside matvec(params, 0), and the two inner products that are compared
    assert steps.count("dot_general") == 1 + 2 + 2, steps


@jax.tree_util.register_pytree_node_class
class Sequential:
    """As Equinox has its layers: every field is a leaf, of whatever type."""

    def __init__(self, *fields):
        self.weight, self.activation, self.inference, self.rate, self.name = self.fields = fields

    def tree_flatten(self):
        return self.fields, None

    @classmethod
    def tree_unflatten(cls, _, fields):
        return cls(*fields)

    def __call__(self, x):
        y = self.activation(self.weight @ x) + len(self.name)
        return y if self.inference else self.rate * y


@pytest.mark.slow
def test_what_is_no_array_in_a_layer_stays_what_it_is():
    W = normal(5, 4)
    call = lambda layer, x: layer(x)
    for inference, rate in ((True, 1.0), (False, 0.5)):
        layer = Sequential(W, lambda y: 2 * y, inference, 0.5, "dense")
        truth = 2 * rate * jnp.linalg.norm(W, 2)
        assert abs(operator_norm(call, layer, 4) / truth - 1) < 1e-5
        assert abs(gain_step(call, layer, init_state(4))[0] / truth - 1) < 4e-3
        assert 1 <= upper_bound(call, layer, 4, failure=0.1) / truth < 1.01
    # Python's integers stay, and its floats are differentiated by
    of = lambda p, x: p["c"] * (p["w"] @ x).reshape(p["n"], -1)
    back = lambda p, y: p["c"] * p["w"].T @ y.reshape(4 + p["n"])
    params = lambda c: {"w": W, "n": 1, "c": c, "of": jnp.tanh}
    for rmatvec in (None, back):
        slope = jax.grad(lambda c: sj.operator_triplet(of, params(c), jnp.ones(4), rmatvec=rmatvec).sigma)(2.0)
        assert abs(slope / jnp.linalg.norm(W, 2) - 1) < 1e-5
    assert abs(sj.operator_triplet(of, params(2.0), jnp.ones(4)).sigma / (2 * slope) - 1) < 1e-5


def test_single_integers_names_and_bools_of_numpy_stay_what_they_are():
    of = lambda p, x: (p[0] @ x).reshape(p[1], -1) if p[2] and p[3] == "dense" else x
    W = normal(6, 4)
    sigma = sj.operator_triplet(of, (W, np.int64(2), np.bool_(True), np.str_("dense")), jnp.ones(4)).sigma
    assert abs(sigma / jnp.linalg.norm(W, 2) - 1) < 1e-5


def test_what_is_no_function_and_what_is_no_start_are_named():
    with pytest.raises(TypeError, match="matvec must be a function"):
        sj.operator_triplet(normal(5, 4), lambda A, x: A @ x, jnp.ones(4))
    with pytest.raises(TypeError, match="rmatvec must be a function"):
        sj.operator_triplet(lambda A, x: A @ x, normal(5, 4), jnp.ones(4), rmatvec=normal(4, 5))
    with pytest.raises(TypeError, match="v0 must be an array, found None"):
        sj.operator_triplets(lambda A, x: A @ x, normal(5, 4), None, 2)


@pytest.mark.parametrize("result", [lambda y: (y, 0), lambda y: [y], lambda y: None])
def test_a_layer_that_returns_no_array_is_named(result):
    W, state = normal(5, 4), init_state(4)
    found = type(result(0)).__name__
    for call in (
        lambda f: operator_norm(f, W, 4),
        lambda f: gain_step(f, W, state),
        lambda f: upper_bound(f, W, 4, 0.1),
    ):
        with pytest.raises(TypeError, match=f"layer must return one array, found {found}"):
            call(lambda W, x: result(W @ x))


@jax.custom_vjp
def symmetric(A, x):
    return A @ x


symmetric.defvjp(lambda A, x: (A @ x, (A, x)), lambda kept, y: (jnp.outer(y, kept[1]), kept[0] @ y))


def by_conjugate_gradients(A, x):
    return jax.scipy.sparse.linalg.cg(lambda y: A @ y, x)[0]


@pytest.mark.parametrize("name", ["a rule of its own", "an iterative solver"])
def test_what_jax_cannot_transpose_has_a_triplet_by_rmatvec(name):
    f = symmetric if name == "a rule of its own" else by_conjugate_gradients
    A = normal(4, 4) @ normal(4, 4).T + jnp.eye(4)
    truth = jnp.linalg.norm(A if f is symmetric else jnp.linalg.inv(A), 2)
    words = "an iterative solver or a custom_vjp. Solve by jax.lax.custom_linear_solve; for .* rmatvec is enough"
    with pytest.raises(ValueError, match=words):
        sj.operator_triplet(f, A, jnp.ones(4))
    with_rmatvec = lambda A: sj.operator_triplet(f, A, jnp.ones(4), rmatvec=f).sigma
    assert abs(with_rmatvec(A) / truth - 1) < 1e-4
    with pytest.raises(ValueError, match=words):
        jax.grad(with_rmatvec)(A)
    with pytest.raises(ValueError, match="not linear"):
        sj.operator_triplet(lambda A, x: A @ (x * x), A, jnp.ones(4), rmatvec=f)


ON_DEVICES = """
import sys
import numpy as np
import jax, jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
import svdgrad.jax as sj
from svdgrad.jax.nn import gain_step, init_state, operator_norm, upper_bound

A = jnp.asarray(np.random.default_rng(0).standard_normal((8, 12)), jnp.float32)
mesh = Mesh(np.array(jax.devices()), "i")

def rows(A, x):  # A by rows, x whole
    return jax.lax.all_gather(A @ x, "i", tiled=True)

def rows_back(A, y):
    return jax.lax.psum(A.T @ jax.lax.dynamic_slice(y, (2 * jax.lax.axis_index("i"),), (2,)), "i")

def columns(A, x):
    return jax.lax.psum(A @ jax.lax.dynamic_slice(x, (3 * jax.lax.axis_index("i"),), (3,)), "i")

def columns_back(A, y):
    return jax.lax.all_gather(A.T @ y, "i", tiled=True)

CALLS = {
    "triplet": lambda f: lambda A: sj.operator_triplet(f, A, jnp.ones(12)).sigma,
    "triplets": lambda f: lambda A: sj.operator_triplets(f, A, jnp.ones(12), 2).sigma[0],
    "norm": lambda f: lambda A: operator_norm(f, A, 12),
    "gain": lambda f: lambda A: gain_step(f, A, init_state(12))[0],
    "bound": lambda f: lambda A: upper_bound(f, A, 12, failure=0.1),
}
truth = np.linalg.norm(A, 2)
for f, back, spec in ((rows, rows_back, P("i")), (columns, columns_back, P(None, "i"))):
    for vma in (True, False):
        each = lambda of: jax.shard_map(
            lambda A: of(A)[None], mesh=mesh, in_specs=spec, out_specs=P("i"), check_vma=vma)(A)
        right = f is columns and vma  # there JAX knows that x is the same on all devices
        name = sys.argv[1]
        found = np.asarray(each(CALLS[name](f)))
        assert (abs(found / truth - 1) < 0.1).all() if right else np.isnan(found).all(), (f, vma, name, found)
        if not right:
            found = each(lambda A: sj.operator_triplet(f, A, jnp.ones(12), rmatvec=back).sigma)
            assert (abs(found / truth - 1) < 1e-5).all(), (f, vma, found)
print("agreed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_a_map_that_speaks_with_other_devices_is_right_or_nan(call):
    """JAX's transpose of a communication is not the adjoint on each device, unless x is known to be the same on all."""
    assert output_on_four_devices(ON_DEVICES, call) == "agreed\n"
