"""Images that say in their colours what a network is to answer, and the network that does: for evaluations worked out by hand."""

import torch
from PIL import Image
from torch import nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.models.load import Loaded

SIZE = 32
AS_THEY_ARE = ClassifyPreprocessing(image_size=SIZE, crop_ratio=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def coded(path, first, second=0, size=SIZE):
    """Write an image on which `Coded` puts the class `first` first and `second` second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size, size))
    for half, label in enumerate((first, second)):
        image.paste((label // 4096 * 16, label // 64 % 64 * 4, label % 64 * 4), (half * size // 2, 0, size, size))
    image.save(path, "PNG")  # whatever the name ends in: JPEG would change the colours


class Coded(nn.Module):
    """Logits 4 for the class in the left half of an image, 2 for the one in the right half, 0 for the others."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.num_classes, self.spec = num_classes, {"name": "coded"}

    def forward(self, images):
        side = images.shape[-1]
        logits = torch.zeros(len(images), self.num_classes)
        for column, value in ((3 * side // 4, 2.0), (side // 4, 4.0)):
            red, green, blue = (images[:, :, side // 2, column] * 255).round().long().T
            labels = red // 16 * 4096 + green // 4 * 64 + blue // 4
            logits.scatter_(1, labels[:, None], value)
        return logits


def loaded(num_classes=1000, classes=None):
    """That network as `models.load` would give it."""
    return Loaded(Coded(num_classes), AS_THEY_ARE, classes=classes)
