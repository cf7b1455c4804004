"""TIFF of any number of bands, integers or floats, in strips or tiles, as satellites, microscopes and GDAL write it.

Pillow knows images of one, three and four bands only. Here it decompresses bytes alone: each plane of a file is described to it as a
grey image of 8 bits that is as wide as its rows are long in bytes. What the bytes mean is then a matter of NumPy.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import cast

import numpy as np
from PIL import TiffImagePlugin

from convnext.data.orientation import turned_array

MAX_CHANNELS = 16
_MAGIC = (b"II*\0", b"MM\0*")
_BIG = (b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _CHANNELS = 256, 257, 258, 259, 262, 274, 277
_OFFSETS, _ROWS, _COUNTS, _PLANES, _PREDICTOR = 273, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _FORMAT = 322, 323, 324, 325, 339
_COMPRESSIONS = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, deflate, PackBits, deflate, LZMA, Zstandard: those that keep bytes
_KINDS = {1: "u", 2: "i", 3: "f"}  # of numbers, by SampleFormat
_NAMES = {1: "integers", 2: "signed integers", 3: "floats"}

Tags = TiffImagePlugin.ImageFileDirectory_v2


def is_tiff(content: bytes) -> bool:
    """Return whether a file begins as a TIFF does."""
    return content[:4] in _MAGIC + _BIG


def read_tiff(content: bytes, channels: int, max_numbers: int) -> np.ndarray:
    """Return the bands of a TIFF upright, (C, H, W), numbers of the file's own type.

    Where its first image has one band and `channels` are more, its images are the bands, as microscopes write stacks.

    Args:
        content: the file.
        channels: the number that is wanted, which decides on stacks alone.
        max_numbers: the largest number of numbers in all bands together.

    Raises ValueError, with the remedy, for what can't be read, and any exception for a damaged file.
    """
    pages = _pages(content, channels)
    first = next(pages)
    found = [_page(content, first, max_numbers)]
    if len(found[0]) == 1 < channels:
        for page in pages:
            found.append(_page(content, page, max_numbers // channels))
            if found[-1].shape != found[0].shape or found[-1].dtype != found[0].dtype:
                raise ValueError("TIFF whose images differ in size or type: save them as bands of one image")
    orientation = first.get(_ORIENTATION, 1)
    return np.ascontiguousarray(turned_array(np.concatenate(found), orientation if isinstance(orientation, int) else 1))


def describe(content: bytes) -> str:
    """Return what is in a TIFF: "TIFF of 5 channels, 16-bit integers"."""
    tags = next(_pages(content, 1))
    bits, kind = tags.get(_BITS, (1,)), tags.get(_FORMAT, (1,))[0]
    return f"TIFF of {tags.get(_CHANNELS, len(bits))} channels, {bits[0]}-bit {_NAMES.get(kind, 'numbers')}"


def size(content: bytes) -> tuple[int, int]:
    """Return width and height of a TIFF, as it is stored. Raises as `read_tiff` does."""
    tags = next(_pages(content, 1))
    return int(tags[_WIDTH]), int(tags[_HEIGHT])


def _pages(content: bytes, channels: int) -> Iterator[Tags]:
    """Yield the tags of the first images of a file, one more than there may be channels."""
    if content[:4] in _BIG:
        raise ValueError("BigTIFF, which can't be read: save it as TIFF below 4 GB")
    file, at = BytesIO(content), struct.unpack("<I" if content.startswith(b"II") else ">I", content[4:8])[0]
    for _ in range(channels + 1):
        if not at:
            return
        tags = Tags(content[:8])
        file.seek(at)
        tags.load(file)
        yield tags
        at = tags.next


def _page(content: bytes, tags: Tags, max_numbers: int) -> np.ndarray:
    """Return the bands of one image of a file, not turned."""
    width, height, count = int(tags[_WIDTH]), int(tags[_HEIGHT]), int(tags.get(_CHANNELS, 1))
    bits, kinds = set(tags.get(_BITS, (1,))), set(tags.get(_FORMAT, (1,)))
    what = describe(content)
    if len(bits) > 1 or len(kinds) > 1 or not (bits <= {8, 16, 32, 64} and kinds <= _KINDS.keys()):
        raise ValueError(f"{what}, whose bands have other than 8, 16, 32 or 64 bits, which can't be read")
    if count > MAX_CHANNELS:
        raise ValueError(f"TIFF of {count} channels: at most {MAX_CHANNELS} can be read")
    if width * height * count > max_numbers:
        raise ValueError(too_large(width, height, count))
    if int(tags.get(_COMPRESSION, 1)) not in _COMPRESSIONS:
        raise ValueError(f"{what}, compressed by method {tags[_COMPRESSION]}, which can't be read: save it with deflate or LZW")
    dtype = np.dtype(f"{'<' if content.startswith(b'II') else '>'}{_KINDS[kinds.pop()]}{tags[_BITS][0] // 8}")
    if int(tags.get(_PLANES, 1)) == 2 and count > 1:
        planes = [_plane(content, tags, dtype, 1, index, count) for index in range(count)]
        return np.stack(planes)[..., 0]
    return _plane(content, tags, dtype, count, 0, 1).transpose(2, 0, 1)


def too_large(width: int, height: int, channels: int = 3) -> str:
    """Return the message about an image of so many pixels, with the key that admits it."""
    bands = f" of {channels} channels" if channels > 3 else ""
    needed = -(-width * height * max(channels, 3) // 3)
    what = f"{width} x {height} pixels{bands} are more than the limit, and may be a decompression bomb"
    return f"{what}: set data.max_pixels={needed} (or --max-pixels {needed}) to read it"


def _plane(content: bytes, tags: Tags, dtype: np.dtype, count: int, index: int, planes: int) -> np.ndarray:
    """Return `count` interleaved bands (H, W, count): plane `index` of `planes`."""
    step = dtype.itemsize * count  # bytes of a pixel
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    is_tiled = _TILE_WIDTH in tags
    offsets, sizes = (_share(tags[key], index, planes) for key in ((_TILE_OFFSETS, _TILE_COUNTS) if is_tiled else (_OFFSETS, _COUNTS)))
    block = int(tags[_TILE_WIDTH]) if is_tiled else width
    entries: dict[int, tuple[int, ...]] = {
        _WIDTH: (width * step,), _HEIGHT: (height,), _BITS: (8,), _COMPRESSION: (int(tags.get(_COMPRESSION, 1)),), _PHOTOMETRIC: (1,),
        _CHANNELS: (1,),
    }  # fmt: skip
    if is_tiled:
        entries |= {_TILE_WIDTH: (block * step,), _TILE_HEIGHT: (int(tags[_TILE_HEIGHT]),), _TILE_OFFSETS: offsets, _TILE_COUNTS: sizes}
    else:
        entries |= {_OFFSETS: offsets, _ROWS: (min(int(tags.get(_ROWS, height)), height),), _COUNTS: sizes}
    _refuse_truncated(content, entries, offsets, sizes)
    rows = _decompressed(content, entries)
    predictor, blocks = int(tags.get(_PREDICTOR, 1)), range(0, width, block)
    parts = [_numbers(rows[:, start * step : (start + block) * step], dtype, count, predictor, block) for start in blocks]
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _refuse_truncated(content: bytes, entries: dict[int, tuple[int, ...]], offsets: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Raise ValueError if a strip or tile reaches beyond the file. Pillow would not notice it: tags are added behind its end."""
    (row,), (height,) = entries[_WIDTH], entries[_HEIGHT]
    if entries[_COMPRESSION] == (1,):  # the sizes that the file states are not used
        (row,), (rows,) = entries.get(_TILE_WIDTH, (row,)), entries.get(_TILE_HEIGHT) or entries[_ROWS]
        is_tiled = _TILE_WIDTH in entries
        sizes = tuple(row * (rows if is_tiled else min(rows, height - index * rows)) for index in range(len(offsets)))
    if len(sizes) != len(offsets) or any(offset + size > len(content) for offset, size in zip(offsets, sizes, strict=True)):
        raise ValueError("the file is truncated")


def _share(values: object, index: int, planes: int) -> tuple[int, ...]:
    numbers = tuple(map(int, cast("tuple[int, ...]", values if isinstance(values, tuple) else (values,))))
    length = len(numbers) // planes
    return numbers[index * length : (index + 1) * length]


def _decompressed(content: bytes, entries: dict[int, tuple[int, ...]]) -> np.ndarray:
    """Return the bytes of an image's rows, uint8 (H, bytes of a row), decompressed by Pillow as a grey image described by these tags."""
    order = "<" if content.startswith(b"II") else ">"
    start = len(content) + len(content) % 2
    directory = start + 2 + 12 * len(entries) + 4  # where the longer values are
    table, values = b"", b""
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        table += struct.pack(f"{order}HHI", tag, 4, len(numbers))
        table += packed if len(numbers) == 1 else struct.pack(f"{order}I", directory + len(values))
        values += packed if len(numbers) > 1 else b""
    described = struct.pack(f"{order}H", len(entries)) + table + bytes(4) + values
    head = content[:4] + struct.pack(f"{order}I", start)
    # Not by Image.open: it would count bytes as pixels. The numbers are bounded already.
    with TiffImagePlugin.TiffImageFile(BytesIO(head + content[8:].ljust(start - 8, b"\0") + described)) as image:
        return np.asarray(image)


def _numbers(rows: np.ndarray, dtype: np.dtype, count: int, predictor: int, block: int) -> np.ndarray:
    """Return the numbers (H, W, count) of a strip or a column of tiles from its bytes, uint8 (H, bytes), undoing the predictor."""
    height = len(rows)
    if predictor == 3:  # bytes that are differences, the highest byte of all numbers first
        if rows.shape[1] != block * count * dtype.itemsize:
            raise ValueError("TIFF with differences of floats in tiles that its size does not divide: save it without a predictor")
        summed = rows.reshape(height, -1, count).cumsum(1, dtype=np.uint8).reshape(height, dtype.itemsize, -1)
        return np.ascontiguousarray(summed.transpose(0, 2, 1)).view(dtype.newbyteorder(">")).reshape(height, -1, count)
    numbers = np.ascontiguousarray(rows).view(dtype).reshape(height, -1, count)
    if predictor == 2:  # each number is the difference to the one before
        unsigned = np.dtype(f"u{dtype.itemsize}")
        whole = numbers.astype(dtype.newbyteorder("=")).view(unsigned)
        return whole.cumsum(1, dtype=unsigned).view(dtype.newbyteorder("="))
    return numbers
