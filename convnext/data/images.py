"""Opening an image of any kind, upright, in RGB or with the channels that are wanted: the one function for the whole package."""

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from convnext.data.deep import DeepImage, Range, as_grey, deep, refuse_channels
from convnext.data.deep_formats import declares_alpha, deep_colour, deep_grey
from convnext.data.formats import arrays, heif, tiff
from convnext.data.formats.opening import ANY_SIZE, opened, quiet
from convnext.data.formats.opening import AS_RGB as AS_RGB
from convnext.data.formats.opening import ENDINGS as ENDINGS
from convnext.data.formats.opening import FORMATS as FORMATS
from convnext.data.formats.opening import Reading as Reading
from convnext.data.orientation import orientation_of, turned, upright, upright_size
from convnext.errors import CorruptImageError as CorruptImageError
from convnext.errors import UsageError, first_line

if TYPE_CHECKING:
    from torch import Tensor

Content = bytes | bytearray | memoryview
ImageLike = str | Path | Content | Image.Image | np.ndarray | DeepImage  # what `read_image` takes
_MODES = {2: "LA", 4: "RGBA"}  # of 8-bit images whose last channel is a channel like the others where so many are wanted
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")


def read_image(source: ImageLike, name: str = "", how: Reading = AS_RGB) -> Image.Image | DeepImage:
    """Open an image, upright: 8-bit RGB (or grey, if one channel is wanted), or a DeepImage if it has more bits or other channels.

    The rotation and mirroring in EXIF or XMP are applied; palettes and CMYK become RGB; grey and RGB become what is wanted of the two;
    transparent pixels are blended with white; an animation gives its first frame. Where other than one or three channels are wanted,
    the file's bands are taken as they are, opacity too.

    Args:
        source: a file, its content, a PIL image (which is not changed), or a NumPy array (H, W), (H, W, 1), (H, W, 3) in RGB or
            (H, W, 4) in RGBA, or with the channels that are wanted. OpenCV's arrays are BGR: reverse them, `array[..., ::-1]`.
        name: the name for errors, if `source` is not a file.
        how: the channels that are wanted, and the largest image that is opened.

    Raises CorruptImageError if it is not an image, is truncated, is larger than allowed, or has other channels, and UsageError for an
    object that can't be an image.
    """
    if isinstance(source, DeepImage):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, name, how.channels)
    if not isinstance(source, ImageLike):
        hint = ": give it as tensor.permute(1, 2, 0).numpy(), with RGB in 0 to 255" if type(source).__name__ == "Tensor" else ""
        raise UsageError(f"{type(source).__name__} is not an image{hint or ': give a path, bytes, a PIL image or a NumPy array'}")
    name = name or _name_of(source)
    try:
        with quiet():
            if isinstance(source, Image.Image):
                return _decoded(source, name, how.channels)
            return _read_file(source, name, how)
    except (CorruptImageError, UsageError):
        raise
    except Exception as error:  # decoders raise anything, from OSError and SyntaxError to struct.error, on damaged input
        raise CorruptImageError(f"{name}: {first_line(error)}") from error


def _read_file(source: str | Path | Content, name: str, how: Reading) -> Image.Image | DeepImage:
    if arrays.is_array(bytes(source[:8])) if isinstance(source, Content) else str(source).lower().endswith(arrays.ENDINGS):
        array = arrays.channels_last(arrays.read_array(_content(source), how.max_numbers), how.channels)
        return _from_array(array, name, how.channels)
    try:
        with opened(BytesIO(source) if isinstance(source, Content) else source, how) as image:
            if image.format != "TIFF" or how.channels in (1, 3):
                return _decoded(image, name, how.channels)
    except UnidentifiedImageError as error:
        content = _content(source)
        if heif.is_heif(content[:32]):
            raise CorruptImageError(f"{name}: {error}") from error
        if not tiff.is_tiff(content):
            raise CorruptImageError(f"{name}: {_unidentified(content)}") from error
    return _from_tiff(_content(source), name, how)


def _from_tiff(content: bytes, name: str, how: Reading) -> DeepImage:
    """Return a TIFF that Pillow can't read, or whose bands are all wanted."""
    values = tiff.read_tiff(content, how.channels, how.max_numbers)
    if len(values) not in (how.channels, 4 - how.channels):  # grey and RGB become each other
        remedy = f"set data.channels={len(values)} to train on such images"
        raise CorruptImageError(f"{name}: {tiff.describe(content)}, which can't be read as {how.channels}: {remedy}")
    return deep(values, name)


def _content(source: str | Path | Content) -> bytes:
    return bytes(source) if isinstance(source, Content) else Path(source).read_bytes()


def read_pixels(source: str | Path | bytes, name: str = "", how: Reading = AS_RGB) -> "Tensor | DeepImage":
    """Return the image of `read_image` as a uint8 (3, H, W) tensor, (1, H, W) if grey is wanted, or as a DeepImage.

    torchvision decodes JPEGs in colour, which training reads by the million. It uses libjpeg-turbo as Pillow does, with the same
    values, but is faster: it takes the content in one piece and does not repack pixels into a tensor. Raises as `read_image` does.
    """
    import torch

    name = name or _name_of(source)
    with suppress(Exception):  # if anything fails here, Pillow decodes the image below, or raises a good error
        from torchvision.io import decode_jpeg  # since 0.29 deprecated in favour of torchcodec's, which is the same

        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                source = file.read()
        area, has_metadata = _jpeg_header(source)
        if area <= how.limit and how.channels == 3:
            pixels = decode_jpeg(torch.frombuffer(bytearray(source), dtype=torch.uint8))
            if len(pixels) == 3:
                # torchvision reads the first APP1 segment only, where XMP may precede EXIF: so Pillow reads the orientation.
                return turned(pixels, _jpeg_orientation(source) if has_metadata else 1)
    image = read_image(source, name, how)
    return image if isinstance(image, DeepImage) else to_pixels(image, channels=how.channels)


def to_pixels(image: "Image.Image | DeepImage | Tensor", scale: Range | None = None, channels: int = 3) -> "Tensor":
    """Return an opened image as a (channels, H, W) tensor: uint8, channels last, or float32 from 0 to 255 if it is deep.

    It has memory of its own, unless the image is a tensor of those channels, which is returned unchanged.

    Args:
        image: opened.
        scale: of a DeepImage, see `DeepImage.pixels`.
        channels: grey and RGB images become each other.

    Raises CorruptImageError for an image of other channels.
    """
    import torch

    if isinstance(image, torch.Tensor):
        return as_grey(image, "image", channels)
    if isinstance(image, DeepImage):
        return image.pixels(scale, channels)
    pixels = np.array(with_channels(image, channels))
    return torch.from_numpy(pixels).permute(2, 0, 1) if pixels.ndim == 3 else torch.from_numpy(pixels)[None]


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return an 8-bit image as grey if `channels` is 1, as RGB if it is 3. Raises CorruptImageError for other numbers."""
    if channels not in (1, 3):
        refuse_channels("image", len(image.getbands()), channels)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert() would copy


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of a file's image, upright, from its header. Raises any exception, as decoders do, if it is not an image."""
    with opened(path) as image:
        return upright_size(image)


def _name_of(source: str | Path | Content | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "image"
    return "image" if isinstance(source, Content) else str(source)


def _unidentified(content: bytes) -> str:
    """Return what is known of content that Pillow does not recognise, with the remedy."""
    if content.startswith(_POSTSCRIPT):
        return "PostScript (EPS), which another program would have to draw: save it as PNG"
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
    with opened(BytesIO(content), ANY_SIZE) as image:
        return orientation_of(image)


def _decoded(image: Image.Image, name: str, channels: int) -> Image.Image | DeepImage:
    if image.format == "EPS":
        raise ValueError("PostScript (EPS), which another program would have to draw: save it as PNG")
    if (colour := deep_colour(image, name, channels)) is not None:
        return colour
    image.load()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return deep_grey(image, name)
    if channels not in (1, 3):
        if _MODES.get(channels) != image.mode:
            refuse_channels(name, len(image.getbands()), channels)
        return deep(np.asarray(upright(image)).transpose(2, 0, 1), name)
    is_opaque = image.format == "TIFF" and image.mode == "RGBA" and not declares_alpha(image)
    image = upright(image)
    if not is_opaque and image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return with_channels(image, channels)


def _from_array(array: np.ndarray, name: str, channels: int) -> Image.Image | DeepImage:
    name = name or f"array of shape {array.shape}"
    if array.ndim == 4:
        raise UsageError(f"{name}: give several images as a list, list(array)")
    if array.dtype.kind not in "buif":
        raise UsageError(f"{name}: images can't have numbers of type {array.dtype}; make them uint8, 0 to 255")
    if channels not in (1, 3) and array.ndim in (2, 3) and array.size:
        array = arrays.channels_last(array, channels)
        if array.shape[2] != channels:
            refuse_channels(name, array.shape[2], channels)
    elif array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ": channels come last, array.transpose(1, 2, 0)" if first else ""
        raise UsageError(f"{name} is not an image, which is (H, W), (H, W, 1), (H, W, 3) in RGB or (H, W, 4) in RGBA{hint}")
    array = array * np.uint8(255) if array.dtype.kind == "b" else array
    if channels in (1, 3) and array.dtype == np.uint8:
        array = array[..., 0] if array.shape[2:] == (1,) else array
        return _decoded(Image.fromarray(np.ascontiguousarray(array)), name, channels)
    values = np.moveaxis(np.atleast_3d(array), -1, 0)
    if channels not in (1, 3) or len(values) != 4:
        return deep(values, name)
    opened = deep(values[:3], name)
    return deep(values[:3], name, alpha=(values[3] / np.float32(opened.white)).clip(0, 1).astype(np.float32))
