"""Products with a matrix, counted as PyTorch executes them, so that nothing of the package has to be touched."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: operations of PyTorch that multiply a matrix
PRODUCTS = {"mv", "mm", "bmm", "addmv", "addmm", "baddbmm", "addmv_", "addmm_"}


class Counted(TorchDispatchMode):
    """Counts the products with A, or with the blocks of rows that a CPU deals out to its threads: views of A that hold
    half of its entries or more.
    """

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.home, self.size, self.count = A.untyped_storage().data_ptr(), A.numel() / 2, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.overloadpacket.__name__ in PRODUCTS:
            tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor) and x.numel() >= self.size]
            self.count += any(x.untyped_storage().data_ptr() == self.home for x in tensors)
        return operation(*args, **(kwargs or {}))
