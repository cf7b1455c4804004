"""Inference operators on weights that were folded and packed beforehand."""

from typing import Any

import torch
from torch import Tensor

from convnext.ops import inference, native
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
    """A patchifying convolution with the norm before or behind it: the fields of `inference.Patchify`."""
    return inference.patchify_forward(x, inference.Patchify(weight, bias, norm_weight, norm_bias, eps, normed, patch, outputs))


@torch.library.custom_op("convnext::folded_stage", mutates_args=())
def folded_stage(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    patch_eps: float,
    normed: bool,
    patch: int,
    outputs: int,
    blocks: list[Tensor],
    rest: Tensor | None,
    eps: float,
    hidden: int,
) -> Tensor:
    """A patchifying layer and the blocks behind it: the fields of `inference.Patchify` and of `inference.Blocks`."""
    before = inference.Patchify(weight, bias, norm_weight, norm_bias, patch_eps, normed, patch, outputs)
    return inference.stage_forward(x, before, inference.Blocks(blocks, rest, eps, hidden))


@folded_block.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return like(x)


@folded_patchify.register_fake
@folded_stage.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    n, _, height, width = x.shape
    patch, outputs = others[6:8]
    return x.new_empty(n, height // patch, width // patch, outputs, dtype=torch.float32).permute(0, 3, 1, 2)


@torch.library.custom_op("convnext::int8_block", mutates_args=())
def int8_block(
    x: Tensor,
    taps: Tensor,
    bias: Tensor,
    eps: float,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    first_scale: Tensor,
    second_scale: Tensor,
    table: Tensor,
    multiplier: int,
    step: int,
    fraction: int,
    hidden: int,
) -> Tensor:
    """ConvNeXt's block on x (N, C, H, W) float32 with products of 8 bits: the fields of `inference.Quantized`."""
    weights = first, first_bias, second, second_bias, first_scale, second_scale
    return inference.int8_block_forward(x, taps, bias, eps, inference.Quantized(*weights, table, multiplier, step, fraction, hidden))


@int8_block.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return like(x)
