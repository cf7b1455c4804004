"""Memory: the C library's policy, and what is raised where there is too little."""

import ctypes
import functools
import sys

import torch

# What libraries say in a plain RuntimeError: PyTorch's allocators of the CPU and of Apple's devices, cuBLAS and cuDNN.
_TOO_LITTLE = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has too little memory for what was to be computed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TOO_LITTLE)
