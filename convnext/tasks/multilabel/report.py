"""An evaluation of a multi-label classifier as text and as sections of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from convnext.data import deep
from convnext.data.sources.base import ClassifySource
from convnext.models.load import load
from convnext.report import page, plots, tables
from convnext.report.metrics import words
from convnext.tasks.base import Json, Metrics
from convnext.tasks.multilabel.data import label_set, open_labels
from convnext.tasks.multilabel.metric import LabelRow, MultilabelDetails, names_of
from convnext.tasks.multilabel.prediction import infer

_DEMO_IMAGES = 12
_COLUMNS = [
    tables.Column("class", "class"),
    tables.Column("images", "images"),
    tables.Column("ap", "AP %", 1),
    tables.Column("recall", "recall %", 1),
    tables.Column("precision", "precision %", 1),
    tables.Column("f1", "F1 %", 1),
]


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    return f"mAP {metrics['map']:.2f} %, micro F1 {metrics['micro_f1']:.2f} % ({metrics['count']} images)"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first, scores by class last."""
    rows = [{"class": name, **row} for name, row in zip(classes, cast(MultilabelDetails, details)["by_class"], strict=True)]
    return "\n".join([summary_line(metrics), words(metrics), tables.by_class(_COLUMNS, rows, "ap")])


def sections(details: Json, classes: Sequence[str], source: ClassifySource) -> list[page.PageSection]:
    """Return scores by class, and the images with the worst mistakes."""
    found = cast(MultilabelDetails, details)
    tiles = [
        page.tile(
            deep.shown(source.read(mistake["index"])),
            " · ".join([*(f"not {classes[label]}" for label in mistake["missed"]), *(f"{classes[label]}?" for label in mistake["wrong"])]),
            f"is {names_of(source, mistake['index'])} · {mistake['image']}",
        )
        for mistake in found["mistakes"]
    ]
    rows = [_row(name, row) for name, row in zip(classes, found["by_class"], strict=True)]
    table = page.table(rows) if len(classes) <= plots.MAX_CLASSES_DRAWN else page.details(f"{len(rows)} classes", page.table(rows))
    return [
        page.PageSection("Scores by class, at a probability of one half", table),
        page.PageSection("Worst mistakes", page.tiles(tiles, "None: every image got its classes.")),
    ]


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with some digits of the validation data; return the predicted and the true facts, one line each."""
    source, loaded, device = open_labels("digit-facts:val"), load(folder), torch.device("cpu")
    images = [source.read(index) for index in range(_DEMO_IMAGES)]
    found = infer(loaded.model.to(device), images, loaded.preprocessing, loaded.classes or source.classes, device, {})
    texts = [prediction.to_text() for prediction in found]
    sets = [[source.classes[label] for label in label_set(source, index)] for index in range(_DEMO_IMAGES)]
    given = [[row["class"] for row in prediction.rows()] for prediction in found]
    correct = [sorted(map(str, one)) == sorted(other) for one, other in zip(given, sets, strict=True)]
    plots.predictions([deep.shown(image) for image in images], texts, correct, folder / "predictions.png")
    return [f"predicted {'; '.join(texts)}", f"true      {'; '.join(', '.join(one) or 'none' for one in sets)}"]


def _row(name: str, row: LabelRow) -> dict[str, str]:
    scores = {"AP": row["ap"], "recall": row["recall"], "precision": row["precision"], "F1": row["f1"]}
    shown = {key: tables.NONE if value is None else f"{value:.1f} %" for key, value in scores.items()}
    return {"class": name, "images": str(row["images"])} | shown
