"""Boxes and masks that stay together, sizes as published, pixels where OpenCV puts them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import sample_image
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.data.annotations.objects import ImageObjects
from convnext.data.images import to_pixels
from convnext.data.randomness import seeded
from convnext.data.sources.scenes import Scenes
from convnext.data.transforms.detect import (
    DetectAugmentation,
    DetectPreprocessing,
    cropped,
    flipped,
    rescaled_size,
    resized,
    train_transform,
)

SMALL = DetectAugmentation(short=(96, 128), longest=160, crop_short=(80, 100), crop=(60, 90))
PUBLISHED = DetectAugmentation(tuple(range(480, 801, 32)), 1333, (400, 500, 600), (384, 600))

# cv2.resize of ((np.arange(35).reshape(5, 7) * 37) % 256).astype(np.uint8), by OpenCV 5.0
PATTERN = ((np.arange(35).reshape(5, 7) * 37) % 256).astype(np.uint8)
LINEAR = {
    (8, 11): [
        [0, 17, 40, 64, 87, 111, 134, 158, 182, 205, 222], [1, 18, 41, 65, 89, 112, 136, 159, 183, 206, 223],
        [3, 20, 43, 67, 91, 114, 138, 161, 185, 208, 225], [5, 22, 45, 69, 92, 116, 139, 163, 186, 210, 227],
        [7, 24, 47, 71, 94, 118, 141, 165, 188, 212, 229], [9, 25, 49, 73, 96, 120, 143, 167, 190, 214, 231],
        [11, 27, 51, 74, 98, 122, 145, 169, 192, 216, 233], [12, 29, 52, 76, 99, 123, 146, 170, 194, 217, 234],
    ],
    (3, 4): [[15, 79, 144, 209], [20, 85, 149, 214], [25, 89, 154, 219]],
}  # fmt: skip
NEAREST = {
    (8, 11): [
        [0, 0, 37, 37, 74, 111, 111, 148, 185, 185, 222], [0, 0, 37, 37, 74, 111, 111, 148, 185, 185, 222],
        [3, 3, 40, 40, 77, 114, 114, 151, 188, 188, 225], [3, 3, 40, 40, 77, 114, 114, 151, 188, 188, 225],
        [6, 6, 43, 43, 80, 117, 117, 154, 191, 191, 228], [9, 9, 46, 46, 83, 120, 120, 157, 194, 194, 231],
        [9, 9, 46, 46, 83, 120, 120, 157, 194, 194, 231], [12, 12, 49, 49, 86, 123, 123, 160, 197, 197, 234],
    ],
    (3, 4): [[0, 37, 111, 185], [3, 40, 114, 188], [9, 46, 120, 194]],
}  # fmt: skip


def rectangles(boxes, height, width):
    """ImageObjects whose masks are their boxes, given by whole pixels."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    count = len(boxes)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return ImageObjects(corners, torch.arange(count), masks, torch.zeros(count, dtype=torch.bool), masks.sum((1, 2)).float(), 5)


def box_of(mask):
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


@st.composite
def images_with_rectangles(draw):
    height, width = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    edge = st.tuples(st.integers(0, width - 2), st.integers(0, height - 2))
    boxes = []
    for left, top in draw(st.lists(edge, max_size=4)):
        boxes.append((left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))))
    pixels = torch.arange(3 * height * width).reshape(3, height, width).remainder(251).to(torch.uint8)
    return pixels, rectangles(boxes, height, width)


def assert_masks_fill_their_boxes(objects, pixels, within=1.0):
    assert objects.masks.shape == (len(objects), *pixels.shape[1:])
    for mask, box in zip(objects.masks, objects.boxes, strict=True):
        if mask.any():
            assert (box_of(mask) - box).abs().max() <= within
        else:  # nearest sampling can miss what is thinner than a pixel
            assert (box[2:] - box[:2]).min() < 1


@given(images_with_rectangles(), st.integers(8, 120), st.integers(8, 120))
@settings(max_examples=80, deadline=None)
def test_resized_masks_fill_the_resized_boxes(example, short, longest):
    pixels, objects = example
    small, found = resized(pixels, objects, short, longest)
    assert small.shape[1:] == rescaled_size(*pixels.shape[1:], short, longest)
    scale = torch.tensor([small.shape[2] / pixels.shape[2], small.shape[1] / pixels.shape[1]] * 2)
    assert torch.allclose(found.boxes, objects.boxes * scale, atol=1e-4)
    assert_masks_fill_their_boxes(found, small)
    assert torch.equal(found.labels, objects.labels)


@given(images_with_rectangles(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_crop_keeps_what_lies_in_it(example, data):
    pixels, objects = example
    top, left = data.draw(st.integers(0, pixels.shape[1] - 1)), data.draw(st.integers(0, pixels.shape[2] - 1))
    height, width = data.draw(st.integers(1, pixels.shape[1] - top)), data.draw(st.integers(1, pixels.shape[2] - left))
    part, found = cropped(pixels, objects, top, left, height, width)
    assert torch.equal(part, pixels[:, top : top + height, left : left + width])
    assert_masks_fill_their_boxes(found, part, within=0)
    inside = [bool(mask[top : top + height, left : left + width].any()) for mask in objects.masks]
    assert found.labels.tolist() == [label for label, there in zip(objects.labels.tolist(), inside, strict=True) if there]


@given(images_with_rectangles())
@settings(max_examples=50, deadline=None)
def test_a_mirror_image_of_the_mirror_image_is_the_image(example):
    pixels, objects = example
    once = flipped(pixels, objects)
    assert_masks_fill_their_boxes(once[1], pixels, within=0)
    twice, found = flipped(*once)
    assert torch.equal(twice, pixels)
    assert torch.equal(found.boxes, objects.boxes)
    assert torch.equal(found.masks, objects.masks)


def test_sizes_are_mmcv_s():
    # mmcv.rescale_size((w, h), (1333, 800)) of COCO's usual shapes; the last two are bound by the long side.
    shapes = {(480, 640): (800, 1067), (640, 480): (1067, 800), (427, 640): (800, 1199), (333, 1000): (444, 1333), (500, 281): (1333, 749)}
    assert {shape: rescaled_size(*shape, 800, 1333) for shape in shapes} == shapes
    assert rescaled_size(1, 5000, 800, 1333) == (1, 1333)  # no side vanishes


@pytest.mark.parametrize("size", [(8, 11), (3, 4)])
def test_pixels_and_masks_are_where_opencv_puts_them(size):
    pixels = torch.from_numpy(PATTERN).expand(3, -1, -1)
    objects = ImageObjects(
        torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), torch.from_numpy(PATTERN)[None], torch.zeros(1, dtype=torch.bool), torch.zeros(1), 0
    )  # fmt: skip
    small, found = resized(pixels, objects, *size)
    assert (small.int() - torch.tensor(LINEAR[size])).abs().max() <= 1
    assert torch.equal(found.masks[0], torch.tensor(NEAREST[size], dtype=torch.uint8))


def test_training_images_are_a_function_of_the_seed():
    source, transform = Scenes("train", 4), pickle.loads(pickle.dumps(train_transform(SMALL)))
    results = []
    for key in ((1, 2, 3), (1, 2, 3), (1, 2, 4)):
        with seeded(*key):
            results.append([transform(source.pixels(i), source.target(i)) for i in range(4)])
    for (image, objects), (again, others) in zip(*results[:2], strict=True):
        assert torch.equal(image, again)
        assert torch.equal(objects.boxes, others.boxes)
        assert torch.equal(objects.masks, others.masks)
    assert any(a.shape != b.shape for (a, _), (b, _) in zip(results[0], results[2], strict=True))
    with seeded(1, 2, 3):
        image, _ = transform(source.read(0), source.target(0))
    assert torch.equal(image, results[0][0][0])  # Pillow's image or its pixels


def test_the_published_sizes_and_chances():
    objects = rectangles([(0, 0, 100, 300), (500, 20, 640, 427)], 427, 640)
    pixels, transform = to_pixels(sample_image(size=(640, 427))), train_transform(PUBLISHED)
    shorts, mirrored, in_part, lost, count = set(), 0, 0, 0, 60
    for seed in range(count):
        with seeded(0, 0, seed):
            image, found = transform(pixels, objects)
        height, width = image.shape[1:]
        assert image.dtype == torch.float32
        assert max(height, width) <= 1333
        shorts.add(min(height, width))
        whole = abs(width / height - 640 / 427) < 0.01
        if whole:
            assert torch.allclose(found.area, objects.area)
            mirrored += bool(found.boxes[0, 0] > 0)
        in_part += not whole
        lost += len(found) < 2
        assert_masks_fill_their_boxes(found, image, within=3)  # resized twice, up to 800 / 384 each
    assert shorts <= set(range(480, 801, 32))
    assert len(shorts) == 11
    assert 15 <= in_part <= 45
    assert 5 <= mirrored <= count - in_part - 5
    assert lost > 5


def test_crowds_and_slivers_are_not_trained_on():
    objects = rectangles([(0, 0, 20, 20), (30, 30, 60, 60), (5, 5, 9, 9)], 64, 64)
    objects.boxes[2, 2] = 5.6
    objects.iscrowd[0] = True
    _, found = train_transform(DetectAugmentation(short=(64,), longest=64, crop_short=(64,), crop=(64, 64), flip=0.0))(
        torch.zeros(3, 64, 64).byte(), objects
    )
    assert (found.labels.tolist(), found.boxes.tolist()) == ([1], [[30, 30, 60, 60]])


def test_a_crop_may_leave_no_objects():
    objects = rectangles([(0, 0, 4, 4)], 128, 128)
    transform, counts = train_transform(DetectAugmentation((64,), 64, (128,), (32, 32), flip=0.0)), set()
    for seed in range(20):
        with seeded(seed):
            _, found = transform(torch.zeros(3, 128, 128, dtype=torch.uint8), objects)
        assert found.masks.shape[0] == len(found)
        counts.add(len(found))
    assert counts == {0, 1}


def test_evaluation_resizes_within_its_limits():
    image = sample_image(size=(333, 250))
    assert DetectPreprocessing().transform()(image).shape == (3, 800, 1066)
    how = DetectPreprocessing(250, 333, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.allclose(how.transform()(image) * 255, to_pixels(image).float(), atol=1e-3)
    assert DetectPreprocessing.from_json(how.to_json()) == how


def test_boxes_over_the_border_are_clipped():
    objects = replace(rectangles([(0, 0, 40, 64)], 64, 64), boxes=torch.tensor([[-3.0, -2.5, 40.25, 70]]))
    assert resized(torch.zeros(3, 64, 64, dtype=torch.uint8), objects, 128, 999)[1].boxes.tolist() == [[0, 0, 80.5, 128]]


def test_without_masks():
    objects = replace(rectangles([(0, 0, 20, 20)], 64, 64), masks=None)
    with seeded(3):
        _, found = train_transform(SMALL)(torch.zeros(3, 64, 64, dtype=torch.uint8), objects)
    assert found.masks is None
