"""The CPU's compiled operators for inference, on weights that were folded and packed beforehand."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops.build import call
from convnext.ops.native import float32, nhwc, pack, pad, products_of


class Patchify(NamedTuple):
    """A convolution whose kernel is its stride, packed: with a norm before it or behind it."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None  # of the norm behind
    norm_bias: Tensor | None
    eps: float
    normed: bool  # whether each pixel is normalised before; the affine is in the weight
    patch: int
    outputs: int


def packed_patches(weight: Tensor, bias: Tensor, normed: bool, products: torch.dtype) -> tuple[Tensor, Tensor]:
    """A convolution's weight (O, C, p, p) and bias (O,) as `patchify_forward` reads them."""
    outputs, _, patch, _ = weight.shape
    # In memory lie together a pixel's channels, or a row of the patch; each such piece is filled up to a multiple of 16.
    pieces = weight.float().permute(0, 2, 3, 1).reshape(outputs, patch * patch if normed else patch, -1)
    columns = F.pad(pieces, (0, -pieces.shape[-1] % 16)).flatten(1)
    return pack(F.pad(columns, (0, -columns.shape[-1] % 32)), None, None, products), pad(bias)


def patchify_forward(x: Tensor, held: Patchify) -> Tensor:
    """The convolution of x (N, C, H, W), float32 or bf16, as (N, O, H // p, W // p) float32."""
    x = nhwc(x)
    n, height, width, channels = x.shape
    out = float32(x, n, height // held.patch, width // held.patch, held.outputs)
    sizes = (n, height, width, channels, held.patch, held.outputs)
    behind, products = (held.norm_weight, held.norm_bias), products_of(held.weight)
    call("patchify_forward", x, held.normed, held.eps, held.weight, held.bias, *behind, out, x.dtype, *sizes, products)
    return out.permute(0, 3, 1, 2)


class Quantized(NamedTuple):
    """The MLP's weights in 8 bits, packed, with the scale and bias of each output, and GELU into 8 bits (csrc/int8.h)."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    first_scale: Tensor
    second_scale: Tensor
    table: Tensor
    multiplier: int
    step: int
    fraction: int
    hidden: int


def quantized(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, hidden_scale: float, hidden_zero: int) -> Quantized:
    """Folded float32 weights (4 C, C), (4 C,), (C, 4 C), (C,) in 8 bits, symmetric, with a scale for each output.

    Hidden values are to be hidden_scale (q - hidden_zero), the scale rounded up by at most what a multiplier of 15 bits can't express.
    """
    (first, scale1, _), (second, scale2, sums) = _in_8_bits(w1, 64), _in_8_bits(w2, 32)
    table, multiplier, step, fraction, one = _gelu_in_8_bits(hidden_scale, hidden_zero)
    hidden_scale = 2**15 * 2**fraction / (multiplier * one)
    # What the zero point adds to each output goes into its bias.
    scale2 = scale2 * hidden_scale
    bias2 = F.pad(b2, (0, len(scale2) - len(b2))) - scale2 * hidden_zero * sums
    bias1 = F.pad(b1, (0, len(scale1) - len(b1)))
    of_gelu = (table, multiplier, step, fraction)
    return Quantized(first, bias1 * one, second, bias2.contiguous(), scale1 * one, scale2, *of_gelu, len(w1))


def _gelu_in_8_bits(scale: float, zero: int) -> tuple[Tensor, int, int, int, int]:
    """What csrc/int8.h's Gelu8 needs, and how many steps its fixed-point input makes of 1."""
    reach = 4.0  # of the table: beyond, |x| Φ(-|x|) is below 2e-4
    for less in (0.5, 0.25, 0.125, 0.0625, 0.03125):
        # Values of a narrow range are looked up more finely: those beyond become 0 or 255 all the same.
        if (255 - zero) * scale < less and zero * scale <= less * torch.special.ndtr(torch.tensor(-less)).item():
            reach = less
    one = 2 ** max(0, math.floor(math.log2(32767 / max(256 * scale, reach))))
    step = max(0, round(math.log2(one * reach / 256)))
    exact = 2**15 / (scale * one)  # the multiplier, which has 15 bits as the table's entries have 8
    fraction = next(f for f in (4, 3, 2, 1, 0) if f == 0 or ((zero << f) + (1 << f) // 2 < 256 and exact * 2**f < 32768))
    multiplier = max(1, min(32767, math.floor(exact * 2**fraction)))
    distance = (torch.arange(256, dtype=torch.float64) + 0.5) * (2**step / one)
    below = distance * torch.special.ndtr(-distance) * exact / 2**15 * one  # in steps of the result
    table = ((zero - below) * 2**fraction + (1 << fraction) // 2).round().clamp(0, 255).to(torch.uint8)
    return table, multiplier, step, fraction, one


def _in_8_bits(weight: Tensor, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed weights, and of each output, filled up to a multiple, the scale and the sum of its whole numbers."""
    n, k = weight.shape
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    whole = (weight / scale.unsqueeze(1)).round().to(torch.int8).contiguous()
    columns = n + -n % multiple
    packed = whole.new_empty(columns * (k + -k % 64))
    call("int8_pack", whole, packed, n, k, columns)
    filled = F.pad(scale, (0, columns - n)), F.pad(whole.sum(1, dtype=torch.int32).float(), (0, columns - n))
    return packed, *filled


def int8_block_forward(x: Tensor, taps: Tensor, bias: Tensor, eps: float, w: Quantized) -> Tensor:
    """ConvNeXt's whole block on x (N, C, H, W) float32 with products of 8 bits."""
    x = nhwc(x)
    n, height, width, channels = x.shape
    out = torch.empty_like(x)
    sizes = (n, height, width, channels, w.hidden, taps.shape[0])
    call("int8_block_forward", x, taps, bias, eps, *w[:7], out, w.multiplier, w.step, w.fraction, *sizes)
    return out.permute(0, 3, 1, 2)


class Blocks(NamedTuple):
    """Folded blocks of one width for `stage_forward`: of each block the taps, the convolution's bias and the packed weights."""

    tensors: list[Tensor]  # of each block taps, bias, and the tensors of `Packed` or of `Quantized`
    rest: Tensor | None  # of `Quantized` multiplier, step and fraction, (blocks, 3)
    eps: float
    hidden: int


def stage_forward(x: Tensor, before: Patchify, blocks: Blocks) -> Tensor:
    """A patchifying layer and the blocks behind it, image by image, each thread with images of its own: the same numbers."""
    x = nhwc(x)
    n, height, width, channels = x.shape
    out = float32(x, n, height // before.patch, width // before.patch, before.outputs)
    kernel, each = blocks.tensors[0].shape[0], 6 if blocks.rest is None else 9
    pointers = torch.tensor([tensor.data_ptr() for tensor in blocks.tensors])
    of_patches = (before.normed, before.eps, before.weight, before.bias, before.norm_weight, before.norm_bias)
    of_blocks = (len(blocks.tensors) // each, blocks.hidden, kernel, products_of(before.weight))
    sizes = (n, height, width, channels, before.patch, before.outputs)
    call("stage_forward", x, *of_patches, pointers, blocks.rest, blocks.eps, out, x.dtype, *sizes, *of_blocks)
    return out.permute(0, 3, 1, 2)
