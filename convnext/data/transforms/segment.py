"""From an image and its mask to what a segmenter is trained on or evaluates: the published transforms.

Source: the paper's `semantic_segmentation/configs`, which use mmsegmentation 0.11; the draws are that code's, in its order and from
NumPy's generator.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from convnext.data.deep import DeepImage, Range, to_bytes
from convnext.data.images import to_pixels
from convnext.data.sources.mask_files import IGNORED
from convnext.data.transforms.photometric import PhotometricDistortion
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, range_from_json, to_normalised

_TRIES = 10  # for a crop that shows more than one class


class TrainTransform:
    """A function from an opened image, or its uint8 (3, H, W) tensor, and its mask to what a network is trained on.

    A random resize that keeps the proportions, a random crop, a mirror image, photometric distortion, normalisation, and padding
    to the crop size on the right and below, with 0 and, in the mask, with 255 (ignored). Returns a float32
    (3, crop_size, crop_size) image and a uint8 (crop_size, crop_size) mask.

    Its randomness comes from NumPy's global generator: call it under `seeded`.

    Args:
        crop_size: pixels a side, 512 or 640 as published.
        scale: what the resize scales, the most pixels on an image's long and short side: (2048, 512) or (2560, 640) as published;
            None for the image's own size.
        ratio_range: of the factor on `scale`, drawn evenly.
        max_class_share: of the labelled pixels of a crop, how much one class may cover; after ten tries any crop is taken.
        flip: chance of the mirror image.
        distort: whether colours are distorted, in 8 bits.
        mean, std: subtracted from RGB in 0 to 1, and divided by.
        value_range: of images with more than 8 bits, see `DeepImage.pixels`.
    """

    def __init__(
        self,
        crop_size: int,
        scale: tuple[int, int] | None,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        distort: bool = True,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        value_range: Range | None = None,
    ) -> None:
        self.crop_size, self.scale, self.ratio_range = crop_size, scale, ratio_range
        self.max_class_share, self.flip = max_class_share, flip
        self.distortion = PhotometricDistortion() if distort else None
        self.normalise: Callable[[Image | DeepImage | Tensor], Tensor] = to_normalised(mean, std)
        self.range = value_range

    def __call__(self, image: Image | DeepImage | Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        pixels = to_pixels(image, self.range)
        size = self._draw_size(mask.shape[0], mask.shape[1])
        mask = resize_mask(mask, size)
        rows, columns = self._draw_crop(mask)
        mask, pixels = mask[rows, columns], resize(pixels, size)[:, rows, columns]
        if np.random.rand() < self.flip:
            mask, pixels = mask.flip(-1), pixels.flip(-1)
        if self.distortion is not None:
            pixels = self.distortion(to_bytes(pixels).contiguous())
        padding = (0, self.crop_size - mask.shape[1], 0, self.crop_size - mask.shape[0])
        return F.pad(self.normalise(pixels), padding), F.pad(mask, padding, value=IGNORED)

    def _draw_size(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio_range
        ratio = np.random.random_sample() * (high - low) + low
        long, short = self.scale or (max(height, width), min(height, width))
        return scaled_size(height, width, (int(long * ratio), int(short * ratio)))

    def _draw_crop(self, mask: Tensor) -> tuple[slice, slice]:
        """The first of ten crops in which no class covers too much, else an eleventh as it comes."""
        crop = self._draw_place(mask)
        for _ in range(_TRIES if self.max_class_share < 1 else 0):
            counts = torch.bincount(mask[crop].flatten(), minlength=IGNORED)[:IGNORED]
            if counts.max() < self.max_class_share * counts.sum():
                break
            crop = self._draw_place(mask)
        return crop

    def _draw_place(self, mask: Tensor) -> tuple[slice, slice]:
        top, left = (np.random.randint(0, max(side - self.crop_size, 0) + 1) for side in mask.shape)
        return slice(top, top + self.crop_size), slice(left, left + self.crop_size)


@dataclass(frozen=True)
class SegmentPreprocessing(Preprocessing):
    """How a segmenter wants its images; travels with its weights.

    Args:
        scale: the most pixels on the long and the short side, up to which an image is resized, proportions kept: (2048, 512) or
            (2560, 640) as published; None to leave its size as it is.
        window, stride: test in square windows of that side, so many pixels apart; None for the whole image at once.
        scales: factors on `scale`, or else on the image's size, at all of which it is tested.
        mirror: test each mirror image, too.
        mean, std: subtracted from RGB in 0 to 1, and divided by.
        range: of images with more than 8 bits: the number that is white, or those that are black and white.
    """

    scale: tuple[int, int] | None = None
    window: int | None = None
    stride: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False
    range: Range | None = None

    def multi_scale(self) -> "SegmentPreprocessing":
        """The published multi-scale test: whole images at six scales, each with its mirror image."""
        return replace(self, window=None, stride=None, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), mirror=True)

    def transform(self) -> Callable[[Image | DeepImage | Tensor], Tensor]:
        """A function from an opened image, or its uint8 (3, H, W) tensor, to a normalised float32 (3, H, W) tensor of its own size.

        What resizes it, and brings the result back, is `convnext.models.segmentation.inference.predict`.
        """
        return to_normalised(self.mean, self.std, self.range)

    def to_json(self) -> dict[str, Any]:
        """Plain values, to travel in a weight file's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        scale = tuple(values["scale"]) if values["scale"] else None
        scales, mirror = tuple(values.get("scales", (1.0,))), values.get("mirror", False)  # older files have neither
        mean, std = tuple(values["mean"]), tuple(values["std"])
        return cls(scale, values["window"], values["stride"], mean, std, scales, mirror, range_from_json(values))


def scaled_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of these proportions within `scale`, long and short side in either order; mmcv's `rescale_size`."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 (3, H, W) image at another size, bilinear: OpenCV's `INTER_LINEAR` to a level of 255, as mmcv resizes.

    Pixels are squares with half-integer centres; where it shrinks, nothing is averaged (no antialiasing).
    """
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None].contiguous(memory_format=torch.channels_last), size, mode="bilinear")[0]


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) at another size: OpenCV's `INTER_NEAREST`, whose pixel i is the old pixel floor(i * old / new), in its arithmetic."""
    rows, columns = (
        torch.from_numpy(np.minimum(np.arange(new) * (1 / (new / old)), old - 1).astype(np.int64))
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]
