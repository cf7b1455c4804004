"""A convolution whose kernel is its stride, as between ConvNeXt's stages."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.ops.dispatch import fast, lowered


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the convolution of x (N, C, H, W) by weight (O, C, p, p) with stride p, plus bias (O,), in plain PyTorch.

    Rows and columns that fill no patch are ignored.
    """
    return F.conv2d(x, weight, bias, stride=weight.shape[-1])


def patchify(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return what `reference` does; on a CPU with gradients enabled as a product of matrices.

    oneDNN's gradients of the convolution take longer than those of the product: three times as long between ConvNeXt-T's last stages.
    """
    if x.is_cuda or not torch.is_grad_enabled() or not fast(x, weight, bias):
        return reference(x, weight, bias)
    outputs, channels, patch, _ = weight.shape
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    x = x.to(lowered(x)).permute(0, 2, 3, 1)[:, : rows * patch, : columns * patch]
    patches = x.reshape(-1, rows, patch, columns, patch, channels).transpose(2, 3).reshape(-1, rows, columns, patch * patch * channels)
    return F.linear(patches, weight.permute(0, 2, 3, 1).reshape(outputs, -1), bias).permute(0, 3, 1, 2)
