"""NumPy's files: which axis holds the channels, and what is refused before memory is taken."""

import io
import struct
import zipfile

import numpy as np
import pytest

from convnext.data.formats.arrays import channels_last, read_array, size
from convnext.data.images import CorruptImageError, Reading, read_image, read_pixels

RNG = np.random.default_rng(0)


def npy(array, **more):
    file = io.BytesIO()
    np.save(file, array, **more)
    return file.getvalue()


def npz(*arrays, save=np.savez_compressed):
    file = io.BytesIO()
    save(file, *arrays)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["u1", "i2", ">u2", "f4", "f8", "?"])
@pytest.mark.parametrize("change", [lambda x: x, np.asfortranarray])
def test_arrays_come_back(kind, change):
    array = change((RNG.random((6, 7, 5)) * 90).astype(kind))
    for content in (npy(array), npz(array), npz(array, save=np.savez)):
        assert np.array_equal(read_array(content, 1000), array)
        assert size(content) == (7, 6)


@pytest.mark.parametrize(
    ("shape", "channels", "wanted"),
    [
        ((6, 7), 3, (6, 7, 1)),
        ((6, 7, 5), 5, (6, 7, 5)),
        ((5, 6, 7), 5, (6, 7, 5)),
        ((5, 9, 5), 5, (5, 9, 5)),  # the last axis wins
        ((3, 40, 50), 3, (40, 50, 3)),
        ((40, 50, 4), 3, (40, 50, 4)),
        ((1, 40, 50), 3, (40, 50, 1)),
        ((7, 40, 50), 3, (40, 50, 7)),  # another number of channels, which is refused by that number
    ],
)
def test_the_axis_of_the_channels(shape, channels, wanted):
    assert channels_last(np.zeros(shape), channels).shape == wanted


def test_files_and_arrays_give_what_images_give(tmp_path):
    rgb = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.save(tmp_path / "rgb.npy", rgb.transpose(2, 0, 1))
    assert np.array_equal(np.asarray(read_image(tmp_path / "rgb.npy")), rgb)
    assert np.array_equal(np.asarray(read_image(npy(rgb))), rgb)
    deep = RNG.integers(0, 4096, (5, 20, 30)).astype(np.uint16)
    for found in (read_image(deep, how=Reading(5)), read_image(npz(deep), how=Reading(5)), read_pixels(npy(deep), how=Reading(5))):
        assert np.array_equal(found.values, deep)
        assert (found.height, found.width) == (20, 30)
    assert np.allclose(read_image(deep, how=Reading(5)).pixels(4095.0, 5), deep * (255 / 4095), atol=1e-3)
    with pytest.raises(CorruptImageError, match=r"rgb\.npy: 3 channels instead of 5: set data.channels=3"):
        read_image(tmp_path / "rgb.npy", how=Reading(5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([[{}]], object), allow_pickle=True), "an array of object"),
        (npy(np.array([["a"]])), "an array of <U1: images are numbers"),
        (npy(np.zeros((2, 2), complex)), "an array of complex128"),
        (npy(np.zeros(9)), r"an array of shape \(9,\): images are"),
        (npy(np.zeros((0, 4))), r"an array of shape \(0, 4\)"),
        (npy(np.zeros((2, 2, 2, 2))), r"an array of shape \(2, 2, 2, 2\)"),
        (npy(np.zeros((200, 201), np.uint8)), r"201 x 200 pixels .*set data.max_pixels=40200 "),
        (npy(np.zeros((20, 20)))[:-8], "the file is truncated"),
        (npz(np.zeros((2, 2)), np.zeros((2, 2))), "a .npz of 2 arrays: save one array per file"),
        (npy(np.zeros((20, 20)))[:20], ""),
        (b"PK\x03\x04", ""),
        (b"\x93NUMPY", ""),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, message):
    (tmp_path / "x.npy").write_bytes(content)
    for source in (content, tmp_path / "x.npy"):
        with pytest.raises(CorruptImageError, match=f"{'image' if source is content else 'x.npy'}: .*{message}"):
            read_image(source, how=Reading(3, 10_000))


def test_a_bomb_is_refused_by_its_header():
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }".ljust(117) + b"\n"
    bomb = b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bomb + bytes(1 << 20))
    for content in (bomb, archive.getvalue()):
        with pytest.raises(CorruptImageError, match="1000000 x 1000000 pixels"):
            read_image(content)
