"""The library of the CPU's fast operators: C++ in csrc/, compiled by the system's compiler on first use."""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.errors import ConvnextError

SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class _NoneHereError(Exception):
    """Why there are no compiled operators here."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled operators, or None where there are none: `reason()` says why. A compiler that fails is warned of, once."""
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
    try:
        file = _build()
        found = ctypes.CDLL(str(file))
        found.has_tiles()  # asks the system for them: without, their first use would end the process
        found.mlp_backward_sums.restype = ctypes.c_int64
        return found, str(file)
    except _NoneHereError as told:
        return None, str(told)
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(f"the fast CPU operators could not be built, plain PyTorch is used instead: {error}", stacklevel=2)
        return None, f"the build failed: {error}"


def _build() -> Path:
    """The library's file, compiled if this machine has none of these sources yet. Raises _NoneHereError, OSError, SubprocessError."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise _NoneHereError("they need Linux and a CPU with AVX-512")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise _NoneHereError("there is no C++ compiler: install g++ (apt install g++), or name one in CXX")
    cache = Path(os.environ.get("CONVNEXT_CACHE") or "~/.cache/convnext").expanduser() / "ops"
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{_fingerprint(compiler)}.so"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process builds, the others wait and find it
        if not file.exists():
            _compile(compiler, file)
    return file


def _fingerprint(compiler: str) -> str:
    """Of all that decides what the compiler makes."""
    about = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = [about, " ".join(_FLAGS).encode(), platform.machine().encode(), _cpu_flags()]
    parts += [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cpu_flags() -> bytes:
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith(b"flags")), b"")


def _compile(compiler: str, file: Path) -> None:
    print("compiling the fast CPU operators, once on this machine (some 10 seconds)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        objects = [Path(folder, f"{source.stem}.o") for source in sorted(SOURCES.glob("*.cpp"))]
        runs = [
            subprocess.Popen(
                [compiler, *_FLAGS, "-c", str(SOURCES / f"{made.stem}.cpp"), "-o", str(made)], stderr=subprocess.PIPE, text=True
            )
            for made in objects
        ]
        complaints = [run.communicate()[1] for run in runs]
        if any(run.returncode for run in runs):
            raise subprocess.SubprocessError(f"{compiler} says: {' '.join(complaints).strip()[:2000]}")
        done = Path(folder, "whole.so")
        subprocess.run([compiler, *_FLAGS, "-shared", *map(str, objects), "-o", str(done)], check=True, capture_output=True, timeout=600)
        os.replace(done, file)


def call(name: str, *arguments: Any) -> None:
    """Run an operator of the library: tensors become their addresses, None a null pointer, whole numbers have 64 bits."""
    if number(name, *arguments):
        raise ConvnextError(f"the compiled operator {name} ran out of memory: lower the batch size")


def number(name: str, *arguments: Any) -> int:
    """What a function of the library returns."""
    found = library()
    assert found is not None
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
