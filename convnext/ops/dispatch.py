"""Which operators run: compiled ones where they are sure to compute the same and to be faster, plain PyTorch everywhere else."""

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from convnext.ops import build

_VALUES = {"on": ("on", "1", "yes", "true", ""), "off": ("off", "0", "no", "false"), "triton": ("triton",)}
_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}
# Positions of the largest map (56 x 56) of one image of 224 pixels, at which PyTorch was measured to be faster without AMX.
_ONE_IMAGE = 56 * 56


def _setting() -> str:
    asked = os.environ.get("CONVNEXT_OPS", "").strip().lower()
    for name, words in _VALUES.items():
        if asked in words:
            return name
    warnings.warn(f"CONVNEXT_OPS={asked} is unknown and has no effect; it can be on, off or triton", stacklevel=2)
    return "on"


_SETTING = _setting()
# "pays": where they are faster, too; "all": wherever they compute the same.
_mode: Literal["off", "pays", "all"] = "off" if _SETTING == "off" else "pays"


@contextmanager
def using(fast: bool) -> Iterator[None]:
    """Within, fast operators are used wherever they can be, also where PyTorch's are faster, or not at all.

    CONVNEXT_OPS=off turns them off for a whole process.
    """
    global _mode
    before, _mode = _mode, "all" if fast else "off"
    try:
        yield
    finally:
        _mode = before


def fast(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether compiled operators take the map x (N, …, in positions and channels) with these parameters.

    Not where they would be in the way: in an exported graph, which is to consist of PyTorch's own operators, under functorch's
    transforms, on tensors that only pretend to be (meta) or whose class computes by itself, of other dtypes or on several devices.
    """
    if _mode == "off" or not _compiled_for(x.device.type):
        return False
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return False
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False
    there = [parameter for parameter in parameters if parameter is not None]
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in (x, *there)):
        return False
    if any(tensor.device != x.device or not tensor.is_floating_point() or tensor.dtype == torch.float64 for tensor in there):
        return False
    same = autocast(x) or all(tensor.dtype == x.dtype for tensor in there)
    if not same or x.numel() == 0 or lowered(x) not in _DTYPES[x.device.type]:
        return False
    return _mode == "all" or x.is_cuda or tiles() or _pays_without_tiles(x, *there)


def _pays_without_tiles(x: Tensor, *parameters: Tensor) -> bool:
    """Whether the operators are faster than PyTorch's on a CPU with AVX-512 and without AMX.

    ConvNeXt-T at 224 pixels in float32, as multiples of timm's speed: inference 1.16 and 1.21 with 8 and 16 images, but 0.92 with
    one, for which weights are packed at every call; a training step 0.90 and 0.96 with 8 and 16.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters)):
        return False
    channels = parameters[0].shape[0]  # of all operators' weights the first side; of patchify's it is that of the result
    return x.shape[0] > 1 or x.numel() > _ONE_IMAGE * channels


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
    return _mode != "off" and build.library() is not None and (dtype == torch.float32 or (dtype == torch.bfloat16 and build.has_tiles()))


def has_amx() -> bool:
    """Whether the CPU multiplies bf16 matrices in tiles, by our operators or by PyTorch's."""
    return build.has_tiles() or (torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_amx_tile_supported())


def slow_on_cpu(precision: str) -> str | None:
    """Why that precision ("bf16", "fp16") is slower than float32 on this machine's CPU; None if it is not, or not known to be."""
    if precision not in ("bf16", "fp16") or platform.machine() not in ("x86_64", "AMD64"):
        return None
    if precision == "bf16" and has_amx():
        return None
    return f"{precision} is slower than float32 on this CPU{'' if precision == 'fp16' else ', which has no AMX'} (up to 16 times)"


def status() -> dict[str, dict[str, str]]:
    """For each operator and device, what runs and why."""
    compiled_ones = _mode != "off" and build.library() is not None
    why = build.reason() if _mode != "off" else "switched off (CONVNEXT_OPS=off)"
    if compiled_ones and not build.has_tiles() and _mode == "pays":
        why = f"in inference with several images; PyTorch is faster otherwise on a CPU without AMX; {why}"
    cpu = {"runs": "compiled" if compiled_ones else "PyTorch", "why": why}
    tiled = cpu
    if compiled_ones:
        needs = "needs a compiler that knows AMX (g++ 11)" if has_amx() else "needs AMX"
        tiled = {"runs": "compiled", "why": "AMX tiles"} if build.has_tiles() else {"runs": "PyTorch", "why": needs}
    cuda = {"runs": "PyTorch", "why": "the Triton operators have not run on a GPU yet: CONVNEXT_OPS=triton uses them"}
    if torch.cuda.is_available() and compiled_ones and _compiled_for("cuda"):
        cuda = {"runs": "Triton", "why": "CONVNEXT_OPS=triton"}
    return {
        "depthwise convolution, CPU": cpu,
        "LayerNorm, CPU": cpu,
        "block and MLP in float32, CPU": cpu,
        "block and MLP in bf16, CPU": tiled,
        "all, CUDA": cuda,
    }
