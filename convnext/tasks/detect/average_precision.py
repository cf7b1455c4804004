"""COCO's average precision of boxes and masks, computed by faster-coco-eval as pycocotools computes it.

Source: Lin et al., *Microsoft COCO: Common Objects in Context* (2014), https://cocodataset.org/#detection-eval.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_AREAS = ("all", "small", "medium", "large")  # up to 32² pixels, up to 96², and beyond


@dataclass
class _Image:
    """What an image shows and what was found in it; masks as run lengths, a thousandth of their pixels."""

    truth: dict[str, Any]
    found: dict[str, Any]


class DetectionMetric:
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

    def update(self, predictions: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]]) -> None:
        """Add a batch, a prediction and a target for each image, both in the pixels of the image as annotated.

        Args:
            predictions: `boxes` float (n, 4) as left, top, right, bottom; `labels` int (n,); `scores` float (n,); and, with masks,
                `masks` bool (n, 1, H, W) or (n, H, W), or n of COCO's run lengths.
            targets: `Objects.to_dict()` or `Objects.to_encoded()`.
        """
        for prediction, target in zip(predictions, targets, strict=True):
            found: dict[str, Any] = {key: _array(prediction[key]) for key in ("boxes", "labels", "scores")}
            truth: dict[str, Any] = {key: _array(target[key]) for key in ("boxes", "labels", "iscrowd", "area")}
            if self.with_masks:
                found["masks"], truth["masks"] = _run_lengths(prediction["masks"]), _run_lengths(target["masks"])
            self.images[int(target["image_id"])] = _Image(truth, found)
        self._precision = None

    def merge(self, other: "DetectionMetric") -> None:
        """Add the images of another process."""
        self.images |= other.images
        self._precision = None

    def compute(self) -> dict[str, float]:
        """`box_ap`, `box_ap50`, `box_ap75`, with masks `mask_ap`, … likewise, all in percent, and the `count` of images.

        `box_ap_small`, `box_ap_medium` and `box_ap_large` are there where objects of that size are, the others where there are
        objects at all: without any, AP is not defined.
        """
        metrics: dict[str, float] = {"count": len(self.images)}
        for kind, precision in self._precisions().items():
            everything = precision[..., 0]
            parts = {"": everything, "50": everything[:1], "75": everything[5:6]}
            parts |= {f"_{area}": precision[..., i] for i, area in enumerate(_AREAS) if i}
            metrics |= {f"{kind}_ap{suffix}": ap for suffix, part in parts.items() if (ap := _mean(part)) is not None}
        return metrics

    def results(self, category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
        """What was found as COCO's results (https://cocodataset.org/#format-results), numbers unrounded: they give the same AP again.

        Args:
            category_ids: of each class; what is of a class without one is left out.
        """
        rows = []
        for image_id in sorted(self.images):
            for one in _entries(image_id, self.images[image_id].found, "segm" if self.with_masks else "bbox"):
                if (category := category_ids[one["category_id"]]) is not None:
                    kept = {key: one[key] for key in ("image_id", "bbox", "score", "segmentation") if key in one}
                    rows.append(kept | {"category_id": category})
        return rows

    def details(self) -> dict[str, Any]:
        """For each class in the order of the labels: `class`, its `objects` (crowds not counted), `box_ap` and `mask_ap` in percent.

        They are None for a class without objects.
        """
        labels = [image.truth["labels"][~image.truth["iscrowd"]] for image in self.images.values()]
        counts = np.bincount(np.concatenate([np.empty(0, dtype=np.int64), *labels]), minlength=len(self.classes))
        rows = [{"class": name, "objects": int(count)} for name, count in zip(self.classes, counts, strict=True)]
        for kind, precision in self._precisions().items():
            for label, row in enumerate(rows):
                row[f"{kind}_ap"] = _mean(precision[:, :, label, 0])
        return {"classes": rows}

    def _precisions(self) -> dict[str, np.ndarray]:
        """COCO's table of precisions (IoU thresholds, recalls, classes, areas) of boxes and masks, -1 where it is not defined."""
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


def _array(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return values.double().numpy() if values.is_floating_point() else values.numpy()  # NumPy has no bfloat16


def _run_lengths(masks: Tensor | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from faster_coco_eval import mask

    if not isinstance(masks, Tensor):
        return list(masks)
    pixels = masks.detach().cpu().view(torch.uint8) if masks.dtype == torch.bool else masks.detach().cpu()
    return [mask.encode(np.asfortranarray(one)) for one in pixels.reshape(-1, *masks.shape[-2:]).numpy()]


def _entries(image_id: int, objects: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Objects as COCO's annotations or results, without ids."""
    from faster_coco_eval import mask

    boxes = np.hstack([objects["boxes"][:, :2], objects["boxes"][:, 2:] - objects["boxes"][:, :2]])
    if "area" in objects:
        areas = objects["area"]
    elif kind == "segm":  # a prediction counts as small by what is measured
        areas = [mask.area(run_lengths) for run_lengths in objects["masks"]]
    else:
        areas = boxes[:, 2] * boxes[:, 3]
    crowds = objects.get("iscrowd", np.zeros(len(boxes), dtype=bool))
    entries: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": int(label), "bbox": box, "area": float(area), "iscrowd": int(crowd)}
        for label, box, area, crowd in zip(objects["labels"], boxes.tolist(), areas, crowds, strict=True)
    ]
    if "scores" in objects:
        entries = [entry | {"score": float(score)} for entry, score in zip(entries, objects["scores"], strict=True)]
    if kind == "segm":
        entries = [entry | {"segmentation": run_lengths} for entry, run_lengths in zip(entries, objects["masks"], strict=True)]
    return entries


def _numbered(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry | {"id": i + 1} for i, entry in enumerate(entries)]  # an id of 0 would mean "unmatched"


def _mean(precision: np.ndarray) -> float | None:
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if len(defined) else None
