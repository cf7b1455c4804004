"""The published tables with what was found beside them, as text and as a figure. Takes the plain rows of `convnext.paper.table`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convnext.errors import UsageError
from convnext.report import tables
from convnext.report.tables import Column

Rows = Sequence[Mapping[str, Any]]

TITLES = {
    "imagenet": "Table 1: ImageNet-1K top-1 after training on these data",
    "coco": "Table 3: COCO detection; macs of one image of 1280 x 800",
    "ade20k": "Table 4: ADE20K segmentation by UperNet, multi-scale mIoU; macs of 2048 x 512 (2560 x 640 after 22K), no auxiliary head",
    "roadmap": "Tables 10 and 11: from ResNet to ConvNeXt, top-1 on ImageNet-1K",
    "robustness": "Table 8: robustness; C and C-bar are mean corruption errors, the lower the better",
    "throughput": "Tables 12 (A100, TF32, channels-last) and 1 (V100): images a second of ConvNeXt and of Swin",
}
UNITS = "params in millions, macs (multiply-adds) in billions; what is printed, and behind it what is found here"
_ACCURACY = {"imagenet": ("top1", "ImageNet-1K top-1 (%)"), "coco": ("box_ap", "box AP"), "ade20k": ("miou_ms", "multi-scale mIoU (%)")}
_FAMILIES = {"R": "BiT, ResNet", "X101": "ResNeXt-101"}  # where the label's first word alone says little


def _beside(key: str, head: str, digits: int, here: int) -> list[Column]:
    return [Column(f"published_{key}", head, digits), Column(f"measured_{key}", "here", here)]


# Each layout fits 140 columns with every cell filled: where a name says all that the printed label says, it stands alone.
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
        *(Column("measured_ratio_least", "least", 2), Column("measured_ratio_most", "most", 2), _SPEED[1]),
        _NOTES,
    ],
}


def plain(name: str, rows: Rows, place: Sequence[str] = ()) -> str:
    """For a terminal of 140 columns, headed by what was measured on. Remarks are numbered below; columns without any value are left out."""
    numbered, remarks = _numbered(rows)
    below = [f"[{number}] {remark}" for number, remark in enumerate(remarks, start=1)]
    return "\n".join([f"{TITLES[name]} (arXiv 2201.03545)", UNITS, *place, "", tables.plain(_filled(name, numbered), numbered), *below])


def markdown(name: str, rows: Rows, place: Sequence[str] = ()) -> str:
    """As Markdown; remarks are numbered below, and below them what was measured on."""
    numbered, remarks = _numbered(rows)
    below = [f"{number}. {remark}" for number, remark in enumerate(remarks, start=1)]
    parts = [tables.markdown(_filled(name, numbered), numbered), "\n".join(below), "; ".join(place)]
    return "\n\n".join(part for part in parts if part)


def comma_separated(rows: Rows) -> str:
    """As CSV, every key a column, numbers in full."""
    return tables.comma_separated([Column(key, key) for key in rows[0]], [{**row, "remarks": "; ".join(row["remarks"])} for row in rows])


def check_plot(name: str, path: Path) -> None:
    """Raise UsageError if the table has no families to compare, or if the figure's name has another ending than .png or .svg."""
    if name not in _ACCURACY:
        raise UsageError(f"--plot draws accuracy over multiply-adds of the tables {', '.join(_ACCURACY)}, not of {name}")
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path}: the name of a figure must end in .png or .svg")


def plot(name: str, rows: Rows, path: Path) -> None:
    """Accuracy over multiply-adds as .png or .svg: a panel for each kind of training, a colour for each family.

    Printed results are hollow, at the printed multiply-adds; results measured here are filled, at the counted ones.
    """
    from convnext.paper.scatter import Point, scatter

    key, axis = _ACCURACY[name]
    ours_first = sorted(rows, key=lambda row: not row["label"].startswith("ConvNeXt"))
    seen = Counter((row["label"], row["trained_on"]) for row in rows)
    points = []
    for row in ours_first:
        family, _, told = row["label"].partition("-")
        if name == "imagenet" and seen[row["label"], row["trained_on"]] > 1 and row["image_size"] != 224:
            told += f" {row['image_size']}"
        panel = row["trained_on"].replace("imagenet", "ImageNet-").replace("k", "K")
        if name == "coco":
            panel = f"{'Cascade ' if row['model'].startswith('cascade') else ''}Mask R-CNN, {panel}"
        for origin in ("published", "measured"):
            macs, accuracy = row[f"{origin}_gmacs"], row[f"{origin}_{key}"]
            if macs is not None and accuracy is not None:
                points.append(Point(_FAMILIES.get(family, family), told, panel, macs, accuracy, measured=origin == "measured"))
    scatter(points, axis, path)


def _filled(name: str, rows: Rows) -> list[Column]:
    return [column for column in _COLUMNS[name] if any(row[column.key] is not None for row in rows)]


def _numbered(rows: Rows) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The rows ready for `_COLUMNS`, the numbers of their remarks as "notes", and the remarks, each once."""
    remarks: list[str] = list(dict.fromkeys(remark for row in rows for remark in row["remarks"]))
    numbered: list[Mapping[str, Any]] = []
    for row in rows:
        numbers = [str(number) for number, remark in enumerate(remarks, start=1) if remark in row["remarks"]]
        numbered.append({**row, "data": row["trained_on"].removeprefix("imagenet").upper(), "notes": " ".join(numbers) or None})
    return numbered, remarks
