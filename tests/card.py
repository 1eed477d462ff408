"""A card that is not there: tensors that claim to be on another device and hold real numbers.

PyTorch's own stand-ins compute no numbers, so no loop that looks at a residual can run on them, and least squares
cannot at all. These run everything, to the same bits as the CPU, and keep a log of what crosses between the card and
the host. They claim the device ``meta``, the only one that a CPU build of PyTorch lets a tensor claim without a driver.
"""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"

#: operations whose result the host has to wait for: its size, or its value, depends on the numbers
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "is_nonzero"}

#: operations that multiply two matrices, or a matrix and a vector
PRODUCTS = {"mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "dot"}


class OnCard(torch.Tensor):
    """A tensor on the card; ``numbers`` is what a real card would not let the host see."""

    @staticmethod
    def __new__(cls, numbers):
        like = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset(), "dtype": numbers.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, device=DEVICE, **like)

    def __init__(self, numbers):
        self.numbers = numbers

    def __repr__(self):
        return f"OnCard({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError(f"{operation} met a tensor of a card that has been taken out")


class Mixed(RuntimeError):
    """What CUDA answers to an operation on tensors of two devices."""


class Card(TorchDispatchMode):
    """While this lasts there is a card. ``to_host``, ``to_card`` and ``products`` count what happened on it."""

    def __init__(self):
        super().__init__()
        self.to_host, self.to_card, self.products = Counter(), Counter(), Counter()
        self.factories = Factories(self)

    def __enter__(self):
        self.factories.__enter__()
        return super().__enter__()

    def __exit__(self, *problem):
        super().__exit__(*problem)
        self.factories.__exit__(*problem)

    def put(self, tensors):
        """Tensors of the host, copied to the card by the user, which counts as nothing."""
        return tree_map(lambda x: OnCard(x) if isinstance(x, torch.Tensor) else x, tensors)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, kwargs = operation.overloadpacket.__name__, dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, OnCard)]
        host = [x for x in tensors if not isinstance(x, OnCard)]
        wanted = kwargs.get("device") and torch.device(kwargs["device"]).type
        if not here and wanted != DEVICE:
            return operation(*args, **kwargs)
        if wanted == DEVICE:
            kwargs["device"] = "cpu"
        goal = isinstance(args[0], OnCard) if name == "copy_" else wanted in (None, DEVICE)
        masked = name == "index" and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
        if not goal or masked or name in READS:
            self.to_host[name] += 1
        elif name in ("copy_", "_to_copy") and host:
            self.to_card[name] += 1
        elif any(x.ndim for x in host):  # one number may come along
            raise Mixed(f"{operation} met a tensor of the host among tensors of the card")
        if name in PRODUCTS:
            self.products.update(tuple(sorted(x.shape[-2:])) for x in here if x.ndim > 1)
        result = operation(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
        if operation._schema.is_mutable and isinstance(result, torch.Tensor):
            return args[0]
        return self.put(result) if goal else result


def _numbers(x):
    return x.numbers if isinstance(x, OnCard) else x


class Factories(TorchFunctionMode):
    """torch.tensor and torch.as_tensor on the card: PyTorch fills them where no dispatch mode can see it."""

    def __init__(self, card):
        self.card = card

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        fresh = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if fresh and device is not None and torch.device(device).type == DEVICE:
            self.card.to_card["tensor"] += 1
            return OnCard(function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)
