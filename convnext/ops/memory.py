"""Memory: the C library's policy for freed memory, and the errors that mean out of memory."""

import ctypes
import functools
import sys

import torch

# Messages of a plain RuntimeError: of PyTorch's allocators for the CPU and Apple's devices, of cuBLAS and of cuDNN.
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # parameters of mallopt, from glibc's malloc.h


@functools.cache
def keep_memory() -> bool:
    """Have this process keep the memory that it frees, for good. Return whether the C library supports it (glibc does).

    By default glibc maps memory for a large tensor at every allocation and unmaps it when it is freed: a page fault for every 4 KB,
    which takes longer than most operators need for the data. Kept memory is used again; the process stays at its peak.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device, or this machine, ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MESSAGES)
