"""The published tables beside the numbers measured here, as text and as a figure, from the plain rows of `convnext.paper.table`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from convnext.errors import UsageError
from convnext.report import tables
from convnext.report.tables import Column

if TYPE_CHECKING:
    from convnext.paper.scatter import Point

TableRow = Mapping[str, object]
Rows = Sequence[TableRow]

TITLES = {
    "imagenet": "Table 1: ImageNet-1K top-1 after training on these data",
    "coco": "Table 3: COCO detection; macs of one image of 1280 x 800",
    "ade20k": "Table 4: ADE20K segmentation by UperNet, multi-scale mIoU; macs of 2048 x 512 (2560 x 640 after 22K), no auxiliary head",
    "roadmap": "Tables 10 and 11: from ResNet to ConvNeXt, top-1 on ImageNet-1K",
    "robustness": "Table 8: robustness; C and C-bar are mean corruption errors, lower is better",
    "throughput": "Tables 12 (A100, TF32, channels-last) and 1 (V100): images per second of ConvNeXt and of Swin",
}
UNITS = "params in millions, macs (multiply-adds) in billions; the published number, and the one measured here beside it"
_ACCURACY = {"imagenet": ("top1", "ImageNet-1K top-1 (%)"), "coco": ("box_ap", "box AP"), "ade20k": ("miou_ms", "multi-scale mIoU (%)")}
_FAMILIES = {"R": "BiT, ResNet", "X101": "ResNeXt-101"}  # where the label's first word is not a name


def _beside(key: str, head: str, digits: int, here: int) -> list[Column]:
    return [Column(f"published_{key}", head, digits), Column(f"measured_{key}", "here", here)]


# Each layout fits 140 columns with every cell filled. Where a name says as much as the published label, the label is not shown.
_LABEL, _NAME, _DATA, _PIXELS, _NOTES = (
    Column(*both) for both in (("label", "network"), ("model", "name"), ("data", "data"), ("image_size", "pixels"), ("notes", "notes"))
)
_PARAMS, _MACS = Column("measured_params_m", "params", 2), Column("measured_gmacs", "macs", 2)
_SPEED = [Column("measured_images_per_second", "here/s", 1), Column("measured_memory_mib", "MiB", 0)]
_COLUMNS = {
    "imagenet": [
        *(_LABEL, _NAME, _DATA, _PIXELS),
        *_beside("params_m", "params", 0, 2),
        *_beside("gmacs", "macs", 1, 2),
        Column("published_throughput_v100_img_s", "V100/s", 1),
        *_SPEED,
        *_beside("top1", "top-1", 1, 2),
        _NOTES,
    ],
    "coco": [
        *(_NAME, _DATA, _PARAMS),
        *_beside("gmacs", "macs", 0, 1),
        Column("published_fps_a100", "A100", 1),
        *_SPEED,
        *_beside("box_ap", "box", 1, 1),
        *(Column("published_box_ap50", "AP50", 1), Column("published_box_ap75", "AP75", 1)),
        *_beside("mask_ap", "mask", 1, 1),
        *(Column("published_mask_ap50", "AP50", 1), Column("published_mask_ap75", "AP75", 1)),
        _NOTES,
    ],
    "ade20k": [
        *(_LABEL, _NAME, _DATA),
        *_beside("params_m", "params", 0, 2),
        *_beside("gmacs", "macs", 0, 1),
        *_SPEED,
        *_beside("miou_ms", "mIoU", 1, 1),
        _NOTES,
    ],
    "roadmap": [
        *(Column("label", "step"), _NAME, _PARAMS),
        *_beside("gmacs", "macs", 2, 2),
        *_SPEED,
        *(Column("published_top1", "top-1", 2), Column("published_std", "std", 2), Column("measured_top1", "here", 2)),
        _NOTES,
    ],
    "robustness": [
        *(_NAME, _DATA, _PIXELS, _PARAMS, _MACS),
        *_SPEED,
        *_beside("top1", "top-1", 1, 1),
        *_beside("imagenet_c_mce", "C", 1, 1),
        *_beside("imagenet_cbar_mce", "C-bar", 1, 1),
        *_beside("imagenet_a_top1", "A", 1, 1),
        *_beside("imagenet_r_top1", "R", 1, 1),
        *_beside("sketch_top1", "Sketch", 1, 1),
        _NOTES,
    ],
    "throughput": [
        *(_NAME, _PIXELS, _PARAMS, _MACS),
        *(
            Column("published_convnext_a100", "A100", 1),
            Column("published_swin_a100", "Swin", 1),
            Column("published_ratio_a100", "ratio", 2),
        ),
        *(
            Column("published_convnext_v100", "V100", 1),
            Column("published_swin_v100", "Swin", 1),
            Column("published_ratio_v100", "ratio", 2),
        ),
        *(_SPEED[0], Column("measured_swin_images_per_second", "Swin", 1), Column("measured_ratio", "ratio", 2)),
        *(Column("measured_ratio_least", "min", 2), Column("measured_ratio_most", "max", 2), _SPEED[1]),
        _NOTES,
    ],
}


def plain(name: str, rows: Rows, measured_on: Sequence[str] = ()) -> str:
    """Return the table for a terminal of 140 columns; `measured_on` comes first, numbered remarks last.

    Columns without any value are not shown.
    """
    numbered, remarks = _numbered(rows)
    below = [f"[{number}] {remark}" for number, remark in enumerate(remarks, start=1)]
    return "\n".join(
        [f"{TITLES[name]} (arXiv 2201.03545)", UNITS, *measured_on, "", tables.plain(_filled(name, numbered), numbered), *below]
    )


def markdown(name: str, rows: Rows, measured_on: Sequence[str] = ()) -> str:
    """Return the table as Markdown, with numbered remarks below it and then `measured_on`."""
    numbered, remarks = _numbered(rows)
    below = [f"{number}. {remark}" for number, remark in enumerate(remarks, start=1)]
    parts = [tables.markdown(_filled(name, numbered), numbered), "\n".join(below), "; ".join(measured_on)]
    return "\n\n".join(part for part in parts if part)


def comma_separated(rows: Rows) -> str:
    """Return the table as CSV: every key is a column, numbers have all their digits."""
    return tables.comma_separated([Column(key, key) for key in rows[0]], [{**row, "remarks": "; ".join(_remarks(row))} for row in rows])


def check_plot(name: str, path: Path) -> None:
    """Raise UsageError if the table has no families to compare, or if the figure's name has another ending than .png or .svg."""
    if name not in _ACCURACY:
        raise UsageError(f"--plot draws accuracy over multiply-adds of the tables {', '.join(_ACCURACY)}, not of {name}")
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path}: the name of a figure must end in .png or .svg")


def plot(name: str, rows: Rows, path: Path) -> None:
    """Draw accuracy over multiply-adds as .png or .svg: a panel for each kind of training, a colour and a marker for each family.

    Published results are hollow, at the published multiply-adds; results measured here are filled, at the counted ones.

    Raises ConvnextError if there is nothing to draw or the file can't be written.
    """
    from convnext.paper.scatter import scatter

    _, axis = _ACCURACY[name]
    ours_first = sorted(rows, key=lambda row: not str(row["label"]).startswith("ConvNeXt"))
    counts = Counter((row["label"], row["trained_on"]) for row in rows)
    scatter([point for row in ours_first for point in _points(name, row, counts[row["label"], row["trained_on"]])], axis, path)


def _points(name: str, row: TableRow, same: int) -> list["Point"]:
    """Return the published and the measured result of a row, as far as known; `same` rows have its label and training data."""
    from convnext.paper.scatter import Point

    key, _ = _ACCURACY[name]
    family, _, label = str(row["label"]).partition("-")
    if name == "imagenet" and same > 1 and row["image_size"] != 224:
        label += f" {row['image_size']}"
    panel = str(row["trained_on"]).replace("imagenet", "ImageNet-").replace("k", "K")
    if name == "coco":
        panel = f"{'Cascade ' if str(row['model']).startswith('cascade') else ''}Mask R-CNN, {panel}"
    points = []
    for origin in ("published", "measured"):
        macs, accuracy = row[f"{origin}_gmacs"], row[f"{origin}_{key}"]
        if isinstance(macs, int | float) and isinstance(accuracy, int | float):
            points.append(Point(_FAMILIES.get(family, family), label, panel, macs, accuracy, measured=origin == "measured"))
    return points


def _filled(name: str, rows: Rows) -> list[Column]:
    return [column for column in _COLUMNS[name] if any(row[column.key] is not None for row in rows)]


def _numbered(rows: Rows) -> tuple[list[TableRow], list[str]]:
    """Return the rows with "data" and, as "notes", the numbers of their remarks, and the remarks, each once."""
    remarks = list(dict.fromkeys(remark for row in rows for remark in _remarks(row)))
    numbered: list[TableRow] = []
    for row in rows:
        numbers = [str(number) for number, remark in enumerate(remarks, start=1) if remark in _remarks(row)]
        data = str(row["trained_on"]).removeprefix("imagenet").upper()
        numbered.append({**row, "data": data, "notes": " ".join(numbers) or None})
    return numbered, remarks


def _remarks(row: TableRow) -> list[str]:
    return cast("list[str]", row["remarks"])
