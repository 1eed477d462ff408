"""A card that is not there: tensors that claim to be on another device and hold real numbers.

PyTorch's own stand-ins compute no numbers, so no loop that looks at a residual can run on them, and least squares
cannot at all. These run everything, to the same bits as the CPU, and keep a log of what crosses between the card and
the host. They claim the device ``meta``, the only one that a CPU build of PyTorch lets a tensor claim without a driver.
"""

from collections import Counter
from functools import partial

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"

#: operations whose result the host has to wait for: its size, or its value, depends on the numbers
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "is_nonzero"}

#: operations that multiply two matrices, or a matrix and a vector
PRODUCTS = {"mm", "mv", "bmm", "addmm", "addmv", "baddbmm", "dot"}


class OnCard(torch.Tensor):
    """A tensor on the card; ``numbers`` is what a real card would not let the host see."""

    is_meta = False  # it claims that device, but has numbers, which code that asks may count on

    @staticmethod
    def __new__(cls, numbers):
        like = {"dtype": numbers.dtype, "device": DEVICE}
        if numbers.layout == torch.strided:  # a sparse matrix has none, and claims to be a dense one
            like |= {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, **like)

    def __init__(self, numbers):
        self.numbers = numbers

    def __repr__(self):
        return f"OnCard({self.numbers})"

    def __format__(self, form):
        return format(self.item(), form) if self.ndim == 0 and form else repr(self)

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise RuntimeError(f"{operation} met a tensor of a card that has been taken out")


class Mixed(RuntimeError):
    """What CUDA answers to an operation on tensors of two devices."""


class Card(TorchDispatchMode):
    """While this lasts there is a card. ``to_host``, ``to_card`` and ``products`` count what happened on it, and
    ``beside`` what PyTorch did on the host without it.
    """

    def __init__(self):
        super().__init__()
        self.to_host, self.to_card, self.products, self.beside = Counter(), Counter(), Counter(), Counter()
        self.factories = torch.tensor, torch.as_tensor

    def __enter__(self):
        # PyTorch fills these where no dispatch mode can see it
        torch.tensor, torch.as_tensor = (partial(self.filled, factory) for factory in self.factories)
        return super().__enter__()

    def __exit__(self, *problem):
        super().__exit__(*problem)
        torch.tensor, torch.as_tensor = self.factories

    def filled(self, factory, data, *args, device=None, **kwargs):
        """What torch.tensor or torch.as_tensor makes of data; new numbers for the card are counted as sent."""
        if device is None or torch.device(device).type != DEVICE or isinstance(data, torch.Tensor):
            return factory(data, *args, device=device, **kwargs)
        self.to_card["tensor"] += 1
        return OnCard(factory(data, *args, device="cpu", **kwargs))

    def put(self, tensors):
        """Tensors of the host, copied to the card by the user, which counts as nothing."""
        return tree_map(lambda x: OnCard(written_out(x)) if isinstance(x, torch.Tensor) else x, tensors)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, kwargs = operation.overloadpacket.__name__, dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if isinstance(x, OnCard)]
        host = [x for x in tensors if not isinstance(x, OnCard)]
        wanted = kwargs.get("device") and torch.device(kwargs["device"]).type
        if not here and wanted != DEVICE:
            self.beside[name] += 1
            return operation(*args, **kwargs)
        if wanted == DEVICE:
            kwargs["device"] = "cpu"
            if kwargs.get("generator") is not None:
                raise Mixed(f"{operation} was given a generator of the host for numbers on the card")
        if name == "linalg_lstsq" and kwargs.get("driver") not in (None, "gels"):
            raise RuntimeError(f"on a card gels is the only driver of {operation}, found {kwargs['driver']!r}")
        goal = isinstance(args[0], OnCard) if name == "copy_" else wanted in (None, DEVICE)
        masked = name == "index" and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
        if not goal or masked or name in READS:
            self.to_host[name] += 1
        elif name in ("copy_", "_to_copy") and host:
            self.to_card[name] += 1
        elif apart := [x for x in host if x.ndim]:  # one number may come along
            if name in ("index", "index_put_") and isinstance(args[0], OnCard) and among(args[1], apart):
                self.to_card[name] += 1  # so may the numbers of rows and columns
            else:
                raise Mixed(f"{operation} met a tensor of the host among tensors of the card")
        if name in PRODUCTS:
            self.products.update(tuple(sorted(x.shape[-2:])) for x in here if x.ndim > 1)
        result = operation(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
        if torch.Tag.inplace_view in operation.tags:
            with (
                no_dispatch()
            ):  # squeeze_ and its like give the tensor another shape, which both its halves have to take
                operation(*args, **kwargs)
        if operation._schema.is_mutable and isinstance(result, torch.Tensor):
            return args[0]
        return self.put(result) if goal else result


def among(indices, tensors):
    """Whether the tensors are all indices of an operation that picks entries."""
    return {id(x) for x in tensors} <= {id(x) for x in indices}


def written_out(x):
    """x itself, or, where PyTorch only notes that its numbers are to be conjugated, negated or zero, the numbers."""
    return (x.clone() if x._is_zerotensor() else x).resolve_conj().resolve_neg()


def _numbers(x):
    return x.numbers if isinstance(x, OnCard) else x
