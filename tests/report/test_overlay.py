import numpy as np
import pytest
import torch
from helpers import sample_image
from PIL import Image

from convnext.report.overlay import coloured, key, named, overlay, panels, side_by_side
from convnext.report.palette import CLASSES, class_colours


def regions():
    """Class 0 on the left, class 1 on the right, ignored below."""
    mask = np.zeros((60, 80), np.uint8)
    mask[:, 40:], mask[40:] = 1, 255
    return mask


def test_colours_are_laid_over_the_image_at_its_place():
    mask, ground = regions(), Image.new("RGB", (80, 60), (100, 100, 100))
    found = np.asarray(coloured(ground, mask, 0.6)).astype(int)
    for label, at in ((0, (20, 20)), (1, (20, 60))):
        assert np.abs(found[at] - (40 + 0.6 * class_colours()[label])).max() <= 1
    assert np.array_equal(found[20, 39:42], [found[20, 39], [255] * 3, found[20, 41]])  # the border
    stripes = np.unique(found[45:55, 10:70].reshape(-1, 3), axis=0)
    assert stripes.tolist() == [[76] * 3, [130] * 3]
    assert np.array_equal(coloured(ground, torch.from_numpy(mask)), coloured(ground, mask))
    assert np.array_equal(coloured(ground, mask, 1), coloured(sample_image(size=(80, 60)), mask, 1))


def test_the_legend_names_what_occurs_and_no_more():
    mask, names = regions(), [f"a class with a long name {i}" for i in range(150)]
    few, ground = overlay(sample_image(size=(80, 60)), mask, names), sample_image(size=(80, 60))
    assert few.size[0] >= 360  # a small image's legend still has room
    assert np.array_equal(np.asarray(few)[:60, :80], np.asarray(coloured(ground, mask)))
    below = np.asarray(few)[60:].reshape(-1, 3)
    for label, is_there in ((0, True), (1, True), (2, False), (149, False)):
        assert (below == class_colours()[label]).all(1).any() == is_there
    many = overlay(ground, (np.arange(4800).reshape(60, 80) % 150).astype(np.uint8), names)
    assert many.size[1] > few.size[1] + 1000  # a line each
    assert (np.asarray(many)[-20:] == class_colours()[149]).all(2).any()


def test_prediction_beside_the_truth():
    mask, ground = regions(), sample_image(size=(200, 60))
    mask = np.pad(mask, ((0, 0), (0, 120)))
    wrong = np.where(mask == 1, 2, 0).astype(np.uint8)
    sheet = np.asarray(side_by_side(ground, mask, wrong, ["sky", "road", "tree"]).convert("RGB"))
    assert sheet.shape[1] == 3 * 200 + 2 * 8
    for i, side in enumerate((ground, coloured(ground, mask), coloured(ground, wrong))):
        assert np.array_equal(sheet[24 : 24 + 60, i * 208 : i * 208 + 200], np.asarray(side))
    below = sheet[24 + 60 :].reshape(-1, 3)
    assert all((below == class_colours()[label]).all(1).any() for label in (0, 1, 2))
    assert (sheet[:24] < 150).any()  # titles
    transparent = np.asarray(side_by_side(ground, mask, wrong, ["sky", "road", "tree"]))[24:84, 200:208, 3]
    assert (transparent == 0).all()  # a page's own ground between the images


def test_a_class_without_a_name_is_an_error():
    with pytest.raises(ValueError, match="the mask holds the class 1, of 1 classes"):
        overlay(sample_image(size=(80, 60)), regions(), ["sky"])


def test_large_classes_have_their_names_on_them():
    mask, ground = np.zeros((200, 300), np.uint8), Image.new("RGB", (300, 200), (100, 100, 100))
    mask[:, 150:], mask[180:, 280:] = 1, 2
    drawn = np.asarray(overlay(ground, mask, ["sky", "a name too long for its part", "speck"]))[:200, :300]
    plain = np.asarray(coloured(ground, mask))
    changed = (drawn != plain).any(2)
    assert changed[80:120, 50:100].any()  # in the middle of the first class
    assert not changed[:, 150:].any()  # no room for one name, and a class that is small
    rows, columns = np.nonzero(changed)
    assert (mask[rows, columns] == 0).all()


def test_the_panels_of_a_page_have_one_key():
    image, truth = sample_image(size=(200, 200)), np.zeros((200, 200), np.uint8)
    truth[:50], truth[50:60] = 1, 255
    predicted = np.where(truth == 255, 2, truth)
    classes = ["sky", "road", "tree", "car"]
    (first, whole), (_, left), (_, right) = panels(image, truth, predicted, classes)
    assert (first, whole.size, left.size) == ("image", image.size, image.size)
    assert np.array_equal(np.asarray(right), np.asarray(named(image, predicted, classes)))
    assert [name for name, _ in key([truth, predicted], classes)] == ["sky", "road", "tree", "ignored"]
    assert key([truth], classes)[0] == ("sky", CLASSES[0])
