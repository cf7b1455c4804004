"""Metrics as people read them: their names, their values with units, and how certain a proportion is."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import TypedDict

from convnext.text import counted

_LABELS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "f1": "macro F1",
    "auroc": "AUROC",
    "map": "mAP",
    "micro_f1": "micro F1",
    "r2": "R²",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "ece": "expected calibration error",
    "mean_error": "mean error",
    "mce": "mean corruption error",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "box_f1": "F1 at the best threshold",
    "box_precision": "precision at the best threshold",
    "box_recall": "recall at the best threshold",
    "false_alarms": "images without objects with a detection",
    "miou": "mIoU",
    "boundary_miou": "mean boundary IoU",
    "mean_accuracy": "mean class accuracy",
    "overall_accuracy": "pixel accuracy",
    "count": "images",
}
_RAW = "raw_"  # prefix of a metric of the weights without EMA
ERRORS = {"loss", "mae", "rmse"}  # the lowest is best, and they are no percentages
_BOUNDS = ("_low", "_high")  # endings of the bounds of a metric's interval
_IN_TABLES = re.compile(r"_(ap_[a-z]+|ar\d+)$")  # of a detector: by the size of objects, and recall at so many detections
_FRACTIONS = {"best_threshold"}  # numbers of 0 to 1 that are no percentages
_PROPORTIONS = {"top1", "top5"}  # of images that are independent of each other, so that an interval can be given
_Z = 1.959963984540054  # of the normal distribution: 95 % lie within so many standard deviations


class CalibrationBin(TypedDict):
    """The images whose confidence lies within one bin."""

    count: int
    accuracy: float | None  # percent; None where the bin is empty
    confidence: float | None  # mean, in percent; likewise


def label(name: str) -> str:
    """Return the name of a metric for people: "top-1 accuracy" for top1, "box AP at IoU 0.50" for box_ap50."""
    if name.startswith(_RAW):
        return f"{label(name.removeprefix(_RAW))} of the raw weights"
    if name in _LABELS:
        return _LABELS[name]
    kind, is_recall, count = name.partition("_ar")
    if is_recall and count.isdigit():
        return f"{kind} AR at {counted(int(count), 'detection')}"
    kind, is_ap, part = name.partition("_ap")
    if is_ap and part.isdigit():
        return f"{kind} AP at IoU 0.{part}"
    if is_ap and part:
        return f"{kind} AP of {part.removeprefix('_')} objects"
    return name.replace("_", " ")


def value(name: str, number: float) -> str:
    """Return a metric with its unit: "99.72 %"; losses and errors of numbers are plain numbers, and counts whole ones."""
    plain = name.removeprefix(_RAW)
    if plain == "count":
        return f"{number:.0f}"
    if plain in _FRACTIONS:
        return f"{number:.2f}"
    return f"{number:.4g}" if plain in ERRORS or plain.startswith("loss_") else percent(number)


def axis(name: str) -> str:
    """Return what to write over a curve of a metric: its label with the unit."""
    return label(name) if name in ERRORS else f"{label(name)} (%)"


def best(name: str, numbers: Iterable[float]) -> float:
    """Return the best of several values of a metric: the lowest loss or error, of others the highest. Raises ValueError for none."""
    return min(numbers) if name in ERRORS else max(numbers)


def percent(number: float) -> str:
    """Return a percentage with two digits after the point, kept on one line."""
    return f"{number:.2f}\N{NO-BREAK SPACE}%"


def interval(name: str, number: float, count: float | None) -> str | None:
    """Return the 95 % interval of a metric measured on `count` images, "98.44 to 99.95 %"; None where the metric is not a proportion.

    It is Wilson's score interval: how far chance in the choice of the validation images may move the metric. It does not hold
    what other seeds of training would change.
    """
    if name.removeprefix(_RAW) not in _PROPORTIONS or not count:
        return None
    low, high = wilson(number / 100, count)
    return f"{100 * low:.2f} to {100 * high:.2f}\N{NO-BREAK SPACE}%"


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the bounds of the 95 % score interval of a share, 0 to 1, of `count` trials. Source: Wilson (1927)."""
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def described(name: str, number: float, count: float | None) -> str:
    """Return what to write under a metric: its label and, where it is a proportion, the 95 % interval."""
    bounds = interval(name, number, count)
    return label(name) if bounds is None else f"{label(name)}, 95 % interval {bounds}"


def cards(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the metrics of an evaluation as `page.page` takes them: what to write under each, to its value.

    Those by the size and the number of objects are left to the tables of the page.
    """
    count, shown = metrics.get("count"), {}
    for name, number in metrics.items():
        low, high = (metrics.get(f"{name}{bound}") for bound in _BOUNDS)
        bounds = "" if low is None or high is None else f", 95 % interval {low:.2f} to {percent(high)}"
        if not name.endswith(_BOUNDS) and not _IN_TABLES.search(name):
            shown[f"{label(name)}{bounds}" if bounds else described(name, number, count)] = value(name, number)
    return shown


def words(metrics: Mapping[str, float]) -> str:
    """Return the metrics of an evaluation on one line, by their keys, each with its 95 % interval where it has one."""
    shown = []
    for name, number in metrics.items():
        low, high = (metrics.get(f"{name}{bound}") for bound in _BOUNDS)
        interval = "" if low is None or high is None else f" (95 % interval {low:.4g} to {high:.4g})"
        if not name.endswith(_BOUNDS):
            shown.append(f"{name} {number:.4g}{interval}" if isinstance(number, float) else f"{name} {number}{interval}")
    return "  ".join(shown)


def is_better(name: str, number: float, best: float) -> bool:
    """Return whether a value of a metric is better than the best one so far, which is infinite if there is none. NaN never is."""
    if not math.isfinite(number) or not math.isfinite(best):
        return math.isfinite(number)
    return number < best if name in ERRORS else number > best
