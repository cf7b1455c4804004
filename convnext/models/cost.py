"""What a network costs: parameters and multiply-adds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Of one image."""

    parameters: int
    macs: int  # multiply-adds of convolutions and matrix products; the field's tables print them as FLOPs
    image_size: int | tuple[int, int]  # pixels a side, or (height, width)


def count_cost(model: Any, image_size: int | tuple[int, int], in_channels: int = 3) -> Cost:
    """Count a network that lies on the meta device: shapes alone are computed, so any size takes well under two seconds.

    Of a segmenter as Table 4 of the ConvNeXt paper counts: parameters with its auxiliary head, multiply-adds without it.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    image = torch.empty(1, in_channels, height, width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, image_size)
