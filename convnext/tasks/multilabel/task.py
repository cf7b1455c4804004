"""Multi-label classification: any number of classes for each image. Images, networks and files are those of classification."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from convnext.data import deep
from convnext.data.counts import described
from convnext.data.loader import Samples
from convnext.data.sources.base import ClassifySource
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError
from convnext.recipe import BEST_METRICS, Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, OpenedImage, Reporter, TaskData, check_class_count
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.classify.task import ClassifyTask, augmentation, unreadable
from convnext.tasks.multilabel import data, prediction
from convnext.tasks.shared import refuse_options


class MultilabelTask(ClassifyTask):
    """Multi-label classification. The output of a sample is its logits (classes,); targets are float32 (classes,), 0 or 1."""

    name: ClassVar[str] = "multilabel"
    headline: ClassVar[str] = "map"
    best_metrics: ClassVar[tuple[str, ...]] = BEST_METRICS["multilabel"]
    demo_recipe: ClassVar[str] = "multilabel_digits"

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError for no classes, or no images."""
        from convnext.data.transforms.classify import train_transform

        train, val, remarks = self._open_parts(recipe)
        for where, source in (("train", train), ("val", val)):
            if not len(source):
                raise ConvnextError(f"no images in data.{where}")
            if not any(data.class_counts(source)):
                raise ConvnextError(f"no image in data.{where} has a class")
        remarks += deep.remarks(train, recipe.data.range)
        samples = data.LabelSamples(train, train_transform(augmentation(recipe)), recipe.seed)
        return TaskData(samples, self.evaluation_samples(val, self.preprocessing(recipe)), train.classes, remarks)

    def _open_parts(self, recipe: Recipe) -> tuple[ClassifySource, ClassifySource, list[str]]:
        """Return the images to train on, those to evaluate on, and what to report of both."""
        names = recipe.data
        train = data.open_labels(names.train)
        check_class_count(recipe, train.classes)
        remarks = [f"train: {remark}" for remark in (self.counts(train), *self.remarks_on(train))]
        if names.val is not None:
            val = data.open_labels(names.val, train.classes)
            return train, val, remarks + [f"val: {remark}" for remark in (self.counts(val), *self.remarks_on(val))]
        train, val = data.hold_out(train, names.val_fraction, recipe.seed)
        remarks.append(f"no data.val given: {len(val)} of the {len(train) + len(val)} images are held out for validation")
        return train, val, remarks

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> ClassifySource:
        """Open labelled images to evaluate a network on. Raises ConvnextError unless they have the network's number of classes."""
        source = data.open_labels(where, classes)
        if len(source.classes) != num_classes:
            raise ConvnextError(f"{where} has {len(source.classes)} classes, the network {num_classes}: evaluate on data of its classes")
        return source

    def check(self, where: str) -> list[str]:
        """Return everything wrong with the images that `where` names, one problem per line; reads all of them."""
        return unreadable(data.open_labels(where))

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
        """Return binary cross-entropy or the asymmetric loss, with mixup and CutMix where the recipe has them."""
        from convnext.tasks.multilabel.loss import MultilabelCriterion

        return MultilabelCriterion(recipe)

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
        *,
        class_ids: ClassIds | None = None,
        **options: object,
    ) -> list[ClassifyPrediction]:
        """Return the probability of each class in each image. Predictions bear names, and so need no `class_ids`."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, classes, device)
