"""Whether block Lanczos has missed a singular value (chapter *More than one*), by its own start or a fresh one."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..certificate import hidden, probability
from ..products import Map
from .basis import Basis, eigenpairs, noise, orthonormal


def chance(
    first: Tensor, X: Tensor, squares: Tensor, amounts: Tensor, square: float, n: int, steps: int, eps: float
) -> float:
    """The probability that a value of this ``square`` was missed, from what is known already (eq-missed-block).

    Combinations of the starting rows with nothing of the k vectors found start Lanczos iterations that are free of
    products, since they stay in the space. Of true singular vectors those k alone decide which combinations, and the
    noise in them along any other knows nothing of that; in one combination it is independent of that in the next.
    """
    k = X.shape[1] - len(squares)
    along = (first @ X[: len(first)]) / amounts.unsqueeze(1)  # the Ritz vectors; of each row, noise of one
    combinations = torch.linalg.svd(along[:, :k])[0][:, k:].mH
    worst = 0.0
    for c in combinations:
        weights = (c @ along[:, k:]).abs()
        length = vector_norm(weights).item()
        share = _hidden_share(squares, weights / length, square, steps, eps / n**0.5)
        worst = max(worst, probability(share, n, 1 / length, X.is_complex()))
    # Not the product of all: a run may put its luck into any of them. And any of the k largest may have been missed.
    return min(1.0, k * worst ** len(combinations))


def _hidden_share(squares: Tensor, weights: Tensor, value: float, steps: int, least: float) -> float:
    """``hidden`` for the Lanczos iteration of so many steps from the vector with these weights along Ritz vectors, and
    ``least``, what rounding leaves in every vector of any other.

    As long as it stays inside the space, the iteration with AᴴA is that with the diagonal matrix of the squares.
    """
    V = weights[None]
    diagonal: list[float] = []
    off: list[float] = []
    share = 1.0
    while len(diagonal) < steps and share > least:
        w = squares * V[-1]
        diagonal.append(torch.dot(w, V[-1]).item())
        w = w - (V @ w) @ V
        w = w - (V @ w) @ V
        off.append(vector_norm(w).item())
        V = torch.cat([V, w[None] / (off[-1] + 1e-300)])
        if len(diagonal) % 5 == 0 or len(diagonal) == steps:
            share = hidden(diagonal, off, value)
    return share + least


def probe(gram: Map, V: Tensor, square: float, missed: float, seed: int) -> tuple[float, Tensor | None]:
    """Lanczos's iteration with ``gram``, rows x to rows AᴴA x, off V from fresh noise: the probability that a value of
    this square is missed, or a vector of one.
    """
    n, is_complex, eps = V.shape[1], V.is_complex(), torch.finfo(V.dtype).eps
    first = orthonormal(noise(n, V, seed)[None], V)[2][0]
    basis = Basis(first, V, square)
    for step in range(1, n - len(V) + 1):
        basis.extend(gram(basis.last()[None])[0])
        if step % 4 == 0 or step == n - len(V):
            diagonal, off = basis.tridiagonal()
            values, Y = eigenpairs(diagonal, off)
            if values[-1] >= square:
                return 1.0, Y[:, -1].to(V) @ basis.rows()[len(V) : len(V) + step]
            share = hidden(diagonal.tolist(), off.tolist(), square) + eps / n**0.5
            bound = probability(share, n, 1.0, is_complex)
            if bound <= missed:
                return bound, None
    return 0.0, None
