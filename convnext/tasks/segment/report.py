"""An evaluation of a segmenter as text and as sections of a report, and the demo's image."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from convnext.data import deep
from convnext.data.sources.base import SegmentSource
from convnext.data.sources.open import open_segmentation
from convnext.report import overlay, page, tables
from convnext.report.metrics import words
from convnext.tasks.base import Json, Metrics
from convnext.tasks.segment.metric import SegmentDetails, ShownMask, decoded
from convnext.tasks.shared import save_sheets
from convnext.text import counted

_DEMO_IMAGES = 4
_COLUMNS = [
    tables.Column("class", "class"),
    tables.Column("iou", "IoU %", 2),
    tables.Column("interval", "95 % interval"),
    tables.Column("boundary_iou", "boundary IoU %", 2),
    tables.Column("accuracy", "recall %", 2),
    tables.Column("precision", "precision %", 2),
    tables.Column("f1", "F1 %", 2),
]
_EXPLAINED = (
    "Pixels of all images are counted together. The interval of IoU comes from a bootstrap over images; it is missing for classes in "
    "fewer than 5 images. Boundary IoU counts only the pixels within 2 % of the image's diagonal of a contour of the class. Recall is "
    "the fraction of the class's pixels that were predicted as it, precision the fraction of the pixels predicted as it that are of it, "
    "F1 their harmonic mean."
)


def summary_line(metrics: Metrics) -> str:
    """Return an evaluation in a few words."""
    images = counted(int(metrics["count"]), "image")
    if "miou" not in metrics:
        return f"no mIoU without a labelled pixel ({images})"
    return f"mIoU {metrics['miou']:.2f} %, pixel accuracy {metrics['overall_accuracy']:.2f} % ({images})"


def summary(metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
    """Return an evaluation as lines of text, `summary_line` first, scores by class last."""
    return "\n".join(
        [summary_line(metrics), words(metrics), tables.by_class(_COLUMNS, _rows(cast(SegmentDetails, details), classes), "iou")]
    )


def sections(details: Json, classes: Sequence[str], source: SegmentSource) -> list[page.PageSection]:
    """Return predictions beside the annotated masks, the worst images, and scores by class."""
    found = cast(SegmentDetails, details)
    images = [_compared(one, classes, source, "") for one in found["shown"]]
    worst = [_compared(one, classes, source, f": mIoU {one['image_miou']:.1f} %") for one in found["worst"]]
    shown = [
        {column.head.removesuffix(" %"): _cell(row[column.key]) for column in _COLUMNS} | {"pixels": row["pixels"]}
        for row in _rows(found, classes)
    ]
    return [
        page.PageSection("Predictions", page.examples(images, "None.")),
        page.PageSection("Worst images", page.examples(worst, "None: every pixel got its class.")),
        page.PageSection("By class", page.spaced([page.folded(page.tight(page.table(shown)), len(shown)), page.paragraph(_EXPLAINED)])),
    ]


def draw_demo(folder: Path) -> list[str]:
    """Write predictions.png with the first scenes of a run's evaluation; nothing is to be printed of it."""
    details = cast(SegmentDetails, json.loads((folder / "evaluation.json").read_text("utf-8")))
    source = open_segmentation("scenes:val")
    examples = _drawn(details["shown"][:_DEMO_IMAGES], source.classes, source)
    save_sheets([sheet for sheet, _ in examples], folder / "predictions.png")
    return []


def _drawn(shown: Sequence[ShownMask], classes: Sequence[str], source: SegmentSource) -> Iterator[tuple[Image.Image, str]]:
    """Yield images, each with its annotated mask beside the predicted one, and their names; one at a time is in memory."""
    for one in shown:
        index = one["index"]
        sheet = overlay.side_by_side(deep.shown(source.read(index)), source.mask(index), decoded(one["prediction"]), classes)
        yield sheet, source.name(index)


def _compared(one: ShownMask, classes: Sequence[str], source: SegmentSource, remark: str) -> str:
    """Return an image, its annotated mask and the predicted one as HTML, over their classes and a caption that ends with a remark."""
    index, predicted = one["index"], decoded(one["prediction"])
    truth = source.mask(index)
    images = page.row(overlay.panels(deep.shown(source.read(index)), truth, predicted, classes), f"{source.name(index)}{remark}")
    return images + page.key(overlay.key([truth, predicted], classes))


def _rows(details: SegmentDetails, classes: Sequence[str]) -> list[Json]:
    """Return a row for each class, under the keys of `_COLUMNS`, and its `pixels`."""
    rows: list[Json] = []
    for label, name in enumerate(classes):
        interval = details["iou_interval"][label]
        row: Json = {"class": name, "iou": details["iou"][label], "boundary_iou": details["boundary_iou"][label]}
        row |= {"accuracy": details["accuracy"][label], "precision": details["precision"][label], "f1": details["f1"][label]}
        row |= {"interval": None if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"}
        rows.append(row | {"pixels": sum(details["confusion"][label])})
    return rows


def _cell(value: object) -> str:
    return tables.NONE if value is None else f"{value:.1f}\N{NO-BREAK SPACE}%" if isinstance(value, float) else f"{value}"
