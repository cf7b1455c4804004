"""The paper's tables, as rows that name the network here that each line is about. Source: `tables/README.md`."""

import csv
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from convnext.errors import UsageError, nearest

_DESCRIPTIONS = {"model", "backbone", "detector", "step", "pretrained_on", "image_size", "crop"}  # columns that hold no result
_SIZES = {"T": "tiny", "S": "small", "B": "base", "L": "large", "XL": "xlarge"}
_NAMES = {
    "DeiT-S": "deit_small",
    "DeiT-B": "deit_base",
    "R-101x3": "bit_r101x3",
    "R-152x4": "bit_r152x4",
    "ViT-B/16": "vit_base_16_384",
    "ViT-L/16": "vit_large_16_384",
    "ResNet-50": "resnet50",
    "X101-32": "resnext101_32x4d",
    "X101-64": "resnext101_64x4d",
}
_REGIMES = (("t", "ResNet-50 regime", "resnet50_regime_"), ("b", "ResNet-200 regime", "resnet200_regime_"))
_EFFICIENTNET = "EfficientNet's published multiply-adds are 2 to 4 % below a count of today's implementations"

# (table, label, group, pixels) → the correct multiply-adds, in billions: counts of independent implementations agree on them.
# ConvNeXt-B at 384 is printed correctly beside its ImageNet-22K weights.
_MISPRINTS: dict[tuple[str, str, str, int | tuple[int, int]], float] = {
    ("imagenet", "ConvNeXt-B", "imagenet1k", 384): 45.1,
    ("roadmap", "BatchNorm to LayerNorm", "ResNet-50 regime", 224): 4.15,
    ("roadmap", "separate downsampling layers", "ResNet-50 regime", 224): 4.46,
}

Line = dict[str, str]


@dataclass(frozen=True)
class PublishedRow:
    """One line of a published table; in the roadmap, one step of one of its two regimes."""

    label: str  # as published
    model: str  # the network's name here, or a shell pattern that it alone matches
    group: str  # what it was trained on; in the roadmap, the regime
    image_size: int | tuple[int, int]  # pixels a side, or (height, width), at which its multiply-adds are counted
    values: dict[str, float | None]  # None where the paper prints nothing
    baseline: str | None = None  # the name here of the network that the same line compares it with
    notes: tuple[str, ...] = ()


def read(table: str) -> list[PublishedRow]:
    """Return the rows of a table of `TABLES`, with misprints corrected and noted.

    Values have the names of the published columns, such as top1, params_m (millions) and gmacs (billions of multiply-adds).
    Raises UsageError for an unknown table.
    """
    if table not in TABLES:
        raise UsageError(f"unknown table {table!r}{nearest(table, TABLES)}")
    file, rows_of = TABLES[table]
    text = files("convnext.paper").joinpath("tables", file).read_text("utf-8")
    rows = rows_of(list(csv.DictReader(text.splitlines())))
    return [_corrected(row, _MISPRINTS.get((table, row.label, row.group, row.image_size))) for row in rows]


def _classifiers(lines: list[Line]) -> list[PublishedRow]:
    rows = []
    for line in lines:
        label, size = line["model"], int(line["image_size"])
        notes = (_EFFICIENTNET,) if label.startswith("EffNet") else ()
        rows.append(PublishedRow(label, _name(label, size), line["pretrained_on"], size, _values(line), notes=notes))
    return rows


def _coco(lines: list[Line]) -> list[PublishedRow]:
    return [
        PublishedRow(line["backbone"], f"{line['detector']}_{_name(line['backbone'])}", line["pretrained_on"], (800, 1280), _values(line))
        for line in lines
    ]


def _ade20k(lines: list[Line]) -> list[PublishedRow]:
    sizes = [(int(line["crop"]), 4 * int(line["crop"])) for line in lines]  # 512 x 2048 and 640 x 2560
    return [
        PublishedRow(line["backbone"], f"upernet_{_name(line['backbone'])}", line["pretrained_on"], size, _values(line))
        for line, size in zip(lines, sizes, strict=True)
    ]


def _roadmap(lines: list[Line]) -> list[PublishedRow]:
    rows = []
    for index, (regime, group, prefix) in enumerate(_REGIMES):
        for number, line in enumerate(lines):
            label, model = line["step"], f"roadmap_{regime}_{number:02d}_*"
            if " / " in label:  # the last line is not a step: Swin-T is the baseline of one regime, Swin-B of the other
                label = label.split(" / ")[index]
                model = _name(label)
            values = _values({key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)})
            rows.append(PublishedRow(label, model, group, 224, {"top1": None, "std": None, **values}))
    return rows


def _throughput(lines: list[Line]) -> list[PublishedRow]:
    v100 = {(row.label, row.image_size): row.values["throughput_v100_img_s"] for row in read("imagenet")}
    rows = []
    for line in lines:
        size, ours, theirs, printed = int(line["image_size"]), f"ConvNeXt-{line['model']}", f"Swin-{line['model']}", _values(line)
        values: dict[str, float | None] = {}
        for gpu, a, b in (
            ("a100", printed["convnext_img_s"], printed["swin_img_s"]),
            ("v100", v100[ours, size], v100.get((theirs, size))),
        ):
            values |= {f"convnext_{gpu}": a, f"swin_{gpu}": b, f"ratio_{gpu}": a / b if a and b else None}
        baseline = _name(theirs, size) if printed["swin_img_s"] else None
        rows.append(PublishedRow(ours, _name(ours, size), f"{size} pixels", size, values, baseline))
    return rows


TABLES: dict[str, tuple[str, Callable[[list[Line]], list[PublishedRow]]]] = {
    "imagenet": ("imagenet.csv", _classifiers),
    "coco": ("coco.csv", _coco),
    "ade20k": ("ade20k.csv", _ade20k),
    "roadmap": ("roadmap.csv", _roadmap),
    "robustness": ("robustness.csv", _classifiers),
    "throughput": ("throughput_a100.csv", _throughput),
}


def _name(label: str, image_size: int = 224) -> str:
    """Return the name here of a classifier that the paper calls `label`."""
    family, _, size = label.partition("-")
    if family == "ConvNeXt":
        return f"convnext_{_SIZES[size]}"
    if family == "Swin":
        return f"swin_{_SIZES[size]}" + ("_384" if image_size == 384 else "")
    if family == "EffNet":
        return f"efficientnet_{size.lower()}"
    if family == "RegNetY":
        return f"regnety_{size.lower()}"
    return _NAMES[label]


def _values(line: Line) -> dict[str, float | None]:
    return {key.replace("gflops", "gmacs"): float(value) if value else None for key, value in line.items() if key not in _DESCRIPTIONS}


def _corrected(row: PublishedRow, correct: float | None) -> PublishedRow:
    if correct is None:
        return row
    note = f"a misprint is corrected: the paper has {row.values['gmacs']} G multiply-adds here, a count gives {correct}"
    return dataclasses.replace(row, values=row.values | {"gmacs": correct}, notes=(*row.notes, note))
