"""Figures, drawn with matplotlib without a display, as SVG text or PNG files."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from convnext.text import printable, shortened

MOST_CLASSES_DRAWN = 40  # a confusion matrix with more cannot be read
_BLUE, _ORANGE, _GREY = "#0b6e99", "#d9730d", "#66758a"
# Okabe and Ito's palette, told apart with any kind of colour vision; without black and yellow, lost on one of the grounds.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_DASHES = ((), (6, 2), (2, 2))  # lengths drawn and left out: what tells runs apart where the colours are used up
_LONGEST = 40  # characters of a name in a figure: with more there is no room for the figure
_MOST_POINTS = 300  # of one overlaid curve


def curves(lines: Sequence[dict[str, Any]], headline: str) -> str:
    """The course of a run as SVG: losses, the headline metric and the learning rate over epochs.

    Args:
        lines: of metrics.jsonl.
        headline: the name of the metric to draw, in percent.
    """
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval" and headline in line]
    figure = Figure(figsize=(10.5, 3.1), layout="constrained")
    loss, metric, rate = figure.subplots(1, 3)
    loss.plot([line["epoch"] for line in train], [line["loss"] for line in train], color=_BLUE, label="training")
    loss.set(title="Loss", xlabel="epoch")
    if any("loss" in line for line in evals):
        loss.plot([line["epoch"] for line in evals], [line["loss"] for line in evals], color=_ORANGE, label="validation")
        loss.legend(frameon=False)
    marker = "o" if len(evals) < 3 else None
    metric.plot([line["epoch"] for line in evals], [line[headline] for line in evals], color=_ORANGE, marker=marker)
    if raw := [(line["epoch"], line[f"raw_{headline}"]) for line in evals if f"raw_{headline}" in line]:
        metric.plot(*zip(*raw, strict=True), color=_GREY, marker=marker)
        metric.legend(["EMA weights", "raw weights"], frameon=False)
    metric.set(title=f"Validation {headline} (%)", xlabel="epoch")
    rate.plot([line["epoch"] for line in train], [line["lr"] for line in train], color=_GREY)
    rate.set(title="Learning rate", xlabel="epoch")
    for axes in (loss, metric, rate):
        _plain(axes)
    return svg(figure)


def style(index: int) -> tuple[str, str]:
    """How `overlay` draws its curve number `index`: colour, and dashes as in SVG's stroke-dasharray."""
    return _COLOURS[index % len(_COLOURS)], " ".join(map(str, _dashes(index)))


def overlay(series: Sequence[Sequence[tuple[float, float]]], title: str) -> str:
    """Curves of several runs over epochs in one SVG, each in its `style`. One of many points is drawn as means of neighbours.

    Args:
        series: the points (epoch, value) of each run; none for a run that has no such curve.
        title: what is drawn.
    """
    figure = Figure(figsize=(5.2, 3.3), layout="constrained")
    axes = figure.subplots()
    for index, points in enumerate(series):
        if points:
            x, y = zip(*_thinned(points), strict=True)
            line = (0, _dashes(index)) if _dashes(index) else "solid"
            axes.plot(x, y, color=style(index)[0], linestyle=line, marker="o" if len(points) < 3 else None)
    axes.set(title=title, xlabel="epoch")
    _plain(axes)
    return svg(figure)


def confusion(matrix: list[list[int]], classes: Sequence[str]) -> str:
    """A confusion matrix as SVG: rows are true classes, columns predicted ones; colour is the share of the row."""
    side = max(3.6, 1.6 + 0.36 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [shown(name) for name in classes]
    turn = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=turn, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color="white" if shares[i][j] > 0.5 else "black")
    return svg(figure)


def reliability(bins: Sequence[dict[str, Any]]) -> str:
    """A reliability diagram as SVG: the accuracy of the samples of each bin of confidence, and how many samples each bin has.

    Args:
        bins: of equal width from 0 to 100 %, with the count, accuracy and mean confidence (percent; None where empty) of each.
    """
    width, total = 100 / len(bins), max(sum(one["count"] for one in bins), 1)
    edges = [width * i for i in range(len(bins))]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    accuracy, share = figure.subplots(1, 2)
    accuracy.bar(edges, [one["accuracy"] or 0 for one in bins], width, align="edge", color=_BLUE, edgecolor="white", label="accuracy")
    filled = [one for one in bins if one["count"]]
    sure, right = [one["confidence"] for one in filled], [one["accuracy"] for one in filled]
    accuracy.plot([0, 100], [0, 100], color=_GREY, linestyle="--", linewidth=1)
    accuracy.vlines(sure, right, sure, color=_ORANGE, linewidth=2, label="from there to the mean confidence")
    accuracy.plot(sure, sure, "o", color=_ORANGE, markersize=3)
    accuracy.set(title="Accuracy (%)", xlabel="confidence (%)", xlim=(0, 100), ylim=(0, 100))
    figure.legend(frameon=False, loc="outside lower left", ncols=2)
    share.bar(edges, [100 * one["count"] / total for one in bins], width, align="edge", color=_GREY, edgecolor="white")
    share.set(title="Share of the images (%)", xlabel="confidence (%)", xlim=(0, 100))
    for axes in (accuracy, share):
        _plain(axes)
    return svg(figure)


def predictions(images: Sequence[Image.Image], titles: Sequence[str], right: Sequence[bool | None], path: Path) -> None:
    """A sheet of images with a title over each, green where right, red where wrong, as PNG."""
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    colors = {True: "#1a7f37", False: "#cf222e", None: "#1d2733"}
    for axes, image, title, good in zip(figure.axes, images, titles, right, strict=False):
        axes.imshow(image, interpolation="nearest" if max(image.size) <= 64 else "antialiased")
        axes.set_title(shown(title), fontsize=10, color=colors[good], parse_math=False)
    with _glyphs_missing():
        figure.savefig(path, dpi=110)


def shown(text: str) -> str:
    """Text from outside as a figure takes it, with `parse_math=False`, which it needs besides: a dollar is no formula."""
    return shortened(printable(text), _LONGEST)


@contextmanager
def _glyphs_missing() -> Iterator[None]:
    """Where matplotlib's fonts lack a script, as of Chinese: a browser has its own, and a PNG shows boxes; neither is worth a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _dashes(index: int) -> tuple[int, ...]:
    return _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // _MOST_POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def svg(figure: Figure) -> str:
    """A figure as SVG text."""
    buffer = StringIO()
    # A fixed salt and no metadata: the same run draws the same file.
    with _glyphs_missing(), matplotlib.rc_context({"svg.hashsalt": "convnext", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
