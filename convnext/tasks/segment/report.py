"""An evaluation of a segmenter as text and as sections of a report, and the demo's image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from convnext.data import deep
from convnext.data.sources.base import SegmentSource
from convnext.data.sources.open import open_segmentation
from convnext.report import overlay, page, tables
from convnext.tasks.base import Json, Metrics
from convnext.tasks.segment.metric import SegmentDetails, decoded
from convnext.tasks.shared import save_sheets
from convnext.text import counted

_DEMO_IMAGES = 4


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    images = counted(int(metrics["count"]), "image")
    if "miou" not in metrics:
        return f"no mIoU without a labelled pixel ({images})"
    return f"mIoU {metrics['miou']:.2f} %, pixel accuracy {metrics['overall_accuracy']:.2f} % ({images})"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first, IoU by class last."""
    found = cast(SegmentDetails, details)
    rows = [
        {"class": name, "iou": iou, "accuracy": accuracy}
        for name, iou, accuracy in zip(classes, found["iou"], found["accuracy"], strict=True)
    ]
    columns = [tables.Column("class", "class"), tables.Column("iou", "IoU %", 2), tables.Column("accuracy", "accuracy %", 2)]
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return "\n".join([summary_line(metrics), numbers, tables.by_class(columns, rows, "iou")])


def sections(details: Json, classes: Sequence[str], source: SegmentSource) -> list[page.PageSection]:
    """Return predictions beside the annotated masks, and the intersection over union of each class."""
    found = cast(SegmentDetails, details)
    images = [page.image(sheet, caption) for sheet, caption in _examples(found, classes, source)]
    rows = [
        {"class": name, "IoU": _percent(iou), "accuracy": _percent(accuracy), "pixels": sum(row)}
        for name, iou, accuracy, row in zip(classes, found["iou"], found["accuracy"], found["confusion"], strict=True)
    ]
    return [page.PageSection("Predictions", "".join(images)), page.PageSection("By class", page.table(rows))]


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with the first scenes of a run's evaluation; nothing is to be printed of it."""
    details = cast(SegmentDetails, json.loads((folder / "evaluation.json").read_text("utf-8")))
    source = open_segmentation("scenes:val")
    examples = _examples({**details, "shown": details["shown"][:_DEMO_IMAGES]}, source.classes, source)
    save_sheets([sheet for sheet, _ in examples], folder / "predictions.png")
    return []


def _examples(details: SegmentDetails, classes: Sequence[str], source: SegmentSource) -> list[tuple[Image.Image, str]]:
    """Return the first images, each with its annotated mask beside the predicted one, and captions."""
    sheets = []
    for one in details["shown"]:
        index = one["index"]
        sheet = overlay.side_by_side(deep.shown(source.read(index)), source.mask(index), decoded(one["prediction"]), classes)
        sheets.append((sheet, source.name(index)))
    return sheets


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"
