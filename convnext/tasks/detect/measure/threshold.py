"""Precision, recall and F1 of detections over the score threshold, the threshold of the highest F1, and false alarms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from convnext.tasks.detect.measure.matching import Matched
from convnext.tasks.detect.prediction import SHOWN_SCORE

THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(5, 100))  # that detections exceed: from the lowest score that a detector gives


class ThresholdCurve(TypedDict):
    """Values in percent at each of `THRESHOLDS`, None where they are not defined."""

    precision: list[float | None]  # without detections it is not defined
    recall: list[float | None]  # without objects it is not defined
    f1: list[float | None]  # without objects it is not defined


class Scores(TypedDict):
    """Precision, recall and F1 in percent at one threshold, None where they are not defined."""

    precision: float | None
    recall: float | None
    f1: float | None


class FalseAlarms(TypedDict):
    """The detections in images without objects at one threshold."""

    threshold: float
    images: int  # with at least one detection
    percent: float  # of the images without objects
    per_image: float  # detections


@dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """Counts at each of `THRESHOLDS`."""

    right: np.ndarray  # int64 (classes, thresholds)
    false: np.ndarray  # int64 (classes, thresholds)
    objects: np.ndarray  # int64 (classes,)

    def in_all(self) -> "ThresholdCounts":
        """Return the counts of all classes together, as those of one class."""
        return ThresholdCounts(self.right.sum(0, keepdims=True), self.false.sum(0, keepdims=True), self.objects.sum(keepdims=True))

    def curve(self, label: int = 0) -> ThresholdCurve:
        """Return the curve of a class, rounded to a hundredth of a percent."""
        points = [self.at(index, label) for index in range(len(THRESHOLDS))]
        return {
            "precision": [_rounded(point["precision"]) for point in points],
            "recall": [_rounded(point["recall"]) for point in points],
            "f1": [_rounded(point["f1"]) for point in points],
        }

    def at(self, index: int, label: int = 0) -> Scores:
        """Return the scores of a class at the threshold of that index."""
        right, false, objects = int(self.right[label, index]), int(self.false[label, index]), int(self.objects[label])
        return {
            "precision": 100 * right / (right + false) if right + false else None,
            "recall": 100 * right / objects if objects else None,
            "f1": 200 * right / (right + false + objects) if objects else None,
        }

    def best(self, label: int = 0) -> int | None:
        """Return the index of the threshold of the highest F1 of a class, the middle one of several; None if no object is ever found."""
        if not self.right[label].any():
            return None
        f1 = 2 * self.right[label] / (self.right[label] + self.false[label] + self.objects[label])
        highest = np.flatnonzero(f1 == f1.max())
        return int(highest[len(highest) // 2])


def count(matched: Sequence[Matched], classes: int) -> ThresholdCounts:
    """Return the counts over all images."""
    objects = np.zeros(classes, dtype=np.int64)
    above = np.zeros((2, classes, len(THRESHOLDS) + 1), dtype=np.int64)  # false and right ones, by the number of thresholds they exceed
    for image in matched:
        truth = image.image.truth
        objects += np.bincount(truth.labels[~truth.crowds], minlength=classes)
        kept = image.is_counted
        exceeded = np.searchsorted(THRESHOLDS, image.scores[kept])
        np.add.at(above, (image.is_right[kept].astype(int), image.labels[kept], exceeded), 1)
    false, right = above[..., ::-1].cumsum(-1)[..., -2::-1]
    return ThresholdCounts(right, false, objects)


def false_alarms(matched: Sequence[Matched], best: float | None) -> tuple[int, list[FalseAlarms]]:
    """Return the number of images without any annotation, and their detections at the best threshold, if there is one, and at 0.5."""
    empty = [image.scores for image in matched if not len(image.image.truth.labels)]
    rows: list[FalseAlarms] = []
    for threshold in dict.fromkeys([*([] if best is None else [best]), SHOWN_SCORE] if empty else []):
        counts = [int((scores > threshold).sum()) for scores in empty]
        images = sum(number > 0 for number in counts)
        rows.append({"threshold": threshold, "images": images, "percent": 100 * images / len(empty), "per_image": sum(counts) / len(empty)})
    return len(empty), rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
