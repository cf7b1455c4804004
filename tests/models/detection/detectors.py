"""Small detectors and images that the tests of this folder share."""

import torch

from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.detection import cascade_mask_rcnn, mask_rcnn

BUILDERS = {"mask_rcnn": mask_rcnn, "cascade": cascade_mask_rcnn}


def small(kind="mask_rcnn", num_classes=3, seed=0):
    torch.manual_seed(seed)
    backbone = ConvNeXt((1, 1, 1, 1), (8, 16, 24, 32), layer_scale=1.0)
    return BUILDERS[kind](backbone, num_classes, True, channels=32, fc_channels=64)


def scene(height=64, width=96, boxes=((8, 10, 40, 44), (50, 12, 90, 60)), labels=(0, 2)):
    """An image of bright rectangles, one channel a class, on dark ground, and its target."""
    image = torch.zeros(3, height, width)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes, labels, strict=True):
        mask[y1:y2, x1:x2] = 1
        image[label % 3, y1:y2, x1:x2] = 2.0
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "masks": masks,
    }
    return image, target


def total(losses):
    return sum(loss for name, loss in losses.items() if "loss" in name)
