"""`convnext table`: what the paper prints beside what is counted and measured here. No number is shown that nobody measured."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from convnext.data.sources.evaluation_sets import is_evaluation_set
from convnext.data.sources.open import open_source
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.evaluate import evaluate_loaded
from convnext.export.load import load
from convnext.models.load import cost_of, list_models
from convnext.models.registry import find
from convnext.paper import published
from convnext.paper.bench import Result, Setting, measure
from convnext.paper.contestants import enter
from convnext.paper.speed import machine
from convnext.training.run_folder import environment

log = logging.getLogger("convnext")

NO_WEIGHTS, UNPUBLISHED = "not measured: no weights here", "not measured: no weights of it are published"
# Printed columns that an evaluation gives: on which of the sets of `--data`, by which of its metrics. None: any images of the task.
_ACCURACIES: dict[str, tuple[str | None, str]] = {
    "top1": (None, "top1"),
    "box_ap": (None, "box_ap"),
    "mask_ap": (None, "mask_ap"),
    "miou_ms": (None, "miou_ms"),  # of several scales, which `convnext eval` does not measure yet
    "imagenet_a_top1": ("imagenet-a", "top1"),
    "imagenet_r_top1": ("imagenet-r", "top1"),
    "sketch_top1": ("imagenet-sketch", "top1"),
    "imagenet_c_mce": ("imagenet-c", "mce"),
    "imagenet_cbar_mce": ("imagenet-c-bar", "mean_error"),
}
_OTHER_SETS = {of for of, _ in _ACCURACIES.values() if of}
_SPEEDS = ("images_per_second", "images_per_second_least", "images_per_second_most", "memory_mib")
_RATIOS = ("swin_images_per_second", "ratio", "ratio_least", "ratio_most")

Row = dict[str, Any]


@dataclass
class Table:
    """A published table with what was found here.

    A row has "label" (as printed), "model" (the name here), "trained_on" (of the roadmap, the regime), "image_size", each printed
    value as `published_…`, each value found here as `measured_…`, None where there is none, and "remarks".
    """

    name: str
    rows: list[Row]
    setting: Row | None  # of the timing
    environment: Row | None  # where it was timed or evaluated

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"table": self.name, "setting": self.setting, "environment": self.environment, "rows": self.rows}

    def place(self) -> list[str]:
        """In words, on what and how it was measured; nothing where nothing was."""
        told = [] if self.environment is None else machine(self.environment)
        if self.setting is not None:
            told.append(
                f"speed: batch {self.setting['batch_size']}, {self.setting['dtype']}, channels-last, "
                f"median of at most {self.setting['rounds']} rounds; memory on CUDA devices only"
            )
        return told


@dataclass
class _Wanted:
    """What to find for every row."""

    device: torch.device
    setting: Setting | None  # None: no timing
    batch_size: int
    data: str | None  # None: no evaluation
    timed: dict[tuple[tuple[str, ...], int], list[Result]] = field(default_factory=dict)  # several rows print results of one network


def table(
    name: str,
    device: torch.device,
    *,
    pattern: str = "*",
    speed: bool = False,
    batch_size: int | None = None,
    seconds: float = 3.0,
    data: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """A published table beside what is found on this machine: parameters and multiply-adds always, the rest where asked for.

    Args:
        name: imagenet, coco, ade20k, roadmap, robustness or throughput.
        pattern: a shell pattern of the rows to take, by printed label or by name here.
        speed: time inference too, as `convnext.paper.bench` does, a row at a time; in the throughput table each ConvNeXt and
            its Swin in turns, in TF32 on CUDA devices, as published.
        batch_size: of the timing; by default 64 on CUDA devices and 1 elsewhere.
        seconds: of the timing, for each network.
        data: images to evaluate the published weights on, as for `convnext eval`.
        progress: called with the numbers of rows done and in all.

    What can't be had, weights or memory, is told in the row's remarks.

    Raises UsageError for an unknown table or a pattern without rows, ConvnextError if `data` can't be used.
    """
    rows = published.read(name)
    chosen = [row for row in rows if any(fnmatchcase(word.lower(), pattern.lower()) for word in (row.label, _name(row)))]
    if not chosen:
        raise UsageError(
            f"no row of the {name} table matches {pattern!r}{nearest(pattern, {row.label for row in rows} | set(map(_name, rows)))}"
        )
    if data is not None and name == "throughput":
        raise UsageError("the throughput table has no accuracy to measure: leave --data out")
    if data is not None and name not in ("coco", "ade20k") and not is_evaluation_set(data):
        open_source(data)  # so that a wrong name is told even where there are no weights to evaluate
    cuda = device.type == "cuda"
    setting = Setting(dtype="tf32" if cuda and name == "throughput" else "float32", seconds=seconds) if speed else None
    wanted = _Wanted(device, setting, batch_size or (64 if cuda else 1), data)
    found = []
    for number, row in enumerate(chosen, start=1):
        found.append(_found(row, wanted))
        if progress is not None:
            progress(number, len(chosen))
    told = None
    if setting is not None:
        told = {"batch_size": wanted.batch_size, "dtype": setting.dtype, "rounds": setting.rounds, "seconds": setting.seconds}
    return Table(name, found, told, environment(device) if speed or data is not None else None)


def _found(row: published.Row, wanted: _Wanted) -> Row:
    name, remarks = _name(row), list(row.notes)
    measured: Row = dict.fromkeys(("params_m", "gmacs", *_SPEEDS, *(_RATIOS if "ratio_a100" in row.values else ()), "weights"))
    measured |= dict.fromkeys(key for key in row.values if key in _ACCURACIES)
    cost = cost_of(name, row.image_size)
    measured |= {"params_m": cost.parameters / 1e6, "gmacs": cost.macs / 1e9}
    if wanted.setting is not None:
        measured |= _timed(row, name, wanted, remarks)
    if wanted.data is not None:
        measured |= _evaluated(row, name, wanted, remarks)
    head = {"label": row.label, "model": name, "trained_on": row.group, "image_size": row.image_size}
    printed = {f"published_{key}": value for key, value in row.values.items()}
    return head | printed | {f"measured_{key}": value for key, value in measured.items()} | {"remarks": remarks}


def _name(row: published.Row) -> str:
    """The network's name here."""
    return list_models(row.model)[0]


def _timed(row: published.Row, name: str, wanted: _Wanted, remarks: list[str]) -> Row:
    if wanted.setting is None or not isinstance(row.image_size, int):
        remarks.append("not timed: only classifiers are")
        return {}
    names: tuple[str, ...] = (name,)
    if row.rival is not None:
        names = (row.rival, name)  # the ratio is to the first
    try:
        if (names, row.image_size) not in wanted.timed:
            setting = replace(wanted.setting, image_size=row.image_size)
            contestants = enter(names, None, row.image_size)
            wanted.timed[names, row.image_size] = measure(contestants, setting, wanted.device, wanted.batch_size)
    except ConvnextError as error:
        remarks.append(f"not timed: {error}")
        return {}
    *rival, ours = wanted.timed[names, row.image_size]
    speed, memory = ours.images_per_second, ours.peak_memory
    found: Row = {"images_per_second": speed.median, "images_per_second_least": speed.least, "images_per_second_most": speed.most}
    found["memory_mib"] = None if memory is None else memory / 2**20
    if ours.ratio is not None:
        found["swin_images_per_second"] = rival[0].images_per_second.median
        found |= {"ratio": ours.ratio.median, "ratio_least": ours.ratio.least, "ratio_most": ours.ratio.most}
    return found


def _evaluated(row: published.Row, name: str, wanted: _Wanted, remarks: list[str]) -> Row:
    tag = weights_tag(row, find(name).weights)
    if tag is None:
        remarks.append(UNPUBLISHED)
        return {}
    try:
        loaded = load(name, tag)
    except ConvnextError as error:
        log.warning("%s: %s", name, error)
        remarks.append(NO_WEIGHTS)
        return {}
    if loaded.preprocessing.image_size != row.image_size:
        remarks.append(f"evaluated at {loaded.preprocessing.image_size} pixels, as these weights want")
    result = evaluate_loaded(loaded, wanted.data, batch_size=None, workers=2, max_corrupt=0.01, device=wanted.device).result
    if result.corrupt:
        remarks.append(f"{len(result.corrupt)} unreadable images left out")
    kind = str(wanted.data).partition(":")[0]
    of = kind if kind in _OTHER_SETS else None
    columns = {key: metric for key, (where, metric) in _ACCURACIES.items() if key in row.values and where == of}
    return {key: result.metrics[metric] for key, metric in columns.items() if metric in result.metrics} | {"weights": tag}


def weights_tag(row: published.Row, tags: Iterable[str]) -> str | None:
    """Which of a network's published weights gave the row: trained on the same, for the same size of image; None if none did.

    Tags are as timm writes them: `…_in22k_ft_in1k_384` was trained on ImageNet-22K, then on 1K with 384 pixels.
    """
    fits = [tag for tag in tags if "in1k" in tag.split("_ft_")[-1] and ("_ft_" in tag) == (row.group == "imagenet22k")]
    # Networks that exist for one size alone, such as swin_base_384, do not repeat it in the tag.
    of_size = [tag for tag in fits if tag.endswith("_384") == (row.image_size == 384)]
    return next(iter(of_size or fits), None)
