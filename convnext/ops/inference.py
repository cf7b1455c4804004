"""The CPU's compiled operators for inference, called on tensors; weights are folded and packed beforehand."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops.build import call
from convnext.ops.interface import PRODUCTS
from convnext.ops.native import float32, nhwc, pack, pad


class PackedPatchify(NamedTuple):
    """A convolution whose kernel is its stride, packed, with a norm before or behind it."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None  # of the norm behind
    norm_bias: Tensor | None
    eps: float
    normed: bool  # whether each pixel is normalised before the convolution; that norm's affine is in `weight`
    patch: int
    outputs: int


def packed_patches(weight: Tensor, bias: Tensor, normed: bool, products: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a convolution's weight (O, C, p, p) and bias (O,) as `patchify_forward` reads them."""
    outputs, _, patch, _ = weight.shape
    # A piece is what is contiguous in the map: a pixel's channels, or a row of the patch. Each is padded to a multiple of 16.
    pieces = weight.float().permute(0, 2, 3, 1).reshape(outputs, patch * patch if normed else patch, -1)
    columns = F.pad(pieces, (0, -pieces.shape[-1] % 16)).flatten(1)
    return pack(F.pad(columns, (0, -columns.shape[-1] % 32)), None, None, products), pad(bias)


def patchify_forward(x: Tensor, layer: PackedPatchify) -> Tensor:
    """Return the convolution of x (N, C, H, W), float32 or bf16, as (N, O, H // p, W // p) float32."""
    x = nhwc(x)
    n, height, width, channels = x.shape
    out = float32(x, n, height // layer.patch, width // layer.patch, layer.outputs)
    call(
        "patchify_forward",
        x=x, normed=layer.normed, eps=layer.eps, packed=layer.weight, bias=layer.bias, norm_weight=layer.norm_weight,
        norm_bias=layer.norm_bias, out=out, dtype=x.dtype, n=n, height=height, width=width, channels=channels,
        patch=layer.patch, out_channels=layer.outputs, products=PRODUCTS[layer.weight.dtype],
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


class QuantizedMlp(NamedTuple):
    """The MLP's weights in 8 bits, packed, with a scale and a bias for each output, and the parameters of GELU to 8 bits (csrc/int8.h)."""

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


def quantize_mlp(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, hidden_scale: float, hidden_zero: int) -> QuantizedMlp:
    """Return folded float32 weights (4 C, C), (4 C,), (C, 4 C), (C,) in 8 bits, symmetric, with a scale for each output.

    A hidden value is hidden_scale (q - hidden_zero) for q in 0 to 255. The scale is rounded up to what a multiplier of 15 bits expresses.
    """
    (first, scale1, _), (second, scale2, sums) = _in_8_bits(w1, 64), _in_8_bits(w2, 32)
    table, multiplier, step, fraction, one = _gelu_in_8_bits(hidden_scale, hidden_zero)
    hidden_scale = 2**15 * 2**fraction / (multiplier * one)
    # The bias takes off what the zero point adds to each output.
    scale2 = scale2 * hidden_scale
    bias2 = F.pad(b2, (0, len(scale2) - len(b2))) - scale2 * hidden_zero * sums
    bias1 = F.pad(b1, (0, len(scale1) - len(b1)))
    tensors = first, bias1 * one, second, bias2.contiguous(), scale1 * one, scale2, table
    return QuantizedMlp(*tensors, multiplier, step, fraction, len(w1))


def _gelu_in_8_bits(scale: float, zero: int) -> tuple[Tensor, int, int, int, int]:
    """Return the table, multiplier, step and fraction of Gelu8 (csrc/int8.h), and by how much its fixed-point input represents 1."""
    reach = 4.0  # the largest |x| in the table: beyond it |x| Φ(-|x|) is below 2e-4
    for shorter in (0.5, 0.25, 0.125, 0.0625, 0.03125):
        # The entries of a narrow range lie closer together: values beyond it become 0 or 255 in any case.
        if (255 - zero) * scale < shorter and zero * scale <= shorter * torch.special.ndtr(torch.tensor(-shorter)).item():
            reach = shorter
    one = 2 ** max(0, math.floor(math.log2(32767 / max(256 * scale, reach))))
    step = max(0, round(math.log2(one * reach / 256)))
    exact = 2**15 / (scale * one)  # the multiplier, which has 15 bits as the table's entries have 8
    fraction = next(f for f in (4, 3, 2, 1, 0) if f == 0 or ((zero << f) + (1 << f) // 2 < 256 and exact * 2**f < 32768))
    multiplier = max(1, min(32767, math.floor(exact * 2**fraction)))
    distance = (torch.arange(256, dtype=torch.float64) + 0.5) * (2**step / one)
    below = distance * torch.special.ndtr(-distance) * exact / 2**15 * one  # in units of the result
    table = ((zero - below) * 2**fraction + (1 << fraction) // 2).round().clamp(0, 255).to(torch.uint8)
    return table, multiplier, step, fraction, one


def _in_8_bits(weight: Tensor, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return packed weights, and for each output, padded to a multiple, the scale and the sum of its quantized weights."""
    n, k = weight.shape
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    quantized = (weight / scale.unsqueeze(1)).round().to(torch.int8).contiguous()
    columns = n + -n % multiple
    packed = quantized.new_empty(columns * (k + -k % 64 + 4))  # behind the weights of an output the sum that its products begin with
    call("int8_pack", weight=quantized, packed=packed, n=n, k=k, columns=columns)
    return packed, F.pad(scale, (0, columns - n)), F.pad(quantized.sum(1, dtype=torch.int32).float(), (0, columns - n))


def int8_block_forward(x: Tensor, taps: Tensor, bias: Tensor, eps: float, w: QuantizedMlp) -> Tensor:
    """Return ConvNeXt's whole block of x (N, C, H, W) float32, with products of 8 bits."""
    x = nhwc(x)
    n, height, width, channels = x.shape
    out = torch.empty_like(x)
    call(
        "int8_block_forward",
        x=x, taps=taps, bias=bias, eps=eps, first=w.first, first_bias=w.first_bias, second=w.second, second_bias=w.second_bias,
        first_scale=w.first_scale, second_scale=w.second_scale, table=w.table, out=out, multiplier=w.multiplier, step=w.step,
        fraction=w.fraction, n=n, height=height, width=width, channels=channels, hidden=w.hidden, kernel=taps.shape[0],
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


class PackedBlocks(NamedTuple):
    """Folded blocks of one width for `stage_forward`."""

    tensors: list[Tensor]  # of each block taps, the convolution's bias, and the tensors of `PackedMlp` or of `QuantizedMlp`
    gelu_parameters: Tensor | None  # of `QuantizedMlp` multiplier, step and fraction, (blocks, 3); None for `PackedMlp`
    eps: float
    grn_eps: float
    hidden: int


def tensors_per_block(quantized: bool) -> int:
    """Return how many tensors of `PackedBlocks` belong to a block."""
    return 9 if quantized else 7


def stage_forward(x: Tensor, patchify: PackedPatchify, blocks: PackedBlocks) -> Tensor:
    """Return x (N, C, H, W), float32 or bf16, after a patchifying layer and its blocks, as (N, O, H // p, W // p) float32.

    Each thread takes images of its own through all layers. The results are those of the layers one by one, bit for bit.
    """
    x = nhwc(x)
    n, height, width, channels = x.shape
    out = float32(x, n, height // patchify.patch, width // patchify.patch, patchify.outputs)
    count = len(blocks.tensors) // tensors_per_block(blocks.gelu_parameters is not None)
    addresses = torch.tensor([tensor.data_ptr() for tensor in blocks.tensors])
    call(
        "stage_forward",
        x=x, normed=patchify.normed, patch_eps=patchify.eps, packed=patchify.weight, bias=patchify.bias,
        norm_weight=patchify.norm_weight, norm_bias=patchify.norm_bias, block_tensors=addresses, gelu_parameters=blocks.gelu_parameters,
        eps=blocks.eps, grn_eps=blocks.grn_eps, out=out, dtype=x.dtype, n=n, height=height, width=width, channels=channels,
        patch=patchify.patch, out_channels=patchify.outputs, blocks=count, hidden=blocks.hidden, kernel=blocks.tensors[0].shape[0],
        products=PRODUCTS[patchify.weight.dtype],
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)
