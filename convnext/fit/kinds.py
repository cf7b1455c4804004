"""What labels images have, and how a head learns each kind: one entry per task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.data.sources.open import label_kind
from convnext.data.tables.columns import TargetKind
from convnext.errors import ConvnextError
from convnext.fit import classes, others
from convnext.fit.heads import Chosen, Space
from convnext.tasks.classify.parts import Open, open_classes
from convnext.tasks.multilabel.data import label_set, open_labels
from convnext.tasks.regress.data import open_numbers

MINIMUM = 4  # images
TASKS: dict[TargetKind, str] = {"class": "classify", "classes": "multilabel", "value": "regress"}


@dataclass(frozen=True)
class Kind:
    """How a head learns the labels of a task."""

    open: Open  # from a name to a source
    targets: Callable[[ClassifySource, Sequence[int]], np.ndarray]  # of the images at these positions, one row each
    choose: Callable[[Space, np.ndarray, np.ndarray, int], Chosen]  # from features, targets and folds; the last is the number of classes
    losses: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of outputs and targets, one for each image
    temperature: Callable[[np.ndarray, np.ndarray], float]  # of outputs and targets
    best_by: str  # the metric by which fine-tuning chooses its best epoch
    to_labels: Callable[[np.ndarray], Tensor]  # from targets to what the task's metric takes


def task_of(where: str) -> str:
    """Return the task for the labels of the data that `where` names. Raises as `open_source` does."""
    return TASKS[label_kind(where)]


def unit_of(values: np.ndarray) -> others.Unit:
    """Return what the outputs of a regression on these numbers count. Raises ConvnextError if all are equal."""
    if not values.std() > 0:
        raise ConvnextError("all numbers of the images are equal: there is nothing to learn")
    return others.Unit(float(values.mean()), float(values.std()))


def _class_targets(source: ClassifySource, indices: Sequence[int]) -> np.ndarray:
    return np.array([source.label(index) for index in indices], np.int64)


def _set_targets(source: ClassifySource, indices: Sequence[int]) -> np.ndarray:
    found = np.zeros((len(indices), len(source.classes)))
    for row, index in enumerate(indices):
        found[row, list(label_set(source, index))] = 1
    return found


def _value_targets(source: ClassifySource, indices: Sequence[int]) -> np.ndarray:
    return np.array([source.label(index) for index in indices], np.float64)


def _choose_labels(space: Space, targets: np.ndarray, fold: np.ndarray, count: int) -> Chosen:
    return others.choose_labels(space, targets, fold)


def _choose_values(space: Space, values: np.ndarray, fold: np.ndarray, count: int) -> Chosen:
    return others.choose_values(space, values, fold, unit_of(values))


def _floats(targets: np.ndarray) -> Tensor:
    return torch.from_numpy(targets).float()


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()[:, None]


def _no_temperature(outputs: np.ndarray, targets: np.ndarray) -> float:
    return 1.0


KINDS = {
    "classify": Kind(
        open_classes, _class_targets, classes.choose, classes.cross_entropies, classes.temperature_of, "loss", torch.from_numpy
    ),
    "multilabel": Kind(open_labels, _set_targets, _choose_labels, others.binary_entropies, others.temperature_of, "loss", _floats),
    "regress": Kind(open_numbers, _value_targets, _choose_values, others.squared_errors, _no_temperature, "rmse", _column),
}
