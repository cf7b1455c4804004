"""The errors of a detector as text and as sections of a report: confusion, the score threshold, false alarms, the worst images."""

from collections.abc import Sequence

import torch
from PIL import Image

from convnext.data import deep
from convnext.data.sources.base import DetectSource
from convnext.report import drawing, page, palette, plots, tables
from convnext.tasks.base import Json
from convnext.tasks.detect.measure.threshold import FalseAlarms, ThresholdCurve
from convnext.tasks.detect.metric import DetectDetails, WorstDetections
from convnext.text import counted, shortened

COLUMNS = [  # of the table by class on a terminal
    tables.Column("precision", "precision %", 1),
    tables.Column("recall", "recall %", 1),
    tables.Column("f1", "F1 %", 1),
    tables.Column("best_threshold", "best threshold", 2),
]
BACKGROUND = "background"
_MAX_PRINTED = 12  # classes of a confusion matrix on a terminal
_MAX_PAIRS = 10  # of classes on a terminal, where there are more
_MAX_HEAD = 12  # characters of a name over its columns
_PRECISION, _RECALL, _F1 = palette.SERIES[:3]
_NAMES = {
    "right": "found, and of the right class",
    "missed": "missed",
    "false": "false",
    "confused": "found as another class",
    "ignored": "a crowd, or a detection in one",
}
_EXPLAINED = (
    "Objects and detections are matched by their boxes at an IoU of at least 0.5; detections choose in the order of their scores. "
    "A detection that exceeds the score threshold is right if it found an object of its class. Precision is the fraction of detections "
    "that are right, recall the fraction of objects that are found, F1 their harmonic mean. Crowds count neither way."
)
_MATRIX_EXPLAINED = (
    f" Rows are the true classes, columns the detected ones. Objects in the column {BACKGROUND} were missed; detections in the row "
    f"{BACKGROUND} found nothing that no other had found before."
)


def lines(details: DetectDetails, classes: Sequence[str]) -> list[str]:
    """Return the lines of text: scores at the best threshold, confusion, and false alarms."""
    found = [f"{_at_threshold(details)}:", *_confusion_lines(details["confusion"], classes)] if _has_objects(details) else []
    return [*found, *_alarm_lines(details)]


def sections(details: DetectDetails, classes: Sequence[str]) -> list[page.PageSection]:
    """Return precision, recall and F1 over the threshold, the confusion, and false alarms, as far as they are defined."""
    parts = []
    if _has_objects(details):
        names = [*classes, BACKGROUND]
        few = len(names) <= plots.MAX_CLASSES_DRAWN
        drawn = page.figure(plots.confusion(details["confusion"], names)) if few else page.table(_pairs(details["confusion"], classes))
        legend = _sentence(details) + (_MATRIX_EXPLAINED if few else "")
        parts += [
            page.PageSection("Precision, recall and F1 over the score threshold", _threshold_body(details)),
            page.PageSection("Confusion" if few else "Most confused", page.spaced([page.paragraph(legend), drawn])),
        ]
    if alarms := _alarm_lines(details):
        parts.append(
            page.PageSection("Images without objects", page.spaced([page.paragraph(f"{line[0].upper()}{line[1:]}.") for line in alarms]))
        )
    return parts


def worst(details: DetectDetails, classes: Sequence[str], source: DetectSource) -> list[page.PageSection]:
    """Return the images with the most errors, annotated objects beside detections, coloured by what is right or wrong with them."""
    if not details["worst"]:
        return []
    occurring = {kind for one in details["worst"] for kind in (*one["kinds"], *one["truth_kinds"])}
    legend = page.legend([(_NAMES[kind], colour, "") for kind, colour in palette.ERRORS.items() if kind in occurring])
    text = f"Annotated objects, and the detections of a score above {details['at_threshold']['threshold']:g}."
    images = [
        page.row(list(zip(("annotated", "found"), _drawn(one, classes, source), strict=True)), _caption(one)) for one in details["worst"]
    ]
    return [page.PageSection("Worst images", page.paragraph(text) + legend + page.examples(images, "None."))]


def _has_objects(details: DetectDetails) -> bool:
    return details["at_threshold"]["f1"] is not None


def _at_threshold(details: DetectDetails) -> str:
    """Return the scores at the threshold in words."""
    at = details["at_threshold"]
    best = "the threshold of the highest F1" if at["is_best"] else "as no threshold finds an object"
    scores = ", ".join(f"{name} {_percent(value)}" for name, value in (("precision", at["precision"]), ("recall", at["recall"])))
    return f"scores above {at['threshold']:.2f} ({best}), boxes at IoU {at['iou']:g}: {scores}, F1 {_percent(at['f1'])}"


def _sentence(details: DetectDetails) -> str:
    text = _at_threshold(details)
    return f"{text[0].upper()}{text[1:]}."


def _confusion_lines(confusion: list[list[int]], classes: Sequence[str]) -> list[str]:
    if len(classes) > _MAX_PRINTED:
        columns = [tables.Column("is", "is"), tables.Column("taken for", "taken for"), tables.Column("times", "times")]
        pairs = _pairs(confusion, classes)[:_MAX_PAIRS]
        return [tables.plain(columns, pairs)] if pairs else ["no object was found as another class"]
    names = [*(shortened(name, _MAX_HEAD) for name in classes), BACKGROUND]
    columns = [tables.Column("true", "true \\ found"), *(tables.Column(str(i), name) for i, name in enumerate(names))]
    rows: list[Json] = [{"true": name} | {str(i): count for i, count in enumerate(row)} for name, row in zip(names, confusion, strict=True)]
    rows[-1][str(len(classes))] = None  # of what is nothing and was not found there is no count
    return [tables.plain(columns, rows)]


def _pairs(confusion: list[list[int]], classes: Sequence[str]) -> list[dict[str, object]]:
    """Return the pairs of classes that are most often confused, without the background, which would fill the table."""
    return tables.most_confused([row[:-1] for row in confusion[:-1]], classes)


def _alarm_lines(details: DetectDetails) -> list[str]:
    empty = details["empty_images"]
    return [_alarms(empty["images"], one) for one in empty["at"]]


def _alarms(images: int, one: FalseAlarms) -> str:
    return (
        f"false alarms at scores above {one['threshold']:.2f}: in {one['images']} of {counted(images, 'image')} without objects "
        f"({one['percent']:.1f} %), {one['per_image']:.2f} detections per such image"
    )


def _threshold_body(details: DetectDetails) -> str:
    thresholds, everything, by_class = details["curves"]["thresholds"], details["curves"]["all"], details["curves"]["by_class"]
    at = details["at_threshold"]
    named = [(row["class"], curve) for row, curve in zip(details["classes"], by_class, strict=True) if row["objects"]]
    has_colours = 1 < len(named) <= len(palette.SERIES)
    colours = [palette.SERIES[i] if has_colours else palette.GREY for i in range(len(named))]
    curves = list(zip([curve for _, curve in named], colours, [1.2 if has_colours else 0.6] * len(named), strict=True))
    if len(named) == 1:
        curves = []
    curves.append((everything, palette.INK, 2.5))
    limits, mark = (0.0, 1.0), at["threshold"] if at["is_best"] else None
    three = [
        plots.Line(thresholds, everything["precision"], _PRECISION, label="precision"),
        plots.Line(thresholds, everything["recall"], _RECALL, label="recall"),
        plots.Line(thresholds, everything["f1"], _F1, 2.5, label="F1"),
    ]
    drawings = [
        plots.percentages(three, "All classes (%)", "score threshold", limits, mark),
        plots.percentages([_f1_line(thresholds, *one) for one in curves], "F1 (%)", "score threshold", limits, mark),
        plots.percentages([_precision_line(*one) for one in curves], "Precision (%)", "recall (%)", (0, 102)),
    ]
    entries = [(str(name), colour, "") for (name, _), colour in zip(named, colours, strict=True)] if has_colours else []
    entries += [("each class", palette.GREY, "")] if len(named) > len(palette.SERIES) else []
    legend = page.legend([("all classes", "var(--ink)", ""), *entries]) if len(named) > 1 else ""
    rows = [_class_row(row) for row in details["classes"]]
    table = page.folded(page.tight(page.table(rows)), len(rows))
    return "".join([page.paragraph(_sentence(details)), legend, page.figures(drawings), page.spaced([table, page.paragraph(_EXPLAINED)])])


def _f1_line(thresholds: Sequence[float], curve: ThresholdCurve, colour: str, width: float) -> plots.Line:
    return plots.Line(thresholds, curve["f1"], colour, width)


def _precision_line(curve: ThresholdCurve, colour: str, width: float) -> plots.Line:
    return plots.Line(curve["recall"], curve["precision"], colour, width)


def _class_row(row: Json) -> Json:
    shown: Json = {"class": row["class"], "objects": row["objects"]}
    shown |= {name: _percent(row[key]) for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))}
    best = row["best_threshold"]
    return shown | {"best threshold": f"{best:.2f}" if isinstance(best, float) else tables.NONE, "F1 there": _percent(row["best_f1"])}


def _drawn(one: WorstDetections, classes: Sequence[str], source: DetectSource) -> list[Image.Image]:
    image, truth = deep.shown(source.read(one["index"])), source.encoded_target(one["index"])
    annotated: Json = {"boxes": truth.boxes, "labels": truth.labels, "iscrowd": truth.iscrowd}
    found: Json = {
        "boxes": torch.tensor(one["boxes"]).reshape(-1, 4),
        "labels": torch.tensor(one["labels"], dtype=torch.long),
        "scores": torch.tensor(one["scores"]),
    }
    sides = ((annotated, one["truth_kinds"]), (found, one["kinds"]))
    colours = [[palette.rgb(palette.ERRORS[kind]) for kind in kinds] for _, kinds in sides]
    return [drawing.draw(image, objects, classes, colour) for (objects, _), colour in zip(sides, colours, strict=True)]


def _caption(one: WorstDetections) -> str:
    return f"{one['image']}: {one['missed']} missed, {one['false']} false, {one['confused']} found as another class"


def _percent(value: object) -> str:
    return f"{value:.1f} %" if isinstance(value, float) else tables.NONE
