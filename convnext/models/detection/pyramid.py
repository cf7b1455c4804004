"""The feature pyramid network (Lin et al., CVPR 2017)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from convnext.models.detection.layers import ConvLayer, init_xavier


class FeaturePyramid(nn.Module):
    """Maps of strides 4 to 32 to maps of strides 4 to 64, all of one width.

    The fifth is every second position of the fourth. What comes down is enlarged by nearest neighbours.
    """

    def __init__(self, inputs: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.lateral_convs = nn.ModuleList(ConvLayer(channels, width, 1, relu=False) for channels in inputs)
        self.fpn_convs = nn.ModuleList(ConvLayer(width, width, 3, relu=False) for _ in inputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_xavier(module)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, inputs[i], H[i], W[i]) to one map more, each (N, width, H[i], W[i])."""
        lateral = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(lateral) - 1, 0, -1):
            lateral[i - 1] = lateral[i - 1] + F.interpolate(lateral[i], size=lateral[i - 1].shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.fpn_convs, lateral, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]
