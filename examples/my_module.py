"""Names of your own for recipes and commands: see docs/extend/index.md."""

import numpy as np
import torch
from torch import nn

import convnext


@convnext.register_backbone("my_net")
class MyNet(nn.Module):
    def __init__(self, num_classes=1000, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 7, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@convnext.register_source("stripes")
def stripes(where, classes):
    """Open `stripes:400`: so many images of noise, with light rows or light columns."""
    light, labels = 60 * (np.arange(24) % 4 == 0)[:, None, None], ["down", "across"]
    images = [np.random.default_rng(i).normal(128 + light, 40, (24, 24, 3)).clip(0, 255).astype(np.uint8) for i in range(int(where))]
    return [(image.transpose(1, 0, 2) if i % 2 else image, labels[i % 2]) for i, image in enumerate(images)]


@convnext.register_loss("focal")
def focal(logits, labels):
    nll = nn.functional.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-nll)) ** 2 * nll).mean()


def missed(logits, labels):
    return 100 * (logits[labels == 1].argmax(1) == 0).float().mean()


def darker(image):
    return image * (0.5 + 0.5 * torch.rand(1))


def turned(image, objects):
    """Turn an image and its objects by half a circle, half of the time."""
    if torch.rand(1) < 0.5:
        return image, objects
    height, width = image.shape[1:]
    boxes = torch.tensor([width, height, width, height]) - objects["boxes"][:, [2, 3, 0, 1]]
    return image.flip(1, 2), objects | {"boxes": boxes, "masks": objects["masks"].flip(1, 2)}
