"""The library of the CPU's fast operators: C++ in csrc/, compiled by the system's compiler on first use, and called through ctypes."""

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from convnext.errors import ConvnextError
from convnext.ops.cache import load_or_warn
from convnext.ops.interface import DTYPES, FAILURES, FUNCTIONS
from convnext.text import counted

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp", "-Wall", "-Wextra")
Argument = Tensor | torch.dtype | float | int | bool | None


class Library:
    """The compiled operators, each with the types of its parameters."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._functions: dict[str, Callable[..., int]] = {}
        self.has_tiles = bool(loaded.has_tiles())  # asks the system for them: without, their first use would end the process
        self.has_int8 = bool(loaded.has_int8())
        for function in FUNCTIONS.values():
            compiled = self._functions[function.name] = loaded[function.name]
            compiled.argtypes, compiled.restype = [parameter.type for parameter in function.parameters], function.result

    def call(self, name: str, **arguments: Argument) -> int:
        """Return what a function returns. Tensors become their addresses, None a null pointer, dtypes their codes."""
        parameters = FUNCTIONS[name].parameters
        if len(arguments) != len(parameters):
            raise TypeError(f"{name} takes {counted(len(parameters), 'argument')}, not {len(arguments)}")
        return int(self._functions[name](*(_converted(arguments[parameter.name]) for parameter in parameters)))


@functools.cache
def library() -> Library | None:
    """Return the compiled operators, or None where there are none: `reason()` says why. A failure is printed, once."""
    return _load()[0]


def reason() -> str:
    """Return the path of the library, or why there is none."""
    return _load()[1]


def has_tiles() -> bool:
    """Return whether this CPU multiplies bf16 matrices in tiles (AMX) and the system lets it."""
    found = library()
    return found is not None and found.has_tiles


def has_int8() -> bool:
    """Return whether the compiled operators multiply matrices of 8 bits here (VNNI or AMX)."""
    found = library()
    return found is not None and found.has_int8


@functools.cache
def _load() -> tuple[Library | None, str]:
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None, "they need Linux and a CPU with AVX-512"
    loaded, reason = load_or_warn(SOURCES, FLAGS, list(FUNCTIONS))
    return None if loaded is None else Library(loaded), reason


def call(name: str, **arguments: Argument) -> None:
    """Run an operator of the library. Raises ConvnextError if it fails."""
    check(name, number(name, **arguments))


def check(name: str, code: int) -> None:
    """Raise ConvnextError for the code of a failure."""
    if code:
        raise ConvnextError(f"the compiled operator {name} {FAILURES.get(code, f'failed with code {code}')}")


def number(name: str, **arguments: Argument) -> int:
    """Return what a function of the library returns, run on as many threads as PyTorch uses."""
    found = library()
    assert found is not None
    found.call("use_threads", threads=torch.get_num_threads())  # an OpenMP other than PyTorch's, such as clang's, has a setting of its own
    return found.call(name, **arguments)


def _converted(value: Argument) -> float | int | None:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return DTYPES[value] if isinstance(value, torch.dtype) else value
