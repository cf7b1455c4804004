"""The head that predicts an object's mask within its box (He et al., Mask R-CNN, ICCV 2017), and its loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from convnext.models.detection.boxes import clip
from convnext.models.detection.layers import ConvLayer, init_kaiming

REGION = 14  # positions per side of a region for the mask head; the mask has twice as many


class MaskHead(nn.Module):
    """Four 3 x 3 convolutions and a 2 x 2 deconvolution, `width` channels wide, then a mask for each class."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*[ConvLayer(width, width, 3) for _ in range(4)])
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv_logits = nn.Conv2d(width, num_classes, 1)
        init_kaiming(self.upsample)
        init_kaiming(self.conv_logits)

    def forward(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Return the mask logits (n, 28, 28), float32, of regions (n, width, 14, 14) for the classes `labels` (n,)."""
        x = self.convs(regions)
        count, channels, height, width = x.shape
        # A 2 x 2 deconvolution of stride 2 is a 1 x 1 convolution whose outputs lie in squares. The convolution is several times faster.
        weight = self.upsample.weight.permute(2, 3, 1, 0).reshape(-1, channels, 1, 1)
        bias = self.upsample.get_parameter("bias").repeat(4)
        x = F.relu(F.conv2d(x, weight, bias), inplace=True)
        x = x.permute(0, 2, 3, 1).reshape(count, height, width * 4, channels).permute(0, 3, 1, 2)
        masks = self.conv_logits(x)[torch.arange(count, device=x.device), labels]
        return masks.view(count, height, width, 2, 2).transpose(2, 3).reshape(count, 2 * height, 2 * width).float()


def mask_targets(masks: Tensor, boxes: Tensor, which: Tensor) -> Tensor:
    """Return the masks (m, H, W) with the indices `which` (n,) within each of the boxes (n, 4): (n, 28, 28), 0 or 1."""
    rois = torch.cat([which[:, None].to(boxes), clip(boxes, (masks.shape[1], masks.shape[2]))], 1)
    pooled = roi_align(masks[:, None].to(boxes), rois, 2 * REGION, sampling_ratio=0, aligned=True)
    return (pooled[:, 0] >= 0.5).to(boxes)


def mask_loss(logits: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Return the binary cross-entropy, the mean over all masks (n, 28, 28); 0 without masks."""
    target = torch.cat(list(targets))
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / max(target.numel(), 1)
