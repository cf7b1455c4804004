"""Fine-tuning behind a fitted head, where time allows and a trial shows that it helps.

The head is fitted first, and then the whole network is trained with a rate that falls from layer to layer (LP-FT, Kumar et al., ICLR 2022).
A trial trains without one fold and is compared with the head alone on that fold, image by image. Only if it is better by more than the
standard error is the network trained on all images.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console

from convnext import tasks
from convnext.data.sources.base import ClassifySource
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.evaluate import evaluation_loader
from convnext.extend import is_marker
from convnext.fit.data import preparation
from convnext.models.load import load
from convnext.models.network import Network
from convnext.models.weights.files import write_weights
from convnext.recipe import Recipe
from convnext.report.lines import points, read_lines
from convnext.tasks.classify.task import ClassifyTask
from convnext.training.given import recipe_with
from convnext.training.run import train

MIN_ERRORS = 5  # of the head alone on the trial's images: fewer can't be improved on beyond the standard error
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
_BEST_BY = {"classify": "loss", "multilabel": "loss", "regress": "rmse"}


@dataclass(frozen=True)
class Budget:
    """The time that fine-tuning may take."""

    deadline: float  # by time.monotonic()
    forward: float  # seconds of an image's forward pass

    def epochs(self, images: int, folds: int) -> int:
        """Return how many epochs a trial and the training on all images can have; 0 if they would be too few."""
        found = int((self.deadline - time.monotonic()) / self.per_epoch(images, folds))
        return min(found, _MAX_EPOCHS) if found >= _MIN_EPOCHS else 0

    def per_epoch(self, images: int, folds: int) -> float:
        """Return the seconds of one epoch of both."""
        return images * self.forward * (_STEP * (2 - 1 / folds) + 1 / folds + 2 / _MIN_EPOCHS)

    def needed(self, images: int, folds: int) -> float:
        """Return the minutes that the fewest epochs take."""
        return _MIN_EPOCHS * self.per_epoch(images, folds) / 60


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
    objects: Mapping[str, object]  # datasets from Python, by argument of `convnext.train`

    def train(self, folder: Path, changes: Mapping[str, object]) -> None:
        """Train by the settings of this module and some changes, into a run folder."""
        weights, task = folder.with_suffix(".safetensors"), self.recipe.task
        about = {"task": task, "model": self.network.spec, "classes": self.classes, "preprocessing": self.how.to_json()}
        write_weights(weights, self.network.state_dict(), about)
        data = self.recipe.data
        spec = {f"model.{key}": value for key, value in self.network.spec.items() if key not in ("num_classes", "in_channels")}
        given = spec | {"task": task, "model.weights": str(weights), "eval.best_by": _BEST_BY[task], **preparation(self.how)}
        given |= {f"data.{key}": getattr(data, key) for key in ("train", "group", "max_corrupt", "max_pixels")} | _SETTINGS
        given |= changes
        if task != "regress":
            given["train.label_smoothing"] = 0.0
        kept = {key: value for key, value in given.items() if not is_marker(value) and (value is not None or key in changes)}
        train(recipe_with("finetune", kept, self.objects), output=folder, overwrite=True, console=Console(quiet=True))


def run_trial(start: Tuning, held: ClassifySource, folds: int, epochs: int, folder: Path) -> Trial:
    """Train without the first of the folds and predict its images, by the epoch with the lowest loss.

    Args:
        start: with a head that was fitted without the fold.
        held: the images of the fold.
        folds: that there are.
        epochs: at most; training stops when the loss on the fold has not fallen for three.
        folder: for the run.
    """
    length = {"train.epochs": epochs, "train.warmup_epochs": epochs / 5, "train.patience": 3}
    start.train(folder, {"data.val": None, "data.fold": f"1/{folds}", **length})
    lines, key = read_lines(folder / "metrics.jsonl")[0], _BEST_BY[start.recipe.task]
    losses = [value for _, value in points(lines, "eval", key)]
    loaded = load(folder)
    outputs = _outputs(loaded.model, cast(ClassifyTask, tasks.get(start.recipe.task)), held, loaded.preprocessing)
    return Trial(outputs, 1 + losses.index(min(losses)))


def train_on_all(start: Tuning, epochs: int, folder: Path) -> Network:
    """Train on all images for so many epochs; return the network in evaluation mode."""
    length = {"train.epochs": epochs, "train.warmup_epochs": epochs / 5, "train.eval_every": epochs}
    # What a training evaluates on changes no weights; the images themselves are always there.
    start.train(folder, {"data.val": start.recipe.data.train, **length})
    return load(folder / "last.safetensors").model


@torch.inference_mode()
def _outputs(model: Network, task: ClassifyTask, source: ClassifySource, how: Preprocessing) -> np.ndarray:
    """Return what the network gives for the images of a source, float64 (N, outputs); of a regression in units of its spread."""
    device = next(model.parameters()).device
    loader = evaluation_loader(task.evaluation_samples(source, how), task, task.batch_size, 0, device)
    return torch.cat([model(batch.to(device).images).double().cpu() for batch in loader]).numpy()


def is_better(gain: np.ndarray) -> bool:
    """Return whether the mean of differences (n,) of images' losses is above 0 by more than its standard error."""
    return len(gain) > 1 and float(gain.mean()) > float(gain.std(ddof=1)) / len(gain) ** 0.5
