import io
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convnext.data.pictures import CorruptPictureError, read_picture, read_pixels


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content):
    """What both readers make of it, which must be the same."""
    found = read_picture(content)
    assert found.mode == "RGB"
    tensor = read_pixels(content)
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (3, found.height, found.width))
    assert np.array_equal(tensor.permute(1, 2, 0), found)
    return np.asarray(found)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        found = pixels(encoded(Image.fromarray(values), kind))
        assert np.array_equal(found, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bit_rgb_png():
    values = np.random.default_rng(0).integers(0, 65535, (8, 8, 3), dtype=np.uint16)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(pixels(content).astype(int) - (values >> 8)).max() <= 1


@pytest.mark.parametrize(("mode", "top"), [("I", 65535), ("I", 255), ("F", 1.0), ("F", 255.0)])
def test_thirty_two_bit_grey_is_scaled_by_the_range_that_holds_it(mode, top):
    values = np.linspace(0, top, 64).reshape(8, 8).astype(np.int32 if mode == "I" else np.float32)
    found = pixels(encoded(Image.fromarray(values), "TIFF"))[..., 0]
    assert np.abs(found - 255.0 * values / top).max() <= 1


def test_thirty_two_bit_of_unknown_range_is_told():
    with pytest.raises(CorruptPictureError, match="values from 0 to 1e\\+06: save it with 8 or 16 bits"):
        read_picture(encoded(Image.fromarray(np.array([[0, 1_000_000]], np.int32)), "TIFF"))


def test_palette_keeps_its_colours():
    image = picture().quantize(200)
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
    upright = picture(size=(24, 16))
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
        assert pixels(encoded(picture(size=(53, 38)).convert(mode), "JPEG", quality=90, **options)).any()


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert (pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("read", [read_picture, read_pixels])
def test_truncated_files_are_told_by_path(tmp_path, kind, keep, read):
    content, path = encoded(picture(), kind), tmp_path / "bad.jpg"
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CorruptPictureError, match=rf"{path}: \S"):
        read(path)


def jpeg_bomb():
    """A small JPEG whose header claims 60,000 x 60,000 pixels."""
    content = encoded(picture(), "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", 60000, 60000) + content[at + 4 :]


@pytest.mark.parametrize("read", [read_picture, read_pixels])
def test_no_picture_and_a_bomb_are_told(tmp_path, read):
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(CorruptPictureError, match=r"page\.jpg: not a picture"):
        read(tmp_path / "page.jpg")
    with pytest.raises(CorruptPictureError, match="decompression bomb"):
        read(encoded(Image.new("1", (14000, 14000)), "PNG"), name="bomb.png")
    with pytest.raises(CorruptPictureError, match="decompression bomb"):
        read(jpeg_bomb())


@settings(max_examples=150, deadline=None)
@given(position=st.floats(0, 1), byte=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_a_damaged_byte_gives_a_picture_or_a_told_error(position, byte, kind):
    content = bytearray(encoded(picture(size=(20, 16)), kind))
    content[int(position * (len(content) - 1))] = byte
    for read in (read_picture, read_pixels):
        told = ""
        try:
            read(bytes(content))
        except CorruptPictureError as error:
            told = str(error)
        assert "\n" not in told
