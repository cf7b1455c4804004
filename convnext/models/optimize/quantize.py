"""Post-training quantization of ConvNeXt's blocks to 8 bits: calibration, and the quantized block.

Calibration finds the range of hidden values with the smallest squared error. Weights have a scale for
each output. Normalised values have a scale for each position, which is computed from them. Norms, GELU, sums and the map that blocks
add to stay float32; stem, downsampling layers and head are not quantized.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.convnext import Block
from convnext.ops import inference, native
from convnext.ops.folded import int8_block

Ranges = dict[str, tuple[float, int]]  # scale and zero point of each block's hidden values, by the block's name

_FIRST, _OCTAVES, _EACH = -12, 32, 32  # bins of a histogram: from 2^-12 on, 32 of equal width for each power of two
_SHIFT = 23 - 5  # of the bits of a float32: what remains numbers the bins, by exponent and five bits of the mantissa
_BELOW = (_FIRST + 127) * _EACH  # the number of the first bin


class HiddenRange:
    """The range of hidden values, from a histogram of the positive ones. GELU gives no values below -0.17."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_OCTAVES * _EACH, dtype=torch.float64)
        self._lowest = 0.0

    def add(self, hidden: Tensor) -> None:
        """Count hidden values of any shape. Values that are not finite count as the largest."""
        numbers = (hidden.float().flatten().clamp_min(2.0**_FIRST).view(torch.int32) >> _SHIFT) - _BELOW
        self._counts += torch.bincount(numbers.clamp(0, len(self._counts) - 1), minlength=len(self._counts))
        self._lowest = min(self._lowest, hidden.min().item())

    def parameters(self) -> tuple[float, int] | None:
        """Return scale and zero point of 8 bits with the smallest squared error; None if no value was counted."""
        total = self._counts.sum()
        if not total:
            return None
        numbers = torch.arange(len(self._counts) + 1, dtype=torch.int32) + _BELOW
        edges = (numbers << _SHIFT).view(torch.float32).double()
        centers, highest = (edges[1:] + edges[:-1]) / 2, edges[1:][self._counts > 0]
        beyond = (centers - highest.unsqueeze(1)).clamp_min(0).square() @ self._counts
        steps = (highest - self._lowest) / 255
        scale = steps[(total * steps.square() / 12 + beyond).argmin()].item()
        return scale, round(-self._lowest / scale)


@torch.inference_mode()
def calibrate(model: nn.Module, run: Callable[[nn.Module], object]) -> Ranges:
    """Return the range of each block's hidden values (behind GELU) while `run` passes images through the network.

    Raises UsageError if it passed none.
    """
    ranges = {name: HiddenRange() for name, module in model.named_modules() if isinstance(module, Block)}
    hooks = [model.get_submodule(f"{name}.pwconv1").register_forward_hook(_counting(hidden)) for name, hidden in ranges.items()]
    try:
        run(model.eval())
    finally:
        for hook in hooks:
            hook.remove()
    found: Ranges = {}
    for name, hidden in ranges.items():
        parameters = hidden.parameters()
        if parameters is None:
            raise UsageError("int8 needs images to calibrate with, and `calibration` passed none through the network")
        found[name] = parameters
    return found


def _counting(hidden: HiddenRange) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(_: nn.Module, __: tuple[Tensor, ...], z: Tensor) -> None:
        hidden.add(F.gelu(z))

    return count


class PackedBlock(nn.Module):
    """A block as one compiled operator. Its tensors are buffers: the convolution's, then those of the packed MLP, as `names` lists them."""

    taps: Tensor
    bias: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    names: tuple[str, ...]

    def __init__(self, block: Block, mlp: Sequence[Tensor], hidden: int) -> None:
        super().__init__()
        self.eps, self.hidden, bias = block.norm.eps, hidden, block.dwconv.bias
        assert bias is not None
        tensors = (native.taps_of(block.dwconv.weight), bias.clone(), *mlp)
        for name, tensor in zip(self.names, tensors, strict=True):
            self.register_buffer(name, tensor.detach())

    def tensors(self) -> list[Tensor]:
        """Return the block's tensors as `PackedBlocks` holds them."""
        return [self.get_buffer(name) for name in self.names]


class Int8Block(PackedBlock):
    """A block with products of 8 bits."""

    first_scale: Tensor
    second_scale: Tensor
    table: Tensor

    names = ("taps", "bias", "first", "first_bias", "second", "second_bias", "first_scale", "second_scale", "table")

    def __init__(self, block: Block, scale: float, zero: int) -> None:
        norm, first, second = block.norm, block.pwconv1, block.pwconv2
        gamma = torch.ones_like(norm.weight) if block.gamma is None else block.gamma
        with torch.no_grad():
            folded1 = first.weight * norm.weight, first.bias + first.weight @ norm.bias
            folded2 = second.weight * gamma.unsqueeze(1), second.bias * gamma
            weights = inference.quantize_mlp(*folded1, *folded2, scale, zero)
        super().__init__(block, weights[:7], weights.hidden)
        self.gelu_parameters = weights.multiplier, weights.step, weights.fraction

    def forward(self, x: Tensor) -> Tensor:
        tensors = self.taps, self.bias, self.eps, self.first, self.first_bias, self.second, self.second_bias
        return int8_block(x, *tensors, self.first_scale, self.second_scale, self.table, *self.gelu_parameters, self.hidden)
