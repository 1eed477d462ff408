"""The book's equipment: what its chapters check, draw and compare with. Nothing of the package itself imports it."""

from .checks import check, relative_error
from .contest import device, loss_vectors
from .figures import COLORS, MARKERS, figure, reference_slope
from .grading import grade
from .tables import Table

__all__ = [
    "COLORS",
    "MARKERS",
    "Table",
    "check",
    "device",
    "figure",
    "grade",
    "loss_vectors",
    "reference_slope",
    "relative_error",
]
