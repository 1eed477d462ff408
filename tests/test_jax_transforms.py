"""Every transform of JAX and pairs of them, on matrices and operators: nested as you like.

The witness is JAX's own derivative of its full SVD under the same transform. A depends on two numbers θ, so that second
derivatives have four entries whatever the size of A.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_devices import output_on_four_devices
from jax import lax
from marks import slow_but

import svdgrad.jax as sj


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def problem(m, n, seed=0):
    """θ ↦ A(θ), and a loss of the triplet that both signs of (u, v) give the same."""
    constant, slope, curve = normal(3, m, n, seed=seed)
    w, z = normal(m, seed=seed + 1), normal(n, seed=seed + 2)

    def matrix(theta):
        return constant + theta[0] * slope + theta[0] * theta[1] * curve

    def loss(triplet):
        sigma, u, v = triplet
        return sigma**2 + jnp.vdot(w, u.ravel()) * jnp.vdot(z, v.ravel())

    return matrix, loss


def by_the_svd(m, n):
    matrix, loss = problem(m, n)

    def f(theta):
        U, S, Vh = jnp.linalg.svd(matrix(theta), full_matrices=False)
        return loss((S[0], U[:, 0], Vh[0]))

    return f


def of_a_matrix(m, n, **how):
    matrix, loss = problem(m, n)
    return lambda theta: loss(sj.singular_triplet(matrix(theta), **how))


def of_an_operator(m, n, shape):
    """A θ that reaches ``matvec`` as a parameter, and one that it takes from elsewhere."""
    matrix, loss = problem(m, n)

    def f(theta):
        scale, start = theta[1], jnp.ones(shape) + 0 * theta[0]

        def matvec(theta, x):
            return (matrix(jnp.array([theta, scale])) @ x.ravel()).reshape(-1, 1)

        return loss(sj.operator_triplet(matvec, theta[0], start))

    return f


def in_a_scan(f):
    def total(theta):
        return lax.scan(lambda t, _: (t * 1.01, f(t)), theta, None, length=2)[1].sum()

    return total


def in_a_cond(f):
    return lambda theta: lax.cond(theta[0] > 0, f, lambda t: 2 * f(t), theta)


def in_a_loop(f):
    """Forward mode alone can follow it."""
    return lambda theta: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, f(theta) + s[1]), (0, 0.0))[1]


def mapped(of):
    return lambda f: lambda theta: jax.vmap(of(f))(jnp.stack([theta, 1.1 * theta]))


def summed(f):
    return lambda theta: jax.vmap(f)(jnp.stack([theta, 1.1 * theta])).sum()


def along(f):
    return lambda theta: jax.jvp(f, (theta,), (jnp.array([1.0, 0.5]),))[1]


def backwards(f):
    """Linearised, and transposed by hand."""

    def gradient(theta):
        value, push = jax.linearize(f, theta)
        return jax.linear_transpose(push, theta)(jnp.ones_like(value))[0]

    return gradient


grad, jit, checkpoint = jax.grad, jax.jit, jax.checkpoint
#: what broke wherever the start was an image, and one more
QUICK = {
    "grad jit": lambda f: grad(jit(f)),
    "grad checkpoint": lambda f: grad(checkpoint(f)),
    "grad scan": lambda f: grad(in_a_scan(f)),
    "grad cond": lambda f: grad(in_a_cond(f)),
    "vmap grad jit": lambda f: mapped(grad)(jit(f)),
    # jax.custom_jvp loses its rule there
    "jvp grad scan": lambda f: along(grad(in_a_scan(f))),
}
NESTINGS = QUICK | {
    "plain": lambda f: f,
    "jit": jit,
    "vmap": mapped(lambda f: f),
    "grad": grad,
    "jvp": along,
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "linearize, transpose": backwards,
    "jit grad": lambda f: jit(grad(f)),
    "jit grad jit": lambda f: jit(grad(jit(f))),
    "grad vmap": lambda f: grad(summed(f)),
    "jit vmap grad": lambda f: jit(mapped(grad)(f)),
    "vmap jvp": mapped(along),
    "jvp vmap": lambda f: along(mapped(lambda f: f)(f)),
    "jvp while": lambda f: along(in_a_loop(f)),
    "jacfwd while": lambda f: jax.jacfwd(in_a_loop(f)),
    "scan of grad": lambda f: in_a_scan(lambda t: grad(f)(t).sum()),
    "jit grad scan": lambda f: jit(grad(in_a_scan(f))),
    "grad scan checkpoint": lambda f: grad(in_a_scan(checkpoint(f))),
    "grad checkpoint scan": lambda f: grad(checkpoint(in_a_scan(f))),
    "vmap cond": mapped(in_a_cond),
    "vmap grad cond": mapped(lambda f: grad(in_a_cond(f))),
    "hessian": jax.hessian,
    "jit hessian": lambda f: jit(jax.hessian(f)),
    "vmap hessian": mapped(jax.hessian),
    "jacfwd jacrev": lambda f: jax.jacfwd(jax.jacrev(jit(f))),
    "jacrev jacfwd": lambda f: jax.jacrev(jax.jacfwd(f)),
    "jacrev jacrev": lambda f: jax.jacrev(jax.jacrev(f)),
    "jacfwd jacfwd": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "jvp grad": lambda f: along(grad(jit(f))),
    "grad jvp": lambda f: grad(along(f)),
    "grad grad": lambda f: grad(lambda t: grad(f)(t).sum()),
    "grad checkpoint grad": lambda f: grad(checkpoint(lambda t: grad(f)(t).sum())),
    "hessian cond": lambda f: jax.hessian(in_a_cond(f)),
    "grad grad scan": lambda f: grad(lambda t: grad(in_a_scan(f))(t).sum()),
    "hessian vmap": lambda f: jax.hessian(summed(f)),
    "hessian scan": lambda f: jax.hessian(in_a_scan(f)),
}
#: both sides of where "auto" changes, and a wide operator from a flat start, a tall one from an image
FUNCTIONS = {
    "80 rows": ((80, 82), of_a_matrix),
    "81 rows": ((81, 82), of_a_matrix),
    "operator": ((5, 6), partial(of_an_operator, shape=(6,))),
    "operator on images": ((7, 6), partial(of_an_operator, shape=(1, 2, 3))),
}
THETA = jnp.array([0.3, -0.2], jnp.float32)


def agree(function, nesting):
    (m, n), make = FUNCTIONS[function]
    theta = jnp.asarray(np.asarray(THETA), float)
    ours, truth = (NESTINGS[nesting](f)(theta) for f in (make(m, n), by_the_svd(m, n)))
    assert ours.shape == truth.shape
    # second derivatives of these losses feel (1/gap)², and the gaps are 1e-2 and more
    np.testing.assert_allclose(ours, truth, rtol=1e-8, atol=1e-8 * float(jnp.abs(truth).max()))


@pytest.mark.parametrize(
    "nesting", slow_but([("vmap grad jit",)], [("grad jit",), ("grad scan",), ("vmap grad jit",), ("jvp grad scan",)])
)
def test_an_operator_on_images(nesting):
    agree("operator on images", nesting)


@pytest.mark.parametrize("function", ["80 rows", "81 rows"])
def test_a_nesting_on_both_sides_of_the_threshold_of_auto(function):
    agree(function, "vmap grad jit")


@pytest.mark.slow
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nested_as_you_like(function, nesting):
    agree(function, nesting)


@pytest.mark.parametrize(
    ("way", "of"), slow_but([("svd", "u"), ("operator", "v")], product(["svd", "lanczos", "operator"], "uv"))
)
def test_a_loss_of_one_vector_whose_weights_alone_move(way, of):
    """In the outer derivative A stands still, and of the other vector nothing is left that JAX could transpose."""
    A, E, l = (jnp.asarray(normal(*shape, seed=i)) for i, shape in enumerate([(4, 4), (4, 4), (4,)]))

    def f(A, l):
        if way == "operator":
            return l @ getattr(sj.operator_triplet(lambda A, x: A @ x, A, jnp.ones(4)), of)
        return l @ getattr(sj.singular_triplet(A, forward=way), of)

    step = 1e-6
    slope = jax.grad(lambda l: (f(A + step * E, l) - f(A - step * E, l)) / (2 * step))(l)
    for mixed in (
        jax.grad(lambda l: jnp.vdot(jax.grad(f)(A, l), E)),
        jax.jacfwd(lambda l: jnp.vdot(jax.grad(f)(A, l), E)),
        jax.grad(lambda l: jax.jvp(partial(f, l=l), (A,), (E,))[1]),
    ):
        np.testing.assert_allclose(mixed(l), slope, rtol=1e-7, atol=1e-8)


def test_integers_that_matvec_takes_from_elsewhere_may_be_traced():
    rows = jnp.array([2, 0, 1])

    @jax.jit
    def slope(rows, d):
        shifted = rows + 0
        return jax.grad(lambda d: sj.operator_triplet(lambda d, x: (d * x)[shifted], d, jnp.ones(3)).sigma)(d)

    np.testing.assert_allclose(slope(rows, jnp.array([1.0, 3.0, 2.0])), [0, 1, 0], atol=1e-12)


@pytest.mark.slow  # that a matrix leaks nothing is looked at among the global states
def test_no_tracer_leaks():
    matrix, loss = problem(3, 2)

    def with_adjoint(theta):
        A = matrix(theta)
        t = sj.operator_triplet(lambda A, x: A @ x, A, jnp.ones(2), rmatvec=lambda _, y: A.T @ y)
        return loss(t)

    def of_two(theta):
        sigma, U, V = sj.singular_triplets(matrix(theta), 2)
        return loss((sigma[1], U[:, 1], V[:, 1]))

    for f in (of_an_operator(3, 2, (2, 1)), with_adjoint, of_two):
        with jax.checking_leaks():
            jax.grad(jax.jit(f))(jnp.array([0.3, -0.2]))


def test_a_function_that_changes_what_it_takes_is_traced_anew():
    """The same callable object, another value inside: no trace of the first call may serve the second."""
    holder = {"c": jnp.ones(3)}

    def matvec(params, x):
        return holder["c"] * params * x

    for c in (1.0, 2.0):
        holder["c"] = c * jnp.ones(3)
        assert abs(sj.operator_triplet(matvec, jnp.array([1.0, 3.0, 2.0]), jnp.ones(3)).sigma - 3 * c) < 1e-12


@pytest.mark.slow
def test_products_may_sum_over_an_axis_of_vmap():
    """JAX's transpose of a sum over lanes is a sum over lanes, and not the adjoint where x is the same in all."""
    A = jnp.asarray(normal(4, 7, 6))
    gram = lambda A, x: lax.psum(A.T @ (A @ x), "parts")
    of = lambda **given: jax.vmap(lambda A: sj.operator_triplet(gram, A, jnp.ones(6), **given).sigma, axis_name="parts")
    np.testing.assert_allclose(of(rmatvec=gram)(A), np.linalg.norm(A.reshape(28, 6), 2) ** 2, rtol=1e-12)
    assert jnp.isnan(of()(A)).all()
    mean = lambda A, x: lax.pmean(A, "parts") @ x
    ours = jax.vmap(jax.grad(lambda A: sj.operator_triplet(mean, A, jnp.ones(6)).u[0] ** 2), axis_name="parts")(A)
    truth = jax.grad(lambda A: sj.singular_triplet(A, forward="svd").u[0] ** 2)(A.mean(0))
    np.testing.assert_allclose(ours, jnp.stack(4 * [truth]), atol=1e-10)


ON_FOUR_DEVICES = """
import sys
from functools import partial
import numpy as np
import jax, jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
import svdgrad.jax as sj

mesh = Mesh(np.array(jax.devices()), "d")
A = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7, 6)), jnp.float32)

def matrix(A):
    return sj.singular_triplet(A, forward="lanczos").u[:1] ** 2

def operator(A):
    return sj.operator_triplet(lambda A, x: A @ jnp.ravel(x), A, jnp.ones((2, 3))).u[:1] ** 2

def shared(A):  # rows on four devices, one x on all: the products speak with each other
    return sj.operator_triplet(lambda A, x: jax.lax.psum(A.T @ (A @ x), "d"), A, jnp.ones(6)).sigma

for f in (globals()[name] for name in sys.argv[1:]):
    on_each = jax.shard_map(lambda A: f(A[0]), mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    np.testing.assert_allclose(jax.jit(on_each)(A), np.linalg.svd(A)[0][:, 0, 0] ** 2, rtol=1e-4)
    ours = jax.jit(jax.grad(lambda A: on_each(A).sum()))(A)
    truth = jax.grad(lambda A: (sj.singular_triplet(A, forward="svd").u[:, 0] ** 2).sum())(A)
    np.testing.assert_allclose(ours, truth, atol=1e-4)
together = jax.shard_map(lambda A: shared(A[0]), mesh=mesh, in_specs=P("d"), out_specs=P())
np.testing.assert_allclose(jax.jit(together)(A), jnp.linalg.norm(A.reshape(28, 6), 2) ** 2, rtol=1e-5)
with jax.default_device(jax.devices()[2]):
    t = sj.singular_triplet(np.asarray(A[0]), forward="lanczos", v0=np.ones(6, np.float32))
    G = jax.grad(lambda A: sj.operator_triplet(lambda A, x: A @ x, A, jnp.ones(6)).u[0])(jnp.asarray(np.asarray(A[0])))
    assert {t.u.device, G.device} == {jax.devices()[2]}
print("agreed")
"""


GAINS_ON_FOUR_DEVICES = """
import numpy as np
import jax, jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
from svdgrad.jax.nn import circular_norm, gain_step, init_state

mesh, shape = Mesh(np.array(jax.devices()), "d"), (3, 6, 5)
numbers = np.random.default_rng(0).standard_normal
kernels, images = jnp.asarray(numbers((4, 8, 3, 3, 3)), jnp.float32), jnp.asarray(numbers((4, *shape)), jnp.float32)

def convolution(kernel, x):  # around the edges, so that circular_norm is its gain too
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="wrap")
    return jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "VALID")[0]

def three_steps(kernel, state, x):  # of a training; the kernels that were used, and a norm without a state
    def step(carry, _):
        kernel, state = carry
        def loss(kernel):
            sigma, new = gain_step(convolution, kernel, state)
            return (convolution(kernel / sigma, x) ** 2).mean(), (new, kernel / sigma)
        G, (state, used) = jax.grad(loss, has_aux=True)(kernel)
        return (kernel - 0.1 * G / jnp.linalg.norm(G), state), used
    used = jax.lax.scan(step, (kernel, state), length=3)[1]
    return used, circular_norm(kernel, shape[1:])

def gain(kernel):
    columns = jax.vmap(lambda x: convolution(kernel, x.reshape(shape)))(jnp.eye(90))
    return np.linalg.norm(np.asarray(columns).reshape(90, -1), 2)

# a kernel and a state to each device
def one(*given):
    return jax.tree.map(lambda y: y[None], three_steps(*jax.tree.map(lambda x: x[0], given)))

states = jax.tree.map(lambda x: jnp.stack(4 * [x]), init_state(shape))
on_each = jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
used, norms = jax.jit(on_each)(kernels, states, images)
np.testing.assert_allclose(norms, [gain(K) for K in kernels], rtol=1e-4)
gains = np.array([[gain(K) for K in three] for three in used])
assert gains.min() >= 0.997 and gains.max() <= 1.001, gains

# one kernel on all, and other images on each
def loss(kernel, x):
    sigma, _ = gain_step(convolution, kernel, init_state(shape))
    return jax.lax.pmean((convolution(kernel / sigma, x[0]) ** 2).mean() + circular_norm(kernel, shape[1:]), "d")

shared = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
ours = jax.jit(jax.grad(shared))(kernels[0], images)
alone = lambda K: sum((convolution(K / jnp.linalg.norm(jax.vmap(lambda x: convolution(K, x.reshape(shape)))(
    jnp.eye(90)).reshape(90, -1), 2), x) ** 2).mean() for x in images) / 4 + circular_norm(K, shape[1:])
truth = jax.grad(alone)(kernels[0])
np.testing.assert_allclose(ours, truth, atol=2e-2 * np.abs(truth).max())  # a loose v, see gain_step
print("agreed")
"""


@pytest.mark.parametrize(
    ("program", "name"),
    slow_but(
        [],
        [(ON_FOUR_DEVICES, "operator"), (ON_FOUR_DEVICES, "matrix"), (GAINS_ON_FOUR_DEVICES, "")],
    ),
    ids=["operator", "matrix", "gain"],
)
def test_on_four_devices(program, name):
    """Inside shard_map a loop must leave its state as it found it, varying over the devices or not."""
    assert output_on_four_devices(program, name) == "agreed\n"
