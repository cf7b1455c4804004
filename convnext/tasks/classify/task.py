"""Classification: one label for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from convnext.data import deep, imagenet
from convnext.data.images import AS_RGB, CorruptImageError, Reading
from convnext.data.loader import Sample, Samples
from convnext.data.sources.base import ClassifySource, read_by
from convnext.data.sources.evaluation_sets import EvaluationSet, is_evaluation_set, open_evaluation_set
from convnext.data.sources.folder import one_class
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.errors import ConvnextError
from convnext.models.calibration import Calibration
from convnext.recipe import BEST_METRICS, Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, Reporter, Task, TaskData
from convnext.tasks.classify import class_scores, imbalance, known, prediction
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.known import KnownOptions
from convnext.tasks.classify.parts import counts, open_classes, open_parts, remarks_on, with_columns
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.own import own_loss, own_transform, title
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import draw_of, measured, measured_remarks, refuse_options
from convnext.text import printable

if TYPE_CHECKING:
    from convnext.data.transforms.classify import Augmentation
    from convnext.tasks.exported import TaskExport


class ClassifyTask(Task[ClassifyBatch, Tensor, ClassifyPrediction, ClassifySource]):
    """Classification. The output of a sample is its logits (classes,)."""

    name: ClassVar[str] = "classify"
    headline: ClassVar[str] = "top1"
    answer: ClassVar[type] = prediction.ClassifyAnswer
    best_metrics: ClassVar[tuple[str, ...]] = BEST_METRICS["classify"]
    batch_size: ClassVar[int] = 32
    columns: ClassVar[tuple[str, ...]] = ("class", "probability")
    options: ClassVar[tuple[str, ...]] = (known.COVERAGE, known.UNKNOWN, "calibration")
    own: ClassVar[tuple[str, ...]] = ("augment.extra", "train.loss", "eval.metrics")
    hub_pipeline: ClassVar[str] = "image-classification"
    demo_recipe: ClassVar[str | None] = "digits"

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError for fewer than two classes, or no images."""
        from convnext.data.transforms.classify import train_transform

        train, val, remarks = open_parts(recipe)
        if recipe.eval.best_by == "auroc":
            class_scores.require_auroc(val)
        imbalance.check_class_weights(recipe, train.classes)
        given, recipe = recipe, measured(recipe, train)
        labels = imbalance.labels_of(train)
        class_counts = np.bincount(labels, minlength=len(train.classes)).tolist()
        remarks += [
            *deep.remarks(train, recipe.data.range),
            *measured_remarks(recipe, given),
            *imbalance.remarks(recipe, train.classes, class_counts),
        ]
        samples = Samples(train, train_transform(augmentation(recipe)), recipe.seed)
        val_samples = self.evaluation_samples(val, self.preprocessing(recipe))
        draw, found = draw_of(recipe, train.classes, lambda: labels[:, None].tolist())
        return TaskData(samples, val_samples, train.classes, remarks + found, class_counts=class_counts, draw=draw, recipe=recipe)

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> ClassifySource:
        """Open labelled images to evaluate a network on.

        Where its weights do not name the classes, folders named by ImageNet's synsets are understood, or one folder for each class in
        sorted order. `where` may also be one of the sets of `imagenet.EVALUATION_SETS`.
        """
        if is_evaluation_set(where):
            return open_evaluation_set(where, classes, num_classes)
        if classes is None and num_classes in imagenet.SUBSETS:
            names = imagenet.synsets(num_classes)
            source = open_classes(where)
            if set(source.classes) <= set(names):
                return open_classes(where, names)
        source = open_classes(where, classes)
        if len(source.classes) != num_classes:
            raise ConvnextError(
                f"{where} has {len(source.classes)} classes, the network {num_classes}, and its weights do not name them: "
                "name the folders by ImageNet synset (n01440764 …), or have one folder for each class"
            )
        return source

    def named(self, where: str, recipe: Recipe) -> str:
        """Return the name of a table with the columns that the recipe names, unless it has its own; other names as they are."""
        return with_columns(where, recipe.data)

    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with the images that `where` names, one problem per line; reads all of them."""
        source = open_classes(where)
        return unreadable(source, how) + ([one_class(where, source.classes)] if len(source.classes) < 2 else [])

    def counts(self, source: ClassifySource) -> str:
        """Return in one line how many images of which classes a source holds."""
        return counts(source)

    def remarks_on(self, source: ClassifySource) -> list[str]:
        """Return what to report to the user about a source."""
        return remarks_on(source)

    def overview(self, where: str) -> list[str]:
        """Return the number of images of each class, and the source's remarks. `check` reports skipped files one by one."""
        source = open_classes(where)
        return [self.counts(source), *source.remarks]

    def preprocessing(self, recipe: Recipe) -> ClassifyPreprocessing:
        """Return how the trained network will take its images."""
        data, test = recipe.data, recipe.eval
        return ClassifyPreprocessing(
            data.image_size,
            test.crop_ratio,
            test.warp,
            test.interpolation,
            *data.normalisation(),
            data.range,
            test.letterbox,
            data.channels,
        )

    def evaluation_samples(self, source: ClassifySource, how: Preprocessing) -> Samples:
        """Return images prepared as the network takes them, with their labels.

        ImageNet-C and -C-bar hold central squares already. Their authors take these whole, without a second crop
        (https://github.com/hendrycks/robustness, ImageNet-C/test.py).
        """
        if isinstance(source, EvaluationSet) and source.corrupted is not None and isinstance(how, ClassifyPreprocessing):
            how = replace(how, warp=True, letterbox=False)
        return Samples(source, how.transform(), seed=0)

    def collate(self, samples: list[Sample]) -> ClassifyBatch:
        """Return the samples as a batch."""
        return ClassifyBatch.collate(samples)

    def mirrored(self, how: Preprocessing) -> Preprocessing:
        """Return the test whose probabilities are means over an image and its mirror image."""
        assert isinstance(how, ClassifyPreprocessing)
        return replace(how, mirror=True)

    # Training and evaluation

    def criterion(self, recipe: Recipe, data: TaskData) -> Criterion[ClassifyBatch]:
        """Return cross-entropy, with class weights and the focal factor, or the recipe's own loss; with mixup and CutMix."""
        from convnext.tasks.classify.loss import ClassifyCriterion
        from convnext.tasks.classify.own import OwnCriterion

        if (loss := own_loss(recipe)) is not None:
            return OwnCriterion(recipe, loss, len(data.classes))
        weights = imbalance.class_weights(recipe, data.classes, data.class_counts or [])
        return ClassifyCriterion(recipe, len(data.classes), weights)

    def predict(self, model: nn.Module, batch: ClassifyBatch, how: Preprocessing) -> Sequence[Tensor]:
        """Return the logits (outputs,) for each sample; see `prediction.logits_of`."""
        return prediction.logits_of(model, batch.images, how).unbind()

    def metric(self, num_classes: int, source: ClassifySource) -> Metric[ClassifyBatch, Tensor]:
        """Return an empty metric."""
        from convnext.tasks.classify.metric import ClassifyMetric

        return ClassifyMetric(num_classes, source)

    def keeping_outputs(self, metric: Metric[ClassifyBatch, Tensor]) -> Metric[ClassifyBatch, Tensor]:
        """Return the metric with all logits and labels, for a user's own metrics."""
        from convnext.tasks.classify.own import KeptOutputs

        return KeptOutputs(metric)

    # Report

    def reporter(self) -> Reporter[ClassifySource]:
        """Return the module that words and draws evaluations."""
        from convnext.tasks.classify import report

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
        """Return the probabilities of the classes of each image. `options` are `KnownOptions`. Predictions bear names: no `class_ids`."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, classes, device, cast(KnownOptions, options))

    def why_not(
        self, option: str, value: object, model: nn.Module, calibration: Calibration | None, classes: Sequence[str] = ()
    ) -> str | None:
        """Return why a network has no answer to an option of `infer`; None if it has one."""
        return super().why_not(option, value, model, calibration) or known.why_not(option, value, calibration, model)

    def columns_with(self, options: Mapping[str, object]) -> tuple[str, ...]:
        """Return the columns of a table of predictions that were made with these options."""
        return self.columns + known.columns(options)

    def embed(self, model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
        """Return what the network's head sees of each image, (N, C) float32 on the CPU."""
        return prediction.embed(model, images, preprocessing, device)

    def class_names(self, count: int) -> list[str]:
        """Return ImageNet's descriptions of its classes where the number is that of one of its subsets."""
        return imagenet.descriptions(count) if count in imagenet.SUBSETS else super().class_names(count)

    def possible_class_names(self, count: int) -> list[list[str]]:
        """Return ImageNet's synsets and descriptions where the number is that of one of its subsets."""
        return [imagenet.synsets(count), imagenet.descriptions(count)] if count in imagenet.SUBSETS else []

    # Export

    def export(self) -> "TaskExport":
        """Return how classifiers are exported, and opened again."""
        from convnext.tasks.classify.graph import ClassifyExport

        return ClassifyExport()


def unreadable(source: ClassifySource, how: Reading) -> list[str]:
    """Return everything wrong with the files of a source, one problem per line; reads all of them."""
    read_by(source, how)
    problems, depths = (
        [f"{printable(path)}: not a file of a known image format{_other_use(path)}" for path in source.skipped],
        deep.Depths(),
    )
    for index in range(len(source)):
        try:
            depths.add(source.pixels(index))
        except CorruptImageError as error:
            problems.append(str(error))
    return problems + depths.problems()


def _other_use(path: str) -> str:
    """Return what a file beside images may be for."""
    return "; if it has COCO annotations, name it and the folder of its images, coco:FILE.json:FOLDER" if path.endswith(".json") else ""


def augmentation(recipe: Recipe) -> "Augmentation":
    """Return the settings of the training transform of a recipe."""
    from convnext.data.transforms.classify import Augmentation
    from convnext.data.transforms.extra import Extra

    data, augment, own = recipe.data, recipe.augment, own_transform(recipe)
    return Augmentation(
        image_size=data.image_size,
        interpolation=recipe.eval.interpolation,
        whole=ClassifyTask().preprocessing(recipe) if augment.crop == "none" else None,
        crop_scale=augment.crop_scale,
        crop_aspect=augment.crop_aspect,
        flip=augment.flip,
        vflip=augment.vflip,
        rotate=augment.rotate,
        blur=augment.blur,
        rand_augment=augment.rand_augment,
        trivial_augment=augment.trivial_augment,
        color_jitter=augment.color_jitter,
        random_erasing=augment.random_erasing,
        mean=data.normalisation()[0],
        std=data.normalisation()[1],
        range=data.range,
        extra=None if own is None else Extra(title(str(augment.extra), own), own),
        channels=data.channels,
    )
