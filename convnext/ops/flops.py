"""What the fast operators count for in torch.utils.flop_counter: as much as those of PyTorch that they stand for.

Each formula gets the operator's arguments, its tensors as shapes. PyTorch counts products alone, and the gradient of a depthwise
convolution's weight as if it had no groups; so do these. What an operator computes a second time in its backward pass is not counted.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from convnext.ops import block, depthwise, folded, mlp, norm  # noqa: F401  # which define the operators

Shape = Sequence[int]
_OPS = torch.ops.convnext


def _linear_layers(rows: int, w1: Shape) -> int:
    """From C channels to H and back; w1 (H, C)."""
    return 2 * 2 * rows * prod(w1)


def _convolution_gradients(x: Shape, weight: Shape, of_x: bool, of_weight: bool) -> int:
    """Of a depthwise convolution."""
    found = conv_flop_count(list(x), list(weight), list(x), transposed=True) if of_x else 0
    turned = _turned(x)
    return found + (conv_flop_count(turned, turned, _turned(weight)) if of_weight else 0)


def _turned(shape: Shape) -> list[int]:
    return [shape[1], shape[0], *shape[2:]]


def _positions(x: Shape) -> int:
    return prod(x) // x[1]


def _whole_block(x: Shape, taps: Shape, hidden: int) -> int:
    """On x (N, C, H, W), with taps (K, K, C)."""
    return 2 * prod(x) * taps[0] * taps[1] + _linear_layers(_positions(x), (hidden, x[1]))


def _patchify(x: Shape, patch: int, outputs: int) -> int:
    n, channels, height, width = x
    return 2 * n * (height // patch) * (width // patch) * outputs * channels * patch * patch


@register_flop_formula(_OPS.depthwise_conv)
def _depthwise(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return conv_flop_count(list(x), list(weight), list(x))


@register_flop_formula(_OPS.depthwise_input_gradient)
def _input_gradient(dy: Shape, weight: Shape, **_: Any) -> int:
    return _convolution_gradients(dy, weight, True, False)


@register_flop_formula(_OPS.depthwise_weight_gradient)
def _weight_gradient(x: Shape, dy: Shape, kernel: int, **_: Any) -> int:
    return _convolution_gradients(x, (x[1], 1, kernel, kernel), False, True)


@register_flop_formula([_OPS.layer_norm, _OPS.layer_norm_backward])
def _norm(*_: Any, **__: Any) -> int:
    return 0


@register_flop_formula(_OPS.mlp)
def _mlp(y: Shape, shortcut: Shape, w1: Shape, *_: Any, **__: Any) -> int:
    return _linear_layers(prod(y[:-1]), w1)


@register_flop_formula(_OPS.mlp_backward)
def _mlp_backward(dout: Shape, y: Shape, w1: Shape, *_: Any, **__: Any) -> int:
    return 2 * _linear_layers(prod(y[:-1]), w1)


@register_flop_formula(_OPS.block)
def _block(x: Shape, *rest: Any, **_: Any) -> int:
    taps, w1 = rest[0], rest[4]
    return 2 * prod(x) * prod(taps[1:]) + _linear_layers(_positions(x), w1)


@register_flop_formula(_OPS.block_backward)
def _block_backward(dout: Shape, x: Shape, *rest: Any, **_: Any) -> int:
    taps, w1 = rest[3], rest[6]
    return _convolution_gradients(x, taps, True, True) + 2 * _linear_layers(_positions(x), w1)


@register_flop_formula([_OPS.folded_block, _OPS.int8_block])
def _folded_block(x: Shape, taps: Shape, *rest: Any, **_: Any) -> int:
    return _whole_block(x, taps, rest[-1])


@register_flop_formula(_OPS.folded_patchify)
def _folded_patchify(x: Shape, *rest: Any, **_: Any) -> int:
    return _patchify(x, *rest[6:8])


@register_flop_formula(_OPS.folded_stage)
def _folded_stage(x: Shape, *rest: Any, **_: Any) -> int:
    patch, outputs, tensors, of_int8, _, hidden = rest[6:]
    n, height, width = x[0], x[2], x[3]
    between = n, outputs, height // patch, width // patch
    blocks = tensors[:: 6 if of_int8 is None else 9]  # of each, its taps
    return _patchify(x, patch, outputs) + sum(_whole_block(between, taps, hidden) for taps in blocks)
