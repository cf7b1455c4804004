"""Post-training quantization of ConvNeXt's blocks to 8 bits: calibration, and the quantized block.

The histogram observer of torch.ao.quantization finds the range of hidden values with the smallest squared error. Weights have a scale for
each output. Normalised values have a scale for each position, which is computed from them. Norms, GELU, sums and the map that blocks
add to stay float32; stem, downsampling layers and head are not quantized.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.observer import HistogramObserver

from convnext.errors import UsageError
from convnext.models.backbones.convnext import Block
from convnext.ops import inference, native
from convnext.ops.folded import int8_block

Ranges = dict[str, tuple[float, int]]  # scale and zero point of each block's hidden values, by the block's name


@torch.inference_mode()
def calibrate(model: nn.Module, run: Callable[[nn.Module], object]) -> Ranges:
    """Return the range of each block's hidden values (behind GELU) while `run` passes images through the network.

    Raises UsageError if it passed none.
    """
    observers = {name: HistogramObserver(dtype=torch.quint8) for name, module in model.named_modules() if isinstance(module, Block)}
    hooks = [model.get_submodule(f"{name}.pwconv1").register_forward_hook(_observe_with(observer)) for name, observer in observers.items()]
    try:
        run(model.eval())
    finally:
        for hook in hooks:
            hook.remove()
    found: Ranges = {}
    for name, observer in observers.items():
        if not observer.min_val.isfinite():
            raise UsageError("int8 needs images to calibrate with, and `calibration` passed none through the network")
        scale, zero = observer.calculate_qparams()
        found[name] = scale.item(), int(zero)
    return found


def _observe_with(observer: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def observe(_: nn.Module, __: tuple[Tensor, ...], z: Tensor) -> None:
        observer(F.gelu(z))

    return observe


class Int8Block(nn.Module):
    """A block as one compiled operator with products of 8 bits."""

    taps: Tensor
    bias: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    first_scale: Tensor
    second_scale: Tensor
    table: Tensor

    names = ("taps", "bias", "first", "first_bias", "second", "second_bias", "first_scale", "second_scale", "table")

    def __init__(self, block: Block, scale: float, zero: int) -> None:
        super().__init__()
        norm, first, second, bias = block.norm, block.pwconv1, block.pwconv2, block.dwconv.bias
        assert bias is not None
        gamma = torch.ones_like(norm.weight) if block.gamma is None else block.gamma
        with torch.no_grad():
            folded1 = first.weight * norm.weight, first.bias + first.weight @ norm.bias
            folded2 = second.weight * gamma.unsqueeze(1), second.bias * gamma
            weights = inference.quantize_mlp(*folded1, *folded2, scale, zero)
        self.eps, self.hidden = norm.eps, weights.hidden
        self.gelu_parameters = weights.multiplier, weights.step, weights.fraction
        tensors = (native.taps_of(block.dwconv.weight), bias.detach().clone(), *weights[:7])
        for name, tensor in zip(self.names, tensors, strict=True):
            self.register_buffer(name, tensor.detach())

    def tensors(self) -> list[Tensor]:
        """Return the block's tensors as `PackedBlocks` holds them."""
        return [self.get_buffer(name) for name in self.names]

    def forward(self, x: Tensor) -> Tensor:
        tensors = self.taps, self.bias, self.eps, self.first, self.first_bias, self.second, self.second_bias
        return int8_block(x, *tensors, self.first_scale, self.second_scale, self.table, *self.gelu_parameters, self.hidden)
