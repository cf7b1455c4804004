"""Polygons of masks give the same pixels again by COCO's rasteriser."""

import numpy as np
import pytest
import torch

from convnext.data.convert.write.contours import contours, exact_polygons, one_polygon, window
from convnext.data.run_lengths import decode, encode, from_segmentation

SIZE = 90


def blob(rng, x, y, radius):
    """A round shape with an uneven border, bool (SIZE, SIZE)."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    angle, waves = np.arctan2(rows - y, columns - x), 0.0
    for count in range(2, 6):
        waves = waves + rng.normal(0, 0.1) * np.cos(count * angle + rng.uniform(0, 6))
    return np.hypot(rows - y, columns - x) < radius * (1 + waves)


def iou(mask, corners):
    flat = [value for corner in corners for value in corner]
    found = decode(from_segmentation([flat], SIZE, SIZE)).numpy().astype(bool)
    return (found & mask).sum() / (found | mask).sum()


@pytest.mark.parametrize("radius", [3, 16, 40])  # the second is an object of 32 pixels
def test_polygons_have_the_mask_s_pixels(radius):
    rng = np.random.default_rng(radius)
    for _ in range(10):
        mask = blob(rng, 45, 45, radius) | blob(rng, 82, 80, 5)
        runs = encode(torch.from_numpy(mask))
        polygons = exact_polygons(runs, SIZE, SIZE)
        assert isinstance(polygons, list)
        assert from_segmentation(polygons, SIZE, SIZE) == runs
        assert iou(mask, one_polygon(runs, SIZE, SIZE)[0]) == 1


def test_a_mask_with_holes_keeps_its_run_lengths_or_becomes_one_joined_polygon():
    rng = np.random.default_rng(0)
    for _ in range(10):
        mask = (blob(rng, 40, 40, 32) & ~blob(rng, 32, 40, 8) & ~blob(rng, 54, 44, 6)) | blob(rng, 82, 82, 5)
        runs = encode(torch.from_numpy(mask))
        assert exact_polygons(runs, SIZE, SIZE) == runs
        corners, joined = one_polygon(runs, SIZE, SIZE)
        assert iou(mask, corners) >= 0.98
        parts = contours(runs, SIZE, SIZE)
        assert len(parts[0].holes) >= 2
        assert joined == sum(1 + len(part.holes) for part in parts) - 1


def test_polygons_stay_as_they_are_unless_several_become_one():
    triangle = [10.25, 10, 60.5, 12, 50, 70]
    (part,) = contours([triangle], SIZE, SIZE)
    assert part.corners() == [[10.25, 10], [60.5, 12], [50, 70]]
    assert one_polygon([triangle], SIZE, SIZE) == (part.corners(), 0)
    overlapping = [[10, 10, 40, 10, 40, 40, 10, 40], [30, 30, 60, 30, 60, 60, 30, 60]]
    mask = decode(from_segmentation(overlapping, SIZE, SIZE)).numpy().astype(bool)
    assert iou(mask, one_polygon(overlapping, SIZE, SIZE)[0]) == 1


def test_single_pixels_borders_and_empty_masks():
    for mask in (np.eye(SIZE, dtype=bool), np.ones((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), bool)):
        runs = encode(torch.from_numpy(mask))
        polygons = exact_polygons(runs, SIZE, SIZE)
        assert from_segmentation(polygons, SIZE, SIZE) == runs
        found, left, top = window(runs)
        assert (found.shape, left, top) == ((SIZE, SIZE), 0, 0) if mask.any() else not found.size
    assert one_polygon(runs, SIZE, SIZE) == ([], 0)


def test_noise_of_a_thousand_parts_takes_no_longer_than_their_corners():
    mask = np.random.default_rng(0).random((SIZE, SIZE)) < 0.2
    corners, joined = one_polygon(encode(torch.from_numpy(mask)), SIZE, SIZE)
    assert joined > 700
    assert len(corners) < 6 * mask.sum()
    assert iou(mask, corners) == 1
