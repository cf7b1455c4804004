"""Accuracy over cost, family by family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from convnext.errors import ConvnextError

# Okabe and Ito's palette, told apart with any kind of colour vision; shapes tell those apart that share a colour.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_SHAPES = "osD^v<>PX"
_FONT = 7.5  # points


@dataclass(frozen=True)
class Point:
    """One network's result."""

    family: str
    label: str
    panel: str
    macs: float  # billions of multiply-adds
    accuracy: float
    measured: bool  # here, not printed in the paper


def scatter(points: Sequence[Point], axis: str, path: Path) -> None:
    """Draw points as .png or .svg: a panel of each kind side by side on one scale of accuracy, printed hollow and measured filled.

    Raises ConvnextError if there is nothing to draw or the file can't be written.
    """
    if not points:
        raise ConvnextError(f"nothing to draw into {path}: no row has both an accuracy and multiply-adds")
    panels, families = list(dict.fromkeys(point.panel for point in points)), list(dict.fromkeys(point.family for point in points))
    styles = {family: (_COLOURS[i % len(_COLOURS)], _SHAPES[i % len(_SHAPES)]) for i, family in enumerate(families)}
    figure = Figure(figsize=(1.6 + 4.6 * len(panels), 5.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for family, style in styles.items():
            _draw(axes, [point for point in points if (point.family, point.panel) == (family, panel)], *style)
        costs = [point.macs for point in points if point.panel == panel]
        if max(costs) > 8 * min(costs):  # over fewer octaves a logarithmic axis has hardly a tick
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set(title=panel, xlabel="multiply-adds (G)")
        axes.margins(0.1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel(axis)
    _legend(figure, styles)
    figure.draw_without_rendering()  # only now it is known where the points lie
    for axes, panel in zip(all_axes, panels, strict=True):
        _label(axes, [point for point in points if point.panel == panel], styles)
    try:
        # Text stays text, and the same table draws the same file.
        with matplotlib.rc_context({"svg.hashsalt": "convnext", "svg.fonttype": "none"}):
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise ConvnextError(f"could not write {path}: {error}") from error


def _draw(axes: Any, points: Sequence[Point], colour: str, shape: str) -> None:
    for measured in (False, True):
        chosen = sorted((point.macs, point.accuracy) for point in points if point.measured == measured)
        if chosen:
            x, y = zip(*chosen, strict=True)
            fill = colour if measured else "white"
            axes.plot(x, y, color=colour, marker=shape, markersize=6, markerfacecolor=fill, linewidth=0.7, alpha=0.9, zorder=2 + measured)


def _legend(figure: Figure, styles: Mapping[str, tuple[str, str]]) -> None:
    marks = [
        Line2D([], [], color=colour, marker=shape, markerfacecolor="white", label=family) for family, (colour, shape) in styles.items()
    ]
    for told, fill in (("as printed", "white"), ("measured here", "#66758a")):
        marks.append(Line2D([], [], color="#66758a", marker="o", linestyle="none", markerfacecolor=fill, label=told))
    figure.legend(handles=marks, loc="outside right upper", frameon=False)


def _label(axes: Any, points: Sequence[Point], styles: Mapping[str, tuple[str, str]]) -> None:
    """Write each network's label once, on the side of its mark where it covers least."""
    scale = axes.figure.dpi / 72
    places = axes.transData.transform([(point.macs, point.accuracy) for point in points]) / scale  # in points, like the font
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    written = set()
    for point, (x, y) in zip(points, places, strict=True):
        if (point.family, point.label) in written:
            continue
        written.add((point.family, point.label))
        width, height = 0.62 * _FONT * len(point.label), 1.1 * _FONT
        boxes = [(x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2) for dx, dy in _sides(width, height)]
        best = min(boxes, key=lambda box: sum(_covered(box, other) for other in taken))
        taken.append(best)
        middle = ((best[0] + best[2]) / 2 - x, (best[1] + best[3]) / 2 - y)
        axes.annotate(
            point.label,
            (point.macs, point.accuracy),
            middle,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_FONT,
            color=styles[point.family][0],
        )


def _sides(width: float, height: float) -> list[tuple[float, float]]:
    """Middles of a label around its mark, the best first: above, below, beside, in the corners, further off."""
    near, beside = height / 2 + 5, width / 2 + 6
    around = [(0, near), (0, -near), (beside, 0), (-beside, 0), (beside, near), (-beside, near), (beside, -near), (-beside, -near)]
    return [*around, (0, 2 * near), (0, -2 * near)]


def _covered(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
