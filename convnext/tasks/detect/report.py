"""An evaluation of a detector as text and as sections of a report, and the demo's image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from convnext.data import deep
from convnext.data.run_lengths import decode
from convnext.data.sources.base import DetectSource
from convnext.data.sources.open import open_detection
from convnext.report import drawing, page, tables
from convnext.tasks.base import Json, Metrics
from convnext.tasks.detect.metric import DetectDetails, ShownDetections
from convnext.tasks.detect.prediction import SHOWN_SCORE
from convnext.tasks.shared import save_sheets
from convnext.text import counted

_DEMO_IMAGES = 4


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    masks = f", mask AP {metrics['mask_ap']:.2f} %" if "mask_ap" in metrics else ""
    return f"box AP {metrics['box_ap']:.2f} %{masks} ({counted(int(metrics['count']), 'image')})"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first, average precision by class last."""
    columns = [tables.Column("class", "class"), tables.Column("objects", "objects"), tables.Column("box_ap", "box AP %", 2)]
    if "mask_ap" in metrics:
        columns.append(tables.Column("mask_ap", "mask AP %", 2))
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return "\n".join([summary_line(metrics), numbers, tables.by_class(columns, cast(DetectDetails, details)["classes"], "box_ap")])


def sections(details: Json, classes: Sequence[str], source: DetectSource) -> list[page.PageSection]:
    """Return detections beside the annotated objects, and average precision by class."""
    found = cast(DetectDetails, details)
    images = [page.image(sheet, caption) for sheet, caption in _examples(found, classes, source)]
    rows = [{key: _percent(value) if key.endswith("_ap") else value for key, value in row.items()} for row in found["classes"]]
    return [page.PageSection("Predictions", "".join(images)), page.PageSection("By class", page.table(rows))]


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with the first scenes of a run's evaluation; nothing is to be printed of it."""
    details = cast(DetectDetails, json.loads((folder / "evaluation.json").read_text("utf-8")))
    source = open_detection("scenes:val")
    examples = _examples({**details, "shown": details["shown"][:_DEMO_IMAGES]}, source.classes, source)
    save_sheets([sheet for sheet, _ in examples], folder / "predictions.png")
    return []


def _examples(details: DetectDetails, classes: Sequence[str], source: DetectSource) -> list[tuple[Image.Image, str]]:
    """Return the first images, each with its annotated objects beside what was detected, and captions."""
    sheets = []
    for one in details["shown"]:
        image = deep.shown(source.read(one["index"]))
        annotated = source.encoded_target(one["index"]).to_encoded()
        truth = annotated | ({"masks": map(decode, annotated["masks"])} if "masks" in annotated else {})
        sheet = drawing.side_by_side([drawing.draw(image, objects, classes) for objects in (truth, _drawable(one))])
        sheets.append((sheet, f"{source.name(one['index'])}: annotated, and found with a score of at least {SHOWN_SCORE:g}"))
    return sheets


def _percent(value: object) -> str:
    return f"{value:.1f} %" if isinstance(value, float) else "–"


def _drawable(shown: ShownDetections) -> Json:
    objects: Json = {
        "boxes": torch.tensor(shown["boxes"]).reshape(-1, 4),
        "labels": torch.tensor(shown["labels"], dtype=torch.long),
        "scores": torch.tensor(shown["scores"]),
    }
    return objects | ({"masks": map(decode, shown["masks"])} if "masks" in shown else {})
