"""Inference operators on weights that were folded and packed beforehand."""

import torch
from torch import Tensor

from convnext.ops import native
from convnext.ops.depthwise import like


@torch.library.custom_op("convnext::folded_block", mutates_args=())
def folded_block(
    x: Tensor, taps: Tensor, bias: Tensor, eps: float, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, hidden: int
) -> Tensor:
    """ConvNeXt's block on x (N, C, H, W); taps (K, K, C) and bias (C,) of the convolution, the rest from `native.packed`."""
    weights = native.Packed(first, first_bias, second, second_bias, hidden)
    return native.block_forward(x, taps, bias, eps, weights, None, False)[0]


@torch.library.custom_op("convnext::folded_patchify", mutates_args=())
def folded_patchify(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    normed: bool,
    patch: int,
    outputs: int,
) -> Tensor:
    """A patchifying convolution with the norm before or behind it: the fields of `native.Patchify`."""
    return native.patchify_forward(x, native.Patchify(weight, bias, norm_weight, norm_bias, eps, normed, patch, outputs))


@folded_block.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return like(x)


@folded_patchify.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    normed: bool,
    patch: int,
    outputs: int,
) -> Tensor:
    n, _, height, width = x.shape
    return x.new_empty(n, height // patch, width // patch, outputs, dtype=torch.float32).permute(0, 3, 1, 2)


@torch.library.custom_op("convnext::int8_block", mutates_args=())
def int8_block(
    x: Tensor,
    taps: Tensor,
    bias: Tensor,
    eps: float,
    first: Tensor,
    first_scale: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_scale: Tensor,
    second_bias: Tensor,
    hidden_scale: float,
    hidden_zero: float,
    hidden: int,
) -> Tensor:
    """ConvNeXt's block on x (N, C, H, W) float32 with products of 8 bits: the fields of `native.Quantized`."""
    of_first, of_second = (first, first_scale, first_bias), (second, second_scale, second_bias)
    return native.int8_block_forward(x, taps, bias, eps, native.Quantized(*of_first, *of_second, hidden_scale, hidden_zero, hidden))


@int8_block.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return like(x)
