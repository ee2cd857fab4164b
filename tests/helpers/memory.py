"""The most bytes of tensors that are alive at once, counted on any device, to the byte."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Counts what operators in the body return, as long as somebody holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.now = 0
        self._tensors: set[int] = set()
        self._holders: Counter[int] = Counter()  # of every storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in self._tensors:
                storage = leaf.untyped_storage()
                self._hold(id(leaf), storage._cdata, storage.nbytes())
                weakref.finalize(leaf, self._let_go, id(leaf), storage._cdata, storage.nbytes())
        return result

    def _hold(self, tensor: int, storage: int, size: int) -> None:
        self._tensors.add(tensor)
        self.now += size * (self._holders[storage] == 0)
        self.bytes = max(self.bytes, self.now)
        self._holders[storage] += 1

    def _let_go(self, tensor: int, storage: int, size: int) -> None:
        self._tensors.discard(tensor)
        self._holders[storage] -= 1
        self.now -= size * (self._holders[storage] == 0)


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes of the tensors that ``work`` makes."""
    with Peak() as peak, torch.no_grad():
        work()
    return peak.bytes
