"""Memory that nobody uses any more, given back to the system."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def return_unused() -> None:
    """Ask the C library to return what was freed, where it can (glibc); takes up to some milliseconds.

    Otherwise it keeps what tensors of less than 32 MB leave behind, for others of that kind, while
    larger ones are always new: after channels were compared, or a layer was fitted, both count.
    """
    _trim()(0)


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
