"""Opening an image of any kind, upright and in RGB: the one function for the whole package."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from convnext.data.deep import DeepImage, Range, deep
from convnext.data.deep_formats import declares_alpha, deep_colour, deep_grey, describe_tiff
from convnext.data.orientation import orientation_of, turned, upright, upright_size
from convnext.errors import CorruptImageError as CorruptImageError
from convnext.errors import UsageError, first_line

if TYPE_CHECKING:
    from torch import Tensor

# The supported formats, by Pillow's names, each with the endings of its files. For none of them does Pillow run another program, as it
# does for EPS (Ghostscript).
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
}
FORMATS = tuple(_ENDINGS)
ENDINGS = frozenset(ending for endings in _ENDINGS.values() for ending in endings)

Content = bytes | bytearray | memoryview
ImageLike = str | Path | Content | Image.Image | np.ndarray | DeepImage  # what `read_image` takes
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")


def read_image(source: ImageLike, name: str = "") -> Image.Image | DeepImage:
    """Open an image, upright: 8-bit RGB, or a DeepImage where it has more than 8 bits a channel.

    The rotation and mirroring in EXIF or XMP are applied; palettes, CMYK and grey become RGB; transparent pixels are blended with
    white; an animation gives its first frame.

    Args:
        source: a file, its content, a PIL image (which is not changed), or a NumPy array (H, W), (H, W, 1), (H, W, 3) in RGB or
            (H, W, 4) in RGBA. OpenCV's arrays are BGR: reverse them, `array[..., ::-1]`.
        name: the name for errors, if `source` is not a file.

    Raises CorruptImageError if it is not an image, is truncated, or is far larger than any photograph (Pillow's limit), and
    UsageError for an object that can't be an image.
    """
    if isinstance(source, DeepImage):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if not isinstance(source, ImageLike):
        hint = ": give it as tensor.permute(1, 2, 0).numpy(), with RGB in 0 to 255" if type(source).__name__ == "Tensor" else ""
        raise UsageError(f"{type(source).__name__} is not an image{hint or ': give a path, bytes, a PIL image or a NumPy array'}")
    name = name or _name_of(source)
    try:
        with _quiet():
            if isinstance(source, Image.Image):
                return _decoded(source, name)
            with Image.open(BytesIO(source) if isinstance(source, Content) else source, formats=FORMATS) as image:
                return _decoded(image, name)
    except CorruptImageError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptImageError(f"{name}: {_unidentified(source)}") from error
    except Exception as error:  # decoders raise anything, from OSError and SyntaxError to struct.error, on damaged input
        raise CorruptImageError(f"{name}: {first_line(error)}") from error


def read_pixels(source: str | Path | bytes, name: str = "") -> "Tensor | DeepImage":
    """Return the image of `read_image` as a uint8 (3, H, W) tensor, or as a DeepImage. Raises as `read_image` does.

    torchvision decodes JPEGs in colour, which training reads by the million. It uses libjpeg-turbo as Pillow does, with the same
    values, but is faster: it takes the content in one piece and does not repack pixels into a tensor.
    """
    import torch

    name = name or _name_of(source)
    with suppress(Exception):  # if anything fails here, Pillow decodes the image below, or raises a good error
        from torchvision.io import decode_jpeg  # since 0.29 deprecated in favour of torchcodec's, which is the same

        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                source = file.read()
        area, has_metadata = _jpeg_header(source)
        if area <= (Image.MAX_IMAGE_PIXELS or float("inf")):
            pixels = decode_jpeg(torch.frombuffer(bytearray(source), dtype=torch.uint8))
            if len(pixels) == 3:
                # torchvision reads the first APP1 segment only, where XMP may precede EXIF: so Pillow reads the orientation.
                return turned(pixels, _jpeg_orientation(source) if has_metadata else 1)
    image = read_image(source, name)
    return image if isinstance(image, DeepImage) else to_pixels(image)


def to_pixels(image: "Image.Image | DeepImage | Tensor", scale: Range | None = None) -> "Tensor":
    """Return an opened image as a (3, H, W) tensor with memory of its own: uint8, channels last, or float32 from 0 to 255 if it is deep.

    Args:
        image: a tensor is returned unchanged.
        scale: of a DeepImage, see `DeepImage.pixels`.
    """
    import torch

    if isinstance(image, torch.Tensor):
        return image
    return image.pixels(scale) if isinstance(image, DeepImage) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a file's image, upright, from its header. Raises any exception, as decoders do, if it is not an image."""
    with _quiet(), Image.open(path, formats=FORMATS) as image:
        return upright_size(image)


@contextmanager
def _quiet() -> Iterator[None]:
    # Pillow's warnings about odd metadata are ignored; its warning of a decompression bomb is an error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _name_of(source: str | Path | Content | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "image"
    return "image" if isinstance(source, Content) else str(source)


def _unidentified(source: str | Path | Content | Image.Image) -> str:
    """Return what is known of content that Pillow does not recognise, with the remedy."""
    if isinstance(source, Content):
        content = bytes(source)
    elif isinstance(source, Image.Image):
        content = b""
    else:
        with open(source, "rb") as file:
            content = file.read(4)
            content += file.read() if content.startswith((b"II", b"MM")) else b""
    if content.startswith(_POSTSCRIPT):
        return "PostScript (EPS), which another program would have to draw: save it as PNG"
    with suppress(Exception), _quiet():  # a damaged file may raise anything: then its format stays unknown
        if described := describe_tiff(content):
            return described
    return "not an image of any known format"


def _jpeg_header(content: bytes) -> tuple[int, bool]:
    """Return the number of pixels of a JPEG, and whether it has EXIF or XMP. Pillow, which reads all headers, takes four times as long.

    Raises any exception if it is not a JPEG, or an unusual one, for instance with fill bytes between segments: then Pillow reads it.
    """
    at, marker, area, has_metadata = 2, 0, 0, False
    while marker != 0xFFDA:
        marker, length, _, height, width = struct.unpack_from(">HHBHH", content, at)
        if not 0xFFC0 <= marker < 0xFFFF or 0xFFD0 <= marker < 0xFFDA:
            raise ValueError("not one of the usual segments")
        if marker in (0xFFC0, 0xFFC1, 0xFFC2):
            area = int(height * width)
        has_metadata |= marker == 0xFFE1
        at += 2 + length
    if not area:
        raise ValueError("not one of the usual frames")
    return area, has_metadata


def _jpeg_orientation(content: bytes) -> int:
    with _quiet(), Image.open(BytesIO(content), formats=("JPEG",)) as image:
        return orientation_of(image)


def _decoded(image: Image.Image, name: str) -> Image.Image | DeepImage:
    if image.format == "EPS":
        raise ValueError("PostScript (EPS), which another program would have to draw: save it as PNG")
    if (colour := deep_colour(image, name)) is not None:
        return colour
    image.load()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return deep_grey(image, name)
    is_opaque = image.format == "TIFF" and image.mode == "RGBA" and not declares_alpha(image)
    image = upright(image)
    if not is_opaque and image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy


def _from_array(array: np.ndarray, name: str) -> Image.Image | DeepImage:
    name = name or f"array of shape {array.shape}"
    if array.ndim == 4:
        raise UsageError(f"{name}: give several images as a list, list(array)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ": channels come last, array.transpose(1, 2, 0)" if first else ""
        raise UsageError(f"{name} is not an image, which is (H, W), (H, W, 1), (H, W, 3) in RGB or (H, W, 4) in RGBA{hint}")
    if array.dtype.kind not in "buif":
        raise UsageError(f"{name}: images can't have numbers of type {array.dtype}; make them uint8, 0 to 255")
    array = array[..., 0] if array.shape[2:] == (1,) else array
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        array = array * np.uint8(255) if array.dtype.kind == "b" else array
        return _decoded(Image.fromarray(np.ascontiguousarray(array)), name)
    values = np.moveaxis(np.atleast_3d(array), -1, 0)
    opened = deep(values[:3], name)
    if len(values) == 4:
        opened = deep(values[:3], name, alpha=(values[3] / np.float32(opened.white)).clip(0, 1).astype(np.float32))
    return opened
