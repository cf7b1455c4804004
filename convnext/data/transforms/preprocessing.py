"""From an opened image to the tensor that a network evaluates: resize, crop, normalise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import Self

from PIL.Image import Image
from torch import Tensor

from convnext.data.deep import DeepImage, Range
from convnext.data.images import to_pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(ABC):
    """How a network takes its images: travels with its weights. Each task has its own, a frozen dataclass."""

    mean: tuple[float, ...]  # subtracted from RGB in 0 to 1
    std: tuple[float, ...]  # divided by after that
    range: Range | None  # of images with more than 8 bits: the number that is white, or those that are black and white

    @abstractmethod
    def transform(self) -> Callable[[Image | DeepImage], Tensor]:
        """Return the function from an opened image to a normalised float32 tensor (3, H, W)."""

    def to_json(self) -> dict[str, object]:
        """Return plain values, to travel in a weight file's metadata."""
        assert is_dataclass(self)
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """Return the inverse of `to_json`. Keys that older files lack get their defaults; TypeError for unknown keys."""
        build: Callable[..., Self] = cls
        return build(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class ClassifyPreprocessing(Preprocessing):
    """How a classifier takes its images.

    The published test setting: resize the short side to `image_size / crop_ratio` and take the centre square, or, with
    `warp` (used from 384 pixels up), resize the whole image to the square. With `mirror`, the probabilities are means over the image and
    its mirror image. `unit` is of a network that predicts a number: mean and standard deviation in training, which its output counts.
    """

    image_size: int = 224
    crop_ratio: float = 0.875
    warp: bool = False
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    range: Range | None = None
    mirror: bool = False
    unit: tuple[float, float] | None = None

    def transform(self) -> Callable[[Image | DeepImage], Tensor]:
        """Return the function from an opened image to a float32 (3, image_size, image_size) tensor."""
        from torchvision.transforms import v2

        mode = v2.InterpolationMode(self.interpolation)
        size = self.image_size
        if self.warp:
            geometry: list[Callable[..., object]] = [v2.Resize((size, size), mode)]
        else:
            geometry = [v2.Resize(int(size / self.crop_ratio), mode), v2.CenterCrop(size)]
        return partial(_transformed, steps=v2.Compose([*geometry, to_normalised(self.mean, self.std)]), scale=self.range)


def _transformed(image: Image | DeepImage, steps: Callable[[Image | Tensor], Tensor], scale: Range | None) -> Tensor:
    # Pillow resizes images of 8 bits, as when the published accuracies were measured; PyTorch resizes others and keeps all levels.
    return steps(to_pixels(image, scale) if isinstance(image, DeepImage) else image)


def to_normalised(
    mean: tuple[float, ...], std: tuple[float, ...], scale: Range | None = None
) -> Callable[[Image | DeepImage | Tensor], Tensor]:
    """Return the function from an opened image, or its (3, H, W) tensor from 0 to 255, to a normalised float32 tensor.

    Args:
        mean: subtracted from RGB in 0 to 1.
        std: divided by after that.
        scale: of a DeepImage, see `DeepImage.pixels`.
    """
    import torch

    factor, shift = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return partial(_normalised, factor=torch.tensor(factor)[:, None, None], shift=torch.tensor(shift)[:, None, None], scale=scale)


def _normalised(image: Image | DeepImage | Tensor, factor: Tensor, shift: Tensor, scale: Range | None) -> Tensor:
    # torchvision's steps take three times as long: each copies, divides and checks types.
    import torch

    pixels = to_pixels(image, scale)
    if pixels.is_floating_point():
        pixels = pixels.clamp(0, 255)  # as 8 bits are clipped where a resize overshoots
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(factor).add_(shift)
