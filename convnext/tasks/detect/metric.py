"""What an evaluation of a detector measures: COCO's average precision of boxes and masks.

It is computed by faster-coco-eval as pycocotools computes it. Source: Lin et al., *Microsoft COCO: Common Objects in Context* (2014),
https://cocodataset.org/#detection-eval.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from convnext.data.run_lengths import RunLengths
from convnext.data.sources.base import DetectSource
from convnext.errors import ConvnextError
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.detect.batch import DetectBatch, DetectTarget
from convnext.tasks.detect.prediction import SHOWN_SCORE, Detections

KEPT_IMAGES = 8  # whose detections a report shows
_AREAS = ("all", "small", "medium", "large")  # up to 32² pixels, up to 96², and beyond


@dataclass(frozen=True, eq=False)
class _Objects:
    """The objects of an image, annotated or detected, as NumPy arrays; masks as run lengths, a thousandth of their pixels."""

    boxes: np.ndarray  # (n, 4): left, top, right, bottom
    labels: np.ndarray
    masks: list[RunLengths] | None
    scores: np.ndarray | None = None  # of detections
    areas: np.ndarray | None = None  # of annotations
    crowds: np.ndarray | None = None  # of annotations


@dataclass(frozen=True, eq=False)
class _Image:
    truth: _Objects
    found: _Objects


class _Entry(TypedDict):
    """An object as COCO's annotations and results have it."""

    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    id: int
    score: NotRequired[float]
    segmentation: NotRequired[RunLengths]


class ShownDetections(TypedDict):
    """The detections in one image that a report shows, as plain values."""

    index: int  # of the image in the source
    boxes: list[list[float]]
    labels: list[int]
    scores: list[float]
    masks: NotRequired[list[RunLengths]]


class DetectDetails(TypedDict):
    """What the report of a detector draws."""

    classes: list[Json]  # see `AveragePrecision.by_class`
    shown: list[ShownDetections]


class AveragePrecision:
    """Average precision over a whole evaluation: every image once, in any order.

    Args:
        classes: their names, in the order of the labels.
        with_masks: whether masks are measured beside boxes.
    """

    def __init__(self, classes: Sequence[str], with_masks: bool) -> None:
        self.classes, self.with_masks = list(classes), with_masks
        self.images: dict[int, _Image] = {}  # by image_id
        self._kinds = {"box": "bbox"} | ({"mask": "segm"} if with_masks else {})
        self._precision: dict[str, np.ndarray] | None = None

    def update(self, predictions: Iterable[Detections], targets: Iterable[DetectTarget]) -> None:
        """Add a batch, a prediction and a target for each image, both in the pixels of the image as annotated."""
        for prediction, target in zip(predictions, targets, strict=True):
            self.images[int(target["image_id"])] = _Image(
                truth=_Objects(
                    _array(target["boxes"]),
                    _array(target["labels"]),
                    _run_lengths(target["masks"]) if self.with_masks else None,
                    areas=_array(target["area"]),
                    crowds=_array(target["iscrowd"]),
                ),
                found=_Objects(
                    _array(prediction["boxes"]),
                    _array(prediction["labels"]),
                    _run_lengths(prediction["masks"]) if self.with_masks else None,
                    scores=_array(prediction["scores"]),
                ),
            )
        self._precision = None

    def merge(self, other: "AveragePrecision") -> None:
        """Add the images of another process."""
        self.images |= other.images
        self._precision = None

    def compute(self) -> Metrics:
        """Return `box_ap`, `box_ap50`, `box_ap75`, with masks `mask_ap`, … likewise, all in percent, and the `count` of images.

        `box_ap_small`, `box_ap_medium` and `box_ap_large` are given where there are objects of that size, the others where there are
        objects at all: without any, AP is not defined.
        """
        metrics: Metrics = {"count": len(self.images)}
        for kind, precision in self._precisions().items():
            everything = precision[..., 0]
            parts = {"": everything, "50": everything[:1], "75": everything[5:6]}
            parts |= {f"_{area}": precision[..., i] for i, area in enumerate(_AREAS) if i}
            metrics |= {f"{kind}_ap{suffix}": ap for suffix, part in parts.items() if (ap := _mean(part)) is not None}
        return metrics

    def results(self, category_ids: Sequence[int | None]) -> list[Json]:
        """Return all detections as COCO's results (https://cocodataset.org/#format-results).

        Numbers are not rounded: they give the same AP again.

        Args:
            category_ids: of each class. Detections of a class without one are skipped.
        """
        rows: list[Json] = []
        for image_id in sorted(self.images):
            for one in _entries(image_id, self.images[image_id].found, "segm" if self.with_masks else "bbox"):
                if (category := category_ids[one["category_id"]]) is not None:
                    kept = {key: value for key, value in one.items() if key in ("image_id", "bbox", "score", "segmentation")}
                    rows.append(kept | {"category_id": category})
        return rows

    def by_class(self) -> list[Json]:
        """Return for each class its name (`class`), its `objects` (crowds not counted), `box_ap` and, with masks, `mask_ap` in percent.

        Classes are in the order of the labels. AP is None for a class without objects.
        """
        labels = [image.truth.labels[~image.truth.crowds] for image in self.images.values() if image.truth.crowds is not None]
        counts = np.bincount(np.concatenate([np.empty(0, dtype=np.int64), *labels]), minlength=len(self.classes))
        rows: list[Json] = [{"class": name, "objects": int(count)} for name, count in zip(self.classes, counts, strict=True)]
        for kind, precision in self._precisions().items():
            for label, row in enumerate(rows):
                row[f"{kind}_ap"] = _mean(precision[:, :, label, 0])
        return rows

    def _precisions(self) -> dict[str, np.ndarray]:
        """Return COCO's table of precisions (IoU thresholds, recalls, classes, areas) of boxes and masks, -1 where it is not defined."""
        if self._precision is None:
            self._precision = {name: self._evaluate(kind) for name, kind in self._kinds.items()}
        return self._precision

    def _evaluate(self, kind: str) -> np.ndarray:
        from faster_coco_eval import COCO, COCOeval_faster

        # In the order of ids, so that equal scores rank the same however many processes measured.
        images = [self.images[key] for key in sorted(self.images)]
        truth = [entry for i, image in enumerate(images) for entry in _entries(i, image.truth, kind)]
        found = [entry for i, image in enumerate(images) for entry in _entries(i, image.found, kind)]
        frame = {
            "images": [{"id": i, "height": 0, "width": 0} for i in range(len(images))],  # run lengths know their size
            "categories": [{"id": label} for label in range(len(self.classes))],
        }
        evaluation = COCOeval_faster(COCO(frame | {"annotations": _numbered(truth)}), COCO(frame | {"annotations": _numbered(found)}), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        precision: np.ndarray = evaluation.eval["precision"][..., -1]  # at most 100 objects an image
        return precision


class DetectMetric(Metric[DetectBatch, Detections]):
    """Average precision over an evaluation, and the detections in its first images, to be shown."""

    def __init__(self, source: DetectSource) -> None:
        self.precision = AveragePrecision(source.classes, source.has_masks)
        self.shown: dict[int, ShownDetections] = {}
        self.category_ids = source.category_ids

    def update(self, outputs: Sequence[Detections], batch: DetectBatch) -> None:
        """Add the detections in each image of a batch."""
        if self.precision.with_masks and any("masks" not in found for found in outputs):
            self.precision = AveragePrecision(self.precision.classes, with_masks=False)  # as it is from the first batch on
        self.precision.update(outputs, batch.targets)
        for found, index in zip(outputs, batch.indices, strict=True):
            if index < KEPT_IMAGES:
                self.shown[index] = _plain(index, found)

    def merge(self, other: "DetectMetric") -> None:
        """Add what another process measured on other samples."""
        self.precision.merge(other.precision)
        self.shown |= other.shown

    def compute(self) -> Metrics:
        """Return the metrics of `AveragePrecision.compute`. Raises ConvnextError if there is no object: AP is not defined then."""
        metrics = self.precision.compute()
        if "box_ap" not in metrics:
            raise ConvnextError(
                f"the {metrics['count']} images to evaluate on hold no object, so that average precision is not defined: "
                "evaluate on images with annotated objects"
            )
        return metrics

    def results(self) -> list[Json]:
        """Return all detections as COCO's results, with the data's ids. Detections of a class that the data lack are skipped."""
        ids = self.category_ids or {name: i for i, name in enumerate(self.precision.classes, 1)}
        return self.precision.results([ids.get(name) for name in self.precision.classes])

    def details(self) -> Json:
        """Return the `DetectDetails` as plain values."""
        return {"classes": self.precision.by_class(), "shown": [self.shown[index] for index in sorted(self.shown)]}


def _array(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return values.double().numpy() if values.is_floating_point() else values.numpy()  # NumPy has no bfloat16


def _run_lengths(masks: Tensor | Sequence[RunLengths]) -> list[RunLengths]:
    from faster_coco_eval import mask

    if not isinstance(masks, Tensor):
        return list(masks)
    pixels = masks.detach().cpu().view(torch.uint8) if masks.dtype == torch.bool else masks.detach().cpu()
    return [mask.encode(np.asfortranarray(one)) for one in pixels.reshape(-1, *masks.shape[-2:]).numpy()]


def _entries(image_id: int, objects: _Objects, kind: str) -> list[_Entry]:
    """Return objects as COCO's annotations or results, not yet numbered."""
    boxes = np.hstack([objects.boxes[:, :2], objects.boxes[:, 2:] - objects.boxes[:, :2]])
    crowds = np.zeros(len(boxes), dtype=bool) if objects.crowds is None else objects.crowds
    areas = _measured_areas(boxes, objects.masks, kind) if objects.areas is None else objects.areas
    entries: list[_Entry] = [
        {"image_id": image_id, "category_id": int(label), "bbox": box, "area": float(area), "iscrowd": int(crowd), "id": 0}
        for label, box, area, crowd in zip(objects.labels, boxes.tolist(), areas, crowds, strict=True)
    ]
    for i, entry in enumerate(entries):
        if objects.scores is not None:
            entry["score"] = float(objects.scores[i])
        if kind == "segm" and objects.masks is not None:
            entry["segmentation"] = objects.masks[i]
    return entries


def _measured_areas(boxes: np.ndarray, masks: list[RunLengths] | None, kind: str) -> Sequence[float] | np.ndarray:
    # A detection counts as small by what is measured: its mask, or else its box.
    from faster_coco_eval import mask

    return [mask.area(runs) for runs in masks] if kind == "segm" and masks is not None else boxes[:, 2] * boxes[:, 3]


def _numbered(entries: list[_Entry]) -> list[_Entry]:
    return [{**entry, "id": i + 1} for i, entry in enumerate(entries)]  # an id of 0 would mean "unmatched"


def _mean(precision: np.ndarray) -> float | None:
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if len(defined) else None


def _plain(index: int, found: Detections) -> ShownDetections:
    sure = found["scores"] >= SHOWN_SCORE
    boxes, labels, scores = (values[sure].tolist() for values in (found["boxes"], found["labels"], found["scores"]))
    shown: ShownDetections = {"index": index, "boxes": boxes, "labels": labels, "scores": scores}
    if "masks" in found:
        shown["masks"] = [mask for mask, is_sure in zip(_run_lengths(found["masks"]), sure.tolist(), strict=True) if is_sure]
    return shown
