"""Heap trimming switched off: memory that was freed is kept, instead of asked for again."""

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**30
"""Bytes; larger blocks go back to the system at once, and so does what is free beyond them."""


def keep() -> None:
    """Let the C library keep freed memory of this process, where it is that of GNU.

    Left to itself it returns the tensors of each step to the system, which has to fill their pages
    with zeros when the next step asks for them: a fifth of the time of training on a CPU.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            library = ctypes.CDLL(None)
            library.mallopt(_MMAP_THRESHOLD, _MOST)
            library.mallopt(_TRIM_THRESHOLD, _MOST)
