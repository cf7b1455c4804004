"""Figures, drawn with matplotlib without a display, as SVG text or PNG files.

SVG has a transparent ground: `page.figure` gives its text and axes the colours of a light or a dark page.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator
from PIL import Image

from convnext.report import metrics, palette
from convnext.report.lines import LogLine, points
from convnext.report.metrics import CalibrationBin
from convnext.text import printable, shortened

MAX_CLASSES_DRAWN = 40  # a confusion matrix with more cannot be read
_DASHES = ((), (6, 2), (2, 2))  # lengths drawn and skipped: they tell curves apart once all colours are used
_MAX_NAME = 40  # characters of a name in a figure: longer ones leave no room for the figure
_MAX_POINTS = 300  # of one curve of several runs
_FEW = 3  # fewer points than these are drawn as markers: a line of one point would be invisible
_PANEL = (4.2, 3.0)  # inches: text keeps 9 pixels on the screen of a phone
_SETTINGS = {
    "svg.hashsalt": "convnext",  # with a fixed salt and no metadata the same run draws the same file
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of classes, losses and metrics may hold a dollar sign, and none is a formula
    "font.family": "sans-serif",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), palette.INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), palette.SOFT),
    "grid.color": palette.THEMES["light"]["line"],
}


@dataclass(frozen=True)
class Line:
    """A line of a figure: its points, None where there is no value, and how it is drawn."""

    x: Sequence[float | None]
    y: Sequence[float | None]
    colour: str
    width: float = 1.5
    label: str = ""  # in the legend


@contextmanager
def drawing() -> Iterator[None]:
    """Give figures that are made and written inside the colours of the palette, and text that stays text in SVG."""
    with matplotlib.rc_context(_SETTINGS), _missing_glyphs_allowed():
        yield


@drawing()
def curves(lines: Sequence[LogLine], headline: str) -> list[str]:
    """Return the course of a run over its epochs as three SVG drawings: losses, the headline metric and the learning rate.

    Args:
        lines: of metrics.jsonl.
        headline: the name of the metric to draw.
    """
    loss, axes = panel("Loss")
    _curve(axes, points(lines, "train", "loss"), palette.BLUE, "training")
    if validation := points(lines, "eval", "loss"):
        _curve(axes, validation, palette.ORANGE, "validation")
        axes.legend(frameon=False)
    accuracy, axes = panel(f"Validation {metrics.axis(headline)}")
    raw = points(lines, "eval", f"raw_{headline}")
    _curve(axes, points(lines, "eval", headline), palette.ORANGE, "EMA weights")
    if raw:
        _curve(axes, raw, palette.GREY, "raw weights")
        axes.legend(frameon=False)
    rate, axes = panel("Learning rate")
    _curve(axes, points(lines, "train", "lr"), palette.GREY, "")
    return [svg(loss), svg(accuracy), svg(rate), *_parts(lines)]


def _parts(lines: Sequence[LogLine]) -> list[str]:
    """Return a drawing of the parts of the loss, if it has several: solid in training, dashed on the validation images."""
    names = list(dict.fromkeys(key for line in lines for key in line if line["kind"] == "train" and key.startswith("loss_")))
    if not names:
        return []
    figure, axes = panel("Loss by part")
    for index, name in enumerate(names):
        colour = style(index)[0]
        _curve(axes, _thinned(points(lines, "train", name)), colour, name.removeprefix("loss_").replace("_", " "))
        if validation := points(lines, "eval", name):
            _curve(axes, validation, colour, "", "--")
    axes.legend(frameon=False, fontsize=9)
    return [svg(figure)]


def style(index: int) -> tuple[str, str]:
    """Return how `overlay` draws its curve number `index`: colour, and dashes as in SVG's stroke-dasharray."""
    return palette.SERIES[index % len(palette.SERIES)], " ".join(map(str, _dashes(index)))


@drawing()
def overlay(series: Sequence[Sequence[tuple[float, float]]], title: str) -> str:
    """Return the curves of several runs over epochs as one SVG, each in its `style`. Long curves are drawn as means of neighbours.

    Args:
        series: the points (epoch, value) of each run; empty for a run that has no such curve.
        title: what is drawn.
    """
    figure, axes = panel(title)
    for index, found in enumerate(series):
        if found:
            _curve(axes, _thinned(found), style(index)[0], "", (0, _dashes(index)) if _dashes(index) else "solid")
    return svg(figure)


@drawing()
def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Return a confusion matrix as SVG: rows are true classes, columns predicted ones; colour is the share of the row."""
    side = max(3.6, 1.6 + 0.36 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    cells = np.empty((len(matrix), len(matrix), 4))  # red, green, blue and opacity: the page shows through where the share is small
    cells[..., :3] = np.array(palette.rgb(palette.BLUE)) / 255
    cells[..., 3] = shares
    axes.imshow(cells)
    names = [shown(name) for name in classes]
    turn = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=turn)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if count:
                colour = "white" if shares[i][j] > 0.5 else palette.INK
                axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=colour)
    return svg(figure)


@drawing()
def reliability(bins: Sequence[CalibrationBin]) -> list[str]:
    """Return a reliability diagram as two SVG drawings: accuracy by confidence, and the share of images by confidence.

    Args:
        bins: of equal width from 0 to 100 %.
    """
    width, total = 100 / len(bins), max(sum(one["count"] for one in bins), 1)
    edges = [width * i for i in range(len(bins))]
    calibration, axes = panel("Accuracy (%)")
    axes.bar(edges, [one["accuracy"] or 0 for one in bins], 0.94 * width, align="edge", color=palette.BLUE, label="accuracy")
    confidence = [one["confidence"] for one in bins if one["confidence"] is not None]
    accuracy = [one["accuracy"] for one in bins if one["accuracy"] is not None]
    axes.plot([0, 100], [0, 100], color=palette.GREY, linestyle="--", linewidth=1)
    axes.vlines(confidence, accuracy, confidence, color=palette.ORANGE, linewidth=2, label="difference from the mean confidence")
    axes.plot(confidence, confidence, "o", color=palette.ORANGE, markersize=3)
    axes.set(xlabel="confidence (%)", xlim=(0, 100), ylim=(0, 100))
    calibration.legend(frameon=False, loc="outside lower left", fontsize=9)
    share, axes = panel("Share of the images (%)")
    axes.bar(edges, [100 * one["count"] / total for one in bins], 0.94 * width, align="edge", color=palette.GREY)
    axes.set(xlabel="confidence (%)", xlim=(0, 100))
    return [svg(calibration), svg(share)]


@drawing()
def percentages(lines: Sequence[Line], title: str, xlabel: str, limits: tuple[float, float], mark: float | None = None) -> str:
    """Return lines of percentages over anything as one SVG, with a legend of those that have labels.

    Args:
        lines: what to draw; later ones lie over earlier ones.
        title: what the percentages are.
        xlabel: what they are drawn over.
        limits: the ends of that axis.
        mark: a position on it to mark, if any.
    """
    figure, axes = panel(title)
    if mark is not None:
        axes.axvline(mark, color=palette.SOFT, linestyle="--", linewidth=1)
    for line in lines:
        axes.plot(np.array(line.x, float), np.array(line.y, float), color=line.colour, linewidth=line.width, label=line.label or None)
    axes.set(xlabel=xlabel, xlim=limits, ylim=(0, 102))
    if any(line.label for line in lines):
        axes.legend(frameon=False, fontsize=9)
    return svg(figure)


@drawing()
def growth(
    measured: Sequence[tuple[float, float, float]], law: Sequence[tuple[float, float]], ahead: tuple[float, float, float, float]
) -> str:
    """Return accuracy over the number of images as SVG, numbers on a logarithmic axis.

    Args:
        measured: images, accuracy in percent, and its standard error.
        law: the points of the fitted curve; none if there is no curve.
        ahead: images, accuracy, and the ends of its interval, by the curve; only drawn with a curve.
    """
    figure = Figure(figsize=_PANEL, layout="constrained")
    axes = figure.subplots()
    plain(axes)
    images, values, errors = zip(*measured, strict=True)
    axes.errorbar(images, values, errors, fmt="o", color=palette.BLUE, markersize=5, capsize=3, label="cross-validation")
    ticks = list(images)
    if law:
        axes.plot(*zip(*law, strict=True), color=palette.GREY, linestyle="--", linewidth=1)
        at, value, low, high = ahead
        label = "expected of twice the images"
        axes.errorbar([at], [value], [[value - low], [high - value]], fmt="D", color=palette.ORANGE, markersize=5, capsize=3, label=label)
        ticks.append(at)
    axes.set(xscale="log", xlabel="images", title="Accuracy (%)")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.legend(frameon=False, loc="outside lower left", fontsize=9)
    return svg(figure)


def predictions(images: Sequence[Image.Image], titles: Sequence[str], right: Sequence[bool | None], path: Path) -> None:
    """Write a sheet of images with a title over each, green where right, red where wrong, as PNG."""
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    colors = {True: palette.RIGHT, False: palette.WRONG, None: palette.INK}
    for axes, image, title, good in zip(figure.axes, images, titles, right, strict=False):
        axes.imshow(image, interpolation="nearest" if max(image.size) <= 64 else "antialiased")
        axes.set_title(shown(title), fontsize=10, color=colors[good], parse_math=False)
    with _missing_glyphs_allowed():
        figure.savefig(path, dpi=110)


def shown(text: str) -> str:
    """Return text from outside as a figure takes it."""
    return shortened(printable(text), _MAX_NAME)


def panel(title: str) -> tuple[Figure, Axes]:
    """Return an empty figure over epochs, and its axes."""
    figure = Figure(figsize=_PANEL, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="epoch")
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Give axes a light grid and no frame on the top and on the right."""
    axes.grid(alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


@drawing()
def svg(figure: Figure, transparent: bool = True) -> str:
    """Return a figure as SVG text, on a transparent ground or on white."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=transparent, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


@contextmanager
def _missing_glyphs_allowed() -> Iterator[None]:
    """Silence matplotlib where its fonts lack a script, such as Chinese: a browser has its own fonts, and a PNG shows boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _curve(axes: Axes, found: Sequence[tuple[float, float]], colour: str, label: str, line: object = "solid") -> None:
    x, y = [epoch for epoch, _ in found], [value for _, value in found]
    axes.plot(x, y, color=colour, linestyle=line, marker="o" if len(found) < _FEW else None, markersize=5, label=label)
    drawn = {value for one in axes.get_lines() for value in np.asarray(one.get_xdata()).tolist()}
    if len(drawn) == 1:  # else the axis has ticks a hundredth of an epoch apart
        axes.set_xticks(x, [f"{value:g}" for value in x])
    else:
        axes.xaxis.set_major_locator(AutoLocator())


def _dashes(index: int) -> tuple[int, ...]:
    return _DASHES[index // len(palette.SERIES) % len(_DASHES)]


def _thinned(found: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = max(1, -(-len(found) // _MAX_POINTS))
    groups = (found[i : i + size] for i in range(0, len(found), size))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
