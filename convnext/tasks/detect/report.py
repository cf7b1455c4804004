"""An evaluation of a detector as text and as sections of a report, and the demo's image."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from convnext.data import deep
from convnext.data.run_lengths import decode
from convnext.data.sources.base import DetectSource
from convnext.data.sources.open import open_detection
from convnext.report import drawing, page, tables
from convnext.report.metrics import words
from convnext.tasks.base import Json, Metrics
from convnext.tasks.detect import error_report
from convnext.tasks.detect.metric import DetectDetails, ShownDetections
from convnext.tasks.detect.prediction import SHOWN_SCORE
from convnext.tasks.shared import save_sheets
from convnext.text import counted

_DEMO_IMAGES = 4
_COCO_DETECTIONS = 100  # of an image that COCO's own evaluation counts
_HEADS = {"ap": "AP %", "ap50": "AP50 %", "ap75": "AP75 %", "ap_small": "small %", "ap_medium": "medium %", "ap_large": "large %"}
_HEADS |= {"ar": "AR %"}  # of the columns of tables
_BY_CLASS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    images = counted(int(metrics["count"]), "image")
    if "box_ap" not in metrics:
        alarms = f"false alarms in {metrics['false_alarms']:.2f} % of {images}" if "false_alarms" in metrics else images
        return f"no AP without annotated objects, {alarms}"
    masks = f", mask AP {metrics['mask_ap']:.2f} %" if "mask_ap" in metrics else ""
    return f"box AP {metrics['box_ap']:.2f} %{masks} ({images})"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first: AP by class, by area and by IoU, then the errors."""
    found = cast(DetectDetails, details)
    lines = [summary_line(metrics), words(metrics)]
    if found["max_detections"] > _COCO_DETECTIONS:
        lines.append(_more_detections(found["max_detections"]))
    if "box_ap" in metrics:
        kinds = _kinds(found)
        scores = [tables.Column(f"{kind}_{part}", f"{kind} {_HEADS[part]}", 2) for kind in kinds for part in ("ap", "ap50")]
        head = [tables.Column("class", "class"), tables.Column("objects", "objects")]
        lines.append(tables.by_class([*head, *scores, *error_report.COLUMNS], found["classes"], "box_ap"))
        scores = [tables.Column(f"{kind}_{part}", f"{kind} {_HEADS[part]}", 2) for kind in kinds for part in ("ap", "ar")]
        lines.append(tables.plain([tables.Column("area", "area"), tables.Column("objects", "objects"), *scores], found["by_area"]))
        columns = [tables.Column("kind", "AP % at IoU"), *(tables.Column(key, key, 1) for key in _ious(found))]
        lines.append(tables.plain(columns, _by_iou(found)))
    return "\n".join([*lines, *error_report.lines(found, classes)])


def sections(details: Json, classes: Sequence[str], source: DetectSource) -> list[page.PageSection]:
    """Return detections beside the annotated objects, average precision by class, area and IoU, and the errors."""
    found = cast(DetectDetails, details)
    images = [
        page.row(list(zip(("annotated", "found"), pair, strict=True)), caption) for pair, caption in _examples(found, classes, source)
    ]
    by_area = [
        {"area": row["area"], "objects": row["objects"]}
        | {f"{kind} {_HEADS[part].removesuffix(' %')}": _percent(row[f"{kind}_{part}"]) for kind in _kinds(found) for part in ("ap", "ar")}
        for row in found["by_area"]
    ]
    kinds = _kinds(found)
    by_iou = [{"IoU": f"{row['iou']:.2f}"} | {f"{kind} AP": _percent(row[f"{kind}_ap"]) for kind in kinds} for row in found["by_iou"]]
    numbers = [page.tight(page.table(by_area)), page.tight(page.table(by_iou))]
    if found["max_detections"] > _COCO_DETECTIONS:
        numbers.append(page.paragraph(_more_detections(found["max_detections"]) + "."))
    return [
        page.PageSection("Predictions", page.examples(images, "None.")),
        *error_report.worst(found, classes, source),
        page.PageSection("Average precision by area and by IoU", page.spaced(numbers)),
        page.PageSection("Average precision by class", page.spaced([_class_table(found["classes"], kind) for kind in _kinds(found)])),
        *error_report.sections(found, classes),
    ]


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with the first scenes of a run's evaluation; nothing is to be printed of it."""
    details = cast(DetectDetails, json.loads((folder / "evaluation.json").read_text("utf-8")))
    source = open_detection("scenes:val")
    examples = _examples({**details, "shown": details["shown"][:_DEMO_IMAGES]}, source.classes, source)
    save_sheets([drawing.side_by_side(pair) for pair, _ in examples], folder / "predictions.png")
    return []


def _examples(details: DetectDetails, classes: Sequence[str], source: DetectSource) -> Iterator[tuple[list[Image.Image], str]]:
    """Yield the first images, each with its annotated objects beside what was detected, and captions; one at a time is in memory."""
    for one in details["shown"]:
        image = deep.shown(source.read(one["index"]))
        annotated = source.encoded_target(one["index"]).to_encoded()
        truth = annotated | ({"masks": map(decode, annotated["masks"])} if "masks" in annotated else {})
        pair = [drawing.draw(image, objects, classes) for objects in (truth, _drawable(one))]
        yield pair, f"{source.name(one['index'])}: annotated, and found with a score of at least {SHOWN_SCORE:g}"


def _kinds(details: DetectDetails) -> list[str]:
    """Return what was measured: "box", and "mask" where there are masks."""
    return [kind for kind in ("box", "mask") if f"{kind}_ap" in details["by_iou"][0]]


def _ious(details: DetectDetails) -> list[str]:
    return [f"{row['iou']:.2f}" for row in details["by_iou"]]


def _class_table(rows: Sequence[Json], kind: str) -> str:
    """Return the table of AP of boxes or of masks by class."""
    shown = [
        {"class": row["class"], "objects": row["objects"]}
        | {_HEADS[part].removesuffix(" %") if part != "ap" else f"{kind} AP": _percent(row[f"{kind}_{part}"]) for part in _BY_CLASS}
        for row in rows
    ]
    return page.folded(page.tight(page.table(shown)), len(shown))


def _by_iou(details: DetectDetails) -> list[Json]:
    """Return a row of AP by IoU for each kind."""
    aps = {kind: [row[f"{kind}_ap"] for row in details["by_iou"]] for kind in _kinds(details)}
    return [{"kind": kind} | dict(zip(_ious(details), values, strict=True)) for kind, values in aps.items()]


def _more_detections(count: int) -> str:
    return f"up to {count} detections of an image count; COCO's own evaluation counts {_COCO_DETECTIONS}"


def _percent(value: object) -> str:
    return f"{value:.1f}\N{NO-BREAK SPACE}%" if isinstance(value, float) else tables.NONE


def _drawable(shown: ShownDetections) -> Json:
    objects: Json = {
        "boxes": torch.tensor(shown["boxes"]).reshape(-1, 4),
        "labels": torch.tensor(shown["labels"], dtype=torch.long),
        "scores": torch.tensor(shown["scores"]),
    }
    return objects | ({"masks": map(decode, shown["masks"])} if "masks" in shown else {})
