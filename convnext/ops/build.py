"""The library of the CPU's fast operators: C++ in csrc/, compiled by the system's compiler on first use, and called through ctypes."""

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.errors import ConvnextError
from convnext.ops.cache import load_or_tell

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
# Those of int8 are there with AMX only.
_FUNCTIONS = (
    *("has_tiles", "use_threads", "depthwise_forward", "depthwise_weight_gradient", "norm_forward", "norm_backward", "mlp_pack"),
    *("mlp_forward", "mlp_backward", "mlp_backward_sums", "block_forward", "patchify_forward", "stage_forward"),
)
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_FAILED = {1: "ran out of memory: lower the batch size", 2: "has no kernel of this size"}  # the codes of csrc/vector.h


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled operators, or None where there are none: `reason()` says why. What goes wrong is printed, once."""
    return _load()[0]


def reason() -> str:
    """Where the operators lie, or why there are none."""
    return _load()[1]


def has_tiles() -> bool:
    """Whether this CPU multiplies bf16 matrices in tiles (AMX) and the system lets it."""
    found = library()
    return found is not None and bool(found.has_tiles())


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None, "they need Linux and a CPU with AVX-512"
    found, reason = load_or_tell(SOURCES, FLAGS, _FUNCTIONS)
    if found is not None:
        found.has_tiles()  # asks the system for them: without, their first use would end the process
        found.mlp_backward_sums.restype = ctypes.c_int64
    return found, reason


def call(name: str, *arguments: Any) -> None:
    """Run an operator of the library: tensors become their addresses, None a null pointer, whole numbers have 64 bits."""
    check(name, number(name, *arguments))


def check(name: str, code: int) -> None:
    """Raise ConvnextError for a code by which an operator says that it failed."""
    if code:
        raise ConvnextError(f"the compiled operator {name} {_FAILED.get(code, f'failed with code {code}')}")


def number(name: str, *arguments: Any) -> int:
    """What a function of the library returns."""
    found = library()
    assert found is not None
    found.use_threads(torch.get_num_threads())  # which another OpenMP than PyTorch's, as clang's, would not know
    return int(getattr(found, name)(*map(_argument, arguments)))


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, bool):
        return ctypes.c_int(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    if isinstance(value, torch.dtype):
        return ctypes.c_int(_DTYPES[value])
    return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)
