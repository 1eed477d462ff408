"""What a triplet can be taken of: a dense matrix, a sparse one, a linear function. To the rest of the package each is

    leaves            the tensors that derivatives go to
    shape             (m, n)
    vector            any tensor with the dtype and the device of its vectors
    at(leaves)        the same operator with other leaves
    mv(x), rmv(y)     A x and Aᴴ y, differentiable in the leaves
    products()        the same two for an iteration, on plain numbers
    pull(X, Y)        the cotangent of the leaves of Re Σ ⟨xᵢ, A yᵢ⟩
    push(dleaves)     the tangent operator dA, with products ``mv`` and ``rmv``

All products are with flat vectors, or with k of them as the rows of one tensor. Nothing here knows of singular values.
"""

from .dense import Dense, dense
from .function import Function, Tangent
from .make import function, function_of_layer, of_module, plain
from .protocol import Operator, Products
from .sparse import Sparse, of_sparse_tensor

__all__ = [
    "Dense",
    "Function",
    "Operator",
    "Products",
    "Sparse",
    "Tangent",
    "dense",
    "function",
    "function_of_layer",
    "of_module",
    "of_sparse_tensor",
    "plain",
]
