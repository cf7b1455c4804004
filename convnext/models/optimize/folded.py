"""ConvNeXt's blocks, patchifying layers and stages as compiled operators, with weights that are folded and packed once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convnext.models.backbones.convnext import Block
from convnext.models.backbones.norms import LayerNorm
from convnext.models.optimize.quantize import Int8Block, PackedBlock
from convnext.ops import dispatch, inference, native
from convnext.ops.folded import folded_block, folded_patchify, folded_stage
from convnext.ops.interface import SPLIT


def _products(dtype: torch.dtype) -> torch.dtype:
    """Return the kind of products that computes those in `dtype`."""
    return SPLIT if dtype == torch.float32 and dispatch.compiled(torch.bfloat16) else dtype


class FoldedBlock(PackedBlock):
    """A block with products in float32 or bf16."""

    grn: Tensor

    names = ("taps", "bias", "first", "first_bias", "second", "second_bias", "grn")

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        linear = block.pwconv1.weight, block.pwconv1.bias, block.pwconv2.weight, block.pwconv2.bias
        grn = None if block.grn is None else block.grn.operand()
        weights = native.pack_mlp(*linear, block.gamma, (block.norm.weight, block.norm.bias), _products(dtype), grn)
        super().__init__(block, weights[:5], weights.hidden)
        self.grn_eps = weights.grn_eps

    def forward(self, x: Tensor) -> Tensor:
        weights = self.first, self.first_bias, self.second, self.second_bias, self.grn, self.grn_eps, self.hidden
        return folded_block(x, self.taps, self.bias, self.eps, *weights)


class FoldedPatchify(nn.Module):
    """A convolution whose kernel is its stride, with the norm before or behind it, as one compiled operator."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, before: LayerNorm | None = None, behind: LayerNorm | None = None) -> None:
        super().__init__()
        norm, weight, bias = before or behind, conv.weight.detach(), conv.bias
        assert norm is not None
        assert bias is not None
        if before is not None:
            bias = bias + (weight.sum((-2, -1)) * before.bias).sum(1)
            weight = weight * before.weight.view(1, -1, 1, 1)
        packed = inference.packed_patches(weight, bias.detach(), before is not None, _products(dtype))
        self.eps, self.normed, self.patch, self.outputs = norm.eps, before is not None, conv.stride[0], conv.out_channels
        affine = (None, None) if behind is None else (behind.weight.detach(), behind.bias.detach())
        for name, tensor in zip(("weight", "bias", "norm_weight", "norm_bias"), (*packed, *affine), strict=True):
            self.register_buffer(name, tensor)

    def arguments(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float, bool, int, int]:
        """Return the operators' arguments, in their order."""
        return self.weight, self.bias, self.norm_weight, self.norm_bias, self.eps, self.normed, self.patch, self.outputs

    def forward(self, x: Tensor) -> Tensor:
        return folded_patchify(x, *self.arguments())


class FoldedStage(nn.Module):
    """A patchifying layer and the blocks behind it as one operator."""

    gelu_parameters: Tensor | None

    def __init__(self, before: FoldedPatchify, blocks: Sequence[PackedBlock]) -> None:
        super().__init__()
        self.before, self.blocks, self.eps, self.hidden = before, nn.Sequential(*blocks), blocks[0].eps, blocks[0].hidden
        self.grn_eps = blocks[0].grn_eps if isinstance(blocks[0], FoldedBlock) else 0.0
        parameters = [block.gelu_parameters for block in blocks if isinstance(block, Int8Block)]
        self.register_buffer("gelu_parameters", torch.tensor(parameters) if parameters else None)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [tensor for block in self.blocks if isinstance(block, PackedBlock) for tensor in block.tensors()]
        return folded_stage(x, *self.before.arguments(), tensors, self.gelu_parameters, self.eps, self.grn_eps, self.hidden)
