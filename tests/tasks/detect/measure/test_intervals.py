"""Intervals of AP: replicates against COCO's evaluation of the same images drawn so often, and their cost in images and classes."""

import numpy as np
import pytest
import torch

from convnext.tasks.detect.measure.average_precision import AveragePrecision

CLASSES = ("ant", "bee", "wasp")


def random_image(index, rng):
    """Objects of three classes, a crowd in some images, and detections that overlap them well, badly or not at all."""
    count = int(rng.integers(0, 8))
    corners = rng.integers(0, 30, (count, 2))
    boxes = np.hstack([corners, corners + rng.integers(6, 18, (count, 2))]).astype(np.float32)
    labels, crowds = rng.integers(0, 3, count), rng.random(count) < 0.1
    again = rng.integers(0, max(count, 1), 3 * count)
    found = boxes[again] + rng.normal(0, 1, (3 * count, 4)).astype(np.float32)
    found = np.hstack([np.minimum(found[:, :2], found[:, 2:] - 1), found[:, 2:]])
    of_found = np.where(rng.random(3 * count) < 0.8, labels[again], rng.integers(0, 3, 3 * count))
    target = {"boxes": boxes, "labels": labels, "area": np.prod(boxes[:, 2:] - boxes[:, :2], 1), "iscrowd": crowds, "image_id": index}
    prediction = {"boxes": found, "labels": of_found, "scores": rng.random(3 * count).round(2)}
    return ({key: torch.as_tensor(value) for key, value in one.items()} | {"masks": drawn(one["boxes"])} for one in (prediction, target))


def drawn(boxes):
    masks = torch.zeros(len(boxes), 50, 50, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.clip(0).astype(int), strict=True):
        mask[top:bottom, left:right] = 1
    return masks


@pytest.fixture(scope="module")
def measured():
    rng, metric = np.random.default_rng(0), AveragePrecision(CLASSES, with_masks=True)
    images = [tuple(random_image(index, rng)) for index in range(30)]
    for prediction, target in images:
        metric.update([prediction], [target])
    return images, metric


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_a_replicate_is_cocos_evaluation_of_the_images_it_draws(measured, kind):
    images, metric = measured
    weights = np.random.default_rng(1).poisson(1.0, (2, 30))
    for row in (np.ones(30, dtype=int), *weights):
        again = AveragePrecision(CLASSES, with_masks=True)
        for copy, index in enumerate(np.repeat(np.arange(30), row)):
            prediction, target = images[index]
            again.update([prediction], [target | {"image_id": torch.tensor(copy)}])
        wanted = [one[f"{kind}_ap"] for one in again.by_class()]
        found = [100 * one.precisions(row[None].astype(float)).mean() for one in metric.matches(kind)]
        assert found == pytest.approx(wanted, abs=0.2)  # COCO's recall levels are rounded: 0.07 is a little more than 7 of 100
        assert np.abs(np.subtract(found, wanted)).min() < 1e-9


def test_the_interval_holds_ap_narrows_with_images_and_is_always_the_same(measured):
    images, metric = measured
    found = metric.compute()
    assert found["box_ap_low"] < found["box_ap"] < found["box_ap_high"]
    assert found["mask_ap_low"] < found["mask_ap"] < found["mask_ap_high"]
    again = AveragePrecision(CLASSES, with_masks=False)
    for copy in range(8):
        for prediction, target in images:
            again.update([prediction], [target | {"image_id": target["image_id"] + 30 * copy}])
    many = again.compute()
    widths = [one["box_ap_high"] - one["box_ap_low"] for one in (found, many)]
    assert widths[0] / widths[1] == pytest.approx(8**0.5, rel=0.2)
    backwards = AveragePrecision(CLASSES, with_masks=True)
    for prediction, target in images[::-1]:
        backwards.update([prediction], [target])
    assert backwards.compute() == found


def test_few_images_have_no_interval():
    metric = AveragePrecision(CLASSES, with_masks=False)
    rng = np.random.default_rng(0)
    for index in range(4):
        prediction, target = random_image(index, rng)
        metric.update([prediction], [target])
    assert "box_ap" in metric.compute()
    assert "box_ap_low" not in metric.compute()
