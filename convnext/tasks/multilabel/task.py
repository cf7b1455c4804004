"""Multi-label classification: any number of classes for each image. Images, networks and files are those of classification."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data import deep
from convnext.data.counts import described
from convnext.data.images import AS_RGB, Reading
from convnext.data.loader import Samples
from convnext.data.sources.base import ClassifySource
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError
from convnext.recipe import BEST_METRICS, Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, Reporter, TaskData
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.known import UNKNOWN, KnownOptions
from convnext.tasks.classify.parts import open_parts
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.classify.task import ClassifyTask, augmentation, unreadable
from convnext.tasks.multilabel import data, prediction
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import draw_of, measured, measured_remarks, refuse_options

if TYPE_CHECKING:
    from convnext.tasks.exported import TaskExport


class MultilabelTask(ClassifyTask):
    """Multi-label classification. The output of a sample is its logits (classes,); targets are float32 (classes,), 0 or 1."""

    name: ClassVar[str] = "multilabel"
    headline: ClassVar[str] = "map"
    answer: ClassVar[type] = prediction.MultilabelAnswer
    best_metrics: ClassVar[tuple[str, ...]] = BEST_METRICS["multilabel"]
    options: ClassVar[tuple[str, ...]] = (UNKNOWN, "calibration")
    demo_recipe: ClassVar[str | None] = "multilabel_digits"

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError for no classes, or no images."""
        from convnext.data.transforms.classify import train_transform

        train, val, remarks = open_parts(recipe, data.open_labels, self.counts)
        for where, source in (("train", train), ("val", val)):
            if not any(data.class_counts(source)):
                raise ConvnextError(f"no image in data.{where} has a class")
        given, recipe = recipe, measured(recipe, train)
        remarks += [*deep.remarks(train, recipe.data.range), *measured_remarks(recipe, given)]
        samples = data.LabelSamples(train, train_transform(augmentation(recipe)), recipe.seed)
        draw, found = draw_of(recipe, train.classes, lambda: [data.label_set(train, index) for index in range(len(train))])
        val_samples = self.evaluation_samples(val, self.preprocessing(recipe))
        return TaskData(samples, val_samples, train.classes, remarks + found, draw=draw, recipe=recipe)

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> ClassifySource:
        """Open labelled images to evaluate a network on. Raises ConvnextError unless they have the network's number of classes."""
        source = data.open_labels(where, classes)
        if len(source.classes) != num_classes:
            raise ConvnextError(f"{where} has {len(source.classes)} classes, the network {num_classes}: evaluate on data of its classes")
        return source

    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with the images that `where` names, one problem per line; reads all of them."""
        return unreadable(data.open_labels(where), how)

    def overview(self, where: str) -> list[str]:
        """Return the number of images of each class, and the source's remarks. `check` reports skipped files one by one."""
        source = data.open_labels(where)
        return [self.counts(source), *source.remarks]

    def counts(self, source: ClassifySource) -> str:
        """Return in one line how many images of which classes a source holds."""
        return described(len(source), source.classes, data.class_counts(source))

    def evaluation_samples(self, source: ClassifySource, how: Preprocessing) -> Samples:
        """Return images prepared as the network takes them, with their targets."""
        return data.LabelSamples(source, how.transform(), seed=0)

    # Training and evaluation

    def criterion(self, recipe: Recipe, data: TaskData) -> Criterion[ClassifyBatch]:
        """Return binary cross-entropy, or the recipe's loss, of smoothed targets y (1 - e) + e / 2; with mixup and CutMix."""
        from convnext.tasks.multilabel.loss import TargetCriterion  # it loads timm

        smoothing = recipe.train.label_smoothing
        loss = F.binary_cross_entropy_with_logits
        return TargetCriterion(recipe, loss, lambda labels: labels * (1 - smoothing) + smoothing / 2, len(data.classes))

    def predict(self, model: nn.Module, batch: ClassifyBatch, how: Preprocessing) -> Sequence[Tensor]:
        """Return the logits (outputs,) for each sample; see `prediction.logits_of`."""
        return prediction.logits_of(model, batch.images, how).unbind()

    def metric(self, num_classes: int, source: ClassifySource) -> Metric[ClassifyBatch, Tensor]:
        """Return an empty metric."""
        from convnext.tasks.multilabel.metric import MultilabelMetric

        return MultilabelMetric(source)

    def reporter(self) -> Reporter[ClassifySource]:
        """Return the module that words and draws evaluations."""
        from convnext.tasks.multilabel import report

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
        """Return the probability of each class in each image. Predictions bear names, and so need no `class_ids`."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, classes, device, cast(KnownOptions, options))

    # Export

    def export(self) -> "TaskExport":
        """Return how networks of several labels are exported, and opened again."""
        from convnext.tasks.multilabel.graph import MultilabelExport

        return MultilabelExport()
