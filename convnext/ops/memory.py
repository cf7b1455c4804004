"""The C library's memory policy."""

import ctypes
import functools
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of mallopt, from glibc's malloc.h


@functools.cache
def keep_memory() -> bool:
    """Have this process keep the memory that it frees, and say whether the C library lets it (glibc does).

    By default glibc maps large tensors afresh at every allocation and gives them back at once: a page fault for every 4 KB, which
    takes longer than most operators need for the data. Kept memory is used again; the process stays at its peak.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
