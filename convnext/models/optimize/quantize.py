"""Post-training quantization of ConvNeXt's blocks to 8 bits: what calibration finds, and the block that uses it.

Ranges of hidden values come from torch.ao.quantization's histogram observer, which looks for the range of least squared error. Weights
have a scale for each output, a position's normalised values one of their own, computed as they come. Norms, GELU, sums and the map
that blocks add to stay float32; stem, downsampling layers and head are not quantized.
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

Ranges = dict[str, tuple[float, int]]  # of each block's hidden values: scale and zero point


@torch.inference_mode()
def calibrate(model: nn.Module, run: Callable[[nn.Module], object]) -> Ranges:
    """Observe each block's values behind GELU while `run` takes images through the network.

    Raises UsageError if it took none.
    """
    observers = {name: HistogramObserver(dtype=torch.quint8) for name, module in model.named_modules() if isinstance(module, Block)}
    hooks = [model.get_submodule(f"{name}.pwconv1").register_forward_hook(_watching(observer)) for name, observer in observers.items()]
    try:
        run(model.eval())
    finally:
        for hook in hooks:
            hook.remove()
    found: Ranges = {}
    for name, observer in observers.items():
        if not observer.min_val.isfinite():
            raise UsageError("int8 needs images to calibrate with, and the network saw none")
        scale, zero = observer.calculate_qparams()
        found[name] = scale.item(), int(zero)
    return found


def _watching(observer: nn.Module) -> Callable[..., None]:
    def watch(_: nn.Module, __: tuple[Tensor, ...], z: Tensor) -> None:
        observer(F.gelu(z))

    return watch


class Int8Block(nn.Module):
    """A block as one compiled operator with products of 8 bits."""

    names = ("taps", "bias", "first", "first_bias", "second", "second_bias", "first_scale", "second_scale", "table")

    def __init__(self, block: Block, scale: float, zero: int) -> None:
        super().__init__()
        norm, first, second, bias = block.norm, block.pwconv1, block.pwconv2, block.dwconv.bias
        assert bias is not None
        gamma = torch.ones_like(norm.weight) if block.gamma is None else block.gamma
        with torch.no_grad():
            folded1 = first.weight * norm.weight, first.bias + first.weight @ norm.bias
            folded2 = second.weight * gamma.unsqueeze(1), second.bias * gamma
            weights = inference.quantized(*folded1, *folded2, scale, zero)
        self.eps, self.rest, self.hidden = norm.eps, weights[7:10], weights.hidden
        tensors = (native.taps_of(block.dwconv.weight), bias.detach().clone(), *weights[:7])
        for name, tensor in zip(self.names, tensors, strict=True):
            self.register_buffer(name, tensor.detach())

    def forward(self, x: Tensor) -> Tensor:
        taps, bias, *weights = (getattr(self, name) for name in self.names)
        return int8_block(x, taps, bias, self.eps, *weights, *self.rest, self.hidden)
