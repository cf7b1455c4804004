"""ConvNeXt with a block of your own, under the name gated_convnext: see docs/extend/network.md."""

from torch import nn

import convnext
from convnext.models.backbones.convnext import Block, ConvNeXt


class GatedBlock(Block):
    """ConvNeXt's block with squeeze-and-excitation (Hu et al., 2018): a gate for each channel, from its mean over the image."""

    def __init__(self, width, *arguments, **options):
        super().__init__(width, *arguments, **options)
        self.gate = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Sigmoid())

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        y = self.activation(self.pwconv1(y))
        if self.grn is not None:  # model.grn=true
            y = self.grn(y)
        y = self.pwconv2(y)
        y = y * self.gate(y.mean((1, 2), keepdim=True))
        if self.gamma is not None:  # layer scale
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))


@convnext.register_backbone("gated_convnext")
class GatedConvNeXt(ConvNeXt):
    block = GatedBlock
