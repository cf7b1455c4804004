"""Count what a network costs: parameters and multiply-adds."""

from dataclasses import dataclass

import torch
from torch import nn

from convnext.data.transforms.preprocessing import ImageSize as ImageSize
from convnext.data.transforms.preprocessing import sides


@dataclass(frozen=True)
class Cost:
    """What one image costs."""

    parameters: int
    macs: int  # multiply-adds of convolutions and matrix products; the field's tables print them as FLOPs
    image_size: ImageSize  # pixels a side, or (height, width)


def count_cost(model: nn.Module, image_size: ImageSize, in_channels: int = 3, device: str | torch.device = "meta") -> Cost:
    """Return the cost of a network on a device, by default meta, where only shapes are computed: any size takes well under two seconds.

    A segmenter is counted as in Table 4 of the ConvNeXt paper: parameters with its auxiliary head, multiply-adds without it.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where there is one

    height, width = sides(image_size)
    image = torch.empty(1, in_channels, height, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, image_size)
