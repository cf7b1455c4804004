"""COCO's average precision and average recall of boxes and masks.

They are computed by faster-coco-eval as pycocotools computes them. Source: Lin et al., *Microsoft COCO: Common Objects in Context*
(2014), https://cocodataset.org/#detection-eval.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from convnext.errors import ConvnextError
from convnext.tasks.base import Json, Metrics
from convnext.tasks.detect.batch import DetectTarget
from convnext.tasks.detect.measure.evaluated import CocoEntry, EvaluatedImage, annotations, evaluated, results
from convnext.tasks.detect.measure.intervals import ClassMatches, ap_interval, matches
from convnext.tasks.detect.prediction import Detections
from convnext.text import counted

MAX_DETECTIONS = 100  # of an image, by COCO's evaluation
IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_COUNTS = (1, 10, MAX_DETECTIONS)  # detections of an image at which COCO reports average recall
_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # pixels


@dataclass(frozen=True, eq=False)
class _Tables:
    """COCO's results for boxes or masks, -1 where they are not defined."""

    precision: np.ndarray  # (IoU thresholds, recalls, classes, areas), at all detections of an image
    recall: np.ndarray  # (IoU thresholds, classes, areas, numbers of detections)
    matches: list[ClassMatches]


class AveragePrecision:
    """Average precision over a whole evaluation: every image once, in any order.

    Args:
        classes: their names, in the order of the labels.
        with_masks: whether masks are measured beside boxes.
    """

    def __init__(self, classes: Sequence[str], with_masks: bool) -> None:
        self.classes, self.with_masks = list(classes), with_masks
        self.images: dict[int, EvaluatedImage] = {}  # by image_id
        self._kinds = {"box": "bbox"} | ({"mask": "segm"} if with_masks else {})
        self._tables: dict[str, _Tables] | None = None

    def update(self, predictions: Iterable[Detections], targets: Iterable[DetectTarget]) -> None:
        """Add a batch, a prediction and a target for each image, both in the pixels of the image as annotated.

        Raises ConvnextError for a detection of a class that there is not.
        """
        for prediction, target in zip(predictions, targets, strict=True):
            image = self.images[int(target["image_id"])] = evaluated(prediction, target, self.with_masks)
            if wrong := sorted({*image.found.labels.tolist()} - {*range(len(self.classes))}):
                raise ConvnextError(
                    f"the detector found class {wrong[0]}, but there are {counted(len(self.classes), 'class')}, counted from 0: "
                    "the background is no class"
                )
        self._tables = None

    def merge(self, other: "AveragePrecision") -> None:
        """Add the images of another process."""
        self.images |= other.images
        self._tables = None

    def in_order(self) -> list[EvaluatedImage]:
        """Return the images in the order of their ids, so that equal scores rank the same however many processes measured."""
        return [self.images[key] for key in sorted(self.images)]

    def max_detections(self) -> int:
        """Return how many detections of an image count: COCO's 100, or as many as were given for an image where that is more."""
        return max([MAX_DETECTIONS, *(len(image.found.scores) for image in self.images.values())])

    def compute(self) -> Metrics:
        """Return `box_ap`, `box_ap50`, `box_ap75`, with masks `mask_ap`, … likewise, all in percent, and the `count` of images.

        `box_ap_small`, `box_ap_medium` and `box_ap_large` are given where there are objects of that size, the others where there are
        objects at all: without any, AP is not defined. `box_ar1`, `box_ar10` and `box_ar100` are the average recall at so many
        detections of an image. `box_ap_low` and `box_ap_high` are the ends of the 95 % interval of `box_ap`, from a bootstrap over
        images; they are missing where fewer than 5 images have objects.
        """
        metrics: Metrics = {"count": len(self.images)}
        for kind, tables in self._evaluated().items():
            everything = tables.precision[..., 0]
            parts = {"ap": everything, "ap50": everything[:1], "ap75": everything[5:6]}
            parts |= {f"ap_{area}": tables.precision[..., i] for i, area in enumerate(_AREAS) if i}
            parts |= {f"ar{count}": tables.recall[:, :, 0, i] for i, count in enumerate(_COUNTS)}
            found = {suffix: value for suffix, part in parts.items() if (value := _mean(part)) is not None}
            interval = ap_interval(tables.matches)
            bounds = {} if interval is None else {"ap_low": interval[0], "ap_high": interval[1]}
            metrics |= {f"{kind}_{suffix}": value for suffix, value in (found | bounds).items()}
        return metrics

    def results(self, category_ids: Sequence[int | None]) -> list[Json]:
        """Return all detections as COCO's results (https://cocodataset.org/#format-results).

        Numbers are not rounded: they give the same AP again.

        Args:
            category_ids: of each class. Detections of a class without one are skipped.
        """
        rows: list[Json] = []
        for image_id in sorted(self.images):
            for one in results(image_id, self.images[image_id].found, "segm" if self.with_masks else "bbox"):
                if (category := category_ids[one["category_id"]]) is not None:
                    kept = {key: value for key, value in one.items() if key in ("image_id", "bbox", "score", "segmentation")}
                    rows.append(kept | {"category_id": category})
        return rows

    def by_class(self) -> list[Json]:
        """Return for each class its name (`class`), its `objects` (crowds not counted), and its AP in percent.

        AP is given as `box_ap`, `box_ap50`, `box_ap75`, `box_ap_small`, `box_ap_medium`, `box_ap_large` and, with masks, `mask_ap`, …
        likewise; it is None for a class without (such) objects. Classes are in the order of the labels.
        """
        labels = [image.truth.labels[~image.truth.crowds] for image in self.images.values()]
        counts = np.bincount(np.concatenate([np.empty(0, dtype=np.int64), *labels]), minlength=len(self.classes))
        rows: list[Json] = [{"class": name, "objects": int(count)} for name, count in zip(self.classes, counts, strict=True)]
        for kind, tables in self._evaluated().items():
            for label, row in enumerate(rows):
                everything = tables.precision[:, :, label]
                row |= {f"{kind}_ap{at}": _mean(everything[part, :, 0]) for at, part in (("", slice(None)), ("50", [0]), ("75", [5]))}
                row |= {f"{kind}_ap_{area}": _mean(everything[..., i]) for i, area in enumerate(_AREAS) if i}
        return rows

    def by_area(self) -> list[Json]:
        """Return for all objects and for small (up to 32² pixels), medium and large ones (from 96²) AP and average recall in percent.

        The keys are `area`, `objects` (crowds not counted), `box_ap`, `box_ar` and, with masks, `mask_ap`, `mask_ar`; None without
        such objects. Recall is at all detections of an image that count. As in COCO, an object of 32² or 96² pixels is of both sizes.
        """
        areas = np.concatenate([np.empty(0), *(image.truth.areas[~image.truth.crowds] for image in self.images.values())])
        rows: list[Json] = []
        for i, (area, (low, high)) in enumerate(_AREAS.items()):
            row: Json = {"area": area, "objects": int(((areas >= low) & (areas <= high)).sum())}
            for kind, tables in self._evaluated().items():
                row |= {f"{kind}_ap": _mean(tables.precision[..., i]), f"{kind}_ar": _mean(tables.recall[:, :, i, -1])}
            rows.append(row)
        return rows

    def by_iou(self) -> list[Json]:
        """Return AP in percent at each IoU threshold: rows of `iou`, `box_ap` and, with masks, `mask_ap`; None without objects."""
        rows: list[Json] = []
        for i, iou in enumerate(IOUS):
            precisions = {kind: tables.precision[i, ..., 0] for kind, tables in self._evaluated().items()}
            rows.append({"iou": iou} | {f"{kind}_ap": _mean(precision) for kind, precision in precisions.items()})
        return rows

    def matches(self, kind: str) -> list[ClassMatches]:
        """Return the matches of each class, of boxes ("box") or of masks ("mask")."""
        return self._evaluated()[kind].matches

    def _evaluated(self) -> dict[str, _Tables]:
        if self._tables is None:
            self._tables = {name: self._evaluate(kind) for name, kind in self._kinds.items()}
        return self._tables

    def _evaluate(self, kind: str) -> _Tables:
        from faster_coco_eval import COCO, COCOeval_faster

        images = self.in_order()
        truth = [entry for i, image in enumerate(images) for entry in annotations(i, image.truth, kind)]
        found = [entry for i, image in enumerate(images) for entry in results(i, image.found, kind)]
        frame = {
            "images": [{"id": i, "height": 0, "width": 0} for i in range(len(images))],  # run lengths know their size
            "categories": [{"id": label} for label in range(len(self.classes))],
        }
        evaluation = COCOeval_faster(COCO(frame | {"annotations": _numbered(truth)}), COCO(frame | {"annotations": _numbered(found)}), kind)
        evaluation.params.maxDets = sorted({*_COUNTS, self.max_detections()})
        evaluation.evaluate()
        evaluation.accumulate()
        matched = matches(images, evaluation.ious, IOUS, len(self.classes), self.max_detections())
        return _Tables(evaluation.eval["precision"][..., -1], evaluation.eval["recall"], matched)


def _numbered(entries: list[CocoEntry]) -> list[CocoEntry]:
    return [{**entry, "id": i + 1} for i, entry in enumerate(entries)]  # an id of 0 would mean "unmatched"


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return 100 * float(defined.mean()) if len(defined) else None
