"""`convnext.optimize`: a copy of a network for fast inference on a CPU.

Each change is exact but for rounding. A norm's affine is folded into the layer behind it, and the layer scale into the linear layer
before it. Each block becomes one compiled operator, which passes slabs of the map through all its layers while they lie in a core's
cache. Freed memory is kept. In bf16 the operands of products are rounded to bf16; sums and the map that blocks add to stay float32. In
float32, where a CPU multiplies bf16 in tiles, each operand is the sum of two bf16, which keeps 16 bits of it: outputs differ by about 1e-5.
"""

import copy
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeGuard

import torch
from torch import nn

from convnext.errors import UsageError, nearest
from convnext.models.backbones.convnext import Block, ConvNeXt, Patchify
from convnext.models.backbones.norms import LayerNorm2d
from convnext.models.backbones.untouched import untouched
from convnext.models.optimize.engines import ENGINES
from convnext.models.optimize.folded import FoldedBlock, FoldedPatchify, FoldedStage
from convnext.models.optimize.quantize import Int8Block, PackedBlock, Ranges, calibrate
from convnext.models.optimize.sliced import SlicedBlock
from convnext.ops import dispatch
from convnext.ops.interface import KERNELS
from convnext.ops.memory import keep_memory

PRECISIONS = ("auto", "bf16", "float32", "int8")
BACKENDS = ("auto", "convnext", *ENGINES)
_ENGINE_HINT = "backend='openvino' (--optimize openvino) computes any classifier"


def why_not(model: nn.Module) -> str | None:
    """Return why our operators do not compute this network faster; None if they do."""
    if reason := _not_float32_on_cpu(model):
        return reason
    if not any(isinstance(module, Block) for module in model.modules()):
        return f"this network has no block of ConvNeXt, and our operators make only these faster; {_ENGINE_HINT}"
    if not any(isinstance(module, Block) and module.is_published for module in model.modules()):
        other = "another norm or activation than ConvNeXt's"
        return f"the blocks of this network have {other}, and our operators do not make such blocks faster; {_ENGINE_HINT}"
    return None


def _not_float32_on_cpu(model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            found = f"{name} is {parameter.dtype} on {parameter.device}"
            return f"optimize takes a float32 network on the CPU; {found}: load it with device='cpu' (--device cpu), or do not optimize it"
    return None


def fastest() -> str | None:
    """Return the fastest precision on this CPU that does not change accuracy; None if the unchanged network is the fastest."""
    if dispatch.has_amx():
        return "bf16"
    return "float32" if dispatch.compiled(torch.float32) else None


def engine_for(model: nn.Module) -> str | None:
    """Return the engine that "auto" takes for a network on this CPU; None for our operators.

    On a CPU with AVX2 alone OpenVINO computes ConvNeXt-T 1.15 times as fast as our operators on one image, and 1.03 times on 16. With
    AVX-512 ours are 1.2 to 1.3 times as fast as OpenVINO (docs/about/results.md, "Speed").
    """
    plain = isinstance(model, ConvNeXt) and not any(isinstance(module, Block) and module.grn is not None for module in model.modules())
    return "openvino" if plain and _prefers_openvino() and why_not(model) is None else None


def _prefers_openvino() -> bool:
    """Return whether OpenVINO is installed, and faster than our operators on this CPU."""
    narrow = torch.backends.cpu.get_cpu_capability() != "AVX512"
    return narrow and dispatch.compiled(torch.float32) and find_spec("openvino") is not None


def by_default() -> str:
    """Return what "auto" takes on this CPU, and why, for people."""
    precision = fastest()
    if precision is None:
        return "the network as it is: nothing was measured to be faster here"
    if not _prefers_openvino():
        return f"our operators in {precision}"
    return "OpenVINO in float32 for ConvNeXt's classifiers, because it is faster with AVX2 alone; our operators for other networks"


def optimize(
    model: nn.Module, precision: str = "auto", *, backend: str = "auto", calibration: Callable[[nn.Module], object] | None = None
) -> nn.Module:
    """Return a copy of a network of any task for inference on the CPU. It is called as the original is, and its outputs are float32.

    ConvNeXt's blocks and patchifying layers become fast ones, in a classifier or under a detector or segmenter. All other layers stay as
    they are, and so does a block with a hook, an adapter or another change in it.

    Args:
        model: on the CPU, in float32.
        precision: of the products. "auto" is the fastest here: bf16 on a CPU with AMX, float32 on one with AVX2 or AVX-512, and elsewhere,
            where nothing was measured to be faster, the unchanged network. "bf16" and "float32" work on any CPU, "int8" on one with VNNI or
            AMX, and not for blocks with GRN. int8 changes predictions: measure the accuracy. For float32 exact to the last bit use the
            original network.
        backend: "auto" takes the operators of this package, "convnext"; without a precision, on a CPU with AVX2 alone, "openvino" for
            ConvNeXt's classifiers where it is installed, because it is faster there (`convnext info` prints what is taken). "openvino" and
            "inductor" (torch.compile with frozen weights) compute any network that returns one tensor, in float32, OpenVINO also in bf16.
            They convert it at the first call.
        calibration: for int8, a function that passes a few hundred typical images through the network that it is given:
            `lambda network: network(images)`.

    Warns of bf16 where it is slower than float32. Raises UsageError for an unknown precision or backend, a network that is not in float32
    on the CPU or, for our operators, has no ConvNeXt block, and for int8 without images, with an engine, on a CPU without VNNI and AMX, or
    if all blocks have GRN.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}{nearest(precision, PRECISIONS)}")
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}{nearest(backend, BACKENDS)}")
    if backend == precision == "auto":
        backend = engine_for(model) or "convnext"
    if (engine := ENGINES.get(backend)) is not None:
        return _by_engine(engine, backend, model, precision)
    if reason := why_not(model):
        raise UsageError(reason)
    if reason := dispatch.slow_on_cpu(precision):
        warnings.warn(f"{reason}: use float32, or name no precision to get the fastest", stacklevel=2)
    ranges: Ranges = {}
    if precision == "int8":
        _check_int8(model)
        if calibration is None:
            raise UsageError(
                "int8 needs images to calibrate with: pass a function as `calibration` that puts a few hundred through the network"
            )
        ranges = calibrate(model, calibration)
    keep_memory()
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    chosen = fastest() if precision == "auto" else precision
    if chosen is not None:
        _make_fast(fast, _dtype(chosen), ranges)
    return fast


def _by_engine(engine: Callable[[nn.Module, str], nn.Module], name: str, model: nn.Module, precision: str) -> nn.Module:
    if precision == "int8":
        raise UsageError(f"int8 is computed by our operators: omit backend={name!r}")
    if reason := _not_float32_on_cpu(model):
        raise UsageError(reason)
    return engine(copy.deepcopy(model).eval().requires_grad_(False), "float32" if precision == "auto" else precision)


def _dtype(precision: str) -> torch.dtype:
    """Return the dtype of products, for int8 of those in the layers that are not quantized."""
    return torch.bfloat16 if precision == "bf16" or (precision == "int8" and dispatch.tiles()) else torch.float32


def _check_int8(model: nn.Module) -> None:
    """Raise UsageError if int8 changes no block of this network here; warn if it leaves some in bf16."""
    other = fastest()
    instead = "do not optimize, nothing is faster here" if other is None else f"use {other}, the fastest here"
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    with_grn = [block for block in blocks if block.grn is not None]
    if len(with_grn) == len(blocks):
        raise UsageError(f"int8 quantizes no blocks with GRN, and this network (ConvNeXt V2) has no others: {instead}")
    if not dispatch.multiplies_int8():
        raise UsageError(
            f"int8 needs a CPU with VNNI or AMX and the compiled operators (`convnext info` prints what is missing): {instead}"
        )
    if with_grn:
        others = "bf16" if dispatch.tiles() else "float32"
        warnings.warn(f"int8 quantizes no blocks with GRN: {len(with_grn)} of {len(blocks)} stay in {others}", stacklevel=3)


def _make_fast(fast: nn.Module, dtype: torch.dtype, ranges: Ranges) -> None:
    for name, (scale, zero) in ranges.items():
        block = fast.get_submodule(name)
        assert isinstance(block, Block)
        if _is_whole(block) and block.grn is None and block.dwconv.kernel_size[0] in KERNELS:
            fast.set_submodule(name, Int8Block(block, scale, zero))
    _replace(fast, dtype)
    for module in fast.modules():
        if isinstance(module, ConvNeXt) and type(module).features is ConvNeXt.features:
            _join_stages(module)


def _is_whole(block: nn.Module) -> TypeGuard[Block]:
    """Return whether no hook watches the block and nothing in it was changed, so that another module can replace it."""
    return untouched(block, Block) and block.fusable() is not None


def _replace(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        fast = _fast(child, dtype)
        if fast is None:
            _replace(child, dtype)
        else:
            setattr(module, name, fast)


def _fast(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    compiled = dispatch.compiled(dtype)
    if _is_whole(module):
        return FoldedBlock(module, dtype) if compiled and module.dwconv.kernel_size[0] in KERNELS else SlicedBlock(module, dtype)
    if not compiled or not untouched(module, nn.Sequential) or len(module) != 2:
        return None
    first, second = module
    if untouched(first, LayerNorm2d) and _is_patchifying(second) and second.in_channels % 16 == 0:
        return FoldedPatchify(second, dtype, before=first)
    if _is_patchifying(first) and untouched(second, LayerNorm2d):
        return FoldedPatchify(first, dtype, behind=second)
    return None


def _join_stages(network: ConvNeXt) -> None:
    """Make each patchifying layer and the blocks behind it one module if all of them are compiled."""
    for i, (before, stage) in enumerate(zip(network.downsample_layers, network.stages, strict=True)):
        if not isinstance(before, FoldedPatchify) or not untouched(stage, nn.Sequential):
            continue
        blocks = [block for block in stage.children() if isinstance(block, PackedBlock)]
        if blocks and len(blocks) == len(stage) and len(set(map(_common, blocks))) == 1:
            network.downsample_layers[i], network.stages[i] = nn.Identity(), nn.Sequential(FoldedStage(before, blocks))


def _common(block: nn.Module) -> tuple[object, ...]:
    """Return what the blocks of a stage have in common if one operator computes them."""
    assert isinstance(block, PackedBlock)
    return type(block), block.eps, block.hidden, block.taps.shape, block.grn_eps if isinstance(block, FoldedBlock) else None


def _is_patchifying(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not (untouched(module, nn.Conv2d) or untouched(module, Patchify)) or module.bias is None:
        return False
    square = module.kernel_size == module.stride and module.kernel_size[0] == module.kernel_size[1]
    return square and module.padding == (0, 0) and module.dilation == (1, 1) and module.groups == 1
