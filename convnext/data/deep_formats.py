"""Reading the file formats of deep images: PNG, TIFF and PPM with more than 8 bits per channel."""

import sys
from io import BytesIO
from typing import IO, Protocol, cast

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from convnext.data.deep import DeepImage, deep
from convnext.data.formats.opening import ANY_SIZE, opened
from convnext.data.orientation import orientation_of, turned, upright

_BITS_PER_SAMPLE, _PLANES, _EXTRA_CHANNELS, _SAMPLE_FORMAT = 258, 284, 338, 339  # tags of TIFF


def deep_grey(image: Image.Image, name: str) -> DeepImage:
    """Return a DeepImage of a loaded PIL image of mode I;16, I or F."""
    values, transparent = np.asarray(upright(image))[None], image.info.get("transparency")
    tags = _tags(image)
    if image.format == "PPM" and image.mode == "I":
        values = values.astype(np.uint16)  # Pillow scales these so that the file's white becomes 65535
    elif image.mode == "I" and tags.get(_BITS_PER_SAMPLE) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow reads them with a sign
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else None
    return deep(values, name, white, None if transparent is None else (values[0] != transparent).astype(np.float32))


def deep_colour(image: Image.Image, name: str, channels: int = 3) -> DeepImage | None:
    """Return a DeepImage of an opened PIL image with 16-bit colour; None for other images. The image stays unchanged.

    Opacity is a channel like the others if so many `channels` are wanted.

    Loading an image would lose the lower bits: Pillow itself keeps the upper 8.
    """
    if not _is_deep_colour(image):
        return None
    file = cast("_OpenFile", image).fp
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    values = _READERS[str(image.format)](content, image)
    alpha = None
    if len(values) == channels != 3:
        return deep(values, name)
    if len(values) in (2, 4):
        values, opacity = values[:-1], values[-1]
        alpha = opacity / np.float32(65535) if image.format == "PNG" or declares_alpha(image) else None
    elif (transparent := image.info.get("transparency")) is not None:
        alpha = (values != np.reshape(transparent, (-1, 1, 1))).any(0).astype(np.float32)
    return deep(values, name, alpha=alpha)


class _OpenFile(Protocol):
    """A PIL image of a file whose pixels are not decoded yet, as Pillow's types do not describe it."""

    fp: IO[bytes]
    tile: "list[_Tile]"  # the parts still to be decoded
    width: int
    height: int

    def tell(self) -> int: ...


class _Tile(Protocol):
    """A part of a file that is still to be decoded: the decoder, the pixels, the offset, and the decoder's arguments."""

    codec_name: str
    offset: int
    args: "tuple[str | int, ...] | str | None"

    def _replace(self, *, args: "tuple[str | int, ...]") -> "_Tile": ...


def _tags(image: Image.Image) -> TiffImagePlugin.ImageFileDirectory_v2 | dict[int, object]:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _is_deep_colour(image: Image.Image) -> bool:
    tiles = cast("_OpenFile", image).tile if hasattr(image, "tile") else []
    if not tiles or image.format not in _READERS or image.mode not in ("RGB", "RGBA"):
        return False
    how = tiles[0].args
    if image.format == "PPM":
        return isinstance(how, tuple) and isinstance(how[-1], int) and how[-1] > 255
    if isinstance(image, TiffImagePlugin.TiffImageFile) and isinstance(how, tuple):
        has_planes, is_multiplied = image.tag_v2.get(_PLANES) == 2, "RGBa" in str(how[0])
        if image.tag_v2.get(_BITS_PER_SAMPLE, (8,))[0] == 16 and (has_planes or is_multiplied):
            fault = UnidentifiedImageError if has_planes else ValueError  # `convnext.data.formats.tiff` reads planes from the file
            raise fault("16-bit TIFF with its channels in separate planes, or multiplied by its opacity: save it as PNG")
    return ";16" in str(how)


def declares_alpha(image: Image.Image) -> bool:
    """Return whether a TIFF declares its fourth channel as opacity; in others, for instance of satellites, it may be infrared."""
    return _EXTRA_CHANNELS in _tags(image)


def _upright_png(content: bytes, _: Image.Image) -> np.ndarray:
    """Return the channels of a 16-bit PNG, uint16 (C, H, W)."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    with opened(BytesIO(content), ANY_SIZE) as again:
        orientation = orientation_of(again)
    pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return turned(pixels.view(torch.int16), orientation).numpy().view(np.uint16)  # few operations know uint16


def _ppm(content: bytes, first: Image.Image) -> np.ndarray:
    """Return the channels of a 16-bit PPM, uint16 (C, H, W), scaled to 65535 as Pillow scales grey."""
    codec, start, white = _ppm_tile(first)
    count = 3 * first.width * first.height
    is_text = codec == "ppm_plain"
    values = np.array(content[start:].split()[:count], np.int64) if is_text else np.frombuffer(content, ">u2", count, start)
    return (values.reshape(first.height, first.width, 3).transpose(2, 0, 1) * (65535 / white)).round().astype(np.uint16)


def _ppm_tile(opened: Image.Image) -> tuple[str, int, int]:
    """Return the decoder of a PPM, the offset of its pixels, and the number that is white."""
    tile = cast("_OpenFile", opened).tile[0]
    assert isinstance(tile.args, tuple)
    return tile.codec_name, tile.offset, int(tile.args[-1])


def _upright_tiff(content: bytes, first: Image.Image) -> np.ndarray:
    """Return the channels of a TIFF with 16-bit colour, uint16 (C, H, W).

    Pillow reads the upper byte of each number. With the order of bytes reversed, it reads the lower byte.
    """
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    halves = []
    for swap in (False, True):
        with opened(BytesIO(content), ANY_SIZE) as image:
            image.seek(first.tell())
            if swap:
                file = cast("_OpenFile", image)
                file.tile = [_swapped(tile, other) for tile in file.tile]
            halves.append(np.asarray(image).astype(np.uint16))
    return (halves[0] << 8 | halves[1]).transpose(2, 0, 1)


def _swapped(tile: _Tile, other: dict[str, str]) -> _Tile:
    assert isinstance(tile.args, tuple)
    order, *rest = tile.args
    return tile._replace(args=(str(order)[:-1] + other[str(order)[-1]], *rest))


_READERS = {"PNG": _upright_png, "TIFF": _upright_tiff, "PPM": _ppm}
