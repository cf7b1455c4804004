"""The photometric distortion of the published segmentation runs, in PyTorch: colours change, the geometry does not.

Source: SSD's augmentation (Liu et al., 2016, section 2.2) as mmsegmentation's `PhotoMetricDistortion` has it; checked against
OpenCV, whose 8-bit HSV that code goes through.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PhotometricDistortion:
    """Changes brightness, contrast, saturation and hue, each with a probability of one half; contrast is the second or the last.

    Takes and returns a uint8 (3, H, W) tensor, RGB. The draws and their order are the published code's, from NumPy's global
    generator, and so is the rounding to 8 bits after each step, which coarsens hues to two degrees wherever saturation or hue change.

    Args:
        brightness: largest change, in levels of 255.
        contrast: range of the factor.
        saturation: range of the factor.
        hue: largest change, in units of two degrees.
    """

    brightness: float = 32
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18

    def __call__(self, pixels: Tensor) -> Tensor:
        if _coin():
            pixels = _to_bytes(pixels.float().add_(np.random.uniform(-self.brightness, self.brightness)))
        contrast_is_last = not _coin()
        if not contrast_is_last:
            pixels = self._contrast(pixels)
        if _coin():
            hue, saturation, value = to_hsv(pixels)
            pixels = to_rgb(hue, _to_bytes(saturation.mul_(np.random.uniform(*self.saturation))).float(), value)
        if _coin():
            hue, saturation, value = to_hsv(pixels)
            pixels = to_rgb((hue + np.random.randint(-self.hue, self.hue)).remainder_(180), saturation, value)
        return self._contrast(pixels) if contrast_is_last else pixels

    def _contrast(self, pixels: Tensor) -> Tensor:
        return _to_bytes(pixels.float().mul_(np.random.uniform(*self.contrast))) if _coin() else pixels


def to_hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue (0 to 179, in two degrees), saturation and value (0 to 255) of a uint8 (3, H, W) tensor: whole float32 numbers (H, W)."""
    red, green, blue = pixels.float()
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    saturation = (spread * 255).div_(value.clamp(min=1)).add_(0.5).floor_()
    # Hues of a sector of the colour circle are counted from its middle: red 0, green 2, blue 4.
    sector = torch.where(value == red, green - blue, torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread))
    hue = sector.mul_(30).div_(spread.clamp(min=1)).add_(0.5).floor_()
    return torch.where(hue < 0, hue + 180, hue), saturation, value


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return the uint8 (3, H, W) tensor of hue, saturation and value; the inverse of `to_hsv`."""
    sector, chroma = hue / 30, value * saturation / 255
    # The fraction of its chroma that a channel lacks, as a function of the hue: 0 for a third of the circle, then a ramp, then 1.
    red, green, blue = 2 - (sector - 3).abs_(), (sector - 2).abs_() - 1, (sector - 4).abs_() - 1
    return torch.stack([value - lacks.clamp_(0, 1).mul_(chroma) for lacks in (red, green, blue)]).round_().to(torch.uint8)


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)  # truncated, not rounded: as published


def _coin() -> bool:
    return bool(np.random.randint(2))
