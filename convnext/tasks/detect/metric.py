"""What an evaluation of a detector measures: average precision, errors at the best score threshold, and the images with most of them."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict, cast

from convnext.data.run_lengths import RunLengths
from convnext.data.sources.base import DetectSource
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.detect.batch import DetectBatch
from convnext.tasks.detect.measure.average_precision import AveragePrecision
from convnext.tasks.detect.measure.evaluated import masks_of
from convnext.tasks.detect.measure.matching import IOU, Errors, Matched, confusion, errors, match
from convnext.tasks.detect.measure.threshold import THRESHOLDS, FalseAlarms, Scores, ThresholdCounts, ThresholdCurve, count, false_alarms
from convnext.tasks.detect.prediction import SHOWN_SCORE, Detections
from convnext.text import printable

KEPT_IMAGES = 8  # whose detections a report shows
KEPT_WORST = 8  # images with errors, of which a report shows these


class ShownDetections(TypedDict):
    """The detections in one image that a report shows, as plain values."""

    index: int  # of the image in the source
    boxes: list[list[float]]
    labels: list[int]
    scores: list[float]
    masks: NotRequired[list[RunLengths]]


class WorstDetections(ShownDetections):
    """The detections above the best threshold in an image with errors."""

    image: str  # its name
    missed: int
    false: int
    confused: int  # objects that were found as another class
    kinds: list[str]  # of each detection: "right", "false", "confused", or "ignored", in a crowd
    truth_kinds: list[str]  # of each annotated object: "right", "missed", "confused", or "ignored", a crowd


class AtThreshold(Scores):
    """The detections above one score threshold, all classes together."""

    threshold: float
    iou: float  # of boxes, from which on a detection may be right
    is_best: bool  # whether the threshold is that of the highest F1; else no object was found at any


class EmptyImages(TypedDict):
    """The images without any annotation."""

    images: int
    at: list[FalseAlarms]


class Curves(TypedDict):
    """Precision, recall and F1 over the score threshold."""

    thresholds: list[float]
    all: ThresholdCurve  # all classes together
    by_class: list[ThresholdCurve]


class DetectDetails(TypedDict):
    """What the report of a detector draws."""

    classes: list[Json]  # see `AveragePrecision.by_class`, and `DetectMetric.details`
    by_area: list[Json]
    by_iou: list[Json]
    max_detections: int  # of an image that count
    at_threshold: AtThreshold
    curves: Curves
    confusion: list[list[int]]  # objects [true][detected] at `at_threshold`, background last; see `matching.confusion`
    empty_images: EmptyImages
    worst: list[WorstDetections]  # those with the most errors at `at_threshold` first
    shown: list[ShownDetections]


class DetectMetric(Metric[DetectBatch, Detections]):
    """Average precision and errors over an evaluation, and the detections in its first images, to be shown."""

    def __init__(self, source: DetectSource) -> None:
        self.source: DetectSource | None = source
        self.precision = AveragePrecision(source.classes, source.has_masks)
        self.shown: dict[int, ShownDetections] = {}
        self.indices: dict[int, int] = {}  # in the source, by image_id
        self.category_ids = source.category_ids
        self._matched: list[Matched] | None = None  # the images in the order of their ids

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"source": None, "_matched": None}  # each process has its own source

    def update(self, outputs: Sequence[Detections], batch: DetectBatch) -> None:
        """Add the detections in each image of a batch."""
        if self.precision.with_masks and any("masks" not in found for found in outputs):
            self.precision = AveragePrecision(self.precision.classes, with_masks=False)  # as it is from the first batch on
        self.precision.update(outputs, batch.targets)
        self._matched = None
        for found, target, index in zip(outputs, batch.targets, batch.indices, strict=True):
            self.indices[int(target["image_id"])] = index
            if index < KEPT_IMAGES:
                self.shown[index] = _plain(index, found)

    def merge(self, other: "DetectMetric") -> None:
        """Add what another process measured on other samples."""
        self.precision.merge(other.precision)
        self.shown |= other.shown
        self.indices |= other.indices
        self._matched = None

    def compute(self) -> Metrics:
        """Return the metrics of `AveragePrecision.compute`, and those of errors.

        `best_threshold` is the score threshold of the highest F1 of all classes together, and `box_precision`, `box_recall` and
        `box_f1`, in percent, are those of the detections that exceed it, at an IoU of 0.5. `false_alarms` is the percentage of the
        images without objects in which something exceeds it (without a best threshold, 0.5). None is given where it is not defined.
        """
        metrics, counts = self.precision.compute(), self._counts()
        best = counts.in_all().best()
        if best is not None:
            metrics |= {f"box_{name}": value for name, value in counts.in_all().at(best).items() if isinstance(value, float)}
            metrics["best_threshold"] = THRESHOLDS[best]
        if alarms := false_alarms(self._matches(), None if best is None else THRESHOLDS[best])[1]:
            metrics["false_alarms"] = alarms[0]["percent"]
        return metrics

    def results(self) -> list[Json]:
        """Return all detections as COCO's results, with the data's ids. Detections of a class that the data lack are skipped."""
        ids = self.category_ids or {name: i for i, name in enumerate(self.precision.classes, 1)}
        return self.precision.results([ids.get(name) for name in self.precision.classes])

    def details(self) -> Json:
        """Return the `DetectDetails` as plain values.

        To the rows of `AveragePrecision.by_class` it adds `precision`, `recall` and `f1` at the best threshold of all classes
        together, in percent, and `best_threshold` and `best_f1` of the class alone.
        """
        counts, matched = self._counts(), self._matches()
        best = counts.in_all().best()
        threshold = SHOWN_SCORE if best is None else THRESHOLDS[best]
        found = [errors(image, threshold) for image in matched]
        images, alarms = false_alarms(matched, None if best is None else threshold)
        details: DetectDetails = {
            "classes": self._by_class(counts, THRESHOLDS.index(threshold)),
            "by_area": self.precision.by_area(),
            "by_iou": self.precision.by_iou(),
            "max_detections": self.precision.max_detections(),
            "at_threshold": {
                **counts.in_all().at(THRESHOLDS.index(threshold)),
                "threshold": threshold,
                "iou": IOU,
                "is_best": best is not None,
            },
            "curves": {
                "thresholds": list(THRESHOLDS),
                "all": counts.in_all().curve(),
                "by_class": [counts.curve(label) for label in range(len(self.precision.classes))],
            },
            "confusion": confusion(matched, found, len(self.precision.classes)),
            "empty_images": {"images": images, "at": alarms},
            "worst": self._worst(matched, found),
            "shown": [self.shown[index] for index in sorted(self.shown)],
        }
        return cast(Json, details)

    def _matches(self) -> list[Matched]:
        if self._matched is None:
            self._matched = [match(image) for image in self.precision.in_order()]
        return self._matched

    def _counts(self) -> ThresholdCounts:
        return count(self._matches(), len(self.precision.classes))

    def _by_class(self, counts: ThresholdCounts, index: int) -> list[Json]:
        rows = self.precision.by_class()
        for label, row in enumerate(rows):
            own = counts.best(label)
            row |= counts.at(index, label)
            row |= {
                "best_threshold": None if own is None else THRESHOLDS[own],
                "best_f1": None if own is None else counts.at(own, label)["f1"],
            }
        return rows

    def _worst(self, matched: Sequence[Matched], found: Sequence[Errors]) -> list[WorstDetections]:
        """Return the images with the most errors; of equally many, the first in the source."""
        if self.source is None:
            return []
        indices = [self.indices[key] for key in sorted(self.precision.images)]
        order = sorted(range(len(found)), key=lambda i: (-found[i].total(), indices[i]))
        rows: list[WorstDetections] = []
        for i in order[:KEPT_WORST]:
            one, objects = found[i], matched[i].image.found
            if one.total():
                rows.append(
                    {
                        "index": indices[i],
                        "image": printable(self.source.name(indices[i])),
                        "missed": one.count("missed"),
                        "false": one.count("false"),
                        "confused": one.count("confused"),
                        "boxes": objects.boxes[one.kept].tolist(),
                        "labels": objects.labels[one.kept].tolist(),
                        "scores": objects.scores[one.kept].tolist(),
                        "kinds": one.of_kept,
                        "truth_kinds": one.of_truth,
                    }
                )
        return rows


def _plain(index: int, found: Detections) -> ShownDetections:
    sure = found["scores"] >= SHOWN_SCORE
    boxes, labels, scores = (values[sure].tolist() for values in (found["boxes"], found["labels"], found["scores"]))
    shown: ShownDetections = {"index": index, "boxes": boxes, "labels": labels, "scores": scores}
    if "masks" in found:
        shown["masks"] = [mask for mask, is_sure in zip(masks_of(found["masks"]), sure.tolist(), strict=True) if is_sure]
    return shown
