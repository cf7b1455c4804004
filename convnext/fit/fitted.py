"""All that a fit found, and what is measured of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.evaluate import Evaluation
from convnext.fit.data import FitData
from convnext.fit.features import Features
from convnext.fit.heads import Chosen
from convnext.fit.quality.findings import Findings
from convnext.models.calibration import Calibration, calibrate
from convnext.models.network import Network
from convnext.recipe import Recipe
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.task import ClassifyTask


@dataclass(frozen=True, eq=False)
class Fitted:
    """All that a fit found, as its report shows it."""

    data: FitData
    network: Network  # with its head
    how: ClassifyPreprocessing
    features: Features
    targets: np.ndarray  # of the rows of `features`
    fold: np.ndarray
    chosen: Chosen
    evaluation: Evaluation  # by cross-validation
    calibration: Calibration
    val_features: Features | None  # of the validation images, where there are any
    held_out: Evaluation | None  # on these
    seconds: float = 0.0
    findings: Findings | None = None  # of the data
    tuned: Chosen | None = None  # the trained network in place of the head alone; the trial's images are measured

    @property
    def folds(self) -> int:
        """The number of folds of the cross-validation."""
        return int(self.fold.max()) + 1

    @property
    def measured_by(self) -> str:
        """How the images of `evaluation` were kept apart."""
        return "by cross-validation" if self.tuned is None else "on the images of the trial"

    @property
    def best_evidence(self) -> Evaluation:
        """The evaluation on the validation images; by cross-validation where there is no such part."""
        return self.evaluation if self.held_out is None else self.held_out

    @property
    def recipe(self) -> Recipe:
        """The recipe by which a training would continue."""
        return self.data.recipe


def measured(
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


def calibration_of(found: Features, targets: np.ndarray, chosen: Chosen) -> Calibration:
    """Return the conformal scores of images of one class each, and the distances of all images."""
    scores: Sequence[float] = []
    rows = np.arange(len(found))
    if targets.dtype == np.int64:
        measured = np.flatnonzero(chosen.measured)
        scores = (1 - softmax(chosen.outputs[measured], axis=1)[np.arange(len(measured)), targets[measured]]).tolist()
        rows = np.argsort(targets, kind="stable")
    return calibrate(scores, torch.from_numpy(found.plain[rows]))
