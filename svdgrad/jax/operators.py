"""The public functions of a linear map that is given by its products."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .auto import as_count, iteration
from .inside import separate
from .lanczos import white_noise
from .rule import find_triplet
from .several import Operator, find_spaces
from .triplet import How, Products, Triplet, Triplets, divided, dot, norm, or_one, unit

MatVec = Callable[[Any, Array], Array]

#: what half precision within a map, as of products on a GPU or TPU, may do to it, as a part of it: four roundings
HALF = 2.0**-7


def operator_triplet(
    matvec: MatVec,
    params: Any,
    v0: Any,
    tol: float | None = None,
    maxiter: int | None = None,
    rmatvec: MatVec | None = None,
    missed: float | None = 1e-3,
) -> Triplet:
    """The dominant triplet (σ, u, v) of x ↦ matvec(params, x), differentiable in ``params`` as that of a matrix is.

    In the rule of ``singular_triplet`` dA v is the derivative of matvec(params, v) along dparams, and Aᴴ is the
    transpose of matvec, both by JAX. So, with p, q from the adjoint system, the cotangent of the parameters θ is the
    gradient with respect to θ of

        ⟨ξu + p, A(θ) v⟩ + ⟨u, A(θ) q⟩,   with u, v, p, q held fixed.

    Parameters
    ----------
    matvec : callable
        ``matvec(params, x)``, linear in x, of JAX operations; x of the shape and dtype of v0, the result of any shape.
    params : pytree
        What the result is differentiated by: its arrays, and Python's floats; so it is by traced values that ``matvec``
        takes from elsewhere. Integers and bools of Python, functions and names are handed on as they are.
    v0 : array
        The vector to start from, of any shape; it also fixes the sign, or phase, v0ᴴv > 0.
    tol, maxiter, missed : float, int, float or None, optional
        As for "lanczos" and "cg" in ``singular_triplet``; maxiter is 1000 by default.
    rmatvec : callable, optional
        ``rmatvec(params, y)`` = Aᴴ y for the iterations, where that is faster than the transpose of ``matvec``, by
        which the result is differentiated all the same. Where JAX cannot transpose matvec there is only the value.

    Returns
    -------
    Triplet
        ``sigma ()``, ``u`` in the shape of matvec's result, ``v`` in the shape of v0.

    Raises
    ------
    TypeError
        v0 has fewer than 32 bits or is not floating point; the result of matvec is not one array, or has another dtype
        than v0; that of rmatvec is not like v0.
    ValueError
        matvec is not linear: JAX cannot transpose it, or it does not send zero to zero; or its transpose by JAX, or
        rmatvec, is not its adjoint. What is seen of numbers gives a triplet of NaN under jit, as v0 = 0 does and an
        iteration that ran out of steps. An option is out of its range.

    Notes
    -----
    Whether ⟨w, Av⟩ = ⟨Aᴴw, v⟩ is tried once, with noise v and w along Av. It differs where matvec rounds x or takes its
    real part, and inside ``shard_map`` where matvec sums over devices and JAX does not know x to be the same on all of
    them (with ``check_vma=False`` it never does): there give rmatvec. What half precision does within matvec, less than
    a hundredth, is let through.

    Cost: two products for that, two a step forward, two a step of conjugate gradients for each tangent or cotangent.
    Outside of ``jax.jit`` each call is compiled anew. Memory: a basis of 48 vectors; when it is full, the 16 best Ritz
    vectors go on. Numbers below the smallest normal one count as zero, since XLA takes them for that. Source: the book
    (eq-operator-gradient).

    Examples
    --------
    >>> d = jnp.array([3.0, 1.0, 2.0])
    >>> def norm(d):
    ...     return operator_triplet(lambda d, x: d * x, d, jnp.ones(3)).sigma
    >>> print(abs(jax.grad(norm)(d).round(3)))
    [1. 0. 0.]
    """
    how = How("lanczos", "cg", 0, *iteration(tol, maxiter, missed))
    return _triplet(how, *operator_of(matvec, params, v0, rmatvec))


def _triplet(how: How, products: Products, everything: Any, v0: Array, zero: Array) -> Triplet:
    sigma, u, v = find_triplet(products, how, everything, unit(jnp.ravel(v0)))[0]
    return Triplet(sigma, u.reshape(zero.shape), v.reshape(v0.shape))


def operator_triplets(
    matvec: MatVec,
    params: Any,
    v0: Any,
    k: int,
    tol: float | None = None,
    maxiter: int | None = None,
    rmatvec: MatVec | None = None,
    missed: float | None = 1e-3,
) -> Triplets:
    """The k dominant triplets of x ↦ matvec(params, x), differentiable in ``params`` as those of a matrix are.

    The arguments are those of ``operator_triplet``, and k, which is static under jit; errors, and what is NaN, also
    those of ``singular_triplets``. v0 tells the shape and the dtype of x, and is one of the vectors that the iteration
    starts from. Returns ``sigma (k,)``, ``U (*out, k)`` and ``V (*v0.shape, k)``, where matvec's result has the shape
    ``out``.
    Cost: two products with k + 2 + k/4 vectors a step, by vmap of matvec. Source: the book (eq-outside).

    >>> d = jnp.array([3.0, 1.0, 2.0])
    >>> def nuclear(d):
    ...     return operator_triplets(lambda d, x: d * x, d, jnp.ones(3), 2).sigma.sum()
    >>> print(abs(jax.grad(nuclear)(d).round(3)))
    [1. 0. 1.]
    """
    products, everything, v0, zero = operator_of(matvec, params, v0, rmatvec)
    how = How("lanczos", "cg", 0, *iteration(tol, maxiter, missed))
    if (k := as_count(k, zero.size, v0.size)) == 1:
        sigma, u, v = _triplet(how, products, everything, v0, zero)
        return Triplets(sigma[None], u[..., None], v[..., None])
    A = Operator(products, zero.size, v0.size, v0.dtype)
    sigma, U, V = separate(find_spaces(A, how, k, everything, jnp.ravel(v0)[None])[0])
    return Triplets(sigma, U.reshape(*zero.shape, k), V.reshape(*v0.shape, k))


def operator_of(
    matvec: MatVec, params: Any, v0: Any, rmatvec: MatVec | None = None
) -> tuple[Products, tuple[Any, ...], Array, Array]:
    """What ``products_of`` returns, after every check."""
    products, everything, v0, zero = products_of(matvec, params, v0, rmatvec)
    if rmatvec is not None:
        tol, cause = 0.0, "an rmatvec of another matrix, or one without the conjugate; or a matvec that is not linear"
    else:
        tol = 2 * HALF / v0.size**0.5  # roundings are of any sign, and noise v has a part of 1/√n along Aᴴw and more
        cause = (
            "matvec is not linear (it rounds x, or takes its real part), it tells JAX of a wrong transpose (symmetric="
            "True), or inside shard_map or vmap it sums over an axis that x does not vary over: give rmatvec there"
        )
    v0 = or_nan(
        v0,
        _differ(products, *lax.stop_gradient((everything, v0)), tol),
        f"the two products are not those of a matrix and its adjoint, ⟨w, Av⟩ ≠ ⟨Aᴴw, v⟩: likely cause: {cause}",
    )
    return products, everything, v0, zero


def _differ(products: Products, everything: Any, v0: Array, tol: float) -> Array:
    """Whether ⟨w, Av⟩ ≠ ⟨Aᴴw, v⟩ for noise v and w along A v.

    A complex w has another phase than A v has, or a map of the conjugate of x would pass.
    """
    A, AH = products[0], products[-1]
    limits = jnp.finfo(v0.dtype)
    v = jnp.ravel(probe(v0))
    y = A(everything, v)
    w = unit(y)
    if w.dtype.kind == "c":
        w = w * (0.6 + 0.8j)
    x = AH(everything, w)
    size = jnp.maximum(jnp.abs(x).max(), jnp.abs(y).max())
    x, y = divided(x, or_one(size)), divided(y, or_one(size))
    bound = max(float(limits.eps) ** 0.5, tol) * jnp.maximum(norm(y), norm(x) * norm(v))
    # what is so small has lost digits to the range, and its triplet is not a number (is_lost)
    differ: Array = (jnp.abs(dot(w, y) - dot(x, v)) > bound) & (size > float(limits.tiny) / float(limits.eps))
    return differ


def probe(v0: Array) -> Array:
    """Noise like v0, of entries about one, as those that a layer is made for; the same for the same shape."""
    noise = white_noise(3, v0.size, v0.dtype) * v0.size**0.5
    like: Array = noise.reshape(v0.shape) + 0 * v0  # varying over the devices of a shard_map as v0 does
    return like


def products_of(
    matvec: MatVec, params: Any, v0: Any, rmatvec: MatVec | None = None
) -> tuple[Products, tuple[Any, ...], Array, Array]:
    """The products on flat vectors, what they depend on, v0, and matvec(params, 0)."""
    for name, of in (("matvec", matvec), ("rmatvec", rmatvec)):
        if not (callable(of) or of is rmatvec is None):
            raise TypeError(f"{name} must be a function {name}(params, x), found {type(of).__name__}")
    if v0 is None:
        raise TypeError("v0 must be an array, found None: it says what x is like; random numbers of its shape will do")
    v0 = lax.stop_gradient(jnp.asarray(v0))
    if not jnp.issubdtype(v0.dtype, jnp.inexact) or jnp.finfo(v0.dtype).bits < 32:
        raise TypeError(f"v0 must be floating point of 32 bits or more, found {v0.dtype}")
    if v0.size == 0:
        raise ValueError(f"v0 must have at least one entry, found shape {v0.shape}: an empty side has no triplet")
    shape, size, dtype = v0.shape, v0.size, v0.dtype
    zero = matvec(params, jnp.zeros_like(v0))
    if not isinstance(zero, (Array, np.ndarray)):
        raise TypeError(f"matvec must return one array, found {type(zero).__name__}")
    if zero.dtype != dtype:
        raise TypeError(
            f"matvec must return the dtype of v0, found {zero.dtype} for {dtype}: convert v0 or the parameters"
        )
    if zero.size == 0:
        raise ValueError(f"matvec must return at least one entry, found shape {zero.shape}")
    zero = lax.stop_gradient(jnp.asarray(zero))
    v0 = or_nan(
        v0,
        (jnp.abs(zero) > 0).any(),
        "matvec must be linear in x, found matvec(params, 0) ≠ 0: likely cause: a bias; leave it out",
    )
    # inside shard_map the iteration runs on each device by itself if the products differ there
    v0 = v0 + 0 * zero.sum()
    arrays, whole = _parts(as_arrays(params))
    of_x, constants = _traced(lambda x, y: jnp.ravel(matvec(whole(x), y.reshape(shape))), arrays, jnp.ravel(v0))
    everything: tuple[Any, ...] = (arrays, constants)

    def product(everything: Any, x: Array) -> Array:
        return of_x(everything[0], everything[1], x)

    def adjoint(everything: Any, y: Array) -> Array:
        # the example varies over the devices of a shard_map as y does, or else the transpose would sum over them
        example = jnp.zeros(size, dtype) + 0 * y.sum()
        try:
            (x,) = jax.linear_transpose(partial(product, everything), example)(y.conj())
        except Exception as reason:
            raise ValueError(
                "matvec must be linear in x, of operations that JAX can transpose, and JAX cannot transpose it. Likely "
                "causes: it is not linear, or it holds what has no transpose in JAX, as an iterative solver or a "
                "custom_vjp. Solve by jax.lax.custom_linear_solve; for a triplet that is not differentiated rmatvec is "
                f"enough. JAX says: {type(reason).__name__} {reason}"
            ) from reason
        result: Array = jnp.conj(x)
        return result

    if rmatvec is None:
        jax.eval_shape(adjoint, everything, jnp.ravel(zero))
    products: Products = (product, adjoint)
    if rmatvec is not None:
        found = jax.eval_shape(lambda x, y: rmatvec(whole(x), y), arrays, zero)
        if not isinstance(found, jax.ShapeDtypeStruct) or (found.shape, found.dtype) != (shape, dtype):
            raise TypeError(f"rmatvec(params, y) must return an array like v0, {dtype} of shape {shape}, found {found}")
        of_y, constants = _traced(
            lambda x, y: jnp.ravel(rmatvec(whole(x), y.reshape(zero.shape))), arrays, jnp.ravel(zero)
        )
        everything = (*everything, constants)
        # again as y does over the devices, also where they have added their parts of the result
        products = (product, adjoint, lambda everything, y: of_y(everything[0], everything[2], y) + 0 * y.sum())
    return products, everything, v0, zero


def or_nan(v0: Array, wrong: Array, message: str) -> Array:
    """v0; where something is wrong an error with this message, or under jit NaN."""
    try:
        if wrong:
            raise ValueError(message)
    except jax.errors.TracerBoolConversionError:
        v0 = jnp.where(wrong, jnp.nan, v0)
    return v0


def as_arrays(params: Any) -> Any:
    """The numbers among the leaves as arrays; functions, names, and single integers and bools stay what they are."""
    kinds = (Array, np.ndarray, np.inexact, float, complex)
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, kinds) or hasattr(x, "__jax_array__") else x, params)


def _parts(params: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The arrays among the leaves, and how to make the whole of others in their place."""
    leaves, tree = jax.tree.flatten(params)
    arrays = [x for x in leaves if isinstance(x, Array)]
    static = [(isinstance(x, Array), None if isinstance(x, Array) else x) for x in leaves]

    def whole(arrays: list[Array]) -> Any:
        given = iter(arrays)
        return jax.tree.unflatten(tree, [next(given) if is_array else x for is_array, x in static])

    return arrays, whole


def _traced(function: MatVec, params: Any, x: Array) -> tuple[Callable[[Any, Any, Array], Array], tuple[Array, ...]]:
    """(params, constants, x) ↦ function(params, x), and the constants: what the function takes from elsewhere.

    That may be traced as well; so it is a parameter too.
    """
    program = jax.make_jaxpr(function)(params, x)
    code = program.jaxpr  # not the program, whose constants would outlive the trace that they belong to

    def called(params: Any, constants: Any, x: Array) -> Array:
        y: Array = jax.core.eval_jaxpr(code, constants, *jax.tree.leaves(params), x)[0]
        return y

    return called, tuple(map(jnp.asarray, program.consts))
