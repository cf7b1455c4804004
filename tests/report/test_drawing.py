import numpy as np
import torch
from PIL import Image

from convnext.data.sources.scenes import Scenes
from convnext.report.drawing import draw

CLASSES = ["ant", "bee"]


def grey(width, height):
    return Image.new("RGB", (width, height), (128, 128, 128))


def changed(drawn, original):
    return (np.asarray(drawn).astype(int) != np.asarray(original).astype(int)).any(2)


def found(boxes, labels, **more):
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)} | more


def test_boxes_lie_on_their_edges_and_colours_tell_classes():
    drawn = draw(grey(600, 400), found([[100, 100, 300, 250], [350, 150, 500, 300]], [0, 1]), CLASSES)
    pixels = np.asarray(drawn)
    assert drawn.size == (600, 400)
    for (left, top, right, bottom), label in (((100, 100, 300, 250), 0), ((350, 150, 500, 300), 1)):
        colour = pixels[bottom - 1, left]
        assert (pixels[bottom - 1, left:right] == colour).all()
        assert (pixels[top:bottom, right - 1] == colour).all()
        assert (pixels[bottom, left:right] == 128).all()
        assert (pixels[top:bottom, right] == 128).all()
        assert (pixels[top + 10 : bottom - 10, left + 10 : right - 10] == 128).all()
        assert tuple(colour) == tuple(np.asarray(draw(grey(600, 400), found([[5, 200, 90, 300]], [label]), CLASSES))[299, 10])
    assert tuple(pixels[249, 100]) != tuple(pixels[299, 350])


def test_masks_tint_their_pixels_alone():
    masks = torch.zeros(1, 1, 400, 600, dtype=torch.bool)
    masks[0, 0, 200:240, 200:240] = True
    box = [[150, 150, 300, 300]]
    difference = changed(draw(grey(600, 400), found(box, [0], masks=masks), CLASSES), draw(grey(600, 400), found(box, [0]), CLASSES))
    assert np.array_equal(difference, masks[0, 0].numpy())


def test_names_scores_and_crowds_are_written():
    box, versions = [[50, 100, 500, 300]], []
    for more in ({}, {"scores": torch.tensor([0.5])}, {"scores": torch.tensor([0.9])}, {"iscrowd": torch.tensor([True])}):
        versions.append(np.asarray(draw(grey(600, 400), found(box, [0], **more), CLASSES)).tobytes())
    versions.append(np.asarray(draw(grey(600, 400), found(box, [0]), ["wasp", "bee"])).tobytes())
    assert len(set(versions)) == 5


def test_small_images_are_enlarged_and_the_image_is_left_as_it_was():
    source = Scenes("val", 3)
    image = source.read(0)
    before = image.tobytes()
    drawn = draw(image, source.target(0).to_dict(), source.classes)
    assert drawn.size == (512, 512)
    assert image.tobytes() == before
    assert np.array_equal(np.asarray(draw(image, found([], []), CLASSES))[::4, ::4], np.asarray(image))


def test_names_stay_within_the_image():
    boxes = [[-20, -30, 30, 20], [580, 0, 640, 15], [-5, 390, 20, 420], [590, 395, 599, 399], [100, 100, 100, 100], [50, 60, 40, 50]]
    drawn = draw(grey(600, 400), found(boxes, [0] * 6), ["a rather long name of a class"])
    edges = changed(drawn, grey(600, 400))
    assert edges[:14, 60:150].any()  # moved in from the left
    assert edges[:14, 450:560].any()  # and from the right
    assert draw(grey(600, 400), found(boxes, [0] * 6, masks=torch.zeros(6, 400, 600)), ["a"]).size == (600, 400)
