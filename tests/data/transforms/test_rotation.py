"""Turned objects against polygons whose corners are turned by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import sample_image
from matplotlib.path import Path as Polygon
from scipy.ndimage import binary_dilation, binary_erosion, rotate

from convnext.data.annotations.objects import ImageObjects
from convnext.data.images import to_pixels
from convnext.data.randomness import seeded
from convnext.data.run_lengths import EncodedMasks, encode_all
from convnext.data.transforms.detect import DetectAugmentation, train_transform
from convnext.data.transforms.rotation import turned

HEIGHT, WIDTH = 90, 120
GROUND = [10.0, 20.0, 30.0]
POLYGONS = [  # corners (x, y)
    [(20, 15), (70, 25), (40, 60)],
    [(80, 50), (110, 55), (105, 85), (85, 80), (95, 65)],
    [(0, 0), (14, 0), (14, 10), (0, 10)],  # leaves the image at most angles
    [(60, 40), (61.5, 40), (61.5, 70), (60, 70)],
]


def rasterised(corners):
    """Ones where the centre of a pixel is within the polygon."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    inside = Polygon([*corners, corners[0]], closed=True).contains_points(np.stack([x.ravel(), y.ravel()], 1))
    return inside.reshape(HEIGHT, WIDTH)


def by_hand(corners, angle):
    """The corners turned anticlockwise, as seen on a screen, about the image's centre."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    shifted = [(x - WIDTH / 2, y - HEIGHT / 2) for x, y in corners]
    return [(x * cos + y * sin + WIDTH / 2, -x * sin + y * cos + HEIGHT / 2) for x, y in shifted]


def objects_of(polygons):
    masks = torch.from_numpy(np.stack([rasterised(corners) for corners in polygons])).to(torch.uint8)
    boxes = torch.tensor([[*np.min(corners, 0), *np.max(corners, 0)] for corners in polygons], dtype=torch.float32)
    count = len(polygons)
    return ImageObjects(boxes, torch.arange(count), masks, torch.zeros(count, dtype=torch.bool), masks.sum((1, 2)).float(), 3)


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("angle", [-170, -90, -33.3, -5, 2.5, 45, 90, 120])
def test_masks_are_the_turned_polygons_and_boxes_fit_them(angle):
    objects = objects_of(POLYGONS)
    pixels = to_pixels(sample_image(size=(WIDTH, HEIGHT)))
    image, found = turned(pixels, objects, angle, GROUND)
    assert image.shape == pixels.shape
    kept = found.labels.tolist()
    for label, corners in enumerate(POLYGONS):
        wanted, before = rasterised(by_hand(corners, angle)), int(objects.masks[label].sum())
        share = wanted.sum() / before
        if abs(share - 0.1) > 0.05:
            assert (label in kept) == (share > 0.1)
        if label not in kept:
            continue
        at = kept.index(label)
        mask = found.masks[at].numpy().astype(bool)
        # A nearest pixel's centre is at most 0.71 pixels away, so both masks agree but for their border.
        assert not (binary_erosion(wanted, np.ones((3, 3))) & ~mask).any()
        assert not (mask & ~binary_dilation(wanted, np.ones((3, 3)))).any()
        assert found.boxes[at].tolist() == box_of(mask)
        assert found.area[at] == pytest.approx(float(objects.area[label]) * min(1, mask.sum() / before))
    assert {0, 1} <= set(kept)


@pytest.mark.parametrize("angle", [-70, -12.5, 31])
def test_masks_and_pixels_are_where_scipy_turns_them(angle):
    objects = objects_of(POLYGONS[:1])
    image, found = turned(objects.masks.expand(3, -1, -1) * 200, objects, angle, [0.0])
    reference = rotate(objects.masks[0].numpy(), angle, reshape=False, order=0)
    assert (reference != found.masks[0].numpy()).mean() < 0.001  # but for ties
    smooth = rotate(objects.masks[0].numpy() * 200.0, angle, reshape=False, order=1)
    assert np.abs(smooth - image[0].numpy()).max() <= 2


def test_a_quarter_turn_is_exact():
    square = torch.zeros(1, 64, 64, dtype=torch.uint8)
    square[0, 5:30, 10:50] = 1
    objects = ImageObjects(
        torch.tensor([[10.0, 5, 50, 30]]), torch.tensor([4]), square, torch.tensor([False]), torch.tensor([1000.0]), 0
    )  # fmt: skip
    for one in (objects, replace(objects, masks=None)):
        _, found = turned(torch.zeros(3, 64, 64, dtype=torch.uint8), one, 90, GROUND)
        assert torch.allclose(found.boxes, torch.tensor([[5.0, 14, 30, 54]]), atol=1e-4)
        assert found.area.tolist() == [1000]
    _, found = turned(torch.zeros(3, 64, 64, dtype=torch.uint8), objects, 90, GROUND)
    assert torch.equal(found.masks[0], square[0].rot90())


@pytest.mark.parametrize("angle", [-60, -20, 7, 150])
def test_boxes_alone_surround_their_turned_corners_within_the_image(angle):
    objects = replace(objects_of(POLYGONS), masks=None)
    _, found = turned(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), objects, angle, GROUND)
    for label, (left, top, right, bottom) in enumerate(objects.boxes.tolist()):
        corners = np.array(by_hand([(left, top), (right, top), (right, bottom), (left, bottom)], angle))
        whole = np.concatenate([corners.min(0), corners.max(0)])
        seen = whole.clip(0, [WIDTH, HEIGHT] * 2)
        share = np.prod(seen[2:] - seen[:2]) / np.prod(whole[2:] - whole[:2])
        assert (label in found.labels) == (share >= 0.1)
        if label in found.labels:
            assert np.allclose(found.boxes[found.labels == label][0], seen, atol=1e-4)


def test_a_transform_turns_within_its_limit_whatever_the_form_of_the_masks():
    objects = objects_of(POLYGONS)
    encoded = replace(objects, masks=EncodedMasks.whole(encode_all(objects.masks), HEIGHT, WIDTH))
    sizes = {"short": (HEIGHT,), "longest": WIDTH, "crop_short": (HEIGHT,), "crop": (80, 120), "flip": 0.0}
    transform = train_transform(DetectAugmentation(**sizes, rotate=30.0))
    pixels, boxes = to_pixels(sample_image(size=(WIDTH, HEIGHT))), []
    for seed in range(6):
        found = []
        for one in (objects, encoded):
            with seeded(seed):
                image, after = transform(pixels, one)
            assert after.masks.shape == (len(after), *image.shape[1:])
            found.append((image, after))
        assert all(torch.equal(getattr(found[0][1], key), getattr(found[1][1], key)) for key in ("boxes", "labels", "masks", "area"))
        assert torch.equal(found[0][0], found[1][0])
        boxes.append(tuple(found[0][1].boxes[0].tolist()))
    assert len(set(boxes)) > 3


def test_an_image_whose_objects_all_leave_it_is_empty():
    objects = objects_of([[(0, 0), (8, 0), (8, 8), (0, 8)]])
    for one in (objects, replace(objects, masks=None)):
        _, found = turned(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), one, 45, GROUND)
        assert len(found) == 0
        assert found.boxes.shape == (0, 4)
        _, again = turned(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), found, 10, GROUND)
        assert len(again) == 0
