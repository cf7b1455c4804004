"""What the pixels of a mask file mean, and every way in which they can mean nothing."""

import numpy as np
import pytest
from PIL import Image

from convnext.data.annotations.mask_files import ClassLine, coding, read_classes, read_mask
from convnext.data.images import CorruptImageError
from convnext.errors import ConvnextError

VALUES = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)
ABC = coding([ClassLine("a"), ClassLine("b"), ClassLine("c")], "classes.txt")


def lines(tmp_path, text):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    return path


def saved(tmp_path, image, name="m.png"):
    path = tmp_path / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [("m.png", np.uint8), ("m.png", np.uint16), ("m.tif", np.int32), ("m.tif", np.uint16), ("m.bmp", np.uint8)],
)
def test_values_are_read_from_8_16_and_32_bits(tmp_path, name, kind):
    found = read_mask(saved(tmp_path, VALUES.astype(kind), name), ABC)
    assert found.dtype == np.uint8
    assert np.array_equal(found, VALUES)


def test_a_palette_image_holds_its_indices(tmp_path):
    image = Image.fromarray(VALUES)
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + 253 * [7, 7, 7])
    assert image.mode == "P"
    assert np.array_equal(read_mask(saved(tmp_path, image), ABC), VALUES)


def test_a_image_of_two_values_in_one_bit(tmp_path):
    image = Image.fromarray(VALUES == 2)
    assert image.mode == "1"
    assert np.array_equal(read_mask(saved(tmp_path, image), ABC), VALUES == 2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_classes(tmp_path, mode):
    meaning = coding(read_classes(lines(tmp_path, "road 128 64 128\ntraffic light\t250, 170, 30\n(void) 0 0 0\n")), "classes.txt")
    assert meaning.classes == ("road", "traffic light")
    image = Image.fromarray(np.array([[[128, 64, 128], [250, 170, 30]], [[0, 0, 0], [128, 64, 128]]], np.uint8))
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    assert read_mask(saved(tmp_path, image), meaning).tolist() == [[0, 1], [255, 0]]


def test_grey_is_a_colour_where_classes_have_colours(tmp_path):
    meaning = coding(read_classes(lines(tmp_path, "ground 0 0 0\nthing 255 255 255\n")), "classes.txt")
    assert read_mask(saved(tmp_path, np.array([[0, 255]], np.uint8)), meaning).tolist() == [[0, 1]]


def test_parentheses_and_values_say_what_is_ignored(tmp_path):
    entries = read_classes(lines(tmp_path, "(other)\nwall\tof a house\nfloor, flooring\n(void)\n(void)\n\n"))
    assert [entry.name for entry in entries] == ["(other)", "wall", "floor, flooring", "(void)", "(void)"]
    meaning = coding(entries, "classes.txt")
    assert meaning.classes == ("wall", "floor, flooring")
    assert read_mask(saved(tmp_path, np.arange(5, dtype=np.uint8)[None]), meaning).tolist() == [[255, 0, 1, 255, 255]]
    # The value of a class that is named loses it; one beyond the names is only ignored.
    meaning = coding([ClassLine("a"), ClassLine("b"), ClassLine("c")], "classes.txt", ignored=[1, 9])
    assert meaning.classes == ("a", "c")
    assert read_mask(saved(tmp_path, np.array([[0, 1, 2, 9]], np.uint8)), meaning).tolist() == [[0, 255, 1, 255]]


def test_given_classes_decide_the_indices(tmp_path):
    meaning = coding([ClassLine("a"), ClassLine("b")], "classes.txt", classes=["b", "x", "a"])
    assert meaning.classes == ("b", "x", "a")
    assert read_mask(saved(tmp_path, np.array([[0, 1]], np.uint8)), meaning).tolist() == [[2, 0]]
    with pytest.raises(ConvnextError, match="'rode' of somewhere/classes.txt is not one of the classes trained on; did you mean 'road'"):
        coding([ClassLine("rode")], "somewhere/classes.txt", classes=["road", "sky"])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_values_beyond_the_classes_are_reported_by_value_count_and_place(tmp_path, kind):
    values = np.zeros((6, 8), kind)
    values[2, 3:6], values[5, 7] = 7, 9
    path = saved(tmp_path, values, "m.tif")
    with pytest.raises(
        ConvnextError, match=r"m\.tif has the value 7 in 3 pixels, first at x 3, y 2 \(and 1 more such\), .* 3 classes: .*:ignore=7"
    ):
        read_mask(path, ABC)


@pytest.mark.parametrize("value", [256, 65535, -1])
def test_values_that_no_byte_holds_are_reported(tmp_path, value):
    values = np.zeros((6, 8), np.int32)
    values[1, 1] = value
    with pytest.raises(ConvnextError, match=rf"m\.tif has the value {value} in 1 pixel, first at x 1, y 1, .*: correct the mask$"):
        read_mask(saved(tmp_path, values, "m.tif"), ABC)


def test_unknown_colours_are_reported_by_colour_and_place(tmp_path):
    meaning = coding(read_classes(lines(tmp_path, "road 128 64 128\n")), "classes.txt")
    pixels = np.full((5, 6, 3), (128, 64, 128), np.uint8)
    pixels[4, 1:3] = (1, 2, 3)
    with pytest.raises(ConvnextError, match=r"m\.png has the colour 1 2 3 in 2 pixels, first at x 1, y 4, .* name it there"):
        read_mask(saved(tmp_path, pixels), meaning)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_a_image_is_no_mask_of_values(tmp_path, mode):
    image = Image.new(mode, (4, 4))
    with pytest.raises(ConvnextError, match=rf"m\.\w+ is an image of mode {mode}, not a mask: .* classes.txt must give colours"):
        read_mask(saved(tmp_path, image, "m.tif" if mode in ("CMYK", "F") else "m.png"), ABC)


def test_a_damaged_mask_is_reported_by_path(tmp_path):
    path = saved(tmp_path, np.random.default_rng(0).integers(0, 3, (50, 50), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptImageError, match=r"m\.png: "):
        read_mask(path, ABC)
    path.write_bytes(b"")
    with pytest.raises(CorruptImageError, match=r"m\.png"):
        read_mask(path, ABC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\nb\n", "line 2 of .*classes.txt, '', is not a class"),
        ("a\nb\na\n", "line 3 of .* has the name of a line before it"),
        ("a 1 2 3\nb 1 2 3\n", "line 2 of .* has the colour of a line before it"),
        ("a 1 2 3\nb\n", "gives a colour on some lines and not on others"),
        ("a 1 2 300\n", "line 1 of .*'a 1 2 300', is not a class"),
        ("", "has 0 classes"),
        ("(a)\n(b)\n", "has 0 classes"),
        ("\n".join(f"c{i}" for i in range(255)), "has 255 classes: masks can have 1 to 254"),
    ],
)
def test_a_wrong_class_list_is_reported_by_line(tmp_path, text, message):
    with pytest.raises(ConvnextError, match=message):
        coding(read_classes(lines(tmp_path, text)), "classes.txt")
