"""Dispatch between compiled operators and the PyTorch reference."""

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Generic, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from convnext.ops import build
from convnext.ops.compile import LEVELS

_VALUES = {"on": ("on", "1", "yes", "true", ""), "off": ("off", "0", "no", "false"), "triton": ("triton",)}
_VALUES |= {level: (level,) for level in LEVELS}  # build.py loads that level
_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])
ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


def _setting() -> str:
    value = os.environ.get("CONVNEXT_OPS", "").strip().lower()
    for name, words in _VALUES.items():
        if value in words:
            return name
    warnings.warn(f"CONVNEXT_OPS={value} is unknown and has no effect; it can be one of {', '.join(_VALUES)}", stacklevel=2)
    return "on"


_SETTING = _setting()
# "pays": where the operators are also faster; "all": wherever they compute the same.
_mode: Literal["off", "pays", "all"] = "off" if _SETTING == "off" else "pays"


@contextmanager
def using(fast: bool) -> Iterator[None]:
    """Within, use the fast operators wherever they compute the same, even if PyTorch's are faster; or with False use none of them.

    CONVNEXT_OPS=off turns them off for a whole process.
    """
    global _mode
    before, _mode = _mode, "all" if fast else "off"
    try:
        yield
    finally:
        _mode = before


def fast(x: Tensor, *parameters: Tensor | None) -> bool:
    """Return whether compiled operators take the map x (N, …, positions and channels in any order) with these parameters.

    They do not in an exported graph, which consists of PyTorch's own operators; under functorch's transforms; on meta tensors and on
    tensors of a subclass; in other dtypes; and on tensors of several devices.
    """
    if _mode == "off" or not _compiled_for(x.device.type):
        return False
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return False
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False
    given = [parameter for parameter in parameters if parameter is not None]
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in (x, *given)):
        return False
    if any(tensor.device != x.device or not tensor.is_floating_point() or tensor.dtype == torch.float64 for tensor in given):
        return False
    same = autocast(x) or all(tensor.dtype == x.dtype for tensor in given)
    if not same or x.numel() == 0 or lowered(x) not in _DTYPES[x.device.type]:
        return False
    return _mode == "all" or x.is_cuda or tiles() or _pays_without_tiles(x, *given)


def _pays_without_tiles(*tensors: Tensor) -> bool:
    """Return whether the operators are faster than PyTorch's on a CPU without AMX: in inference, and with AVX-512 on AMD in training.

    ConvNeXt-T at 224 pixels in float32, as multiples of the speed of PyTorch's operators: on an AMD Zen 5 1.5 in inference with one image,
    2.0 with eight, and 1.5 in a training step. On an Intel Xeon with AVX-512, where PyTorch multiplies matrices twice as fast, 1.16 and
    1.21 in inference with 8 and 16 images, and 0.90 and 0.96 in a training step; with earlier operators, which were slower. With AVX2 alone
    0.91 in a training step, on Zen 5 too.
    """
    return not needs_gradients(*tensors) or _trains_faster()


def needs_gradients(*tensors: Tensor | None) -> bool:
    """Return whether autograd records what is computed with these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def autocast(x: Tensor) -> bool:
    """Return whether autocast is on for the device of x."""
    return torch.is_autocast_enabled(x.device.type)


def lowered(x: Tensor) -> torch.dtype:
    """Return the dtype in which autocast computes a product with x, or that of x without autocast."""
    return torch.get_autocast_dtype(x.device.type) if autocast(x) and x.is_floating_point() else x.dtype


def constant(function: FunctionT) -> FunctionT:
    """Mark a function that torch.compile calls instead of tracing it: it must not trace how a library is built.

    `torch.compiler.assume_constant_result` does no more than this, but it imports the compiler, which takes two seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def _compiled_for(device_type: str) -> bool:
    if device_type == "cuda":  # opt-in until they have run on a GPU
        return _SETTING == "triton" and find_spec("triton") is not None and torch.cuda.get_device_capability() >= (8, 0)
    return device_type == "cpu" and build.library() is not None


@constant
def _trains_faster() -> bool:
    return build.is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512"


@constant
def tiles() -> bool:
    """Return whether the compiled operators multiply bf16 matrices in tiles (AMX)."""
    return build.has_tiles()


def compiled(dtype: torch.dtype) -> bool:
    """Return whether compiled operators for products in that dtype exist on the CPU and are switched on."""
    return _mode != "off" and build.library() is not None and (dtype == torch.float32 or (dtype == torch.bfloat16 and build.has_tiles()))


def multiplies_int8() -> bool:
    """Return whether compiled operators for products of 8 bits exist on the CPU (VNNI or AMX) and are switched on."""
    return _mode != "off" and build.has_int8()


def has_amx() -> bool:
    """Return whether the CPU multiplies bf16 matrices in tiles, by our operators or by PyTorch's."""
    return build.has_tiles() or (torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_amx_tile_supported())


def slow_on_cpu(precision: str) -> str | None:
    """Return why a precision ("bf16", "fp16") is slower than float32 on this machine's CPU; None if it is not, or nobody knows."""
    if precision not in ("bf16", "fp16") or platform.machine() not in ("x86_64", "AMD64"):
        return None
    if precision == "bf16" and has_amx():
        return None
    return f"{precision} is slower than float32 on this CPU{'' if precision == 'fp16' else ', which has no AMX'} (up to 16 times)"


def status() -> dict[str, dict[str, str]]:
    """Return for each operator and device what runs ("compiled", "PyTorch", "Triton") and why."""
    has_compiled = _mode != "off" and build.library() is not None
    why = build.reason() if _mode != "off" else "switched off (CONVNEXT_OPS=off)"
    if has_compiled and not build.has_tiles() and _mode == "pays" and not _trains_faster():
        why = f"in inference; PyTorch is faster in training on such a CPU; {why}"
    cpu = {"runs": "compiled" if has_compiled else "PyTorch", "why": why}
    tiled = cpu
    if has_compiled:
        needs = "needs the level amx" if has_amx() else "needs AMX"
        tiled = {"runs": "compiled", "why": "AMX tiles"} if build.has_tiles() else {"runs": "PyTorch", "why": needs}
    cuda = {"runs": "PyTorch", "why": "the Triton operators have not run on a GPU yet: CONVNEXT_OPS=triton uses them"}
    if torch.cuda.is_available() and has_compiled and _compiled_for("cuda"):
        cuda = {"runs": "Triton", "why": "CONVNEXT_OPS=triton"}
    return {
        "depthwise convolution, CPU": cpu,
        "LayerNorm, CPU": cpu,
        "block in float32, CPU": cpu,
        "block in bf16, CPU": tiled,
        "block in int8, CPU": {"runs": "compiled", "why": "AMX tiles" if build.has_tiles() else "VNNI"}
        if multiplies_int8()
        else {"runs": "nothing", "why": "needs VNNI or AMX"},
        "all, CUDA": cuda,
    }


class Operator(Generic[ParametersT, ResultT]):
    """A custom operator of PyTorch. Without gradients, compiler and dispatch modes its function is called directly.

    The dispatcher takes some 20 µs for each call, and a process's first call of a custom operator imports PyTorch's compiler, which takes
    a second.
    """

    def __init__(self, name: str, function: Callable[ParametersT, ResultT]) -> None:
        self._function, self._registered = function, torch.library.custom_op(name, mutates_args=())(function)
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: ParametersT.args, **named: ParametersT.kwargs) -> ResultT:
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or needs_gradients(*(one for one in arguments if isinstance(one, Tensor)))
        ):
            result: ResultT = self._registered(*arguments, **named)
            return result
        return self._function(*arguments, **named)

    def register_fake(self, function: FunctionT) -> FunctionT:
        """Register what gives empty results of the right shapes, for tracing. Return it."""
        self._registered.register_fake(function)
        return function

    def register_autograd(self, backward: Callable[..., object], *, setup_context: Callable[..., object]) -> None:
        """Register the backward pass, and what saves its inputs."""
        self._registered.register_autograd(backward, setup_context=setup_context)


def operator(name: str) -> Callable[[Callable[ParametersT, ResultT]], Operator[ParametersT, ResultT]]:
    """Return a decorator that makes an operator of a function without side effects. Its types are the operator's schema."""
    return lambda function: Operator(name, function)
