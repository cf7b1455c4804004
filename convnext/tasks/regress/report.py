"""An evaluation of a network that predicts a number, as text and as sections of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from convnext.data import deep
from convnext.data.sources.base import ClassifySource
from convnext.models.load import load
from convnext.report import page, plots
from convnext.report.metrics import words
from convnext.tasks.base import Json, Metrics
from convnext.tasks.regress.data import open_numbers
from convnext.tasks.regress.metric import WrongValue
from convnext.tasks.regress.prediction import infer

_DEMO_IMAGES = 12


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    return f"R² {metrics['r2']:.2f} %, mean absolute error {metrics['mae']:.4g} ({metrics['count']} images)"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first."""
    return f"{summary_line(metrics)}\n{words(metrics)}"


def sections(details: Json, classes: Sequence[str], source: ClassifySource) -> list[page.PageSection]:
    """Return the images with the largest errors."""
    tiles = [
        page.tile(deep.shown(source.read(row["index"])), f"{row['predicted']:.4g}", f"is {row['true']:.4g} · {row['image']}")
        for row in cast("list[WrongValue]", details["mistakes"])
    ]
    return [page.PageSection("Largest errors", page.tiles(tiles, "None."))]


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with some digits of the validation data; return the predicted and the true numbers, one line each."""
    source, loaded, device = open_numbers("digit-values:val"), load(folder), torch.device("cpu")
    images = [source.read(index) for index in range(_DEMO_IMAGES)]
    texts = [one.to_text() for one in infer(loaded.model.to(device), images, loaded.preprocessing, source.classes, device, {})]
    true = [float(source.label(index)) for index in range(_DEMO_IMAGES)]
    close = [abs(float(text) - value) < 0.5 for text, value in zip(texts, true, strict=True)]
    plots.predictions([deep.shown(image) for image in images], texts, close, folder / "predictions.png")
    return [f"predicted {' '.join(texts)}", f"true      {' '.join(f'{value:g}' for value in true)}"]
