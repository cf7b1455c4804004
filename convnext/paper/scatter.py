"""Accuracy over cost, family by family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from convnext.errors import ConvnextError
from convnext.models.weights.files import unwritable
from convnext.report import palette, plots

Styles = Mapping[str, tuple[str, str]]  # colour and marker of each family
_FONT = 7.5  # points


@dataclass(frozen=True)
class Point:
    """The result of one network."""

    family: str
    label: str
    panel: str
    macs: float  # billions of multiply-adds
    accuracy: float
    measured: bool  # here; otherwise published in the paper


def styles(families: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each family; both are different for up to seven families."""
    colours, markers = palette.SERIES, palette.MARKERS
    return {family: (colours[i % len(colours)], markers[i % len(markers)]) for i, family in enumerate(families)}


@plots.drawing()
def scatter(points: Sequence[Point], axis: str, path: Path) -> None:
    """Draw points as .png or .svg: the panels side by side on one scale of accuracy, published results hollow and measured ones filled.

    Raises ConvnextError if there is nothing to draw or the file can't be written.
    """
    if not points:
        raise ConvnextError(f"nothing to draw into {path}: no row has both an accuracy and multiply-adds")
    panels = list(dict.fromkeys(point.panel for point in points))
    looks = styles(list(dict.fromkeys(point.family for point in points)))
    figure = Figure(figsize=(1.6 + 4.6 * len(panels), 5.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, [point for point in points if point.panel == panel], looks)
        axes.set(title=panel, xlabel="multiply-adds (G)")
    all_axes[0].set_ylabel(axis)
    _draw_legend(figure, looks)
    figure.draw_without_rendering()  # only now the positions of the points are known
    for axes, panel in zip(all_axes, panels, strict=True):
        _write_labels(axes, [point for point in points if point.panel == panel], looks)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)  # the same table draws the same file
    except OSError as error:
        raise unwritable(path, error) from error


def _draw_panel(axes: Axes, points: Sequence[Point], looks: Styles) -> None:
    for family, (colour, marker) in looks.items():
        for measured in (False, True):
            chosen = sorted((point.macs, point.accuracy) for point in points if (point.family, point.measured) == (family, measured))
            if not chosen:
                continue
            x, y = [macs for macs, _ in chosen], [accuracy for _, accuracy in chosen]
            fill = colour if measured else "white"
            axes.plot(x, y, color=colour, marker=marker, markersize=6, markerfacecolor=fill, linewidth=0.7, alpha=0.9, zorder=2 + measured)
    costs = [point.macs for point in points]
    if max(costs) > 8 * min(costs):  # over fewer octaves a logarithmic axis has hardly a tick
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.1)
    plots.plain(axes)


def _draw_legend(figure: Figure, looks: Styles) -> None:
    marks = [
        Line2D([], [], color=colour, marker=marker, markerfacecolor="white", label=family) for family, (colour, marker) in looks.items()
    ]
    for label, fill in (("published", "white"), ("measured here", palette.GREY)):
        marks.append(Line2D([], [], color=palette.GREY, marker="o", linestyle="none", markerfacecolor=fill, label=label))
    figure.legend(handles=marks, loc="outside right upper", frameon=False)


def _write_labels(axes: Axes, points: Sequence[Point], looks: Styles) -> None:
    """Write each network's label once, on the side of its mark where it covers least."""
    scale = axes.figure.dpi / 72
    positions = axes.transData.transform([(point.macs, point.accuracy) for point in points]) / scale  # in points, like the font
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in positions]
    written = set()
    for point, (x, y) in zip(points, positions, strict=True):
        if (point.family, point.label) in written:
            continue
        written.add((point.family, point.label))
        width, height = 0.62 * _FONT * len(point.label), 1.1 * _FONT
        boxes = [(x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2) for dx, dy in _sides(width, height)]
        best = min(boxes, key=lambda box: sum(_covered(box, other) for other in taken))
        taken.append(best)
        axes.annotate(
            point.label,
            (point.macs, point.accuracy),
            ((best[0] + best[2]) / 2 - x, (best[1] + best[3]) / 2 - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_FONT,
            color=looks[point.family][0],
        )


def _sides(width: float, height: float) -> list[tuple[float, float]]:
    """Return the middles of a label around its mark, the best first: above, below, beside, in the corners, further away."""
    near, beside = height / 2 + 5, width / 2 + 6
    around = [(0, near), (0, -near), (beside, 0), (-beside, 0), (beside, near), (-beside, near), (beside, -near), (-beside, -near)]
    return [*around, (0, 2 * near), (0, -2 * near)]


def _covered(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
