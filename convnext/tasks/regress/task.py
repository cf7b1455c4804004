"""Regression: one number for each image. Images, networks and files are those of classification."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data import deep
from convnext.data.images import AS_RGB, Reading
from convnext.data.loader import Samples
from convnext.data.sources.base import ClassifySource
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import BEST_METRICS, Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, Reporter, TaskData
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.known import UNKNOWN, KnownOptions
from convnext.tasks.classify.parts import open_parts
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.classify.task import ClassifyTask, augmentation, unreadable
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.regress import data, prediction
from convnext.tasks.shared import measured, measured_remarks, refuse_options
from convnext.text import counted

if TYPE_CHECKING:
    from convnext.tasks.exported import TaskExport


class RegressTask(ClassifyTask):
    """Regression. The output of a sample is its number (1,) in the data's unit; targets are float32 (1,)."""

    name: ClassVar[str] = "regress"
    headline: ClassVar[str] = "r2"
    answer: ClassVar[type] = prediction.ValueAnswer
    best_metrics: ClassVar[tuple[str, ...]] = BEST_METRICS["regress"]
    columns: ClassVar[tuple[str, ...]] = ("value",)
    options: ClassVar[tuple[str, ...]] = (UNKNOWN, "calibration")
    demo_recipe: ClassVar[str | None] = "regress_digits"

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError for no images, or numbers that are all equal."""
        from convnext.data.transforms.classify import train_transform

        train, val, remarks = open_parts(recipe, data.open_numbers, self.counts)
        for where, source in (("train", train), ("val", val)):
            if len(set(data.values_of(source))) < 2:
                raise ConvnextError(f"all numbers of data.{where} are equal: there is nothing to learn, or to measure")
        given, recipe = recipe, measured(recipe, train)
        remarks += [*deep.remarks(train, recipe.data.range), *measured_remarks(recipe, given)]
        values = data.values_of(train)
        how = replace(self.preprocessing(recipe), unit=(float(values.mean()), float(values.std())))
        samples = data.ValueSamples(train, train_transform(augmentation(recipe)), recipe.seed)
        return TaskData(samples, self.evaluation_samples(val, how), train.classes, remarks, how=how, recipe=recipe)

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> ClassifySource:
        """Open labelled images to evaluate a network on. Raises UsageError unless the network has one output."""
        if num_classes != 1:
            raise UsageError(f"the network has {num_classes} outputs, and task regress needs one")
        return data.open_numbers(where)

    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with the images that `where` names, one problem per line; reads all of them."""
        return unreadable(data.open_numbers(where), how)

    def overview(self, where: str) -> list[str]:
        """Return the number of images, the range of their numbers, and the source's remarks."""
        source = data.open_numbers(where)
        return [self.counts(source), *source.remarks]

    def counts(self, source: ClassifySource) -> str:
        """Return in one line how many images a source holds, and the range and mean of their numbers."""
        values = data.values_of(source)
        found = f": values from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}" if len(values) else ""
        return f"{counted(len(source), 'image')}, {counted(len(values), 'number')}{found}"

    def evaluation_samples(self, source: ClassifySource, how: Preprocessing) -> Samples:
        """Return images prepared as the network takes them, with their numbers."""
        return data.ValueSamples(source, how.transform(), seed=0)

    # Training and evaluation

    def criterion(self, recipe: Recipe, data: TaskData) -> Criterion[ClassifyBatch]:
        """Return the smooth L1 loss in units of the standard deviation, or the recipe's loss; with mixup and CutMix."""
        from convnext.tasks.multilabel.loss import TargetCriterion  # it loads timm

        mean, std = getattr(data.how, "unit", None) or (0.0, 1.0)
        return TargetCriterion(recipe, F.smooth_l1_loss, lambda values: (values - mean) / std, 1)

    def predict(self, model: nn.Module, batch: ClassifyBatch, how: Preprocessing) -> Sequence[Tensor]:
        """Return the number (1,) of each sample, in the data's unit."""
        return prediction.values_of(model, batch.images, how).unbind()

    def metric(self, num_classes: int, source: ClassifySource) -> Metric[ClassifyBatch, Tensor]:
        """Return an empty metric."""
        from convnext.tasks.regress.metric import RegressMetric

        return RegressMetric(source)

    def reporter(self) -> Reporter[ClassifySource]:
        """Return the module that words and draws evaluations."""
        from convnext.tasks.regress import report

        return report

    # Use

    def infer(
        self,
        model: nn.Module,
        images: Sequence[OpenedImage],
        preprocessing: Preprocessing,
        classes: Sequence[str],
        device: torch.device,
        /,
        *,
        class_ids: ClassIds | None = None,
        **options: object,
    ) -> list[ClassifyPrediction]:
        """Return the number of each image, in the data's unit."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, classes, device, cast(KnownOptions, options))

    # Export

    def export(self) -> "TaskExport":
        """Return how networks of numbers are exported, and opened again."""
        from convnext.tasks.regress.graph import ValueExport

        return ValueExport()
