"""The convolution that neck and heads are made of, and how they are initialised (as in mmdetection)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ConvLayer(nn.Module):
    """A convolution that keeps the map's size, then BatchNorm and ReLU if asked for; its parts are named as published.

    The norm is a plain `BatchNorm2d`. The published detectors train with synchronised ones, whose parameters are the same:
    on several GPUs pass the detector through `nn.SyncBatchNorm.convert_sync_batchnorm` before `DistributedDataParallel`.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, norm: bool = False, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=not norm)
        self.bn: Any = nn.BatchNorm2d(outputs) if norm else None
        self.relu = relu
        init_kaiming(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        if self.bn is None:
            x = self.conv(x)
        elif self.training:
            x = self.bn(self.conv(x))
        else:  # the norm is a fixed scale and shift here: within the convolution it costs nothing
            scale = self.bn.weight * (self.bn.running_var + self.bn.eps).rsqrt()
            shift = self.bn.bias - self.bn.running_mean * scale
            x = F.conv2d(x, self.conv.weight * scale[:, None, None, None], shift, padding=self.conv.padding)
        return F.relu(x, inplace=True) if self.relu else x


Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def init_kaiming(layer: Layer) -> None:
    """Weights normal with He's variance for what leaves the layer, biases 0."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: Layer) -> None:
    """Weights uniform over Glorot's range, biases 0."""
    nn.init.xavier_uniform_(layer.weight)
    _zero_bias(layer)


def init_normal(layer: Layer, std: float) -> None:
    """Weights normal of that standard deviation, biases 0."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: Layer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
