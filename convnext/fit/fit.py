"""`convnext.fit`: from labelled images to a run folder, by frozen features and a linear head."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from convnext import tasks
from convnext.data.sources.base import ClassifySource
from convnext.distributed import pick_device
from convnext.errors import UsageError
from convnext.evaluate import disjoint, without_nan
from convnext.extend import giving
from convnext.fit import features as embeddings
from convnext.fit.data import FitData, check_folder, open_data, recipe_of
from convnext.fit.features import Features, Progress
from convnext.fit.fitted import Fitted, calibration_of, measured
from convnext.fit.heads import FEW_NUMBERS, better_of, choose_folds
from convnext.fit.kinds import KINDS, Kind, unit_of
from convnext.fit.network import FitStart, build, default_model, open_start, put_head
from convnext.fit.quality.findings import examine, parts_of_fit
from convnext.fit.quality.tables import lines, write_tables
from convnext.fit.tune import improved
from convnext.models.registry import names
from convnext.models.weights.files import write_text, write_weights
from convnext.report import metrics, notebook
from convnext.tasks.base import Metrics
from convnext.tasks.classify.task import ClassifyTask
from convnext.text import counted
from convnext.training.folder.environment import environment
from convnext.training.folder.lock import locked
from convnext.training.folder.run_paths import RunPaths, refuse_within_data
from convnext.training.progress.clock import duration

_MINUTES = 5.0

Say = Callable[[str], None]  # takes a line for the user


@dataclass
class FitResult:
    """The result of `convnext.fit`."""

    folder: Path
    head: str  # the kind of head that cross-validation chose
    metrics: Metrics  # by cross-validation
    val_metrics: Metrics | None  # on the validation images; None without these
    seconds: float
    computed: int  # images whose features were computed, and not in the folder yet

    def to_json(self) -> dict[str, object]:
        """Return the result as plain values."""
        return without_nan(asdict(self) | {"folder": str(self.folder)})

    def _repr_html_(self) -> str:
        held_out = {} if self.val_metrics is None else metrics.cards(self.val_metrics)
        cards = {f"{label}, cross-validated": number for label, number in metrics.cards(self.metrics).items()}
        cards |= {f"{label}, validation": number for label, number in held_out.items()}
        lead = f"{self.head} in {duration(self.seconds)} · report: {self.folder / 'report.html'}"
        return notebook.result(self.folder.name, lead, cards)


def fit(
    source: str | PathLike[str] | object,
    *,
    output: str | PathLike[str],
    val: str | PathLike[str] | object | None = None,
    model: str | None = None,
    weights: str | None = None,
    task: str | None = None,
    minutes: float | None = None,
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
        model: a name, a run folder, a weight file or an address; by default convnext_tiny, and for digits a small embedded network.
        weights: of a name: a tag, a file or an address; by default the most accurate of a free licence.
        task: classify, multilabel or regress; by default as the labels are.
        minutes: for the whole call, by default 5. What is left behind the head is for fine-tuning the whole network, if a trial shows that
            it helps. By default the embedded network is not fine-tuned.
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
    check_folder(folder)
    with giving(**objects):
        start = open_start(model or default_model(source), weights)
        more = {"group": group, "max_corrupt": max_corrupt, "max_pixels": max_pixels}
        recipe = recipe_of(source, val, start, task, objects, **more)
        refuse_within_data(folder.path, recipe)
        data, chosen_device = open_data(recipe), pick_device(device)
        for line in [*data.remarks, *start.remarks]:
            say(line)
        with locked(folder.path, say):
            fitted = fit_head(data, start, folder, chosen_device, progress, say)
            if allowed := _minutes(minutes, model, source):
                fitted = improved(fitted, started + 60 * allowed, folder.features, objects, chosen_device, say)
            _write(folder, fitted, start, chosen_device)
            parts = parts_of_fit(data.train, fitted.features, data.val, fitted.val_features)
            fitted = replace(fitted, findings=examine(parts, fitted.targets, fitted.fold, fitted.chosen))
            return _finish(folder, replace(fitted, seconds=time.monotonic() - started), say)


def _minutes(minutes: float | None, model: str | None, source: object) -> float:
    return minutes if minutes is not None else _MINUTES if model is not None or default_model(source) in names() else 0.0


def fit_head(data: FitData, start: FitStart, folder: RunPaths, device: torch.device, progress: Progress | None, say: Say) -> Fitted:
    """Compute features, choose a head, and put it on the network."""
    name, outputs = data.recipe.task, max(1, len(data.train.classes))
    task, kind, network = cast(ClassifyTask, tasks.get(name)), KINDS[name], build(start, outputs).to(device)

    def embed(source: ClassifySource) -> Features:
        began, limit = time.monotonic(), data.recipe.data.max_corrupt
        found = embeddings.compute(network, task, source, start.how, folder.features, device, max_corrupt=limit, progress=progress)
        kept = len(found) - found.computed
        say(f"features: {found.computed} computed, {kept} from {folder.features}, in {time.monotonic() - began:.0f} s")
        for reason in found.unreadable:
            say(f"skipped: {reason}")
        return found

    found = embed(data.train)
    targets, fold = _targets_and_folds(kind, data, found)
    with threadpool_limits(1 if found.plain.size < FEW_NUMBERS else None):
        chosen = better_of(found, lambda space: kind.choose(space, targets, fold, outputs))
    how = start.how
    if name == "regress":
        unit = unit_of(targets)
        how = replace(how, unit=(unit.mean, unit.std))
    put_head(network, chosen.head)
    rows = np.flatnonzero(chosen.measured)
    evaluation = measured(task, data.train, found, rows, chosen.outputs[rows], kind.to_labels(targets[rows]), how)
    val, held_out = None if data.val is None else embed(data.val), None
    if data.val is not None and val is not None:
        labels = kind.to_labels(kind.targets(data.val, val.indices.tolist()))
        held_out = measured(task, data.val, val, np.arange(len(val)), chosen.head(val.plain), labels, how)
    calibration = calibration_of(found, targets, chosen)
    return Fitted(data, network, how, found, targets, fold, chosen, evaluation, calibration, val, held_out)


def _targets_and_folds(kind: Kind, data: FitData, found: Features) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets of the images with features, and their folds."""
    every = range(len(data.train))  # also those that can't be read, so that `data.fold` of a recipe means the same folds
    targets = kind.targets(data.train, every)
    strata = targets.tolist() if targets.dtype == np.int64 else [0] * len(every)
    fold = choose_folds([data.train.key(index) for index in every], strata, data.groups)
    return targets[found.indices], fold[found.indices]


def _write(folder: RunPaths, fitted: Fitted, start: FitStart, device: torch.device) -> None:
    """Write the weights, the recipe, and what they ran on."""
    description: dict[str, object] = {
        "task": fitted.recipe.task,
        "model": fitted.network.spec,
        "classes": fitted.data.train.classes,
        "preprocessing": fitted.how.to_json(),
        "metrics": fitted.best_evidence.metrics,
        "step": 0,
    }
    if start.opened.source:
        description["source"] = start.opened.source
    for path in (folder.last, folder.best):
        write_weights(path, fitted.network.state_dict(), description, fitted.calibration)
    ran_on = {**environment(device), "weights": start.opened.source}
    write_text(folder.environment, json.dumps(ran_on, indent=2) + "\n")
    write_text(folder.recipe, fitted.recipe.to_yaml())
    line = {"kind": "eval", "step": 0, "epoch": 0, "seconds": 0, **without_nan(fitted.best_evidence.metrics)}
    write_text(folder.metrics, json.dumps(line, allow_nan=False) + "\n")


def _finish(folder: RunPaths, fitted: Fitted, say: Say) -> FitResult:
    """Write evaluation.json, fit.json and the report; report and return the result."""
    from convnext.fit.report import write_report

    task, evaluation, chosen = tasks.get(fitted.recipe.task), fitted.evaluation, fitted.chosen
    held_out = None if fitted.held_out is None else fitted.held_out.metrics
    shown = fitted.best_evidence
    values = without_nan(disjoint({"metrics": shown.metrics}, shown.details, {"corrupt": shown.corrupt}))
    write_text(folder.evaluation, json.dumps(values, allow_nan=False) + "\n")
    result = FitResult(folder.path, (fitted.tuned or chosen).name, evaluation.metrics, held_out, fitted.seconds, fitted.features.computed)
    facts = result.to_json() | {
        "images": len(fitted.features),
        "folds": fitted.folds,
        "temperature": (fitted.tuned or chosen).temperature,
        "tried": [asdict(one) for one in chosen.tried],
    }
    write_text(folder.fitted, json.dumps(without_nan(facts), indent=2, allow_nan=False) + "\n")
    say(f"head: {chosen.name}, of {counted(len(chosen.tried), 'kind')} compared by cross-validation over {fitted.folds} folds")
    if held_out is not None:
        say(f"on the validation images: {task.summary_line(held_out)}")
    if fitted.findings is not None:
        write_tables(folder.path, fitted.findings)
        for line in lines(fitted.findings):
            say(line)
    written = write_report(folder, fitted, say)
    where = f"; report: {folder.report}" if written else ""
    say(f"done: {task.summary_line(evaluation.metrics)} {fitted.measured_by}, in {fitted.seconds:.0f} s{where}")
    return result
