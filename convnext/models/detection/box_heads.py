"""The heads that classify a region and refine its box, and their losses."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from convnext.models.detection.boxes import DeltaCoder
from convnext.models.detection.layers import ConvLayer, init_normal, init_xavier

REGION = 7  # positions per side of a region for the box heads


class BoxHead(nn.Module):
    """Convolutions with BatchNorm, linear layers, then class logits and the deltas of a box for each class.

    Mask R-CNN has no convolution and two linear layers; the cascade has four convolutions and one linear layer.

    Args:
        width: channels of the pyramid and of the convolutions.
        num_classes: without background, whose logit is the last one.
        convs: number of convolutions.
        fcs: number of linear layers.
        fc_width: of the linear layers.
    """

    def __init__(self, width: int, num_classes: int, *, convs: int, fcs: int, fc_width: int = 1024) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shared_convs = nn.Sequential(*[ConvLayer(width, width, 3, norm=True) for _ in range(convs)])
        inputs = [width * REGION**2] + [fc_width] * (fcs - 1)
        layers = [nn.Linear(size, fc_width) for size in inputs]
        self.shared_fcs = nn.ModuleList(layers)
        self.fc_cls = nn.Linear(fc_width, num_classes + 1)
        self.fc_reg = nn.Linear(fc_width, 4 * num_classes)
        for layer in layers:
            init_xavier(layer)
        narrow = 1024 / fc_width  # 1 as published; see `UperNet`'s classifier
        init_normal(self.fc_cls, 0.01 * narrow)
        init_normal(self.fc_reg, 0.001 * narrow)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, num_classes + 1) and deltas (n, num_classes, 4) of regions (n, width, 7, 7), float32."""
        x = self.shared_convs(regions).flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x).float(), self.fc_reg(x).float().view(-1, self.num_classes, 4)


BoxLoss = Callable[[DeltaCoder, Tensor, Tensor, Tensor], Tensor]
ClassLoss = Callable[[Tensor, Tensor], Tensor]  # of logits (n, num_classes + 1) and labels (n,), num_classes for background: the sum


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of regions, summed: the published loss of their classes."""
    return F.cross_entropy(logits, labels, reduction="sum")


def l1_loss(coder: DeltaCoder, proposals: Tensor, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Return the L1 distance between the predicted deltas (n, 4) and those from `proposals` to `boxes`, summed (Mask R-CNN)."""
    return F.l1_loss(deltas, coder.encode(proposals, boxes), reduction="sum")


def giou_loss(coder: DeltaCoder, proposals: Tensor, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Return 10 x (1 - generalised IoU) of the predicted boxes and `boxes`, summed (the cascade; Rezatofighi et al., CVPR 2019)."""
    return 10 * generalized_box_iou_loss(coder.decode(proposals, deltas), boxes, reduction="sum")
