"""The roadmap from ResNet to ConvNeXt as a table, a figure and a page: published beside measured."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convnext.data.transforms.preprocessing import ImageSize, size_text
from convnext.report import page, palette, plots
from convnext.text import counted

_NOT_ADOPTED = ("kernel 9x9", "kernel 11x11")  # later steps do not build on these


@dataclass(frozen=True)
class Rung:
    """One step of the roadmap: its published numbers, and those measured here."""

    step: str
    why: str
    published_top1: float  # percent, ImageNet-1K
    published_macs: float  # in billions, at 224
    parameters: int  # of the network trained here
    macs: int
    top1: list[float]  # percent, one for each finished seed


@dataclass(frozen=True)
class Ladder:
    """The steps of a roadmap in one regime."""

    regime: str
    data: str
    epochs: int
    image_size: ImageSize
    hardware: list[str]
    rungs: list[Rung]
    iterations: int | None = None  # steps of a run, where its length is given in steps


def write(ladder: Ladder, folder: Path) -> None:
    """Write roadmap.json, roadmap.md, roadmap.png, roadmap.svg and report.html."""
    (folder / "roadmap.json").write_text(json.dumps(asdict(ladder), indent=2) + "\n", encoding="utf-8")
    (folder / "roadmap.md").write_text(markdown(ladder), encoding="utf-8")
    drawn = figure(ladder)
    drawn.savefig(folder / "roadmap.png", dpi=130)
    (folder / "roadmap.svg").write_text(plots.svg(drawn, transparent=False), encoding="utf-8")
    sections = [
        page.PageSection("Accuracy after each step", page.figure(plots.svg(drawn), wide=True)),
        page.PageSection("Each step", page.tight(page.table(rows(ladder)))),
        page.PageSection("What it ran on", page.preformatted("\n".join(ladder.hardware) or "nothing finished yet")),
    ]
    done = sum(len(rung.top1) for rung in ladder.rungs)
    cards = {
        "steps": str(len(ladder.rungs)),
        "runs finished": str(done),
        "length of a run": _length(ladder),
        "image size": f"{size_text(ladder.image_size)} pixels",
    }
    title = "From ResNet-50 to ConvNeXt-T" if ladder.regime == "t" else "From ResNet-200 to ConvNeXt-B"
    whole = page.page(title, f"trained on {ladder.data}", cards, sections)
    (folder / "report.html").write_text(whole, encoding="utf-8")


def _length(ladder: Ladder) -> str:
    return counted(ladder.epochs, "epoch") if ladder.iterations is None else counted(ladder.iterations, "step")


def rows(ladder: Ladder) -> list[dict[str, str]]:
    """Return the table: one row per step, published beside measured."""
    return [
        {
            "step": rung.step,
            "published top-1": f"{rung.published_top1:.2f} %",
            "published multiply-adds": f"{rung.published_macs:.2f} G",
            "measured top-1": f"{statistics.mean(rung.top1):.2f} %" if rung.top1 else "not yet",
            "std over seeds": f"± {statistics.stdev(rung.top1):.2f}" if len(rung.top1) > 1 else "–",
            "runs": str(len(rung.top1)),
            "multiply-adds": _amount(rung.macs),
            "parameters": _amount(rung.parameters),
        }
        for rung in ladder.rungs
    ]


def markdown(ladder: Ladder) -> str:
    """Return the same as a Markdown table."""
    table = rows(ladder)
    lines = ["| " + " | ".join(table[0]) + " |", "| " + " | ".join("---" for _ in table[0]) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in table)]) + "\n"


@plots.drawing()
def figure(ladder: Ladder) -> Figure:
    """Return a figure with a bar for each step over accuracy, with its multiply-adds: published on the left, measured on the right."""
    drawn = Figure(figsize=(11, 0.34 * len(ladder.rungs) + 1.2), layout="constrained")
    left, right = drawn.subplots(1, 2, sharey=True)
    rungs = ladder.rungs
    _bars(left, rungs, [rung.published_top1 for rung in rungs], [0.0] * len(rungs), [f"{rung.published_macs:.2f} G" for rung in rungs])
    left.set_title("Published: top-1 (%) on ImageNet-1K,\n300 epochs, 224 pixels", fontsize=10)
    left.set_yticks(range(len(rungs)), [rung.step for rung in rungs])
    left.invert_yaxis()
    means = [statistics.mean(rung.top1) if rung.top1 else 0.0 for rung in rungs]
    spreads = [statistics.stdev(rung.top1) if len(rung.top1) > 1 else 0.0 for rung in rungs]
    _bars(right, rungs, means, spreads, [_amount(rung.macs) if rung.top1 else "not yet" for rung in rungs])
    title = f"Measured: top-1 (%) on {plots.shown(ladder.data)},\n{_length(ladder)}, {size_text(ladder.image_size)} pixels"
    right.set_title(title, fontsize=10)
    return drawn


def _bars(axes: Axes, rungs: Sequence[Rung], values: Sequence[float], spreads: Sequence[float], costs: Sequence[str]) -> None:
    positions = list(range(len(rungs)))
    colours = [palette.GREY if rung.step in _NOT_ADOPTED else palette.BLUE for rung in rungs]
    axes.barh(positions, values, color=colours, height=0.72)
    if any(spreads):
        axes.errorbar(values, positions, xerr=spreads, fmt="none", ecolor=palette.INK, capsize=2, lw=1)
    for position, value, spread, cost in zip(positions, values, spreads, costs, strict=True):
        label = f"{value:.1f} · {cost}" if value else cost
        axes.annotate(label, (value + spread, position), (5, 0), textcoords="offset points", va="center", fontsize=8)
    if any(values):
        low, high = min(value for value in values if value), max(values)
        room = max(high - low, 0.5)
        axes.set_xlim(max(low - 0.4 * room, 0), high + 0.5 * room)  # not from zero: the steps would look alike
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x")


def _amount(count: float) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
