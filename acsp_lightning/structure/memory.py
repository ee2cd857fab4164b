"""Memory that nobody uses, given back: for good, or for a while."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from torch import Tensor


def return_unused() -> None:
    """Ask the C library to return what was freed, where it can (glibc); takes up to some milliseconds.

    Otherwise it keeps what tensors of less than 32 MB leave behind, for others of that kind, while
    larger ones are always new: after channels were compared, or a layer was fitted, both count.
    """
    _trim()(0)


@contextmanager
def emptied(tensor: Tensor) -> Iterator[None]:
    """Take the memory of a tensor away while the body runs; its values are lost, its views remain views.

    A tensor that is a part of another's memory keeps it.
    """
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if not storage.resizable() or size != tensor.numel() * tensor.element_size():
        yield
        return
    storage.resize_(0)
    try:
        yield
    finally:
        storage.resize_(size)


@cache
def _trim() -> Callable[[int], object]:
    if sys.platform == "linux":
        try:
            found = ctypes.CDLL(None).malloc_trim
        except (AttributeError, OSError):  # another C library, or none that is shared
            return lambda pad: None
        found.argtypes = [ctypes.c_size_t]
        return found
    return lambda pad: None
