"""An evaluation of a classifier as text and as sections of a report, and the demo's image."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from convnext.data import deep, imagenet
from convnext.data.sources.base import ClassifySource
from convnext.data.sources.corruptions import SEVERITIES
from convnext.data.sources.open import open_source
from convnext.models.load import load
from convnext.report import page, plots, tables
from convnext.report.metrics import words
from convnext.tasks.base import Json, Metrics
from convnext.tasks.classify.class_scores import ClassRow
from convnext.tasks.classify.metric import ClassifyDetails
from convnext.tasks.classify.prediction import infer

_DEMO_IMAGES = 12
_SCORES = [  # columns of the table by class on a terminal
    tables.Column("recall", "recall %", 1),
    tables.Column("precision", "precision %", 1),
    tables.Column("f1", "F1 %", 1),
    tables.Column("auroc", "AUROC %", 1),
]
_SCORES_EXPLAINED = (
    "Recall is the fraction of the class's images that were classified as it, with Wilson's 95 % interval; precision is the fraction of "
    "the images classified as it that are of the class; F1 is their harmonic mean; AUROC is the area under the ROC curve of the class's "
    "probability against all other classes."
)


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    correct = round(metrics["top1"] * metrics["count"] / 100)
    return f"top-1 accuracy {metrics['top1']:.2f} % ({correct} of {metrics['count']})"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first, scores by class last."""
    found = cast(ClassifyDetails, details)
    lines = [summary_line(metrics), words(metrics)]
    for row in _corruption_rows(found):
        if len(lines) == 2:
            lines.append(f"{'error in %':24}" + "".join(f"{key:>8}" for key in list(row)[1:]))
        lines.append(f"{row['corruption']:24}" + "".join(f"{value:>8}" for value in list(row.values())[1:]))
    rows = [{"class": name, **row} for name, row in zip(imagenet.readable(list(classes)), found["by_class"], strict=True) if row["images"]]
    scores = [column for column in _SCORES if any(row.get(column.key) is not None for row in rows)]
    lines.append(tables.by_class([tables.Column("class", "class"), tables.Column("images", "images"), *scores], rows, "recall"))
    return "\n".join(lines)


def sections(details: Json, classes: Sequence[str], source: ClassifySource) -> list[page.PageSection]:
    """Return errors by corruption, confusion, calibration, scores by class, and the worst mistakes."""
    found, names = cast(ClassifyDetails, details), imagenet.readable(list(classes))
    parts = []
    if rows := _corruption_rows(found):
        parts.append(page.PageSection("Error by corruption and severity, in percent", page.tight(page.table(rows))))
    if found["confusion"] is not None and len(names) <= plots.MAX_CLASSES_DRAWN:
        parts.append(page.PageSection("Confusion", page.natural(plots.confusion(found["confusion"], names))))
    elif found["confusion"] is not None:
        parts.append(page.PageSection("Most confused", page.table(tables.most_confused(found["confusion"], names))))
    parts.append(page.PageSection("Calibration", page.figures(plots.reliability(found["calibration"]))))
    parts.append(page.PageSection("Scores by class", _by_class(found, names)))
    tiles = [
        page.tile(
            deep.shown(source.read(mistake["index"])),
            f"{names[mistake['predicted']]} {mistake['confidence']:.0%}",
            f"is {names[mistake['true']]} · {mistake['image']}",
        )
        for mistake in found["mistakes"]
    ]
    parts.append(page.PageSection("Worst mistakes", page.tiles(tiles, "None: every image was classified correctly.")))
    return parts


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with some digits of the validation data; return the predicted and the written digits, one line each."""
    source, loaded, device = open_source("digits:val"), load(folder), torch.device("cpu")
    chosen = np.random.RandomState(0).choice(len(source), _DEMO_IMAGES, replace=False)
    images, labels = [source.read(i) for i in chosen], [source.classes[source.label(i)] for i in chosen]
    predictions = infer(loaded.model.to(device), images, loaded.preprocessing, loaded.classes or source.classes, device, {})
    tops = [prediction.top()[0] for prediction in predictions]
    correct = [name == label for (name, _), label in zip(tops, labels, strict=True)]
    captions = [f"{name} ({probability:.0%})" for name, probability in tops]
    plots.predictions([deep.shown(image) for image in images], captions, correct, folder / "predictions.png")
    return [f"predicted {' '.join(name for name, _ in tops)}", f"written   {' '.join(labels)}"]


def _by_class(details: ClassifyDetails, classes: Sequence[str]) -> str:
    rows = [_class_row(name, row) for name, row in zip(classes, details["by_class"], strict=True) if row["images"]]
    title = f"{len(rows)} classes" + (f"; the other {len(classes) - len(rows)} have no images here" if len(rows) < len(classes) else "")
    table = page.spaced([page.table(rows), page.paragraph(_SCORES_EXPLAINED)])
    return table if len(classes) <= plots.MAX_CLASSES_DRAWN else page.details(title, table)


def _class_row(name: str, row: ClassRow) -> dict[str, str]:
    """Return a class as a row of the report's table."""
    low, high = row["recall_interval"] or (0.0, 100.0)
    shown = {
        "class": name,
        "images": str(row["images"]),
        "recall": _percent(row["recall"]),
        "95 % interval": f"{low:.1f} to {high:.1f}\N{NO-BREAK SPACE}%",
    }
    return shown | {"precision": _percent(row["precision"]), "F1": _percent(row["f1"]), "AUROC": _percent(row["auroc"])}


def _percent(value: float | None) -> str:
    return tables.NONE if value is None else f"{value:.1f}\N{NO-BREAK SPACE}%"


def _corruption_rows(details: ClassifyDetails) -> list[dict[str, str]]:
    """Return the errors under each corruption as rows of a table; none where the images were not corrupted."""
    rows = []
    for found in details.get("corruptions", ()):
        row = {"corruption": found["corruption"]} | {f"at {severity}": f"{found['errors'][severity]:.1f}" for severity in SEVERITIES}
        row["mean"] = f"{found['mean']:.1f}"
        if "ce" in found:
            row["CE"] = f"{found['ce']:.1f}"
        rows.append(row)
    return rows
