"""HEIC: read where pillow-heif is installed, else named with what to install."""

import io
import struct
import sys

import numpy as np
import pytest
from helpers import sample_image
from PIL import Image
from starlette.exceptions import HTTPException

from convnext.data.formats.heif import is_heif
from convnext.data.images import CorruptImageError, Reading, read_image, read_pixels, size_of
from convnext.data.sources.folder import ImageFolder
from convnext.inference.inputs import find_items
from convnext.serve.limits import Limits, decoded, pixels_in

HEAD = struct.pack(">I4s4sI", 24, b"ftyp", b"heic", 0) + b"mif1heic"  # the beginning of an iPhone's photograph


def test_a_folder_of_iphone_photographs_is_not_empty_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "IMG_0001.HEIC").write_bytes(HEAD + bytes(90))
    source = ImageFolder(tmp_path)
    assert len(source) == len(find_items([str(tmp_path)])) == 2
    for read in (source.read, source.pixels):
        with pytest.raises(CorruptImageError, match=r"IMG_0001\.HEIC: a HEIC image, which needs pillow-heif: run pip install '\.\[heic\]'"):
            read(0)
    with pytest.raises(HTTPException, match="a HEIC image, .* without pillow-heif"):
        pixels_in(HEAD + bytes(90), Limits())


def test_avif_stays_pillows():
    assert is_heif(HEAD.ljust(32, b"\0"))
    assert not is_heif(struct.pack(">I4s4sI", 28, b"ftyp", b"avif", 0) + b"mif1miafavif")
    assert not is_heif(struct.pack(">I4s4sI", 28, b"ftyp", b"mif1", 0) + b"avifmiaf")
    assert not is_heif(b"\xff\xd8")


def heic(image, **more):
    file = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(image).save(file, quality=95, **more)
    return file.getvalue()


def test_photographs_are_read_upright(tmp_path):
    image = sample_image(size=(96, 64))
    content = heic(image)
    (tmp_path / "a.heic").write_bytes(content)
    for found in (read_image(content), read_image(tmp_path / "a.heic")):
        assert (found.mode, found.size) == ("RGB", (96, 64))
        assert np.abs(np.asarray(found).astype(int) - np.asarray(image)).mean() < 6
    assert size_of(tmp_path / "a.heic") == (96, 64)
    assert read_pixels(tmp_path / "a.heic").shape == (3, 64, 96)
    assert "HEIF" not in Image.OPEN  # nothing changes for others in the process
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_image(heic(image, exif=exif.tobytes()))
    assert turned.size == (64, 96)


def test_damaged_and_large_photographs_are_named():
    content = heic(sample_image(size=(96, 64)))
    for damaged in (content[: len(content) // 2], HEAD + bytes(90)):
        with pytest.raises(CorruptImageError, match="^x: "):
            read_image(damaged, "x")
    with pytest.raises(CorruptImageError, match="x: 96 x 64 pixels are more than the limit, .* set data.max_pixels=6144 "):
        read_image(content, "x", Reading(max_pixels=6143))


def test_the_service_takes_them():
    content = heic(sample_image(size=(96, 64)))
    assert pixels_in(content, Limits()) == 96 * 64
    assert decoded(content).size == (96, 64)
