"""Fine-tuning behind a fitted head, where time allows and a trial shows that it helps.

The head is fitted first, and then the whole network is trained with a rate that falls from layer to layer (LP-FT, Kumar et al., ICLR 2022).
A trial trains without one fold and is compared with the head alone on that fold, image by image. Only if it is better by more than the
standard error is the network trained on all images.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console

from convnext import tasks
from convnext.data.sources.base import ClassifySource, ClassifySubset
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.evaluate import evaluation_loader
from convnext.extend import is_marker
from convnext.fit.data import preparation
from convnext.fit.features import Features, compute, seconds_of_image
from convnext.fit.fitted import Fitted, calibration_of, measured
from convnext.fit.heads import better_of
from convnext.fit.kinds import KINDS, Kind
from convnext.fit.network import head_of, put_head
from convnext.models.load import load
from convnext.models.network import Network
from convnext.models.weights.files import write_weights
from convnext.recipe import Recipe
from convnext.report.lines import points, read_lines
from convnext.tasks.classify.task import ClassifyTask
from convnext.text import counted
from convnext.training.progress.signals import StoppedError
from convnext.training.run import train

_MIN_ERRORS = 5  # of the head alone on the trial's images: fewer can't be improved on beyond the standard error
_MIN_EPOCHS, _MAX_EPOCHS = 5, 20
_STEP = 3.5  # the time of training on an image, in forward passes
_SETTINGS: dict[str, object] = {
    "model.keep_head": True,
    "model.head_init_scale": 1.0,
    "optim.lr": 1e-4,
    "optim.layer_decay": 0.75,
    "augment.crop_scale": [0.4, 1.0],
    "augment.mixup": 0.0,
}

Say = Callable[[str], None]  # takes a line for the user


@dataclass(frozen=True)
class Budget:
    """The time that fine-tuning may take."""

    deadline: float  # by time.monotonic()
    forward: float  # seconds of an image's forward pass

    def epochs(self, images: int, folds: int) -> int:
        """Return how many epochs a trial and the training on all images can have; 0 if they would be too few."""
        found = int((self.deadline - time.monotonic()) / self.per_epoch(images, folds))
        return min(found, _MAX_EPOCHS) if found >= _MIN_EPOCHS else 0

    def minutes(self, images: int, folds: int) -> float:
        """Return the minutes that the fewest epochs take."""
        return _MIN_EPOCHS * self.per_epoch(images, folds) / 60

    def per_epoch(self, images: int, folds: int) -> float:
        """Return the seconds of one epoch of both, with its evaluation, and its part of the embeddings at the end."""
        return images * self.forward * (_STEP * (2 - 1 / folds) + 1 / folds + 2 / _MIN_EPOCHS)


def improved(fitted: Fitted, deadline: float, folder: Path, objects: Mapping[str, object], device: torch.device, say: Say) -> Fitted:
    """Return what fine-tuning makes of a fit; the fit as it is, and say why, where time does not allow it or it does not help.

    Args:
        fitted: with the head on its network.
        deadline: by time.monotonic().
        folder: for the runs of the training and the embeddings of the trained network.
        objects: datasets from Python, by argument of `convnext.train`.
        device: to train on.
        say: takes lines for the user.
    """
    kind, task, folds = KINDS[fitted.recipe.task], cast(ClassifyTask, tasks.get(fitted.recipe.task)), fitted.folds
    rows = np.flatnonzero((fitted.fold == 0) & fitted.chosen.measured)
    aims = fitted.targets[rows] if fitted.how.unit is None else (fitted.targets[rows] - fitted.how.unit[0]) / fitted.how.unit[1]
    before = fitted.chosen.outputs[rows]
    if aims.dtype == np.int64 and (wrong := int((before.argmax(1) != aims).sum())) < _MIN_ERRORS:
        say(f"not fine-tuned: the head is wrong on {wrong} of the {counted(len(rows), 'image')} of a trial, too few to show a gain")
        return fitted
    budget = Budget(deadline, seconds_of_image(fitted.network, fitted.how, device))
    if not (epochs := budget.epochs(len(fitted.features), folds)):
        say(f"not fine-tuned: it needs about {budget.minutes(len(fitted.features), folds):.1f} minutes more; --minutes allows it")
        return fitted
    start = Tuning(fitted.recipe, fitted.network, list(fitted.data.train.classes), fitted.how, fitted.chosen.mirrors, objects, device)
    with _head_without_fold(fitted, kind):
        trial = run_trial(start, ClassifySubset(fitted.data.train, fitted.features.indices[rows].tolist()), folds, epochs, folder / "trial")
    temperature = kind.temperature(trial.outputs, aims)
    outputs = trial.outputs / temperature
    gain = kind.losses(before, aims) - kind.losses(outputs, aims)
    error = float(gain.std(ddof=1)) / len(gain) ** 0.5
    found = f"on {counted(len(rows), 'image')} of a trial the loss falls by {gain.mean():.3f}, standard error {error:.3f}"
    if gain.mean() <= error:
        say(f"not fine-tuned: {found}")
        return fitted
    network = train_on_all(start, trial.epochs, folder / "all").to(device)
    _divide_head(network, temperature)
    embedded = compute(network, task, fitted.data.train, fitted.how, folder, device, max_corrupt=1.0)
    say(f"fine-tuned for {counted(trial.epochs, 'epoch')}: {found}")
    return _tuned(fitted, kind, task, network, embedded, rows, outputs, temperature, trial.epochs)


def _tuned(
    fitted: Fitted,
    kind: Kind,
    task: ClassifyTask,
    network: Network,
    embedded: Features,
    rows: np.ndarray,
    outputs: np.ndarray,
    temperature: float,
    epochs: int,
) -> Fitted:
    """Return a fit with a trained network, of which the trial's images alone are measured."""
    every, measured_rows = np.full_like(fitted.chosen.outputs, np.nan), np.zeros(len(fitted.fold), bool)
    every[rows], measured_rows[rows] = outputs, True
    name = f"whole network, {counted(epochs, 'epoch')} behind {fitted.chosen.name}"
    chosen = replace(fitted.chosen, name=name, outputs=every, measured=measured_rows, temperature=temperature)
    labels = kind.to_labels(fitted.targets[rows])
    evaluation = measured(task, fitted.data.train, fitted.features, rows, outputs, labels, fitted.how)
    held_out = fitted.held_out
    if fitted.data.val is not None and fitted.val_features is not None:
        indices = fitted.val_features.indices
        values = _outputs(network, task, ClassifySubset(fitted.data.val, indices.tolist()), fitted.how, fitted.how.unit)
        aims = kind.to_labels(kind.targets(fitted.data.val, indices.tolist()))
        held_out = measured(task, fitted.data.val, fitted.val_features, np.arange(len(indices)), values, aims, fitted.how)
    calibration = calibration_of(embedded, fitted.targets, chosen)
    return replace(fitted, network=network, tuned=chosen, evaluation=evaluation, held_out=held_out, calibration=calibration)


@contextmanager
def _head_without_fold(fitted: Fitted, kind: Kind) -> Iterator[None]:
    """Within, the network has a head that was fitted without the first fold: by the same choice, on the other images."""
    rows = np.flatnonzero(fitted.fold != 0)
    part = replace(fitted.features, plain=fitted.features.plain[rows], mirrored=fitted.features.mirrored[rows])
    outputs = fitted.chosen.outputs.shape[1]
    head = better_of(part, lambda space: kind.choose(space, fitted.targets[rows], fitted.fold[rows], outputs)).head
    put_head(fitted.network, head)
    try:
        yield
    finally:
        put_head(fitted.network, fitted.chosen.head)


def _divide_head(network: Network, temperature: float) -> None:
    with torch.no_grad():
        for parameter in head_of(network):
            parameter.div_(temperature)


@dataclass(frozen=True, eq=False)
class Trial:
    """What training without a fold gave on it."""

    outputs: np.ndarray  # float64 (n, outputs) of the fold's images
    epochs: int  # after which the loss was lowest


@dataclass(frozen=True, eq=False)
class Tuning:
    """What fine-tuning starts from."""

    recipe: Recipe  # of the images
    network: Network  # with its head
    classes: list[str]
    how: ClassifyPreprocessing
    mirrors: bool  # whether an image and its mirror image are alike
    objects: Mapping[str, object]  # datasets from Python, by argument of `convnext.train`
    device: torch.device

    def train(self, folder: Path, changes: Mapping[str, object], on_all: bool) -> None:
        """Train by the settings of this module and some changes, into a run folder; `on_all` images, or as the changes say."""
        weights, task = folder.with_suffix(".safetensors"), self.recipe.task
        about = {"task": task, "model": self.network.spec, "classes": self.classes, "preprocessing": self.how.to_json()}
        write_weights(weights, self.network.state_dict(), about)
        data = self.recipe.data
        spec = {f"model.{key}": value for key, value in self.network.spec.items() if key not in ("num_classes", "in_channels")}
        given = spec | {"task": task, "model.weights": str(weights), "eval.best_by": KINDS[task].best_by, **preparation(self.how)}
        given |= {f"data.{key}": getattr(data, key) for key in ("train", "group", "max_corrupt", "max_pixels")} | _SETTINGS
        given |= changes
        if task != "regress":
            given["train.label_smoothing"] = 0.0
        if not self.mirrors:
            given["augment.flip"] = 0.0
        kept = {key: value for key, value in given.items() if not is_marker(value) and (value is not None or key in changes)}
        own = self.objects.get("train_data")
        val, console, device = own if on_all else None, Console(quiet=True), str(self.device)
        try:
            train("finetune", kept, output=folder, overwrite=True, console=console, device=device, train_data=own, val_data=val)
        except StoppedError as error:
            remedy = "the same command starts again, with the features that it has; --minutes 0 skips fine-tuning"
            raise StoppedError(f"stopped while fine-tuning: {remedy}") from error


def run_trial(start: Tuning, held: ClassifySource, folds: int, epochs: int, folder: Path) -> Trial:
    """Train without the first of the folds and predict its images, by the epoch with the lowest loss.

    Args:
        start: with a head that was fitted without the fold.
        held: the images of the fold.
        folds: that there are.
        epochs: at most; training stops when the loss on the fold has not fallen for half of them.
        folder: for the run.
    """
    length = {"train.epochs": epochs, "train.warmup_epochs": epochs / 5, "train.patience": max(3, epochs // 2)}
    start.train(folder, {"data.val": None, "data.fold": f"1/{folds}", **length}, on_all=False)
    lines, key = read_lines(folder / "metrics.jsonl")[0], KINDS[start.recipe.task].best_by
    losses = [value for _, value in points(lines, "eval", key)]
    loaded = load(folder)
    outputs = _outputs(loaded.model, cast(ClassifyTask, tasks.get(start.recipe.task)), held, loaded.preprocessing, start.how.unit)
    return Trial(outputs, 1 + losses.index(min(losses)))


def train_on_all(start: Tuning, epochs: int, folder: Path) -> Network:
    """Train on all images for so many epochs; return the network in evaluation mode."""
    length = {"train.epochs": epochs, "train.warmup_epochs": epochs / 5, "train.eval_every": epochs}
    # What a training evaluates on changes no weights; the images themselves are always there.
    start.train(folder, {"data.val": start.recipe.data.train, **length}, on_all=True)
    return load(folder / "last.safetensors").model


@torch.inference_mode()
def _outputs(
    model: Network, task: ClassifyTask, source: ClassifySource, how: Preprocessing, unit: tuple[float, float] | None
) -> np.ndarray:
    """Return what the network gives for the images of a source, float64 (N, outputs); of a regression in that unit, mean and std."""
    device = next(model.parameters()).device
    loader = evaluation_loader(task.evaluation_samples(source, how), task, task.batch_size, 0, device)
    found = [torch.stack(list(task.predict(model, batch.to(device), how))).double().cpu() for batch in loader]
    mean, std = unit or (0.0, 1.0)
    return (torch.cat(found).numpy() - mean) / std
