"""`convnext table`: the paper's numbers beside those counted and measured here. Every number shown was measured by somebody."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch

from convnext.data.sources.evaluation_sets import is_evaluation_set
from convnext.data.sources.open import open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, size_text
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.evaluate import evaluate_loaded
from convnext.export.load import load
from convnext.models.load import cost_of
from convnext.models.registry import find, list_models
from convnext.paper import published
from convnext.paper.bench import BenchResult, Setting, measure
from convnext.paper.contestants import enter
from convnext.paper.speed import machine
from convnext.text import counted
from convnext.training.folder.environment import Environment, environment

log = logging.getLogger("convnext")

NO_WEIGHTS, UNPUBLISHED = "not measured: no weights here", "not measured: no weights of it are published"
# Published columns that an evaluation gives: on which of the sets of `--data` (None: any images of the task), and by which metric.
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

TableRow = dict[str, object]


@dataclass
class PaperTable:
    """A published table with the numbers counted and measured here.

    A row has "label" (as published), "model" (the name here), "trained_on" (in the roadmap, the regime), "image_size", each published
    value as `published_…`, each value measured here as `measured_…`, both None where there is no value, and "remarks".
    """

    name: str
    rows: list[TableRow]
    setting: dict[str, object] | None  # of the timing
    environment: Environment | None  # where it was timed or evaluated

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {"table": self.name, "setting": self.setting, "environment": self.environment, "rows": self.rows}

    def measured_on(self) -> list[str]:
        """Return on what machine and how it was measured, one statement per line; an empty list where nothing was measured."""
        lines = [] if self.environment is None else machine(self.environment)
        if self.setting is not None:
            lines.append(
                f"speed: batch {self.setting['batch_size']}, {self.setting['dtype']}, channels-last, "
                f"median of at most {self.setting['rounds']} rounds; memory on CUDA devices only"
            )
        return lines


@dataclass
class _Request:
    """What to measure for every row."""

    device: torch.device
    setting: Setting | None  # None: no timing
    batch_size: int
    data: str | None  # None: no evaluation
    timed: dict[tuple[tuple[str, ...], int], list[BenchResult]] = field(default_factory=dict)  # several rows are about the same network


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
) -> PaperTable:
    """Return a published table beside the numbers of this machine: parameters and multiply-adds always, the rest on request.

    Args:
        name: imagenet, coco, ade20k, roadmap, robustness or throughput.
        pattern: a shell pattern of the rows to take, by published label or by name here.
        speed: time inference too, as `convnext.paper.bench` does, one row at a time; the throughput table times each ConvNeXt and
            its Swin in turns, in TF32 on CUDA devices, as published.
        batch_size: of the timing; by default 64 on CUDA devices and 1 elsewhere.
        seconds: of the timing, for each network.
        data: images to evaluate the published weights on, as for `convnext eval`.
        progress: called with the numbers of rows done and in all.

    Missing weights or memory are reported in the row's remarks.

    Raises UsageError for an unknown table or a pattern without rows, ConvnextError if `data` can't be used.
    """
    rows = published.read(name)
    chosen = [row for row in rows if any(fnmatchcase(word.lower(), pattern.lower()) for word in (row.label, _name(row)))]
    if not chosen:
        raise UsageError(
            f"no row of the {name} table matches {pattern!r}{nearest(pattern, {row.label for row in rows} | set(map(_name, rows)))}"
        )
    if data is not None and name == "throughput":
        raise UsageError("the throughput table has no accuracy to measure: remove --data")
    if data is not None and name not in ("coco", "ade20k") and not is_evaluation_set(data):
        open_source(data)  # so that a wrong name is an error even where there are no weights to evaluate
    cuda = device.type == "cuda"
    setting = Setting(dtype="tf32" if cuda and name == "throughput" else "float32", seconds=seconds) if speed else None
    request = _Request(device, setting, batch_size or (64 if cuda else 1), data)
    found = []
    for number, row in enumerate(chosen, start=1):
        found.append(_measured(row, request))
        if progress is not None:
            progress(number, len(chosen))
    timing: dict[str, object] | None = None
    if setting is not None:
        timing = {"batch_size": request.batch_size, "dtype": setting.dtype, "rounds": setting.rounds, "seconds": setting.seconds}
    return PaperTable(name, found, timing, environment(device) if speed or data is not None else None)


def _measured(row: published.PublishedRow, request: _Request) -> TableRow:
    name, remarks = _name(row), list(row.notes)
    measured: TableRow = dict.fromkeys(("params_m", "gmacs", *_SPEEDS, *(_RATIOS if "ratio_a100" in row.values else ()), "weights"))
    measured |= dict.fromkeys(key for key in row.values if key in _ACCURACIES)
    cost = cost_of(name, row.image_size)
    measured |= {"params_m": cost.parameters / 1e6, "gmacs": cost.macs / 1e9}
    if request.setting is not None:
        measured |= _timed(row, name, request, remarks)
    if request.data is not None:
        measured |= _evaluated(row, name, request, remarks)
    head: TableRow = {"label": row.label, "model": name, "trained_on": row.group, "image_size": row.image_size}
    printed = {f"published_{key}": value for key, value in row.values.items()}
    return head | printed | {f"measured_{key}": value for key, value in measured.items()} | {"remarks": remarks}


def _name(row: published.PublishedRow) -> str:
    """Return the network's name here."""
    return list_models(row.model)[0]


def _timed(row: published.PublishedRow, name: str, request: _Request, remarks: list[str]) -> TableRow:
    if request.setting is None or not isinstance(row.image_size, int):
        remarks.append("not timed: only classifiers are timed")
        return {}
    names: tuple[str, ...] = (name,)
    if row.baseline is not None:
        names = (row.baseline, name)  # the ratio is to the first
    try:
        if (names, row.image_size) not in request.timed:
            setting = replace(request.setting, image_size=row.image_size)
            contestants = enter(names, None, row.image_size)
            request.timed[names, row.image_size] = measure(contestants, setting, request.device, request.batch_size)
    except ConvnextError as error:
        remarks.append(f"not timed: {error}")
        return {}
    *baseline, ours = request.timed[names, row.image_size]
    speed, memory = ours.images_per_second, ours.peak_memory
    found: TableRow = {"images_per_second": speed.median, "images_per_second_least": speed.least, "images_per_second_most": speed.most}
    found["memory_mib"] = None if memory is None else memory / 2**20
    if ours.ratio is not None:
        found["swin_images_per_second"] = baseline[0].images_per_second.median
        found |= {"ratio": ours.ratio.median, "ratio_least": ours.ratio.least, "ratio_most": ours.ratio.most}
    return found


def _evaluated(row: published.PublishedRow, name: str, request: _Request, remarks: list[str]) -> TableRow:
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
    assert isinstance(loaded.preprocessing, ClassifyPreprocessing)
    if loaded.preprocessing.image_size != row.image_size:
        remarks.append(f"evaluated at {size_text(loaded.preprocessing.image_size)} pixels, as these weights require")
    result = evaluate_loaded(loaded, request.data, batch_size=None, workers=2, max_corrupt=0.01, device=request.device).result
    if result.corrupt:
        remarks.append(f"{counted(len(result.corrupt), 'unreadable image')} skipped")
    kind = str(request.data).partition(":")[0]
    of = kind if kind in _OTHER_SETS else None
    columns = {key: metric for key, (where, metric) in _ACCURACIES.items() if key in row.values and where == of}
    return {key: result.metrics[metric] for key, metric in columns.items() if metric in result.metrics} | {"weights": tag}


def weights_tag(row: published.PublishedRow, tags: Iterable[str]) -> str | None:
    """Return the tag of the published weights that gave the row, trained on the same data for the same image size; None if there are none.

    Tags are those of timm: `…_in22k_ft_in1k_384` was trained on ImageNet-22K, then on 1K with 384 pixels.
    """
    fits = [tag for tag in tags if "in1k" in tag.split("_ft_")[-1] and ("_ft_" in tag) == (row.group == "imagenet22k")]
    # Networks of a single size, such as swin_base_384, do not repeat it in the tag.
    of_size = [tag for tag in fits if tag.endswith("_384") == (row.image_size == 384)]
    return next(iter(of_size or fits), None)
