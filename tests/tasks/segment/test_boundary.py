"""Boundary IoU against erosion class by class, intervals against a bootstrap by plain loops, and the worst images."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from convnext.tasks.segment.boundary import BoundaryCounts, near_contours
from convnext.tasks.segment.intervals import REPLICATES, IouIntervals
from convnext.tasks.segment.metric import KEPT_WORST, PixelCounts, SegmentMetric
from convnext.tasks.segment.report import sections, summary, summary_line


def drawn(rng, classes, size=(61, 47)):
    """A mask of large and small regions, and a prediction that misses it by a few pixels."""
    cells = Image.fromarray(rng.integers(0, classes, (4, 3)).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    mask = np.array(cells)
    mask[tuple(rng.integers(0, 40, 2))] = 0  # a region of one pixel
    return mask, np.roll(mask, rng.integers(-3, 4, 2), (0, 1))


def boundary(region, reach):
    """The pixels that erosion by a square removes, with nothing outside of the image; by Pillow's minimum filter."""
    padded = np.pad(region.astype(np.uint8) * 255, reach)
    eroded = np.asarray(Image.fromarray(padded).filter(ImageFilter.MinFilter(2 * reach + 1)))[reach:-reach, reach:-reach] > 0
    return region & ~eroded


def test_boundary_iou_is_that_of_eroded_regions():
    rng = np.random.default_rng(0)
    counts, shared, union = BoundaryCounts(6), np.zeros(6), np.zeros(6)
    for size in ((61, 47), (200, 50), (30, 30)):
        mask, predicted = drawn(rng, 5, size)
        mask[5:9, 10:20] = 255
        reach = max(1, round(0.02 * np.hypot(*size)))
        counts.update(torch.from_numpy(predicted.astype(np.int32)), torch.from_numpy(mask))
        predicted = np.where(mask == 255, 255, predicted)
        for label in range(6):
            true, found = (boundary(labels == label, reach) for labels in (mask, predicted))
            shared[label] += (true & found).sum()
            union[label] += (true | found).sum()
    assert union[4] > 0 == union[5]
    assert counts.by_class()[:5].tolist() == pytest.approx((shared[:5] / union[:5]).tolist())
    assert counts.by_class()[5].isnan()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (2, 2), (400, 2)])
def test_thin_images_are_all_boundary(size):
    assert near_contours(np.zeros(size, np.uint8)).all()


def counted(masks, predictions, classes):
    """Intersections and unions (images, classes)."""
    confusions = [PixelCounts(classes).update(p[None], m[None]).numpy() for m, p in zip(masks, predictions, strict=True)]
    shared = np.array([one.diagonal() for one in confusions])
    return shared, np.array([one.sum(0) + one.sum(1) for one in confusions]) - shared


def test_intervals_are_those_of_a_bootstrap():
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 100, (60, 4)) * (rng.random((60, 4)) < 0.5)
    union = shared + rng.integers(0, 60, (60, 4)) * (shared > 0)
    shared[:, 2:], union[:, 2:] = 0, 0
    shared[3:6, 2], union[3:6, 2] = 5, 9  # a class in three images, and one in none
    found = IouIntervals(4)
    for index in rng.permutation(60):
        found.update(int(index), shared[index], union[index])
    drawn = [rng.integers(0, 60, 60) for _ in range(4000)]  # of the usual bootstrap: as many images, with replacement
    replicates = np.array([100 * shared[draw, :2].sum(0) / union[draw, :2].sum(0) for draw in drawn])
    wanted = np.percentile(replicates, (2.5, 97.5), axis=0).T
    spread = wanted[:, 1] - wanted[:, 0]
    for interval, ends, width in zip(found.by_class()[:2], wanted, spread, strict=True):
        assert interval == pytest.approx(tuple(ends), abs=0.15 * width)
    assert found.by_class()[2:] == [None, None]
    low, high = found.of_mean()
    assert low < 100 * (shared[:, :3].sum(0) / union[:, :3].sum(0)).mean() < high
    assert found.sums.shape == (4, 2, REPLICATES)


def test_few_images_have_no_interval():
    found = IouIntervals(2)
    for index in range(4):
        found.update(index, np.array([5, 0]), np.array([9, 0]))
    assert (found.of_mean(), found.by_class()) == (None, [None, None])
    found.update(4, np.array([5, 0]), np.array([9, 0]))
    assert found.by_class() == [pytest.approx((500 / 9, 500 / 9)), None]


class Masks:
    """A source of masks, as a metric and its report take it."""

    classes = ["ground", "leaf", "stone"]  # noqa: RUF012

    def __init__(self, masks):
        self.masks = masks

    def name(self, index):
        return f"{index}.png"

    def read(self, index):
        return Image.new("RGB", self.masks[index].shape[::-1])

    def mask(self, index):
        return torch.from_numpy(self.masks[index])


def measured(source, predictions, parts):
    """A metric over some parts of a source, each measured by another process."""
    metrics = []
    for indices in parts:
        metric = SegmentMetric(3, source)
        for i in indices:
            metric.update([torch.from_numpy(predictions[i])], SimpleNamespace(masks=[source.mask(i)], indices=[i]))
        metrics.append(metric)
    main, *others = metrics
    for other in others:
        main.merge(pickle.loads(pickle.dumps(other)))
    return main


def test_the_worst_images_are_named_and_processes_together_find_the_same():
    rng = np.random.default_rng(2)
    pairs = [drawn(rng, 3) for _ in range(12)]
    source, predictions = Masks([mask for mask, _ in pairs]), [predicted for _, predicted in pairs]
    alone, together = (measured(source, predictions, parts) for parts in ([range(12)], [range(1, 12, 2), range(0, 12, 2)]))
    metrics, details = alone.compute(), alone.details()
    assert (together.compute(), together.details()) == (metrics, details)
    assert metrics["miou_low"] < metrics["miou"] < metrics["miou_high"]
    assert metrics["boundary_miou"] == pytest.approx(np.mean(details["boundary_iou"]))
    assert metrics["boundary_miou"] < metrics["miou"]
    shared, union = counted([source.mask(i) for i in range(12)], [torch.from_numpy(p) for p in predictions], 3)
    mious = [100 * (hits[both > 0] / both[both > 0]).mean() for hits, both in zip(shared, union, strict=True)]
    wrong = [i for i in np.argsort(mious, kind="stable").tolist() if mious[i] < 100][:KEPT_WORST]
    assert [(one["index"], one["image"]) for one in details["worst"]] == [(i, f"{i}.png") for i in wrong]
    json.dumps(details, allow_nan=False)
    text = summary(metrics, details, source.classes)
    assert f"miou {metrics['miou']:.4g} (95 % interval {metrics['miou_low']:.4g} to {metrics['miou_high']:.4g})" in text
    low, high = details["iou_interval"][1]
    assert f"{low:.1f} to {high:.1f}" in text
    html = "".join(section.title + section.body for section in sections(details, source.classes, source))
    assert all(part in html for part in ("Worst images", f"{wrong[0]}.png: mIoU {mious[wrong[0]]:.1f} %", "boundary IoU", "precision"))


def test_images_without_a_labelled_pixel_are_reported():
    source = Masks([np.full((4, 4), 255, np.uint8)])
    metric = measured(source, [np.zeros((4, 4), np.uint8)], [[0]])
    assert metric.compute() == {"count": 1}
    assert summary_line(metric.compute()) == "no mIoU without a labelled pixel (1 image)"
    assert json.loads(json.dumps(metric.details(), allow_nan=False))["boundary_iou"] == [None] * 3
    assert summary(metric.compute(), metric.details(), source.classes)
