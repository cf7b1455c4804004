"""A segmentation head over any backbone, under names such as sum_head_convnext_tiny: see docs/extend/head.md."""

import torch.nn.functional as F
from torch import nn

import convnext


@convnext.register_head("sum_head", task="segment")
class SumHead(nn.Module):
    """The backbone's four maps, each brought to one width and to the size of the finest, added up and classified."""

    def __init__(self, backbone, num_classes, channels=32):
        super().__init__()
        backbone.drop_head()
        self.backbone, self.num_classes = backbone, num_classes
        self.sides = nn.ModuleList(nn.Conv2d(own, channels, 1) for own in backbone.channels)
        self.classify = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, num_classes, 3, padding=1))

    def features(self, x):
        return self.backbone.features(x)  # strides 4, 8, 16 and 32

    def logits(self, x):
        maps = [side(one) for side, one in zip(self.sides, self.features(x), strict=True)]
        return self.classify(sum(F.interpolate(one, maps[0].shape[-2:], mode="bilinear") for one in maps))

    def forward(self, x, auxiliary=False):
        if auxiliary:  # in training: the logits, and those of an auxiliary head, which this network has not
            return self.logits(x), None
        return F.interpolate(self.logits(x), x.shape[-2:], mode="bilinear")
