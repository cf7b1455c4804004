"""Inference operators on weights that were folded and packed beforehand."""

import torch
from torch import Tensor

from convnext.ops import inference, native
from convnext.ops.depthwise import like
from convnext.ops.dispatch import operator
from convnext.ops.inference import tensors_per_block as tensors_per_block


@operator("convnext::folded_block")
def folded_block(
    x: Tensor,
    taps: Tensor,
    bias: Tensor,
    eps: float,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    grn: Tensor,
    grn_eps: float,
    hidden: int,
) -> Tensor:
    """Return ConvNeXt's block of x (N, C, H, W); taps (K, K, C) and bias (C,) of the convolution, the rest from `native.pack_mlp`."""
    weights = native.PackedMlp(first, first_bias, second, second_bias, grn, grn_eps, hidden)
    return native.block_forward(x, taps, bias, eps, weights, None, False)[0]


@operator("convnext::folded_patchify")
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
    """Return a patchifying convolution of x, with the norm before or behind it: the fields of `inference.PackedPatchify`."""
    return inference.patchify_forward(x, inference.PackedPatchify(weight, bias, norm_weight, norm_bias, eps, normed, patch, outputs))


@operator("convnext::folded_stage")
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
    tensors: list[Tensor],
    gelu_parameters: Tensor | None,
    eps: float,
    grn_eps: float,
    hidden: int,
) -> Tensor:
    """Return x after a patchifying layer and its blocks: the fields of `inference.PackedPatchify` and of `inference.PackedBlocks`."""
    patchify = inference.PackedPatchify(weight, bias, norm_weight, norm_bias, patch_eps, normed, patch, outputs)
    return inference.stage_forward(x, patchify, inference.PackedBlocks(tensors, gelu_parameters, eps, grn_eps, hidden))


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
    """Return ConvNeXt's block of x (N, C, H, W) float32 with products of 8 bits: the fields of `inference.QuantizedMlp`."""
    weights = first, first_bias, second, second_bias, first_scale, second_scale
    return inference.int8_block_forward(x, taps, bias, eps, inference.QuantizedMlp(*weights, table, multiplier, step, fraction, hidden))


@folded_block.register_fake
@int8_block.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return like(x)


def _patches(x: Tensor, patch: int, outputs: int) -> Tensor:
    n, _, height, width = x.shape
    return x.new_empty(n, height // patch, width // patch, outputs, dtype=torch.float32).permute(0, 3, 1, 2)


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
    return _patches(x, patch, outputs)


@folded_stage.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    patch_eps: float,
    normed: bool,
    patch: int,
    outputs: int,
    *_: object,
) -> Tensor:
    return _patches(x, patch, outputs)
