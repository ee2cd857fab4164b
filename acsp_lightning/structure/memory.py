"""Memory that nobody uses any more, given back to the system."""

import ctypes
import sys


def return_unused() -> None:
    """Ask the C library to return what was freed, where it can (glibc).

    It keeps what many small tensors leave behind, for other small ones; large ones are always new. So
    both would count at the next peak: hundreds of megabytes after channels were compared.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
