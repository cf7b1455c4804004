"""TIFFs of many bands: the numbers that come out are those that were written, however they are laid out and compressed."""

import struct
import zlib

import numpy as np
import pytest
from deep_files import tiff
from PIL import Image, features

from convnext.data.formats.tiff import describe, is_tiff, read_tiff
from convnext.data.images import CorruptImageError, Reading, read_image, read_pixels

RNG = np.random.default_rng(0)
KINDS = ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")


def numbers(kind, shape=(9, 7, 5)):
    return (RNG.random(shape) * 100 - (50 if kind[0] != "u" else 0)).astype(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("compressed", "planar"), [(False, False), (True, False), (False, True), (True, True)])
def test_bands_of_every_type_come_back(kind, order, compressed, planar):
    values = numbers(kind)
    content = tiff(values, order, compressed, planar)
    found = read_tiff(content, 5, 10**6)
    assert found.dtype == np.dtype(kind)
    assert np.array_equal(found, values.transpose(2, 0, 1))
    assert is_tiff(content)
    assert describe(content).startswith(f"TIFF of 5 channels, {8 * values.itemsize}-bit ")


def with_tags(values, blocks, compression, predictor=1, rows=None, tile=None, order="<"):
    """A TIFF of interleaved bands (H, W, C) from compressed blocks, in strips of so many rows or tiles of a size (height, width)."""
    height, width, channels = values.shape
    tags = {
        256: [width], 257: [height], 258: [8 * values.itemsize] * channels, 259: [compression], 262: [1], 277: [channels],
        317: [predictor], 339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels,
    }  # fmt: skip
    start = 8
    offsets = list(np.cumsum([start, *map(len, blocks)])[:-1])
    places = {322: [tile[1]], 323: [tile[0]], 324: offsets, 325: [len(one) for one in blocks]} if tile else None
    tags |= places or {273: offsets, 278: [rows or height], 279: [len(one) for one in blocks]}
    data = b"".join(blocks)
    data += b"\0" * (len(data) % 2)
    at = start + len(data) + 2 + 12 * len(tags) + 4
    table, long = b"", b""
    for tag, found in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(found)}I", *map(int, found))
        table += struct.pack(f"{order}HHI", tag, 4, len(found))
        table += packed if len(found) == 1 else struct.pack(f"{order}I", at + len(long))
        long += packed if len(found) > 1 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + table + struct.pack(f"{order}I", 0) + long


def differences(block):
    """Horizontal differences (predictor 2) of a block (H, W, C), modulo its type."""
    found = block.copy()
    found[:, 1:] -= block[:, :-1]
    return found


def float_differences(block):
    """Predictor 3 of a block (H, W, C): bytes by significance, then differences of bytes a pixel apart."""
    height, width, channels = block.shape
    planes = block.astype(">f4").view(np.uint8).reshape(height, width * channels, 4).transpose(0, 2, 1)
    rows = planes.reshape(height, -1, channels)
    found = rows.copy()
    found[:, 1:] -= rows[:, :-1]
    return found


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4"])
def test_differences_in_strips_and_tiles_are_summed(kind):
    values = RNG.integers(0, 250, (37, 45, 6)).astype(kind)
    strips = [zlib.compress(differences(values[start : start + 10]).tobytes()) for start in range(0, 37, 10)]
    assert np.array_equal(read_tiff(with_tags(values, strips, 8, 2, rows=10), 6, 10**6), values.transpose(2, 0, 1))
    padded = np.zeros((48, 64, 6), kind)
    padded[:37, :45] = values
    parts = [padded[y : y + 16, x : x + 32] for y in range(0, 48, 16) for x in range(0, 64, 32)]
    for predictor, blocks in ((1, parts), (2, [differences(part) for part in parts])):
        content = with_tags(values, [zlib.compress(block.tobytes()) for block in blocks], 8, predictor, tile=(16, 32))
        assert np.array_equal(read_tiff(content, 6, 10**6), values.transpose(2, 0, 1))


def test_differences_of_floats_are_summed():
    values = RNG.random((12, 9, 5), dtype=np.float32)
    content = with_tags(values, [zlib.compress(float_differences(values).tobytes())], 8, 3)
    assert np.array_equal(read_tiff(content, 5, 10**6), values.transpose(2, 0, 1))


@pytest.mark.skipif(not features.check("libtiff"), reason="this Pillow has no libtiff")
@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_a_stack_of_grey_images_is_an_image_of_as_many_channels(tmp_path, compression):
    values = RNG.integers(0, 60_000, (4, 20, 30)).astype(np.uint16)
    first, *others = map(Image.fromarray, values)
    first.save(tmp_path / "stack.tif", save_all=True, append_images=others, compression=compression)
    found = read_image(tmp_path / "stack.tif", how=Reading(4))
    assert np.array_equal(found.values, values)
    assert np.array_equal(read_image(tmp_path / "stack.tif", how=Reading(1)).values, values[:1])
    with pytest.raises(CorruptImageError, match=r"stack\.tif: TIFF of 1 channels, 16-bit integers, which can't be read as 5"):
        read_image(tmp_path / "stack.tif", how=Reading(5))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright(orientation):
    values = numbers("u2")
    upright = read_tiff(tiff(values, orientation=orientation), 5, 10**6)
    grey = [np.asarray(read_image(tiff(values[..., i : i + 1], orientation=orientation)).values[0]) for i in range(5)]
    assert np.array_equal(upright, np.stack(grey))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(np.zeros((4, 4, 17), np.uint8)), "TIFF of 17 channels: at most 16 can be read"),
        (tiff(np.zeros((300, 400, 5), np.uint8)), r"400 x 300 pixels of 5 channels .* set data.max_pixels=200000 "),
        (b"II+\0" + bytes(60), "BigTIFF, which can't be read"),
        (with_tags(np.zeros((4, 4, 5), np.uint8), [b"x"], 7), "compressed by method 7, which can't be read: save it with deflate or LZW"),
        (with_tags(np.zeros((4, 4, 5), np.uint8), [b"x"], 8), ""),
        (tiff(np.zeros((4, 4, 5), np.uint16))[:-30], "the file is truncated"),
        (tiff(np.zeros((4, 4, 5), np.uint16))[:40], ""),
    ],
)
def test_what_cannot_be_read_is_named(content, message):
    for read in (read_image, read_pixels):
        with pytest.raises(CorruptImageError, match=f"x.tif: .*{message}"):
            read(content, "x.tif", Reading(5, 100_000))
