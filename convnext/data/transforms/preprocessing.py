"""From an opened image to the tensor that a network evaluates: resize, crop, normalise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from typing import Self

from PIL.Image import Image
from torch import Tensor

from convnext.data.deep import DeepImage, Range
from convnext.data.images import to_pixels, with_channels
from convnext.data.transforms import resizing
from convnext.errors import UsageError

ImageSize = int | tuple[int, int]  # pixels a side, or (height, width)
Step = Callable[..., Image | Tensor]  # from an opened image, or its (C, H, W) tensor, to another

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(ABC):
    """How a network takes its images: travels with its weights. Each task has its own, a frozen dataclass."""

    mean: tuple[float, ...]  # subtracted from RGB in 0 to 1
    std: tuple[float, ...]  # divided by after that
    range: Range | None  # of images with more than 8 bits: the number that is white, or those that are black and white
    channels: int  # 3 for RGB, 1 for grey, others for images with as many bands

    @abstractmethod
    def transform(self) -> Callable[[Image | DeepImage], Tensor]:
        """Return the function from an opened image to a normalised float32 tensor (channels, H, W).

        The function raises CorruptImageError for an image of other channels.
        """

    def at_size(self, size: ImageSize) -> "Preprocessing":
        """Return the same preprocessing for images of another size. Raises UsageError where a size does not say it."""
        raise UsageError("a size is for networks that take images of one size, classifiers: omit it for detectors and segmenters")

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

    The published test setting: resize the image until it covers `image_size / crop_ratio` and take its centre, or, with `warp` (used
    from 384 pixels up), resize the whole image to that size. With `letterbox` the whole image keeps its proportions, and the rest is
    filled with `mean`. With `mirror`, the probabilities are means over the image and its mirror image.
    `unit` is of a network that predicts a number: mean and standard deviation in training, which its output counts.
    """

    image_size: ImageSize = 224
    crop_ratio: float = 0.875
    warp: bool = False
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    range: Range | None = None
    letterbox: bool = False
    channels: int = 3
    mirror: bool = False
    unit: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the prepared images."""
        return sides(self.image_size)

    def transform(self) -> Callable[[Image | DeepImage], Tensor]:
        """Return the function from an opened image to a float32 (channels, height, width) tensor of `size`."""
        normalised = to_normalised(self.mean, self.std, channels=self.channels)
        return partial(_transformed, geometry=self.geometry(), normalised=normalised, scale=self.range, channels=self.channels)

    def at_size(self, size: ImageSize) -> "ClassifyPreprocessing":
        """Return the same preprocessing for images of another size: the same part of the image is seen."""
        return replace(self, image_size=size)

    def geometry(self) -> list[Step]:
        """Return the steps from an opened image, or its (C, H, W) tensor from 0 to 255, to one of `size`."""
        if self.warp:
            return [partial(resizing.resized, size=self.size, interpolation=self.interpolation)]
        if self.letterbox:
            ground = [255 * mean for mean in self.mean]
            return [partial(resizing.letterboxed, size=self.size, interpolation=self.interpolation, fill=ground)]
        crop = partial(resizing.cropped_to_centre, size=self.size)
        if isinstance(self.image_size, int):
            short = int(self.image_size / self.crop_ratio)
            return [partial(resizing.resized_to_short, short=short, interpolation=self.interpolation), crop]
        height, width = self.size
        whole = int(height / self.crop_ratio), int(width / self.crop_ratio)
        return [partial(resizing.resized_to_cover, size=whole, interpolation=self.interpolation), crop]


def sides(size: ImageSize) -> tuple[int, int]:
    """Return the (height, width) that a size means: one number is that of a square."""
    return (size, size) if isinstance(size, int) else size


def size_text(size: ImageSize) -> str:
    """Return a size as text: "224", or "192 x 256" for other than squares, the height first."""
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"


def _transformed(
    image: Image | DeepImage, geometry: Sequence[Step], normalised: Callable[[Image | Tensor], Tensor], scale: Range | None, channels: int
) -> Tensor:
    # Pillow resizes images of 8 bits, as when the published accuracies were measured; PyTorch resizes others and keeps all levels.
    found: Image | Tensor = to_pixels(image, scale, channels) if isinstance(image, DeepImage) else with_channels(image, channels)
    for step in geometry:
        found = step(found)
    return normalised(found)


def to_normalised(
    mean: tuple[float, ...], std: tuple[float, ...], scale: Range | None = None, channels: int = 3
) -> Callable[[Image | DeepImage | Tensor], Tensor]:
    """Return the function from an opened image, or its (channels, H, W) tensor from 0 to 255, to a normalised float32 tensor.

    Args:
        mean: subtracted from each channel in 0 to 1.
        std: divided by after that.
        scale: of a DeepImage, see `DeepImage.pixels`.
        channels: see `to_pixels`.
    """
    import torch

    factor, shift = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    numbers = {"factor": torch.tensor(factor)[:, None, None], "shift": torch.tensor(shift)[:, None, None]}
    return partial(_normalised, **numbers, scale=scale, channels=channels)


def _normalised(image: Image | DeepImage | Tensor, factor: Tensor, shift: Tensor, scale: Range | None, channels: int) -> Tensor:
    # torchvision's steps take three times as long: each copies, divides and checks types.
    import torch

    pixels = to_pixels(image, scale, channels)
    if pixels.is_floating_point():
        pixels = pixels.clamp(0, 255)  # as 8 bits are clipped where a resize overshoots
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(factor).add_(shift)
