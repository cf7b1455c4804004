"""Augmentations that any number of channels and any range of values survive: vertical flips, rotations and blur, for every task.

They take tensors (C, H, W) with values from 0 to 255, uint8 or float32, and draw from NumPy's global generator: call them under `seeded`.
An augmentation that is off draws nothing, so that the draws of the others stay the same. torchvision is imported when it is first used:
evaluation needs none of these, and its import takes a second.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

_SIGMA = (0.1, 2.0)  # pixels: the range of the blur, timm's


def drawn(probability: float) -> bool:
    """Return True with that probability; for 0 without drawing."""
    return probability > 0 and bool(np.random.random_sample() < probability)


def draw_angle(largest: float) -> float:
    """Return an angle, evenly drawn from -largest to largest degrees; 0 without drawing if `largest` is 0."""
    return float(np.random.uniform(-largest, largest)) if largest else 0.0


def blurred(pixels: Tensor, probability: float) -> Tensor:
    """Return the image with that probability through a Gaussian whose standard deviation is drawn from 0.1 to 2 pixels."""
    if not drawn(probability):
        return pixels
    sigma = float(np.random.uniform(*_SIGMA))
    reach = int(np.ceil(3 * sigma))
    # Borders are mirrored, and a mirror image has no more pixels than its image.
    kernel = [2 * min(reach, side - 1) + 1 for side in (pixels.shape[2], pixels.shape[1])]
    from torchvision.transforms.v2 import functional

    return functional.gaussian_blur(pixels, kernel, [sigma, sigma])


def rotated(pixels: Tensor, angle: float, fill: Sequence[float], mode: str = "bilinear") -> Tensor:
    """Return the image (C, H, W), or masks with mode "nearest", turned about its centre within its own size.

    Args:
        pixels: uint8 or float32.
        angle: in degrees, anticlockwise; 0 returns the image itself.
        fill: the value of each channel in the corners, or one value for all.
        mode: "nearest" or "bilinear".
    """
    if not angle:
        return pixels
    ground = list(fill) if pixels.is_floating_point() else [min(255, max(0, round(value))) for value in fill]
    from torchvision.transforms.v2 import InterpolationMode, functional

    return functional.rotate(pixels, angle, InterpolationMode(mode), fill=ground)
