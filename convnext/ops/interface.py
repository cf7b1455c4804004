"""The C functions of the compiled operators: the parameters and the return codes of each, as csrc/ declares them."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

CType = type[ctypes.c_void_p] | type[ctypes.c_int64] | type[ctypes.c_int] | type[ctypes.c_float]

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # as csrc/vector.h numbers them
# Packed weights have the dtype of the products that they are for. SPLIT: float32 numbers, each as the sum of two bf16.
SPLIT = torch.int32
PRODUCTS = {torch.float32: 0, torch.bfloat16: 1, SPLIT: 2}  # as csrc/slab.h numbers them
KERNELS = (3, 5, 7, 9, 11)  # sizes of the depthwise convolution that are compiled

# What a function reports by another code than 0, as csrc/vector.h numbers them: the end of "the compiled operator NAME …".
FAILURES = {
    1: "ran out of memory: use a smaller batch or smaller images",
    2: f"has no kernel of this size: use one of {', '.join(map(str, KERNELS))}",
    3: "does not support this combination of dtypes: use float32 or bfloat16 throughout",
    4: "needs a CPU with AMX for products in bf16: use float32",
    5: "needs a CPU with VNNI or AMX for products of 8 bits: use float32",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a C function."""

    name: str
    type: CType


@dataclass(frozen=True)
class Function:
    """A C function. It returns a code (0: done, else a key of FAILURES) if `result` is c_int."""

    name: str
    parameters: tuple[Parameter, ...]
    result: type[ctypes.c_int] | type[ctypes.c_int64] = ctypes.c_int


def _function(name: str, *groups: Sequence[Parameter], result: type[ctypes.c_int] | type[ctypes.c_int64] = ctypes.c_int) -> Function:
    return Function(name, tuple(parameter for group in groups for parameter in group), result)


def _pointers(names: str) -> list[Parameter]:
    """Return parameters that take a tensor or None, which becomes a null pointer."""
    return [Parameter(name, ctypes.c_void_p) for name in names.split()]


def _sizes(names: str) -> list[Parameter]:
    """Return parameters that take a whole number of 64 bits."""
    return [Parameter(name, ctypes.c_int64) for name in names.split()]


def _codes(names: str) -> list[Parameter]:
    """Return parameters that take a value of DTYPES or PRODUCTS, or a truth value."""
    return [Parameter(name, ctypes.c_int) for name in names.split()]


def _floats(names: str) -> list[Parameter]:
    return [Parameter(name, ctypes.c_float) for name in names.split()]


_MAP = "n height width channels"  # of an input (N, H, W, C), contiguous

# In csrc/'s order; tests/ops/test_interface.py compares both.
FUNCTIONS = {
    function.name: function
    for function in (
        _function("has_tiles"),
        _function("has_int8"),
        _function("use_threads", _sizes("threads")),
        # Depthwise convolution (`depthwise.py`)
        _function("depthwise_forward", _pointers("x taps bias add y"), _codes("dtype y_dtype"), _sizes(f"{_MAP} kernel")),
        _function("depthwise_weight_gradient", _pointers("x dy dtaps dbias"), _codes("dtype dy_dtype"), _sizes(f"{_MAP} kernel")),
        # LayerNorm (`norm.py`)
        _function("norm_forward", _pointers("x weight bias y means scales"), _codes("dtype"), _sizes("rows channels"), _floats("eps")),
        _function(
            "norm_backward",
            _pointers("x dy weight means scales dx dweight dbias"),
            _codes("dtype dy_dtype"),
            _sizes("rows channels"),
        ),
        # ConvNeXt's block (`block.py`, `folded.py`)
        _function(
            "pack_weight",
            _pointers("weight"),
            _sizes("row_step column_step"),
            _pointers("row_scale column_scale packed"),
            _sizes("n k"),
            _codes("products"),
        ),
        _function(
            "block_forward",
            _pointers("x taps bias"),
            _floats("eps"),
            _pointers("first first_bias second second_bias w1 norm_weight w2 gamma grn"),
            _floats("grn_eps"),
            _pointers("keep convolved means scales out"),
            _codes("dtype"),
            _sizes(f"{_MAP} hidden w1_row_step w1_column_step w2_row_step w2_column_step kernel"),
            _codes("products"),
        ),
        _function("norm_mlp_backward_sums", _sizes("rows channels hidden"), _codes("dtype"), result=ctypes.c_int64),
        _function(
            "norm_mlp_backward",
            _pointers("convolved means scales norm_weight norm_bias dout first first_bias second first_transposed"),
            _pointers("w2 b2 gamma keep dconvolved sums"),
            _codes("dtype dout_dtype"),
            _sizes("rows positions channels hidden"),
            _pointers("dnorm_weight dnorm_bias dw1 db1 dw2 db2 dgamma"),
        ),
        # Inference (`inference.py`)
        _function(
            "patchify_forward",
            _pointers("x"),
            _codes("normed"),
            _floats("eps"),
            _pointers("packed bias norm_weight norm_bias out"),
            _codes("dtype"),
            _sizes(f"{_MAP} patch out_channels"),
            _codes("products"),
        ),
        _function(
            "stage_forward",
            _pointers("x"),
            _codes("normed"),
            _floats("patch_eps"),
            _pointers("packed bias norm_weight norm_bias block_tensors gelu_parameters"),
            _floats("eps grn_eps"),
            _pointers("out"),
            _codes("dtype"),
            _sizes(f"{_MAP} patch out_channels blocks hidden kernel"),
            _codes("products"),
        ),
        _function("int8_pack", _pointers("weight packed"), _sizes("n k columns")),
        _function(
            "int8_block_forward",
            _pointers("x taps bias"),
            _floats("eps"),
            _pointers("first first_bias second second_bias first_scale second_scale table out"),
            _sizes(f"multiplier step fraction {_MAP} hidden kernel"),
        ),
    )
}
