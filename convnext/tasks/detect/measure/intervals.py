"""How far the choice of the images may move AP: 95 % intervals by a bootstrap over images.

The detections are matched to the objects once, at each IoU threshold as COCO's evaluation does it; each replicate then counts the
detections and the objects of an image as often as the image is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convnext.tasks.bootstrap import MIN_IMAGES, REPLICATES, Interval, middle
from convnext.tasks.detect.measure.evaluated import EvaluatedImage

_SEED = 0
_RECALLS = 101  # recall levels of COCO's AP: 0, 0.01, … 1
_ROUNDING = 1e-9  # of a recall that is one of these
_HELD = 4_000_000  # numbers in memory at a time
_RIGHT, _FALSE, _IGNORED = 1, 0, -1

Overlaps = Mapping[tuple[int, int], np.ndarray | list[object]]  # by image and class: IoU (detections, best first; objects), [] for none


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class in all images, best first, and its objects."""

    images: np.ndarray  # int64 (n,): the image of each detection
    outcomes: np.ndarray  # int8 (IoU thresholds, n): _RIGHT, _FALSE, or, in a crowd, _IGNORED
    objects: np.ndarray  # int64 (images,): how many there are in each image, without crowds

    def precisions(self, weights: np.ndarray) -> np.ndarray:
        """Return AP at each IoU threshold, 0 to 1, where each image counts as often as weights (replicates, images) say.

        The result is (replicates, IoU thresholds), not a number where a replicate has no objects.
        """
        drawn, objects = weights[:, self.images], weights @ self.objects
        counted, found = np.cumsum(drawn, 1), np.zeros((len(weights), len(self.outcomes)))
        for i, outcomes in enumerate(self.outcomes):
            right = np.flatnonzero(outcomes == _RIGHT)
            if len(right):
                ignored = outcomes == _IGNORED
                seen = (np.cumsum(drawn * ~ignored, 1) if ignored.any() else counted)[:, right]
                found[:, i] = _interpolated(np.cumsum(drawn[:, right], 1), seen, objects)
        found[objects == 0] = np.nan
        return found


def _interpolated(right: np.ndarray, seen: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return COCO's AP (replicates,): the mean over recall levels of the best precision at that recall or a higher one.

    Args:
        right, seen: (replicates, n): at each right detection, the right detections and all that count so far.
        objects: (replicates,)
    """
    precision = right / np.maximum(seen, 1)
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    reached = np.floor((_RECALLS - 1) * right / np.maximum(objects, 1)[:, None] + _ROUNDING) + 1  # levels, the first of which is 0
    return (best * np.diff(reached, axis=1, prepend=0)).sum(1) / _RECALLS


def matches(images: Sequence[EvaluatedImage], overlaps: Overlaps, ious: Sequence[float], classes: int, most: int) -> list[ClassMatches]:
    """Return the matches of each class.

    Args:
        images: all of the evaluation.
        overlaps: of boxes or of masks. For a crowd, the part of the detection in it.
        ious: the thresholds.
        classes: how many there are.
        most: detections of a class in an image that count.
    """
    scores: list[list[np.ndarray]] = [[] for _ in range(classes)]
    places: list[list[np.ndarray]] = [[] for _ in range(classes)]
    outcomes: list[list[np.ndarray]] = [[] for _ in range(classes)]
    objects = np.zeros((classes, len(images)), dtype=np.int64)
    for index, image in enumerate(images):
        truth, found = image.truth, image.found
        np.add.at(objects[:, index], truth.labels[~truth.crowds], 1)
        for label in np.unique(found.labels).tolist():
            own = found.scores[found.labels == label]
            ranked = np.sort(own)[::-1][:most]
            pair = np.asarray(overlaps[index, label], dtype=np.float64).reshape(len(ranked), -1)
            scores[label].append(ranked)
            places[label].append(np.full(len(ranked), index))
            outcomes[label].append(_matched(pair, truth.crowds[truth.labels == label], np.asarray(ious)))
    found_classes = []
    for label in range(classes):
        order = np.argsort(-np.concatenate([np.empty(0), *scores[label]]), kind="stable")
        kept = np.concatenate([np.empty((len(ious), 0), dtype=np.int8), *outcomes[label]], axis=1)[:, order]
        found_classes.append(ClassMatches(np.concatenate([np.empty(0, dtype=np.int64), *places[label]])[order], kept, objects[label]))
    return found_classes


def _matched(overlaps: np.ndarray, crowds: np.ndarray, ious: np.ndarray) -> np.ndarray:
    """Return the outcomes (IoU thresholds, detections) in one image of the detections of one class, best first."""
    outcomes = np.full((len(ious), len(overlaps)), _FALSE, dtype=np.int8)
    if not len(crowds):
        return outcomes
    single = np.flatnonzero(~crowds)[::-1]  # of equals COCO takes the last
    free = np.ones((len(ious), len(single)), dtype=bool)
    for row in np.flatnonzero((overlaps >= ious[0]).any(1)):
        fits = free & (overlaps[row, single] >= ious[:, None])
        is_right = fits.any(1)
        if is_right.any():
            best = np.where(fits, overlaps[row, single], -1).argmax(1)
            free[is_right, best[is_right]] = False
            outcomes[is_right, row] = _RIGHT
        if crowds.any():
            outcomes[~is_right & (overlaps[row, crowds].max() >= ious), row] = _IGNORED
    return outcomes


def ap_interval(found: Sequence[ClassMatches]) -> Interval | None:
    """Return the 95 % interval of AP, the mean over classes and IoU thresholds; None if fewer than 5 images have objects."""
    objects = np.stack([one.objects for one in found])
    images = objects.shape[1]
    if (objects.sum(0) > 0).sum() < MIN_IMAGES:
        return None
    weights = np.random.default_rng(_SEED).poisson(1.0, (REPLICATES, images)).astype(np.float64)
    at_once = max(1, _HELD // max(1, *(len(one.images) for one in found)))
    means = []
    for first in range(0, REPLICATES, at_once):
        part = weights[first : first + at_once]
        by_class = np.stack([one.precisions(part).mean(1) for one in found])
        is_defined = ~np.isnan(by_class)
        drawn = is_defined.any(0)  # whether a replicate holds any object
        means.append(np.where(is_defined, by_class, 0).sum(0)[drawn] / is_defined.sum(0)[drawn])
    low, high = middle(np.concatenate(means))
    return 100 * low, 100 * high
