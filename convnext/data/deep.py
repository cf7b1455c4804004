"""Images with more than 8 bits per channel, whose numbers are scaled when an image is prepared for a network.

Such files (16-bit PNG, float TIFF, CT) do not say which of their numbers is white. `data.range` says it for the whole dataset, and
travels with the weights in their preprocessing, so that an image's own content never decides its scale.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np
from PIL import Image

from convnext.data.orientation import turned_array
from convnext.errors import CorruptImageError
from convnext.text import counted

if TYPE_CHECKING:
    from torch import Tensor

Range = float | tuple[float, float]  # the number that is white, or those that are black and white


@dataclass(frozen=True, eq=False)
class DeepImage:
    """An image with more than 8 bits per channel, or other channels than grey and RGB, upright, with the file's own numbers."""

    values: np.ndarray  # (C, H, W), any type of number
    name: str
    white: float  # the number that is white unless a range says otherwise
    alpha: np.ndarray | None = None  # opacity, float32 (H, W) from 0 to 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.values.shape

    @property
    def height(self) -> int:
        """In pixels."""
        return self.values.shape[1]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.values.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), like a PIL image's."""
        return self.width, self.height

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number in it, as int or float."""
        return self.values.min().item(), self.values.max().item()

    def turned(self, orientation: int) -> "DeepImage":
        """Return the image turned by that orientation; see `orientation.turned_array`."""
        alpha = None if self.alpha is None else turned_array(self.alpha, orientation)
        return replace(self, values=turned_array(self.values, orientation), alpha=alpha)

    def pixels(self, scale: Range | None, channels: int = 3) -> "Tensor":
        """Return a float32 (channels, H, W) tensor from 0 (black) to 255 (white) that keeps every level.

        Transparent pixels blend with white. Grey and RGB images become each other.

        Args:
            scale: the number that is white, or those that are black and white; numbers beyond are clipped. None for `white`. Numbers of
                8 bits are always 0 to 255.
            channels: of the result.

        Raises CorruptImageError, with the key to set, if `scale` is None and the image has numbers beyond `white`, and for an image of
        other channels.
        """
        import torch

        if self.values.dtype == np.uint8:
            scale = 255.0
        if scale is None and (reason := misfit(self.values.dtype, *self.limits, self.white)):
            raise CorruptImageError(f"{self.name}: {reason}")
        black, white = (0.0, self.white) if scale is None else scale if isinstance(scale, tuple) else (0.0, scale)
        exact = np.result_type(self.values.dtype, np.float32)  # float64 for 32-bit integers
        levels = ((self.values.astype(exact) - black) * (255 / (white - black))).clip(0, 255).astype(np.float32)
        if self.alpha is not None:
            levels = levels * self.alpha + 255 * (1 - self.alpha)
        if len(levels) == 1 and channels == 3:
            levels = levels.repeat(3, axis=0)
        return as_grey(torch.from_numpy(levels), self.name, channels)

    def shown(self) -> Image.Image:
        """Return an 8-bit RGB image to look at, from its own smallest number (black) to its largest (white).

        Of more than three channels the first three are shown as red, green and blue, of two the first as grey.
        """
        first = replace(self, values=self.values[: 3 if len(self.values) > 2 else 1])
        low, high = first.limits
        return Image.fromarray(to_bytes(first.pixels((low, high if high > low else low + 1))).permute(1, 2, 0).numpy())


def shown(image: Image.Image | DeepImage) -> Image.Image:
    """Return an opened image as 8-bit RGB, to look at or to draw on."""
    if isinstance(image, DeepImage):
        return image.shown()
    return image if image.mode == "RGB" else image.convert("RGB")


def to_bytes(pixels: "Tensor") -> "Tensor":
    """Return pixels from 0 to 255 rounded to uint8."""
    import torch

    return pixels.round().clamp(0, 255).to(torch.uint8) if pixels.is_floating_point() else pixels


def as_grey(pixels: "Tensor", name: str, channels: int) -> "Tensor":
    """Return pixels (C, H, W) of that many channels: themselves, or RGB as grey, by Pillow's weights (ITU-R 601-2).

    Raises CorruptImageError, naming the image, if they have other channels.
    """
    import torch

    if len(pixels) == channels:
        return pixels
    if (len(pixels), channels) != (3, 1):
        refuse_channels(name, len(pixels), channels)
    if pixels.is_floating_point():
        return torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), pixels, 1)[None]
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)[:, None, None]
    return ((pixels.int() * weights).sum(0, keepdim=True) + 0x8000 >> 16).to(torch.uint8)


def refuse_channels(name: str, found: int, wanted: int) -> NoReturn:
    """Raise CorruptImageError about an image of other channels than are wanted."""
    remedy = f"set data.channels={found} to train on such images, or give images of {wanted}"
    raise CorruptImageError(f"{name}: {counted(found, 'channel')} instead of {wanted}: {remedy}")


def misfit(kind: np.dtype, low: float, high: float, white: float) -> str:
    """Return why numbers of that type from `low` to `high` can't be read as 0 (black) to `white`, with the key to set; "" if they can."""
    if low < 0:
        return f"values from {_text(low)} to {_text(high)}: set {key_for(low, high)} (black, white) to train on such images"
    if high > white:
        return f"values up to {_text(high)}, beyond {_text(white)}: set {key_for(low, high)} to train on such images"
    if kind.kind in "iu" and kind not in (np.uint8, np.uint16) and high <= 255:
        wide = f"integers of {8 * kind.itemsize} bits up to {_text(high)} do not say what is white"
        return f"{wide}: save them with 8 bits (or as uint8), or set data.range=255 to train on such images"
    return ""


def key_for(low: float, high: float) -> str:
    """Return the override that makes `high`, and if it is negative `low`, the limits of the scale."""
    return f"data.range=[{_text(low)},{_text(high)}]" if low < 0 else f"data.range={_text(high)}"


def _text(value: float) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def deep(values: np.ndarray, name: str, white: float | None = None, alpha: np.ndarray | None = None) -> DeepImage:
    """Return a DeepImage of an array (C, H, W). Raises CorruptImageError if some of its numbers are not finite."""
    values = values.astype(np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f" and (bad := int((~np.isfinite(values)).sum())):
        raise CorruptImageError(f"{name}: {bad} of its {values.size} numbers are NaN or infinite")
    usual = 1.0 if values.dtype.kind == "f" else 255 if values.dtype == np.uint8 else 65535
    return DeepImage(values, name, white or usual, alpha)


class Depths:
    """The range of numbers in the deep images of a dataset: `add` every image, then call `problems`."""

    def __init__(self) -> None:
        self.found: list[tuple[np.dtype, float, float, float]] = []

    def add(self, image: "Image.Image | Tensor | DeepImage") -> None:
        """Add an opened image; one of 8 bits changes nothing."""
        if isinstance(image, DeepImage) and image.values.dtype != np.uint8:
            self.found.append((image.values.dtype, *image.limits, image.white))

    def problems(self) -> list[str]:
        """Return a line for each type of number that the default scale does not suit, with its largest value and the key to set."""
        kinds = list(dict.fromkeys(kind for kind, *_ in self.found))
        lines = []
        for kind in kinds:
            rows = [row[1:] for row in self.found if row[0] == kind]
            low, high, white = min(row[0] for row in rows), max(row[1] for row in rows), min(row[2] for row in rows)
            if misfit(kind, low, high, white) or high <= white / 2:
                many = f"{len(rows)} images have" if len(rows) > 1 else "1 image has"
                what = f"the values go from {_text(low)} to {_text(high)}" if low < 0 else f"the largest value is {_text(high)}"
                of = f" ({kind})" if len(kinds) > 1 else ""
                lines.append(f"{many} more than 8 bits{of}, {what}: set {key_for(low, high)}")
        if len(kinds) > 1:
            types = " and ".join(map(str, kinds))
            lines.append(f"images with more than 8 bits have numbers of {types}, but there is one data.range for all: save them alike")
        return lines


class _Readable(Protocol):
    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image | DeepImage: ...


def remarks(source: _Readable, scale: Range | None, max_images: int = 8) -> list[str]:
    """Return what `Depths` finds in some images of a source, evenly spread, to report before a run; nothing if a range is given."""
    depths = Depths()
    for index in range(0, len(source) if scale is None else 0, max(1, -(-len(source) // max_images))):
        try:
            depths.add(source.read(index))
        except CorruptImageError:
            continue  # training counts it
    return [f"in a sample of the images: {line}; `convnext data check` reads all" for line in depths.problems()]
