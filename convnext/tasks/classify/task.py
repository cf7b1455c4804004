"""Classification: one label for each image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from convnext.data import deep, imagenet
from convnext.data.counts import described
from convnext.data.images import AS_RGB, CorruptImageError, Reading
from convnext.data.loader import Sample, Samples
from convnext.data.sources.base import ClassifySource, read_by
from convnext.data.sources.evaluation_sets import EvaluationSet, is_evaluation_set, open_evaluation_set
from convnext.data.sources.folder import one_class
from convnext.data.sources.open import hold_out, open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.errors import ConvnextError
from convnext.recipe import Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, OpenedImage, Reporter, Task, TaskData, check_class_count
from convnext.tasks.classify import prediction
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.shared import measured, measured_remarks, reading_of, refuse_options, skipped_remarks
from convnext.text import printable

if TYPE_CHECKING:
    from convnext.data.transforms.classify import Augmentation
    from convnext.tasks.exported import TaskExport


class ClassifyTask(Task[ClassifyBatch, Tensor, ClassifyPrediction, ClassifySource]):
    """Classification. The output of a sample is its logits (classes,)."""

    name: ClassVar[str] = "classify"
    headline: ClassVar[str] = "top1"
    batch_size: ClassVar[int] = 32
    columns: ClassVar[tuple[str, ...]] = ("class", "probability")
    hub_pipeline: ClassVar[str] = "image-classification"
    demo_recipe: ClassVar[str] = "digits"

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError for fewer than two classes, or no images."""
        from convnext.data.transforms.classify import train_transform

        train, val, remarks = self._open_sources(recipe)
        for where, source in (("train", train), ("val", val)):
            if not len(source):
                raise ConvnextError(f"no images in data.{where}")
        given, recipe = recipe, measured(recipe, train)
        remarks += deep.remarks(train, recipe.data.range) + measured_remarks(recipe, given)
        samples = Samples(train, train_transform(augmentation(recipe)), recipe.seed)
        return TaskData(samples, self.evaluation_samples(val, self.preprocessing(recipe)), train.classes, remarks, recipe=recipe)

    def _open_sources(self, recipe: Recipe) -> tuple[ClassifySource, ClassifySource, list[str]]:
        """Return the images to train on, those to evaluate on, and what to report of both."""
        data = recipe.data
        train = open_source(data.train)
        read_by(train, reading_of(recipe))
        check_class_count(recipe, train.classes)
        if len(train.classes) < 2:
            raise ConvnextError(f"data.train={one_class(data.train, train.classes)}")
        remarks = [f"train: {remark}" for remark in (self.counts(train), *self.remarks_on(train))]
        if data.val is not None:
            val = open_source(data.val, train.classes)
            read_by(val, reading_of(recipe))
            return train, val, remarks + [f"val: {remark}" for remark in (self.counts(val), *self.remarks_on(val))]
        train, val = hold_out(train, data.val_fraction, recipe.seed)
        remarks.append(f"no data.val given: {len(val)} of the {len(train) + len(val)} images are held out for validation")
        return train, val, remarks

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> ClassifySource:
        """Open labelled images to evaluate a network on.

        Where its weights do not name the classes, folders named by ImageNet's synsets are understood, or one folder for each class in
        sorted order. `where` may also be one of the sets of `imagenet.EVALUATION_SETS`.
        """
        if is_evaluation_set(where):
            return open_evaluation_set(where, classes, num_classes)
        if classes is None and num_classes in imagenet.SUBSETS:
            names = imagenet.synsets(num_classes)
            source = open_source(where)
            if set(source.classes) <= set(names):
                return open_source(where, names)
        source = open_source(where, classes)
        if len(source.classes) != num_classes:
            raise ConvnextError(
                f"{where} has {len(source.classes)} classes, the network {num_classes}, and its weights do not name them: "
                "name the folders by ImageNet synset (n01440764 …), or have one folder for each class"
            )
        return source

    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with the images that `where` names, one problem per line; reads all of them."""
        source = open_source(where)
        read_by(source, how)
        problems, depths = [f"{printable(path)}: not a file of a known image format" for path in source.skipped], deep.Depths()
        for index in range(len(source)):
            try:
                depths.add(source.pixels(index))
            except CorruptImageError as error:
                problems.append(str(error))
        return problems + depths.problems() + ([one_class(where, source.classes)] if len(source.classes) < 2 else [])

    def counts(self, source: ClassifySource) -> str:
        """Return in one line how many images of which classes a source holds."""
        labels = np.array([source.label(index) for index in range(len(source))], dtype=int)
        return described(len(source), source.classes, np.bincount(labels, minlength=len(source.classes)).tolist())

    def remarks_on(self, source: ClassifySource) -> list[str]:
        """Return what to report to the user about a source."""
        return [*source.remarks, *skipped_remarks(source.skipped)]

    def overview(self, where: str) -> list[str]:
        """Return the number of images of each class, and the source's remarks. `check` reports skipped files one by one."""
        source = open_source(where)
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

    # Training and evaluation

    def criterion(self, recipe: Recipe, classes: Sequence[str]) -> Criterion[ClassifyBatch]:
        """Return cross-entropy, with mixup and CutMix where the recipe has them."""
        from convnext.tasks.classify.loss import ClassifyCriterion

        return ClassifyCriterion(recipe, len(classes))

    def predict(self, model: nn.Module, batch: ClassifyBatch, how: Preprocessing) -> Sequence[Tensor]:
        """Return the logits (outputs,) for each sample."""
        logits: Tensor = model(batch.images)
        return logits.unbind()

    def metric(self, num_classes: int, source: ClassifySource) -> Metric[ClassifyBatch, Tensor]:
        """Return an empty metric."""
        from convnext.tasks.classify.metric import ClassifyMetric

        return ClassifyMetric(num_classes, source)

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
        *,
        class_ids: ClassIds | None = None,
        **options: object,
    ) -> list[ClassifyPrediction]:
        """Return the probabilities of the classes of each image. Predictions bear names, and so need no `class_ids`."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, classes, device)

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


def augmentation(recipe: Recipe) -> "Augmentation":
    """Return the settings of the training transform of a recipe."""
    from convnext.data.transforms.classify import Augmentation

    data, augment = recipe.data, recipe.augment
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
        channels=data.channels,
    )
