import io
import os
import struct

import numpy as np
import pytest
import torch
from helpers import sample_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convnext.data.annotations import mask_files
from convnext.data.convert.yolo import yolo_to_coco
from convnext.data.formats import heif
from convnext.data.images import ENDINGS, FORMATS, CorruptImageError, read_image, read_pixels, size_of
from convnext.errors import ConvnextError, UsageError


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content):
    """What both readers make of it, which must be the same."""
    found = read_image(content)
    assert found.mode == "RGB"
    tensor = read_pixels(content)
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (3, found.height, found.width))
    assert np.array_equal(tensor.permute(1, 2, 0), found)
    return np.asarray(found)


def test_palette_keeps_its_colours():
    image = sample_image().quantize(200)
    assert np.array_equal(pixels(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pixels_lie_over_white(mode):
    image = Image.new("RGBA", (8, 8), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    if mode == "P":
        image = image.quantize(4)
    elif mode != "RGBA":
        image = image.convert(mode)
    found = pixels(encoded(image, "TIFF" if mode in ("LA", "PA") and mode == "PA" else "PNG"))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] != 255).all()


def test_cmyk_jpeg_has_the_colours_of_its_rgb():
    red = Image.new("RGB", (16, 16), (220, 40, 40))
    found = pixels(encoded(red.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found.astype(int) - (220, 40, 40)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = sample_image(size=(24, 16))
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encoded(stored, "PNG", exif=exif)), np.asarray(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_the_same_from_both_readers(orientation, subsampling, progressive):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif, "subsampling": subsampling, "progressive": progressive}
    for mode in ("RGB", "L", "CMYK"):
        assert pixels(encoded(sample_image(size=(53, 38)).convert(mode), "JPEG", quality=90, **options)).any()


TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
XMP = b"http://ns.adobe.com/xap/1.0/\0" + b'<x:xmpmeta xmlns:x="adobe:ns:meta/"%s></x:xmpmeta>'


def exif(orientation, kind="H", order="<"):
    """An EXIF segment's content that says nothing but the orientation, as a number of that type."""
    entry = struct.pack(f"{order}HHI{kind}", 0x0112, {"H": 3, "I": 4}[kind], 1, orientation).ljust(12, b"\0")
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", 1) + entry + bytes(4)


def segment(content, marker=0xE1, fill=b""):
    return fill + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


HEADS = {
    "XMP, then EXIF": lambda o: segment(XMP % b"") + segment(exif(o)),
    "EXIF, then XMP": lambda o: segment(exif(o)) + segment(XMP % b""),
    "XMP alone": lambda o: segment(XMP % b' tiff:Orientation="%d"' % o),
    "XMP in elements": lambda o: segment(XMP.replace(b"%s>", b"><tiff:Orientation>%d</tiff:Orientation>") % o),
    "another APP1 first": lambda o: segment(b"QVCI\0 of a webcam") + segment(exif(o)),
    "behind others": lambda o: segment(b"JFXX\0", 0xE0) + segment(b"ICC_PROFILE\0\1\1", 0xE2) + segment(b"hello", 0xFE) + segment(exif(o)),
    "fill bytes": lambda o: segment(b"hello", 0xFE, b"\xff\xff") + segment(exif(o), 0xE1, b"\xff"),
    "a long number, Motorola's order": lambda o: segment(exif(o, "I", ">")),
    "a long number, Intel's order": lambda o: segment(exif(o, "I")),
    "EXIF twice": lambda o: segment(exif(o)) + segment(exif(1)),
}


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_training_and_evaluation_turn_a_jpeg_alike_whatever_stands_before_its_pixels(head, progressive, orientation):
    image = sample_image(size=(53, 38))
    stored = encoded(image, "JPEG", quality=95, progressive=progressive)
    wanted = Image.open(io.BytesIO(stored))
    wanted = np.asarray(wanted.transpose(Image.Transpose[TURNS[orientation]]) if orientation > 1 else wanted)
    assert np.array_equal(pixels(stored[:2] + HEADS[head](orientation) + stored[2:]), wanted)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_damaged_metadata_do_not_damage_the_image(kind):
    for bad in (b"Exif\0\0nonsense", exif(6)[:-8], exif(9), exif(0)):
        found = pixels(encoded(sample_image(size=(24, 16)), kind, **({"exif": bad} if kind != "TIFF" else {"tiffinfo": {274: 9}})))
        assert found.shape == (16, 24, 3)


def test_the_first_image_of_a_file_of_several_is_taken(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    sample_image(0, (40, 24)).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[sample_image(1, (40, 24))], exif=turned)
    content = (tmp_path / "a.jpg").read_bytes()
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert pixels(content).shape == (40, 24, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_that_a_header_tells_is_the_upright_one(tmp_path, kind, orientation):
    turned = Image.Exif()
    turned[0x0112] = orientation
    sample_image(size=(24, 16)).save(tmp_path / "a", kind, exif=turned)
    assert size_of(tmp_path / "a") == read_image(tmp_path / "a").size == ((16, 24) if orientation > 4 else (24, 16))


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert (pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("read", [read_image, read_pixels])
def test_truncated_files_are_reported_by_path(tmp_path, kind, keep, read):
    content, path = encoded(sample_image(), kind), tmp_path / "bad.jpg"
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CorruptImageError, match=rf"{path}: \S"):
        read(path)


def jpeg_bomb():
    """A small JPEG whose header claims 60,000 x 60,000 pixels."""
    content = encoded(sample_image(), "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", 60000, 60000) + content[at + 4 :]


@pytest.mark.parametrize("read", [read_image, read_pixels])
def test_no_image_and_a_bomb_are_reported(tmp_path, read):
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(CorruptImageError, match=r"page\.jpg: not an image"):
        read(tmp_path / "page.jpg")
    with pytest.raises(CorruptImageError, match="decompression bomb"):
        read(encoded(Image.new("1", (14000, 14000)), "PNG"), name="bomb.png")
    with pytest.raises(CorruptImageError, match="decompression bomb"):
        read(jpeg_bomb())


@settings(max_examples=150, deadline=None)
@given(position=st.floats(0, 1), byte=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_a_damaged_byte_gives_an_image_or_a_one_line_error(position, byte, kind):
    content = bytearray(encoded(sample_image(size=(20, 16)), kind))
    content[int(position * (len(content) - 1))] = byte
    for read in (read_image, read_pixels):
        message = ""
        try:
            read(bytes(content))
        except CorruptImageError as error:
            message = str(error)
        assert "\n" not in message


def test_formats_and_endings_are_one_list(tmp_path):
    Image.init()
    for ending in ENDINGS - {".pbm", ".jfif", *heif.ENDINGS}:
        assert Image.registered_extensions()[ending] in FORMATS
        sample_image().convert("L" if ending == ".pgm" else "RGB").save(tmp_path / f"a{ending}")
        assert read_image(tmp_path / f"a{ending}").size == sample_image().size
    assert "EPS" not in FORMATS


def test_opening_runs_no_other_program(tmp_path, monkeypatch):
    """A stand-in for Ghostscript says that it was called. Pillow looks for it once, so it has not found the real one before."""
    from PIL import EpsImagePlugin

    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\n"
    for folder in ("images", "labels", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("images/a.jpg", "masks/a.png", "a.jpg"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError):  # noqa: PT011  (Pillow alone does run it, and finds no image made)
        Image.open(tmp_path / "a.jpg").load()
    assert (tmp_path / "called").exists()
    (tmp_path / "called").unlink()
    for source in (tmp_path / "a.jpg", content, Image.open(tmp_path / "a.jpg")):
        with pytest.raises(CorruptImageError, match=r"PostScript \(EPS\).* save it as PNG"):
            read_image(source)
    with pytest.raises(CorruptImageError, match="PostScript"):
        read_pixels(tmp_path / "a.jpg")
    with pytest.raises(CorruptImageError):
        mask_files.read_mask(tmp_path / "masks" / "a.png", mask_files.coding([mask_files.ClassLine("a")], "x"))
    with pytest.raises(ConvnextError, match="not an image"):
        yolo_to_coco(tmp_path / "images", tmp_path / "labels", ["a"])
    assert not (tmp_path / "called").exists()


RGB = np.asarray(sample_image())


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (RGB, RGB),
        (RGB[::-1, ::-1], RGB[::-1, ::-1]),
        (RGB[..., :1], RGB[..., [0, 0, 0]]),
        (RGB[..., 0], RGB[..., [0, 0, 0]]),
        (RGB[..., 0] > 99, (RGB[..., [0, 0, 0]] > 99) * 255),
        (np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)]), RGB),
        (np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)]), np.full_like(RGB, 255)),
    ],
)
def test_arrays_of_eight_bits(array, wanted):
    before = array.copy()
    assert np.array_equal(np.asarray(read_image(array)), wanted)
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(">u2") * 257, RGB),
        (RGB.astype(np.int64) * 257, RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float16), RGB),
        ((RGB[..., 0] / 255).astype(np.float32), RGB[..., [0, 0, 0]]),
        (np.dstack([RGB / 255, np.full(RGB.shape[:2], 0.5)]), RGB / 2 + 127.5),
    ],
)
def test_arrays_of_more_bits_have_the_scale_of_files(array, wanted):
    assert np.allclose(read_image(array).pixels(None).permute(1, 2, 0), wanted, atol=0.1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 40, 48), np.uint8), r"array of shape \(3, 40, 48\) is not an image.*channels come last, array.transpose\(1, 2, 0\)"),
        (np.zeros((40, 48, 2), np.uint8), "is not an image"),
        (np.zeros((40, 48, 5), np.uint8), "is not an image"),
        (np.zeros((0, 48, 3), np.uint8), "is not an image"),
        (np.zeros(48, np.uint8), "is not an image"),
        (np.zeros((2, 40, 48, 3), np.uint8), r"give several images as a list, list\(array\)"),
        (np.zeros((40, 48, 3), object), "images can't have numbers of type object"),
        (np.zeros((40, 48, 3), complex), "images can't have numbers of type complex128"),
        (torch.zeros(3, 40, 48), r"Tensor is not an image: give it as tensor.permute\(1, 2, 0\).numpy\(\)"),
        (7, "int is not an image: give a path, bytes, a PIL image or a NumPy array"),
        (None, "NoneType is not an image"),
    ],
)
def test_other_objects_are_refused_with_the_remedy(source, message):
    with pytest.raises(UsageError, match=message):
        read_image(source)


def test_arrays_with_nan_or_beyond_the_range_are_refused():
    for value, message in (
        (np.nan, "1 of its 5760 numbers are NaN"),
        (3, "values up to 3, beyond 1: set data.range=3"),
        (-1, "values from -1 to"),
    ):
        array = RGB / 255
        array[3, 4, 1] = value
        with pytest.raises(CorruptImageError, match=rf"array of shape \(40, 48, 3\): {message}"):
            read_image(array).pixels(None)


def test_a_pil_image_that_cannot_be_read_is_reported_by_its_file(tmp_path):
    content = encoded(sample_image(size=(200, 200)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptImageError, match=r"cut\.jpg: image file is truncated"):
        read_image(Image.open(tmp_path / "cut.jpg"))
    (tmp_path / "whole.jpg").write_bytes(content)
    with Image.open(tmp_path / "whole.jpg") as image:
        pass
    with pytest.raises(CorruptImageError, match=r"whole\.jpg: \S"):
        read_image(image)


def test_the_frame_that_the_caller_chose_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        image = Image.open(io.BytesIO(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)))
        assert np.asarray(read_image(image))[0, 0].tolist() == [255, 0, 0]
        image.seek(1)
        assert np.asarray(read_image(image))[0, 0].tolist() == [0, 0, 255]
