"""Images in NumPy's files, .npy and .npz, which are never unpickled; and the rule that finds the channels of an array."""

import contextlib
import zipfile
from io import BytesIO
from typing import IO

import numpy as np
from numpy.lib import format as npy

from convnext.data.formats.tiff import MAX_CHANNELS, too_large

ENDINGS = (".npy", ".npz")
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_MAX_HEADER = 10_000  # bytes
_USUAL = (1, 3, 4)  # channels of grey, RGB and RGBA


def is_array(content: bytes) -> bool:
    """Return whether a file begins as a .npy or a .npz does."""
    return content.startswith((_NPY, _ZIP))


def read_array(content: bytes, max_numbers: int) -> np.ndarray:
    """Return the array of a .npy, or the only one of a .npz.

    Args:
        content: the file.
        max_numbers: the largest number of numbers in it; the file's header is checked before memory is taken.

    Raises ValueError, with the remedy, for what is no such array, and any exception for a damaged file.
    """
    if not content.startswith(_ZIP):
        return _read(BytesIO(content), max_numbers)
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if len(archive.infolist()) != 1:
            raise ValueError(f"a .npz of {len(archive.infolist())} arrays: save one array per file")
        with archive.open(archive.infolist()[0]) as file:
            return _read(file, max_numbers)


def size(content: bytes) -> tuple[int, int]:
    """Return width and height of the image in a .npy or .npz from its header. Raises as `read_array` does."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = BytesIO(content)
        if content.startswith(_ZIP):
            archive = stack.enter_context(zipfile.ZipFile(file))
            file = stack.enter_context(archive.open(archive.infolist()[0]))
        shape = _header(file)[0]
    height, width, _ = channels_last(np.broadcast_to(np.uint8(0), shape), 3).shape
    return width, height


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, whether it is in Fortran's order, and the type of number of an array that can be an image."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"a NumPy file of version {version[0]}.{version[1]}: save it again with numpy.save")
    shape, in_fortran_order, dtype = read(file, max_header_size=_MAX_HEADER)
    if dtype.hasobject or dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype}: images are numbers, for instance uint8 or float32")
    if len(shape) not in (2, 3) or not all(side > 0 for side in shape):
        raise ValueError(f"an array of shape {shape}: images are (H, W), (H, W, C) or (C, H, W)")
    return shape, in_fortran_order, dtype


def _read(file: IO[bytes], max_numbers: int) -> np.ndarray:
    shape, in_fortran_order, dtype = _header(file)
    count = int(np.prod(shape, dtype=object))
    if count > max_numbers:
        *sides, channels = sorted(shape, reverse=True) if len(shape) == 3 else (*shape, 1)
        raise ValueError(too_large(sides[1], sides[0], channels))
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError("the file is truncated")
    values = np.frombuffer(content, dtype)
    return values.reshape(shape[::-1]).T if in_fortran_order else values.reshape(shape)


def channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """Return an image's array as (H, W, C).

    The axis with as many entries as there are `channels` holds them: the last, if both the first and the last have as many. Grey, RGB
    and RGBA are also recognised where one or three channels are wanted, and (H, W) is one channel.

    Raises ValueError if neither axis can hold the channels.
    """
    if array.ndim == 2:
        return array[..., None]
    # The shorter axis, if neither fits: then the image is refused by that number of channels.
    for possible in ((channels,), _USUAL if channels in (1, 3) else (), (min(array.shape[0], array.shape[2], MAX_CHANNELS),)):
        if array.shape[2] in possible:
            return array
        if array.shape[0] in possible:
            return array.transpose(1, 2, 0)
    raise ValueError(f"an array of shape {array.shape}: images are (H, W), (H, W, C) or (C, H, W) with at most {MAX_CHANNELS} channels")
