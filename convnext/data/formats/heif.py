"""HEIC and other HEIF images, as iPhones take them, through pillow-heif where that is installed."""

from importlib import import_module
from io import BytesIO
from typing import BinaryIO, cast

from PIL import Image, UnidentifiedImageError

ENDINGS = (".heic", ".heif", ".hif")
MISSING = "a HEIC image, which needs pillow-heif: run pip install '.[heic]' in a clone of convnext, or save it as JPEG"
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}  # Pillow's own


def is_heif(head: bytes) -> bool:
    """Return whether a file with these first 32 bytes is a HEIF that is no AVIF, which Pillow itself reads."""
    brands = {head[at : at + 4] for at in (8, *range(16, 32, 4))}
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS and not brands & _AVIF


def open_heif(file: BinaryIO | BytesIO) -> Image.Image:
    """Return an opened HEIF, upright, whose pixels are not decoded yet. Nothing is registered with Pillow.

    Raises UnidentifiedImageError if pillow-heif is not installed, and SyntaxError for a damaged file.
    """
    try:
        library = import_module("pillow_heif")
    except ImportError as error:
        raise UnidentifiedImageError(MISSING) from error
    return cast("Image.Image", library.HeifImageFile(file, ""))
