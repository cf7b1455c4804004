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


@torch.library.custom_op("convnext::folded_norm", mutates_args=())
def folded_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm over the channels of a map (N, C, H, W), rounded to `dtype`."""
    return native.norm_forward(x.permute(0, 2, 3, 1), weight, bias, eps, dtype)[0].permute(0, 3, 1, 2)


@folded_block.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return like(x)


@folded_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return like(x).to(dtype)
