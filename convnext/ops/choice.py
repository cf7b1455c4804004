"""Which operators run: compiled ones where they are sure to compute the same, plain PyTorch everywhere else, one switch for all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from convnext.ops import build

_SETTING = os.environ.get("CONVNEXT_OPS", "on").lower()
_on = _SETTING not in ("off", "0", "no", "false")
_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


@contextmanager
def using(fast: bool) -> Iterator[None]:
    """Within, fast operators are used where they can be, or not at all; CONVNEXT_OPS=off is the same for a whole process."""
    global _on
    before, _on = _on, fast
    try:
        yield
    finally:
        _on = before


def fast(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether compiled operators take the map x with these parameters.

    Not where they would be in the way: in an exported graph, which is to consist of PyTorch's own operators, under functorch's
    transforms, on tensors that only pretend to be (meta), of other dtypes or on several devices.
    """
    if not _on or not _compiled_for(x.device.type):
        return False
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return False
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False
    there = [parameter for parameter in parameters if parameter is not None]
    if any(tensor.device != x.device or not tensor.is_floating_point() or tensor.dtype == torch.float64 for tensor in there):
        return False
    same = autocast(x) or all(tensor.dtype == x.dtype for tensor in there)
    return same and x.numel() > 0 and lowered(x) in _DTYPES[x.device.type]


def autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    return torch.is_autocast_enabled(x.device.type)


def lowered(x: Tensor) -> torch.dtype:
    """The dtype in which autocast has a product with x computed, or that of x."""
    return torch.get_autocast_dtype(x.device.type) if autocast(x) and x.is_floating_point() else x.dtype


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiler must not look into how a library is built
def _compiled_for(device_type: str) -> bool:
    if device_type == "cuda":  # by wish only, until they have run on a GPU
        return _SETTING == "triton" and find_spec("triton") is not None and torch.cuda.get_device_capability() >= (8, 0)
    return device_type == "cpu" and build.library() is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def tiles() -> bool:
    """Whether the CPU multiplies bf16 matrices in tiles."""
    return build.has_tiles()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def threads() -> int:
    """Among how many threads the operators share their work."""
    return torch.get_num_threads()


def compiled(dtype: torch.dtype) -> bool:
    """Whether there are compiled operators for products of that dtype on the CPU, and they are switched on."""
    return _on and build.library() is not None and (dtype == torch.float32 or (dtype == torch.bfloat16 and build.has_tiles()))


def status() -> dict[str, dict[str, str]]:
    """For each operator and device, what runs and why."""
    cpu = build.library() is not None
    why = f"compiled: {build.reason()}" if cpu else build.reason()
    if not _on:
        why = "switched off (CONVNEXT_OPS=off)"
    name = "compiled" if _on and cpu else "PyTorch"
    tiled = (
        ("compiled", "AMX tiles") if name == "compiled" and build.has_tiles() else ("PyTorch", "needs AMX" if name == "compiled" else why)
    )
    cuda = {"runs": "PyTorch", "why": "the Triton operators have not run on a GPU yet: CONVNEXT_OPS=triton uses them"}
    if torch.cuda.is_available() and _on and _compiled_for("cuda"):
        cuda = {"runs": "Triton", "why": "CONVNEXT_OPS=triton"}
    return {
        "depthwise convolution, CPU": {"runs": name, "why": why},
        "LayerNorm, CPU": {"runs": name, "why": why},
        "block and MLP in float32, CPU": {"runs": name, "why": why},
        "block and MLP in bf16, CPU": {"runs": tiled[0], "why": tiled[1]},
        "all, CUDA": cuda,
    }
