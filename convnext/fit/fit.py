"""`convnext.fit`: from labelled images to a run folder, by frozen features and a linear head."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy.special import softmax
from threadpoolctl import threadpool_limits
from torch import Tensor

from convnext import tasks
from convnext.data.images import Reading
from convnext.data.sources.base import ClassifySource, ClassifySubset, read_by, target_kind_of
from convnext.data.sources.open import train_and_val
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.distributed import pick_device
from convnext.errors import ConvnextError, UsageError
from convnext.evaluate import Evaluation, disjoint, without_nan
from convnext.extend import giving
from convnext.fit import features as embeddings
from convnext.fit.features import Features, Progress
from convnext.fit.heads import Chosen, Space, choose_folds
from convnext.fit.kinds import KINDS, TASKS, Kind, task_of, unit_of
from convnext.fit.network import Start, build, open_start, put_head
from convnext.models.calibration import Calibration, calibrate
from convnext.models.network import Network
from convnext.models.weights.files import write_atomically, write_weights
from convnext.recipe import Recipe
from convnext.tasks.base import Metrics
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.parts import as_the_table_says, groups_of, open_whole, parts_of
from convnext.tasks.classify.task import ClassifyTask
from convnext.tasks.shared import skipped_remarks
from convnext.text import counted
from convnext.training.folder.environment import environment
from convnext.training.folder.lock import locked
from convnext.training.folder.run_paths import RunPaths, refuse_within_data
from convnext.training.given import recipe_with

DEFAULT_MODEL = "convnext_tiny"
_FEW_NUMBERS = 5e7  # of all features, below which several threads only wait for each other

Say = Callable[[str], None]  # takes a line for the user


@dataclass(frozen=True, eq=False)
class FitData:
    """The images of a fit."""

    train: ClassifySource
    val: ClassifySource | None
    groups: list[str] | None  # of the training images
    remarks: list[str]


@dataclass(frozen=True, eq=False)
class Fitted:
    """All that a fit found, as its report shows it."""

    data: FitData
    recipe: Recipe
    features: Features
    targets: np.ndarray  # of the rows of `features`
    fold: np.ndarray
    chosen: Chosen
    evaluation: Evaluation  # by cross-validation
    calibration: Calibration | None
    val_features: Features | None
    held_out: Evaluation | None  # on the validation images, where there are any
    seconds: float


@dataclass
class FitResult:
    """The result of `convnext.fit`."""

    folder: Path
    head: str  # the kind of head that cross-validation chose
    metrics: Metrics  # by cross-validation
    val_metrics: Metrics | None  # on the validation images; None without these
    seconds: float
    computed: int  # images whose features were computed, and not in the folder yet
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Return the result as plain values."""
        return without_nan(asdict(self) | {"folder": str(self.folder)})


def fit(
    source: str | PathLike[str] | object,
    *,
    output: str | PathLike[str],
    val: str | PathLike[str] | object | None = None,
    model: str | None = None,
    weights: str | None = None,
    task: str | None = None,
    group: str | None = None,
    max_corrupt: float = 0.01,
    max_pixels: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    report: Say | None = None,
) -> FitResult:
    """Fit a linear head on the features of a network as it is, and leave a run folder like that of a training.

    >>> convnext.fit("photos", output="runs/mine")

    Args:
        source: a folder of images by class, a table, or any other name of data as for `data.train`; a folder with train and val parts;
            or a map-style dataset as for `convnext.train`.
        output: the run folder to make. One of an earlier fit is replaced, and the features in it are used again.
        val: images to evaluate on, in the notation of `source`; by default the val part of `source`, if it has one.
        model: a name, a run folder, a weight file or an address; by default convnext_tiny.
        weights: of a name: a tag, a file or an address; by default the most accurate of a free licence.
        task: classify, multilabel or regress; by default as the labels are.
        group: a regular expression: images alike in what it finds in their paths are never on both sides of the cross-validation.
        max_corrupt: the fraction of the images that may be unreadable.
        max_pixels: of an image; larger ones are not opened. By default some 89 million.
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is.
        progress: called with the numbers of images done and in all while features are computed.
        report: takes lines for the user.

    Raises UsageError for what does not exist or does not go together, ConvnextError for images that can't be learned from.
    """
    started, say, folder = time.monotonic(), report or (lambda line: None), RunPaths(Path(output))
    if task is not None and task not in KINDS:
        raise UsageError(f"fit has no task {task!r}: take one of {', '.join(KINDS)}")
    objects = {name: thing for name, thing in (("train_data", source), ("val_data", val)) if not isinstance(thing, str | PathLike | None)}
    _check_folder(folder)
    with giving(**objects):
        start = open_start(model or DEFAULT_MODEL, weights)
        recipe = _recipe(source, val, start, task, group, max_corrupt, max_pixels, objects)
        refuse_within_data(folder.path, recipe)
        data = open_data(recipe)
        for line in [*data.remarks, *start.remarks]:
            say(line)
        with locked(folder.path, say):
            fitted, network, how = _fitted(recipe, data, start, folder, pick_device(device), progress, say)
            _write(folder, fitted, network, how, start, pick_device(device))
            return _finish(folder, replace(fitted, seconds=time.monotonic() - started), say)


def open_data(recipe: Recipe) -> FitData:
    """Open the images that a recipe names, none held out. Raises ConvnextError for images that can't be learned from."""
    kind, task = KINDS[recipe.task], cast(ClassifyTask, tasks.get(recipe.task))
    source, remarks = open_whole(recipe, kind.open, task.counts)
    groups, more = groups_of(source, recipe.data)
    remarks += more
    val: ClassifySource | None = None
    if recipe.data.val is not None:
        val = kind.open(task.named(recipe.data.val, recipe), source.classes)
        read_by(val, Reading(recipe.data.channels, recipe.data.max_pixels))
        remarks += [f"val: {remark}" for remark in (task.counts(val), *val.remarks, *skipped_remarks(val.skipped))]
    elif (parts := parts_of(source, recipe.data)) is not None and len(set(parts)) > 1:
        source, val, more = as_the_table_says(source, parts, groups)
        groups = None if groups is None else [groups[index] for index in cast(ClassifySubset, source).indices]
        remarks += more
    if len(source) < kind.minimum:
        raise ConvnextError(f"{counted(len(source), 'image')} to fit are too few: give at least {kind.minimum}")
    return FitData(source, val, groups, remarks)


def _recipe(
    source: object,
    val: object,
    start: Start,
    task: str | None,
    group: str | None,
    max_corrupt: float,
    max_pixels: int | None,
    objects: dict[str, object],
) -> Recipe:
    """Return the recipe by which a training would continue: the same images, prepared alike, and the same weights."""
    how = start.how
    given: dict[str, object] = {
        "model.name": start.opened.name,
        "model.weights": start.weights,
        **{f"model.{key}": value for key, value in start.architecture.items()},
        "data.group": group,
        "data.max_corrupt": max_corrupt,
        "data.max_pixels": max_pixels,
        "data.channels": how.channels,
        "data.image_size": how.image_size,
        "data.mean": list(how.mean),
        "data.std": list(how.std),
        "data.range": how.range,
        "eval.interpolation": how.interpolation,
        **({"eval.warp": True} if how.warp else {"eval.letterbox": True} if how.letterbox else {"eval.crop_ratio": how.crop_ratio}),
    }
    where = None if "train_data" in objects else str(source)
    if where is not None and val is None:
        where, val = _parts(where)
    given |= {} if where is None else {"data.train": where}
    given |= {"data.val": str(val)} if isinstance(val, str | PathLike) else {}
    given["task"] = task or (task_of(where) if where is not None else TASKS[target_kind_of(cast(ClassifySource, source))])
    return recipe_with("finetune", {key: value for key, value in given.items() if value is not None}, objects)


def _parts(where: str) -> tuple[str, str | None]:
    """Return the training part of a dataset and its validation part; the name itself if it has no parts."""
    try:
        return train_and_val(where)
    except UsageError:
        return where, None


def _check_folder(folder: RunPaths) -> None:
    """Raise UsageError unless the folder is empty or an earlier fit's."""
    if folder.is_blank() or folder.fitted.exists() or (folder.features.is_dir() and not folder.recipe.exists()):
        return
    what = "holds a run of a training" if folder.recipe.exists() else "is not empty and holds no run"
    raise UsageError(f"{folder.path} {what}: choose another folder for --output")


def _fitted(
    recipe: Recipe, data: FitData, start: Start, folder: RunPaths, device: torch.device, progress: Progress | None, say: Say
) -> tuple[Fitted, Network, ClassifyPreprocessing]:
    """Compute features, choose a head, and put it on the network."""
    task, kind, outputs = cast(ClassifyTask, tasks.get(recipe.task)), KINDS[recipe.task], max(1, len(data.train.classes))
    network = build(start, outputs).to(device)

    def embed(source: ClassifySource) -> Features:
        began, limit = time.monotonic(), recipe.data.max_corrupt
        found = embeddings.compute(network, task, source, start.how, folder.features, device, max_corrupt=limit, progress=progress)
        kept = len(found) - found.computed
        say(f"features: {found.computed} computed, {kept} from {folder.features}, in {time.monotonic() - began:.0f} s")
        for reason in found.unreadable:
            say(f"skipped: {reason}")
        return found

    found = embed(data.train)
    targets, fold = _targets_and_folds(kind, data, found)
    with threadpool_limits(1 if found.plain.size < _FEW_NUMBERS else None):
        chosen = kind.choose(Space(found), targets, fold, outputs)
    how = start.how
    if recipe.task == "regress":
        unit = unit_of(targets)
        how = replace(how, unit=(unit.mean, unit.std))
    put_head(network, chosen.head)
    rows = np.flatnonzero(chosen.measured)
    evaluation = _measured(task, data.train, found, rows, chosen.outputs[rows], kind.to_labels(targets[rows]), how)
    val, held_out = None if data.val is None else embed(data.val), None
    if data.val is not None and val is not None:
        labels = kind.to_labels(kind.targets(data.val, val.indices.tolist()))
        held_out = _measured(task, data.val, val, np.arange(len(val)), chosen.head(val.plain), labels, how)
    calibration = _calibration(found, targets, chosen)
    return Fitted(data, recipe, found, targets, fold, chosen, evaluation, calibration, val, held_out, 0.0), network, how


def _targets_and_folds(kind: Kind, data: FitData, found: Features) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets of the images with features, and their folds."""
    every = range(len(data.train))  # also those that can't be read, so that `data.fold` of a recipe means the same folds
    targets = kind.targets(data.train, every)
    strata = targets.tolist() if targets.dtype == np.int64 else [0] * len(every)
    fold = choose_folds([data.train.key(index) for index in every], strata, data.groups)
    return targets[found.indices], fold[found.indices]


def _measured(
    task: ClassifyTask,
    source: ClassifySource,
    found: Features,
    rows: np.ndarray,
    outputs: np.ndarray,
    labels: Tensor,
    how: ClassifyPreprocessing,
) -> Evaluation:
    """Return what the task's metric measures of the outputs for some rows of the features."""
    mean, std = how.unit or (0.0, 1.0)
    values = torch.from_numpy(mean + std * outputs).float()
    metric = task.metric(values.shape[1], source)
    metric.update(list(values.unbind()), ClassifyBatch(torch.empty(0), labels, found.indices[rows].tolist(), []))
    return Evaluation(metric.compute(), metric.details(), list(found.unreadable))


def _calibration(found: Features, targets: np.ndarray, chosen: Chosen) -> Calibration:
    """Return the conformal scores of images of one class each, and the distances of all images."""
    scores: Sequence[float] = []
    rows = np.arange(len(found))
    if targets.dtype == np.int64:
        measured = np.flatnonzero(chosen.measured)
        scores = (1 - softmax(chosen.outputs[measured], axis=1)[np.arange(len(measured)), targets[measured]]).tolist()
        rows = np.argsort(targets, kind="stable")
    return calibrate(scores, torch.from_numpy(found.plain[rows]))


def _write(folder: RunPaths, fitted: Fitted, network: Network, how: ClassifyPreprocessing, start: Start, device: torch.device) -> None:
    """Write the weights, the recipe, and what they ran on."""
    description: dict[str, object] = {
        "task": fitted.recipe.task,
        "model": network.spec,
        "classes": fitted.data.train.classes,
        "preprocessing": how.to_json(),
        "metrics": fitted.evaluation.metrics,
        "step": 0,
    }
    if start.opened.source:
        description["source"] = start.opened.source
    for path in (folder.last, folder.best):
        write_weights(path, network.state_dict(), description, fitted.calibration)
    ran_on = {**environment(device), "weights": start.opened.source}
    _write_text(folder.environment, json.dumps(ran_on, indent=2) + "\n")
    _write_text(folder.recipe, fitted.recipe.to_yaml())
    line = {"kind": "eval", "step": 0, "epoch": 0, "seconds": 0, **without_nan(fitted.evaluation.metrics)}
    _write_text(folder.metrics, json.dumps(line, allow_nan=False) + "\n")


def _finish(folder: RunPaths, fitted: Fitted, say: Say) -> FitResult:
    """Write evaluation.json, fit.json and the report; report and return the result."""
    from convnext.fit.report import write_report

    task, evaluation, chosen = tasks.get(fitted.recipe.task), fitted.evaluation, fitted.chosen
    held_out = None if fitted.held_out is None else fitted.held_out.metrics
    values = without_nan(disjoint({"metrics": evaluation.metrics}, evaluation.details, {"corrupt": evaluation.corrupt}))
    _write_text(folder.evaluation, json.dumps(values, allow_nan=False) + "\n")
    result = FitResult(folder.path, chosen.name, evaluation.metrics, held_out, fitted.seconds, fitted.features.computed)
    facts = result.to_json() | {
        "images": len(fitted.features),
        "folds": int(fitted.fold.max()) + 1,
        "temperature": chosen.temperature,
        "tried": [asdict(one) for one in chosen.tried],
    }
    _write_text(folder.fitted, json.dumps(without_nan(facts), indent=2, allow_nan=False) + "\n")
    say(
        f"head: {chosen.name}, of {counted(len(chosen.tried), 'kind')} compared by cross-validation over {int(fitted.fold.max()) + 1} folds"
    )
    if held_out is not None:
        say(f"on the validation images: {task.summary_line(held_out)}")
    written = write_report(folder, fitted, say)
    where = f"; report: {folder.report}" if written else ""
    say(f"done: {task.summary_line(evaluation.metrics)} by cross-validation, in {fitted.seconds:.0f} s{where}")
    return result


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
