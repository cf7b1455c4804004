"""The library of the CPU's fast operators: C++ in csrc/, compiled at installation (`compile.py`), and called through ctypes.

Each level of CPUs has its library. The fastest that this CPU runs is loaded, or the one that CONVNEXT_OPS names.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from convnext.errors import ConvnextError, UsageError, first_line
from convnext.ops.compile import DETECTION, LEVELS, LIBRARIES, in_one_line, recorded
from convnext.ops.interface import DTYPES, FAILURES, FUNCTIONS
from convnext.text import counted

Argument = Tensor | torch.dtype | float | int | bool | None

# What csrc/cpu.cpp reads, in its order: registers of CPUID (leaf, subleaf, register), XCR0, and the first letters of the vendor's name.
CPU_WORDS = ("1 ecx", "7.0 ebx", "7.0 ecx", "7.0 edx", "7.1 eax", "80000001 ecx", "xcr0", "0 ebx")
# The registers that the system must save, as bits of XCR0: of AVX; with those of AVX-512; with the tiles of AMX.
_AVX, _AVX512, _AMX = 0x6, 0xE6, 0x600E6
# How a CPU reports each instruction set of compile.LEVELS: a word, its bit, and the registers that it needs.
FEATURES = {
    "fma": ("1 ecx", 12, _AVX),
    "movbe": ("1 ecx", 22, 0),
    "popcnt": ("1 ecx", 23, 0),
    "f16c": ("1 ecx", 29, _AVX),
    "bmi": ("7.0 ebx", 3, 0),
    "avx2": ("7.0 ebx", 5, _AVX),
    "bmi2": ("7.0 ebx", 8, 0),
    "avx512f": ("7.0 ebx", 16, _AVX512),
    "avx512dq": ("7.0 ebx", 17, _AVX512),
    "avx512cd": ("7.0 ebx", 28, _AVX512),
    "avx512bw": ("7.0 ebx", 30, _AVX512),
    "avx512vl": ("7.0 ebx", 31, _AVX512),
    "avx512vbmi": ("7.0 ecx", 1, _AVX512),
    "avx512vnni": ("7.0 ecx", 11, _AVX512),
    "amx-bf16": ("7.0 edx", 22, _AMX),
    "amx-tile": ("7.0 edx", 24, _AMX),
    "amx-int8": ("7.0 edx", 25, _AMX),
    "avxvnni": ("7.1 eax", 4, _AVX),
    "avx512bf16": ("7.1 eax", 5, _AVX512),
    "lzcnt": ("80000001 ecx", 5, 0),
}


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
    """Return the compiled operators, or None where there are none: `reason()` says why. A damaged installation is reported, once.

    Raises UsageError if CONVNEXT_OPS names a level that does not run here.
    """
    return _load()[0]


def reason() -> str:
    """Return the level that runs and why no faster one does, or why there is none."""
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
def is_amd() -> bool:
    """Return whether this CPU is one of AMD, and the installation can tell."""
    words = cpu_words()
    return words is not None and words["0 ebx"] == int.from_bytes(b"Auth", "little")  # AuthenticAMD


@functools.cache
def library_of(level: str) -> Library:
    """Return the operators compiled for a level, one of `levels()`. Raises ConvnextError if its file is damaged."""
    path = LIBRARIES / f"{level}.so"
    try:
        ctypes.CDLL(openmp_of("libtorch_cpu.so"), ctypes.RTLD_GLOBAL)  # the library is linked to none, and finds this one's functions
        return Library(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:  # AttributeError: a function is missing
        raise ConvnextError(f"{path} can't be loaded ({first_line(error)}); reinstall convnext") from error


def levels() -> list[str]:
    """Return the levels that run here, fastest last."""
    return [level for level, obstacle in _obstacles().items() if not obstacle]


def obstacle(level: str, words: Mapping[str, int] | None, capability: str, folder: Path = LIBRARIES) -> str:
    """Return why a level does not run; an empty string if it does.

    `words` is what `cpu_words` returns, `capability` the level of PyTorch's own operators ("DEFAULT", "AVX2", "AVX512"), which the user
    can lower by ATEN_CPU_CAPABILITY. `folder` holds the libraries.
    """
    missing = recorded(folder)[1]
    if words is None:
        whole = missing if missing.keys() == LEVELS.keys() else dict.fromkeys(LEVELS, f"{DETECTION}.so is missing; reinstall convnext")
        return in_one_line(whole)
    needed = [flag.removeprefix("-m") for flag in LEVELS[level]]
    if lacking := [feature for feature in needed if not has_feature(feature, words)]:
        return f"this CPU, or its system, lacks {', '.join(lacking)}"
    if capability == "DEFAULT" or (capability == "AVX2" and "avx512f" in needed):
        return f"PyTorch uses {capability} here"
    if (path := folder / f"{level}.so").exists():
        return ""
    return in_one_line(missing) if level in missing else f"{path} is missing; reinstall convnext"


def cpu_words(folder: Path = LIBRARIES) -> dict[str, int] | None:
    """Return what this CPU reports, by the names of CPU_WORDS; None if this installation has no compiled operators.

    Raises ConvnextError if the library that reads it is damaged.
    """
    path = folder / f"{DETECTION}.so"
    if not path.exists():
        return None
    words = (ctypes.c_uint32 * len(CPU_WORDS))()
    try:
        ctypes.CDLL(str(path)).read_cpu(words)
    except (OSError, AttributeError) as error:
        raise ConvnextError(f"{path} can't be loaded ({first_line(error)}); reinstall convnext") from error
    return dict(zip(CPU_WORDS, words, strict=True))


def openmp_of(caller: str) -> str:
    """Return the file of the OpenMP that a loaded library calls, by whatever name; the system's if it calls none.

    PyTorch brings one: libgomp.so.1, libgomp-a34b3233.so.1 or libiomp5.so. A second one would have threads and settings of its own.
    """
    try:
        function = ctypes.CDLL(caller, os.RTLD_NOLOAD).GOMP_parallel
    except (OSError, AttributeError):
        return "libgomp.so.1"
    found = _Symbol()
    ctypes.CDLL(None).dladdr(function, ctypes.byref(found))
    return os.fsdecode(found.file)


class _Symbol(ctypes.Structure):
    """Dl_info of <dlfcn.h>."""

    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("address", ctypes.c_void_p))


def has_feature(feature: str, words: Mapping[str, int]) -> bool:
    """Return whether a CPU and its system have a feature of FEATURES; `words` as `cpu_words` returns them."""
    word, bit, state = FEATURES[feature]
    return bool(words[word] >> bit & 1) and words["xcr0"] & state == state


@functools.cache
def _obstacles() -> dict[str, str]:
    words, capability = cpu_words(), torch.backends.cpu.get_cpu_capability()
    return {level: obstacle(level, words, capability) for level in LEVELS}


@functools.cache
def _load() -> tuple[Library | None, str]:
    named = os.environ.get("CONVNEXT_OPS", "").strip().lower()
    try:
        found = levels()
        if named in LEVELS and named not in found:
            raise UsageError(f"CONVNEXT_OPS={named}: {_obstacles()[named]}; levels that run here: {', '.join(found) or 'none'}")
        if not found:
            return None, next(iter(_obstacles().values()))
        if named in LEVELS:
            return library_of(named), f"level {named}, which CONVNEXT_OPS names"
        level, faster = found[-1], list(LEVELS)[list(LEVELS).index(found[-1]) + 1 :]
        return library_of(level), f"level {level}{''.join(f'; not {other}: {_obstacles()[other]}' for other in faster[:1])}"
    except UsageError:
        raise
    except ConvnextError as error:
        with suppress(OSError):
            print(f"convnext: the fast CPU operators are off, PyTorch's run instead: {error}", file=sys.stderr, flush=True)
        return None, str(error)


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
    found.call("use_threads", threads=torch.get_num_threads())  # PyTorch's setting is the process's, OpenMP's a thread's
    return found.call(name, **arguments)


def _converted(value: Argument) -> float | int | None:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return DTYPES[value] if isinstance(value, torch.dtype) else value
