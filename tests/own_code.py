"""Code from outside the package, as a user's module has it, registered when imported: a network, data, a loss, a metric and more."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import convnext


@convnext.register_backbone("plain_net", image_size=32)
class PlainNet(nn.Module):
    """With what a resumed run must restore: running statistics, and dropout."""

    def __init__(self, num_classes=3, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.drop(F.relu(self.norm(self.stem(x))).mean((2, 3))))


class Patches(torch.utils.data.Dataset):
    """Three colours; with `shifts`, each item is drawn at random."""

    def __init__(self, count, shifts=False):
        self.count, self.shifts = count, shifts

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 120, (20, 24, 3), dtype=np.uint8)
        image[..., index % 3] += 100
        return np.roll(image, np.random.randint(5), 0) if self.shifts else image, index % 3


@convnext.register_source("patches")
def patches(where, classes):
    return Patches(int(where), shifts=True)


@convnext.register_loss("two_parts")
def two_parts(logits, targets):
    return {"ce": F.cross_entropy(logits, targets), "size": 0.01 * logits.square().mean()}


@convnext.register_metric("error")
def error(logits, labels):
    return 100 * (logits.argmax(1) != labels).float().mean()


@convnext.register_transform("noise")
def noise(image):
    return (image.float() + 5 * torch.randn(image.shape)).clamp(0, 255)


@convnext.register_callback("until")
class Until(convnext.Callback):
    """Stops the run after two steps."""

    def on_step(self, moment):
        if moment.step == 2:
            raise convnext.Stop("two steps")
