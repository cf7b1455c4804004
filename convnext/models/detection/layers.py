"""The feature pyramid, and the convolution that it and the heads are made of, initialised as in mmdetection."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConvLayer(nn.Module):
    """A convolution that keeps the map's size, then BatchNorm if `norm` and ReLU if `relu`; its parts are named as published.

    The norm is a plain `BatchNorm2d`. The published detectors train with synchronised ones, whose parameters are the same:
    on several GPUs pass the detector through `nn.SyncBatchNorm.convert_sync_batchnorm` before `DistributedDataParallel`.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, norm: bool = False, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=not norm)
        self.bn = nn.BatchNorm2d(outputs) if norm else None
        self.relu = relu
        init_kaiming(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        if self.bn is None:
            x = self.conv(x)
        elif self.training:
            x = self.bn(self.conv(x))
        else:  # the norm is a fixed scale and shift here: folded into the convolution it is free
            assert self.bn.running_var is not None
            assert self.bn.running_mean is not None
            scale = self.bn.weight * (self.bn.running_var + self.bn.eps).rsqrt()
            shift = self.bn.bias - self.bn.running_mean * scale
            x = F.conv2d(x, self.conv.weight * scale[:, None, None, None], shift, padding=self.conv.padding)
        return F.relu(x, inplace=True) if self.relu else x


Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def init_kaiming(layer: Layer) -> None:
    """Draw weights from a normal distribution with He's variance (fan out), and set biases to 0."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: Layer) -> None:
    """Draw weights uniformly from Glorot's range, and set biases to 0."""
    nn.init.xavier_uniform_(layer.weight)
    _zero_bias(layer)


def init_normal(layer: Layer, std: float) -> None:
    """Draw weights from a normal distribution of that standard deviation, and set biases to 0."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: Layer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FeaturePyramid(nn.Module):
    """The feature pyramid network (Lin et al., CVPR 2017): from maps of strides 4 to 32 to maps of strides 4 to 64, all of one width.

    The fifth map is every second position of the fourth. Coarser maps are enlarged by nearest neighbours.
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
        """Return the levels (N, width, H[i], W[i]) of maps (N, inputs[i], H[i], W[i]), one more than maps."""
        lateral = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(lateral) - 1, 0, -1):
            lateral[i - 1] = lateral[i - 1] + F.interpolate(lateral[i], size=lateral[i - 1].shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.fpn_convs, lateral, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]
