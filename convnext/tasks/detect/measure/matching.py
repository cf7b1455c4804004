"""Detections matched to annotated objects by their boxes, at an IoU of 0.5.

Within a class, detections choose in the order of their scores, each the object that it overlaps most and that none before it has
chosen, as in COCO's evaluation. Which detections are right therefore does not depend on the score threshold. A detection that only
overlaps a crowd of its class counts neither as right nor as false.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convnext.tasks.detect.measure.evaluated import EvaluatedImage, corners_and_sides

IOU = 0.5
_FALSE, _IGNORED = -1, -2


@dataclass(frozen=True, eq=False)
class Matched:
    """The detections in an image, best first, each with the object of its class that it found."""

    image: EvaluatedImage
    order: np.ndarray  # int64 (n,), positions in `image.found`
    partners: np.ndarray  # int64 (n,), position in `image.truth`, or _FALSE or _IGNORED

    @property
    def scores(self) -> np.ndarray:
        """The scores, (n,), in descending order."""
        return self.image.found.scores[self.order]

    @property
    def labels(self) -> np.ndarray:
        """The classes, (n,)."""
        return self.image.found.labels[self.order]

    @property
    def is_counted(self) -> np.ndarray:
        """Which detections are right or false, bool (n,)."""
        return self.partners != _IGNORED

    @property
    def is_right(self) -> np.ndarray:
        """Which detections found an object of their class, bool (n,)."""
        return self.partners >= 0


@dataclass(frozen=True, eq=False)
class Errors:
    """What is right and wrong in an image at a score threshold."""

    kept: np.ndarray  # int64 (k,): positions in `image.found` of the detections above the threshold, best first
    of_kept: list[str]  # k: "right", "false", "confused" or "ignored"
    of_truth: list[str]  # m, of the annotated objects: "right", "missed", "confused" or "ignored"
    confused: list[tuple[int, int]]  # of each object that was found as another class: its class, and that of the detection

    def count(self, kind: str) -> int:
        """Return how many objects are "missed", or detections "false" or "confused"."""
        return (self.of_truth if kind == "missed" else self.of_kept).count(kind)

    def total(self) -> int:
        """Return the number of errors; an object that was found as another class is one."""
        return sum(self.count(kind) for kind in ("missed", "false", "confused"))


def match(image: EvaluatedImage) -> Matched:
    """Return the detections in an image with the objects of their class that they found."""
    truth, found = image.truth, image.found
    order = np.argsort(-found.scores, kind="stable")
    partners = np.full(len(order), _FALSE)
    overlaps = _overlaps(image, order)
    near = (overlaps >= IOU) & (found.labels[order][:, None] == truth.labels)
    free = ~truth.crowds
    for row in np.flatnonzero(near.any(1)):
        candidates = np.flatnonzero(near[row] & free)
        if len(candidates):
            best = overlaps[row, candidates]
            partners[row] = candidates[np.flatnonzero(best == best.max())[-1]]  # of equals COCO takes the last
            free[partners[row]] = False
        elif (near[row] & truth.crowds).any():
            partners[row] = _IGNORED
    return Matched(image, order, partners)


def errors(matched: Matched, threshold: float) -> Errors:
    """Return what is right and wrong at a score threshold, which detections exceed.

    Detections that found no object of their class choose, in the order of their scores, among the objects that no detection of
    their class found.
    """
    truth = matched.image.truth
    count = int((matched.scores > threshold).sum())
    partners, labels = matched.partners[:count], matched.labels[:count]
    of_truth = ["ignored" if crowd else "missed" for crowd in truth.crowds]
    for partner in partners[partners >= 0].tolist():
        of_truth[partner] = "right"
    of_kept = ["right" if partner >= 0 else "ignored" if partner == _IGNORED else "false" for partner in partners.tolist()]
    confused = []
    free = np.array([kind == "missed" for kind in of_truth], dtype=bool)
    overlaps = _overlaps(matched.image, matched.order[:count])
    for row in np.flatnonzero(partners == _FALSE).tolist():
        candidates = np.flatnonzero((overlaps[row] >= IOU) & free)
        if len(candidates):
            best = int(candidates[overlaps[row, candidates].argmax()])
            free[best] = False
            of_kept[row] = of_truth[best] = "confused"
            confused.append((int(truth.labels[best]), int(labels[row])))
    return Errors(matched.order[:count], of_kept, of_truth, confused)


def confusion(matched: Sequence[Matched], found: Sequence[Errors], classes: int) -> list[list[int]]:
    """Return counts of objects by [true][detected] class; background is the last: detected there are missed objects, true false ones.

    Args:
        matched: the images.
        found: their errors.
        classes: how many there are; the matrix has one row and column more.
    """
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for image, one in zip(matched, found, strict=True):
        truth, labels = image.image.truth.labels, image.image.found.labels[one.kept]
        for kind, label in zip(one.of_truth, truth.tolist(), strict=True):
            counts[label, label] += kind == "right"
            counts[label, classes] += kind == "missed"
        for kind, label in zip(one.of_kept, labels.tolist(), strict=True):
            counts[classes, label] += kind == "false"
        for true, label in one.confused:
            counts[true, label] += 1
    rows: list[list[int]] = counts.tolist()
    return rows


def _overlaps(image: EvaluatedImage, order: np.ndarray) -> np.ndarray:
    """Return the IoU (n, m) of the boxes of detections, in that order, with each object; of a crowd, the part of the detection in it."""
    from faster_coco_eval import mask

    truth = image.truth
    if not len(order) or not len(truth.boxes):
        return np.zeros((len(order), len(truth.boxes)))
    boxes = corners_and_sides(image.found.boxes[order])
    return np.asarray(mask.iou(boxes, corners_and_sides(truth.boxes), truth.crowds.astype(int).tolist()))
