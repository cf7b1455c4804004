"""An evaluation of a masked autoencoder, as text and as sections of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from convnext.data import deep
from convnext.data.sources.base import ClassifySource
from convnext.models.load import load
from convnext.report import page
from convnext.report.metrics import words
from convnext.tasks.base import Json, Metrics
from convnext.tasks.pretrain.data import open_images
from convnext.tasks.pretrain.metric import HardImage, ShownImage, decoded
from convnext.tasks.pretrain.prediction import infer
from convnext.tasks.shared import save_sheets
from convnext.text import counted

_DEMO_IMAGES = 8
_MIN_HEIGHT = 192  # pixels of a shown image, about


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    return f"loss {metrics['loss']:.4f} on hidden patches ({counted(round(metrics['count']), 'image')})"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first."""
    return f"{summary_line(metrics)}\n{words(metrics)}"


def sections(details: Json, classes: Sequence[str], source: ClassifySource) -> list[page.PageSection]:
    """Return what was seen and predicted of some images, and the images with the largest losses."""
    sheets = [_sheet(row) for row in cast("list[ShownImage]", details["shown"])]
    tiles = [
        page.tile(deep.shown(source.read(row["index"])), f"loss {row['loss']:.4g}", row["image"])
        for row in cast("list[HardImage]", details["hardest"])
    ]
    explained = page.paragraph("From left to right: what the network saw, what it made of it, and the image itself.")
    return [
        page.PageSection("Reconstructions", explained + page.examples(sheets, "None.")),
        page.PageSection("Hardest images", page.tiles(tiles, "None.")),
    ]


def _sheet(row: ShownImage) -> str:
    """Return an image's three parts as HTML; small ones are enlarged, so that their pixels are seen."""
    sheet = decoded(row["sheet"])
    factor = max(1, _MIN_HEIGHT // sheet.height)
    enlarged = sheet.resize((factor * sheet.width, factor * sheet.height), Image.Resampling.NEAREST)
    return page.image(enlarged, row["image"])


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with what was seen and predicted of some digits of the validation data; return one line for each."""
    source, loaded, device = open_images("digits:val"), load(folder), torch.device("cpu")
    images = [source.read(index) for index in range(_DEMO_IMAGES)]
    found = infer(loaded.model.to(device), images, loaded.preprocessing, device)
    save_sheets([one.draw(deep.shown(image)) for one, image in zip(found, images, strict=True)], folder / "predictions.png")
    return [f"digit {number}: {one.to_text()} on hidden patches" for number, one in enumerate(found)]
