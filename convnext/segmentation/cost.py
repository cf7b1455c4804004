"""What a segmenter costs, counted as the published tables count it."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_cost(model: Any, height: int, width: int) -> tuple[int, int]:
    """Parameters, and multiply-adds of one picture, of a segmenter that lies on the meta device.

    Table 4 of the ConvNeXt paper counts the parameters with the auxiliary head, the multiply-adds without it, at 2048 x 512 pixels (1K
    weights) or 2560 x 640 (22K weights).
    """
    picture = torch.empty(1, 3, height, width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(picture)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2
