"""What torch.utils.flop_counter counts for the fast operators: as much as for the PyTorch operators that they replace.

Each formula gets the operator's arguments, tensors as their shapes. PyTorch counts matrix products and convolutions only, and the gradient
of a depthwise convolution's weight as if it had no groups; so do these. What a backward pass computes a second time is not counted.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from convnext.ops import block, depthwise, folded, norm  # noqa: F401  # they define the operators

Shape = Sequence[int]
_OPS = torch.ops.convnext


def _linear_layers(rows: int, w1: Shape) -> int:
    """Return the count of the layers from C channels to H and back; w1 (H, C)."""
    return 2 * 2 * rows * prod(w1)


def _convolution_gradients(x: Shape, weight: Shape, of_x: bool, of_weight: bool) -> int:
    """Return the count of a depthwise convolution's gradients."""
    found = conv_flop_count(list(x), list(weight), list(x), transposed=True) if of_x else 0
    swapped = _swapped(x)
    return found + (conv_flop_count(swapped, swapped, _swapped(weight)) if of_weight else 0)


def _swapped(shape: Shape) -> list[int]:
    """Return (C, N, …) of (N, C, …)."""
    return [shape[1], shape[0], *shape[2:]]


def _positions(x: Shape) -> int:
    return prod(x) // x[1]


def _whole_block(x: Shape, taps: Shape, hidden: int) -> int:
    """Return the count of a block on x (N, C, H, W) with taps (K, K, C)."""
    return 2 * prod(x) * taps[0] * taps[1] + _linear_layers(_positions(x), (hidden, x[1]))


def _patchify(x: Shape, patch: int, outputs: int) -> int:
    n, channels, height, width = x
    return 2 * n * (height // patch) * (width // patch) * outputs * channels * patch * patch


@register_flop_formula(_OPS.depthwise_conv)
def _depthwise(x: Shape, weight: Shape, *_: object, **__: object) -> int:
    return conv_flop_count(list(x), list(weight), list(x))


@register_flop_formula(_OPS.depthwise_input_gradient)
def _input_gradient(dy: Shape, weight: Shape, **_: object) -> int:
    return _convolution_gradients(dy, weight, True, False)


@register_flop_formula(_OPS.depthwise_weight_gradient)
def _weight_gradient(x: Shape, dy: Shape, kernel: int, **_: object) -> int:
    return _convolution_gradients(x, (x[1], 1, kernel, kernel), False, True)


@register_flop_formula([_OPS.layer_norm, _OPS.layer_norm_backward])
def _norm(*_: object, **__: object) -> int:
    return 0


@register_flop_formula([_OPS.block, _OPS.grn_block])
def _block(x: Shape, dwconv_weight: Shape, _: Shape, __: Shape, ___: Shape, w1: Shape, *____: object, **_____: object) -> int:
    return 2 * prod(x) * prod(dwconv_weight[1:]) + _linear_layers(_positions(x), w1)


@register_flop_formula(_OPS.block_backward)
def _block_backward(
    dout: Shape,
    x: Shape,
    convolved: Shape,
    means: Shape,
    scales: Shape,
    dwconv_weight: Shape,
    norm_weight: Shape,
    norm_bias: Shape,
    w1: Shape,
    *_: object,
    **__: object,
) -> int:
    return _convolution_gradients(x, dwconv_weight, True, True) + 2 * _linear_layers(_positions(x), w1)


@register_flop_formula(_OPS.folded_block)
def _folded_block(
    x: Shape,
    taps: Shape,
    bias: Shape,
    eps: float,
    first: Shape,
    first_bias: Shape,
    second: Shape,
    second_bias: Shape,
    grn: Shape,
    grn_eps: float,
    hidden: int,
    **_: object,
) -> int:
    return _whole_block(x, taps, hidden)


@register_flop_formula(_OPS.int8_block)
def _int8_block(x: Shape, taps: Shape, *rest: object, **_: object) -> int:
    hidden = rest[-1]
    assert isinstance(hidden, int)
    return _whole_block(x, taps, hidden)


@register_flop_formula(_OPS.folded_patchify)
def _folded_patchify(
    x: Shape,
    weight: Shape,
    bias: Shape,
    norm_weight: Shape | None,
    norm_bias: Shape | None,
    eps: float,
    normed: bool,
    patch: int,
    outputs: int,
    **_: object,
) -> int:
    return _patchify(x, patch, outputs)


@register_flop_formula(_OPS.folded_stage)
def _folded_stage(
    x: Shape,
    weight: Shape,
    bias: Shape,
    norm_weight: Shape | None,
    norm_bias: Shape | None,
    patch_eps: float,
    normed: bool,
    patch: int,
    outputs: int,
    tensors: Sequence[Shape],
    gelu_parameters: Shape | None,
    eps: float,
    grn_eps: float,
    hidden: int,
    **_: object,
) -> int:
    n, height, width = x[0], x[2], x[3]
    between = n, outputs, height // patch, width // patch
    taps_of_blocks = tensors[:: folded.tensors_per_block(gelu_parameters is not None)]
    return _patchify(x, patch, outputs) + sum(_whole_block(between, taps, hidden) for taps in taps_of_blocks)
