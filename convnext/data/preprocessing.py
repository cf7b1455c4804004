"""From a decoded picture to the tensor that a network evaluates: resize, crop, normalise."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from PIL.Image import Image
from torch import Tensor

from convnext.data.pictures import to_pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pictures; travels with its weights.

    The published test setting: resize the short side to `image_size / crop_ratio` and take the centre square, or, with
    `warp` (used from 384 pixels up), resize the whole picture to the square.
    """

    image_size: int = 224
    crop_ratio: float = 0.875
    warp: bool = False
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def transform(self) -> Callable[[Image], Tensor]:
        """A function from an RGB picture to a float32 (3, image_size, image_size) tensor."""
        from torchvision.transforms import v2

        mode = v2.InterpolationMode(self.interpolation)
        size = self.image_size
        if self.warp:
            geometry: list[Any] = [v2.Resize((size, size), mode)]
        else:
            geometry = [v2.Resize(int(size / self.crop_ratio), mode), v2.CenterCrop(size)]
        return v2.Compose([*geometry, to_normalised(self.mean, self.std)])

    def to_json(self) -> dict[str, Any]:
        """Plain values, to travel in a weight file's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`."""
        return cls(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})


def to_normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Image | Tensor], Tensor]:
    """The step from an RGB picture, or its uint8 (3, H, W) tensor, to a normalised float32 tensor."""
    import torch

    scale, shift = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return partial(_normalised, scale=torch.tensor(scale)[:, None, None], shift=torch.tensor(shift)[:, None, None])


def _normalised(picture: Image | Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # torchvision's steps one by one take three times as long: a copy, a division, and checks of types in each.
    import torch

    pixels = picture if isinstance(picture, torch.Tensor) else to_pixels(picture)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(shift)
