"""The orientation of an image by its EXIF or XMP: one rule for all readers, Pillow's."""

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from torch import Tensor

# How to turn an image of each orientation upright: for PIL, and for a tensor (whether rows and columns are exchanged; axes reversed then).
_TURNS: dict[int, tuple[Image.Transpose, bool, tuple[int, ...]]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, (-1,)),
    3: (Image.Transpose.ROTATE_180, False, (-2, -1)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, (-2,)),
    5: (Image.Transpose.TRANSPOSE, True, ()),
    6: (Image.Transpose.ROTATE_270, True, (-1,)),
    7: (Image.Transpose.TRANSVERSE, True, (-2, -1)),
    8: (Image.Transpose.ROTATE_90, True, (-2,)),
}
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's number of an image's orientation, 1 (upright) to 8; 1 if the metadata are damaged."""
    with suppress(Exception):  # damaged metadata raise anything
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _TURNS else 1
    return 1


def upright(image: Image.Image) -> Image.Image:
    """Return a loaded image turned upright, without the metadata that describe its orientation; an upright image itself."""
    if (orientation := orientation_of(image)) == 1:
        return image
    turned = turned_image(image, orientation)
    for key in _METADATA:
        turned.info.pop(key, None)
    return turned


def turned(pixels: "Tensor", orientation: int) -> "Tensor":
    """Return the pixels (…, H, W) of an image of that orientation turned upright."""
    if orientation == 1:
        return pixels
    _, exchanged, reversed_axes = _TURNS[orientation]
    return (pixels.transpose(-1, -2) if exchanged else pixels).flip(reversed_axes)


def as_stored(orientation: int) -> int:
    """Return the orientation whose turn undoes that of `orientation`, so that an upright image is again as its file has it."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def turned_image(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image of that orientation turned upright, whatever its metadata say."""
    return image if orientation == 1 else image.transpose(_TURNS[orientation][0])


def turned_array(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return the numbers (…, H, W) of an image of that orientation turned upright; an unknown orientation counts as upright."""
    _, exchanged, reversed_axes = _TURNS.get(orientation, (None, False, ()))
    return np.flip(values.swapaxes(-1, -2) if exchanged else values, reversed_axes) if orientation in _TURNS else values


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image once it is upright, from its header."""
    # Pillow turns TIFF itself, and reports its upright size from the beginning.
    is_sideways = orientation_of(image) >= 5 and image.format != "TIFF"
    return (image.height, image.width) if is_sideways else (image.width, image.height)
