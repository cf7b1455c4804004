"""Images as evaluations of detectors keep them: annotated objects beside detections, as NumPy arrays and run lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from torch import Tensor

from convnext.data.run_lengths import RunLengths, encode_all
from convnext.tasks.detect.batch import DetectTarget
from convnext.tasks.detect.prediction import Detections


@dataclass(frozen=True, eq=False)
class Annotated:
    """The annotated objects of an image; masks as run lengths, a thousandth of their pixels."""

    boxes: np.ndarray  # float64 (n, 4): left, top, right, bottom
    labels: np.ndarray  # int64 (n,)
    masks: list[RunLengths] | None
    areas: np.ndarray  # float64 (n,), pixels
    crowds: np.ndarray  # bool (n,)


@dataclass(frozen=True, eq=False)
class Detected:
    """The detections in an image, in any order."""

    boxes: np.ndarray  # float64 (n, 4): left, top, right, bottom
    labels: np.ndarray  # int64 (n,)
    masks: list[RunLengths] | None
    scores: np.ndarray  # float64 (n,)


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
    """What is annotated in an image, and what was detected."""

    truth: Annotated
    found: Detected


class CocoEntry(TypedDict):
    """An object as COCO's annotations and results have it."""

    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    id: int
    score: NotRequired[float]
    segmentation: NotRequired[RunLengths]


def evaluated(prediction: Detections, target: DetectTarget, with_masks: bool) -> EvaluatedImage:
    """Return an image with its detections and its objects, both in the pixels of the image as annotated."""
    truth = Annotated(
        _array(target["boxes"]),
        _array(target["labels"]),
        masks_of(target["masks"]) if with_masks else None,
        _array(target["area"]),
        _array(target["iscrowd"]),
    )
    masks = masks_of(prediction["masks"]) if with_masks else None
    return EvaluatedImage(truth, Detected(_array(prediction["boxes"]), _array(prediction["labels"]), masks, _array(prediction["scores"])))


def masks_of(masks: Tensor | Sequence[RunLengths]) -> list[RunLengths]:
    """Return masks, given as pixels (n, H, W) or (n, 1, H, W) or as run lengths, as run lengths."""
    return encode_all(masks) if isinstance(masks, Tensor) else list(masks)


def corners_and_sides(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4) as COCO has them: left, top, width, height."""
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def annotations(image_id: int, truth: Annotated, kind: str) -> list[CocoEntry]:
    """Return objects as COCO's annotations, not yet numbered; `kind` is "bbox" or "segm"."""
    return _entries(image_id, truth, kind, truth.areas, truth.crowds)


def results(image_id: int, found: Detected, kind: str) -> list[CocoEntry]:
    """Return detections as COCO's results, not yet numbered."""
    entries = _entries(image_id, found, kind, _measured_areas(found, kind), np.zeros(len(found.boxes), dtype=bool))
    for entry, score in zip(entries, found.scores, strict=True):
        entry["score"] = float(score)
    return entries


def _entries(
    image_id: int, objects: Annotated | Detected, kind: str, areas: Sequence[float] | np.ndarray, crowds: np.ndarray
) -> list[CocoEntry]:
    entries: list[CocoEntry] = [
        {"image_id": image_id, "category_id": int(label), "bbox": box, "area": float(area), "iscrowd": int(crowd), "id": 0}
        for label, box, area, crowd in zip(objects.labels, corners_and_sides(objects.boxes).tolist(), areas, crowds, strict=True)
    ]
    if kind == "segm" and objects.masks is not None:
        for entry, mask in zip(entries, objects.masks, strict=True):
            entry["segmentation"] = mask
    return entries


def _measured_areas(found: Detected, kind: str) -> Sequence[float] | np.ndarray:
    # A detection counts as small by what is measured: its mask, or else its box.
    from faster_coco_eval import mask

    if kind == "segm" and found.masks is not None:
        return [mask.area(runs) for runs in found.masks]
    sides = corners_and_sides(found.boxes)
    return sides[:, 2] * sides[:, 3]


def _array(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return values.double().numpy() if values.is_floating_point() else values.numpy()  # NumPy has no bfloat16
