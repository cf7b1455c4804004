"""An image as a task takes it to be predicted: opened, or prepared already."""

from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Prepared:
    """An image as its network takes it: prepared in another thread, for instance, while the network is busy."""

    image: Tensor  # float32 (3, H', W'), on the CPU
    size: tuple[int, int]  # height and width of the image as it was


OpenedImage: TypeAlias = Image.Image | DeepImage | Prepared
