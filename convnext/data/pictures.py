"""Decoding a picture file into RGB, whatever its author did to it."""

import struct
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".jfif"))


class CorruptPictureError(Exception):
    """A file that is no readable picture. `str()` of it is the file and the reason, on one line."""


def read_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """Decode a picture to 8-bit RGB, upright.

    Rotation and mirroring noted in EXIF are applied; 16-bit grey is scaled, not clipped; palettes, CMYK and grey become RGB;
    transparent pixels are laid over white; of an animation the first frame is taken.

    Args:
        source: a file, or its content.
        name: what to call it in the error where `source` is content.

    Raises CorruptPictureError if it is no picture, is truncated, or is far larger than any photograph (Pillow's limit).
    """
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    try:
        with warnings.catch_warnings():
            # Pillow's remarks on odd metadata are no errors; its warning of a decompression bomb is.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
                ImageOps.exif_transpose(picture, in_place=True)
                return _to_rgb(picture)
    except UnidentifiedImageError as error:
        raise CorruptPictureError(f"{name}: not a picture of any known format") from error
    except Exception as error:  # decoders raise anything, from OSError and SyntaxError to struct.error, on damaged input
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CorruptPictureError(f"{name}: {reason}") from error


def read_pixels(source: str | Path | bytes, name: str = "") -> "Tensor":
    """`read_picture` as a uint8 (3, H, W) tensor, faster where it is a JPEG in colour: training reads these by the million.

    Those are decoded by torchvision. Like Pillow it has libjpeg-turbo do it, with the same values, but takes the content in one
    piece and needs no repacking of pixels into a tensor.
    """
    import torch

    name = name or ("picture" if isinstance(source, bytes) else str(source))
    with suppress(Exception):  # what is not decoded here, Pillow decodes below, or tells why not
        from torchvision.io import decode_jpeg  # since 0.29 deprecated in favour of torchcodec's, which is the same

        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                source = file.read()
        if _jpeg_area(source) <= (Image.MAX_IMAGE_PIXELS or float("inf")):
            pixels = decode_jpeg(torch.frombuffer(bytearray(source), dtype=torch.uint8), apply_exif_orientation=True)
            if len(pixels) == 3:
                return pixels
    return to_pixels(read_picture(source if isinstance(source, bytes) else Path(source), name))


def to_pixels(picture: Image.Image) -> "Tensor":
    """An RGB picture as a uint8 (3, H, W) tensor with memory of its own, channels last."""
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _jpeg_area(content: bytes) -> int:
    """Pixels of a JPEG by its frame header; any error if it is none. Pillow, which reads all headers, takes four times as long."""
    at, marker = 2, 0
    while marker not in (0xFFC0, 0xFFC1, 0xFFC2):
        marker, length, _, height, width = struct.unpack_from(">HHBHH", content, at)
        at += 2 + length
    return int(height * width)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        picture = _scaled_to_bytes(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # convert() would copy


def _scaled_to_bytes(picture: Image.Image) -> Image.Image:
    # 32-bit grey says nothing of its range: take the least of 1, 255 and 65535 that holds it, and refuse the rest.
    values = np.asarray(picture).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    is_unit = picture.mode == "F" and high <= 1
    top = 1 if is_unit else 255 if high <= 255 else 65535
    if not (low >= 0 and high <= top):
        raise ValueError(f"32-bit picture with values from {low:g} to {high:g}: save it with 8 or 16 bits")
    return Image.fromarray((values * (255 / top)).round().astype(np.uint8))
