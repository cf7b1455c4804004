"""Segmentation: one class for each pixel."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from convnext.data import deep
from convnext.data.counts import described
from convnext.data.images import AS_RGB, Reading
from convnext.data.loader import Sample, Samples
from convnext.data.sources import masks
from convnext.data.sources.base import SegmentSource, SegmentSubset, read_by
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.open import open_segmentation
from convnext.data.transforms.extra import ExtraMask
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.data.transforms.segment import SegmentPreprocessing, TrainTransform, mask_transform
from convnext.errors import ConvnextError, UsageError
from convnext.models.calibration import Calibration
from convnext.models.segmentation import inference
from convnext.recipe import BEST_METRICS, Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, Reporter, Task, TaskData
from convnext.tasks.held_out import hold_out, shared_images
from convnext.tasks.objects import refuse_invalid, with_options
from convnext.tasks.own import own_transform, title
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.segment import auto, prediction
from convnext.tasks.segment.batch import SegmentBatch, SegmentEvaluationSamples, SegmentTrainingSamples
from convnext.tasks.segment.loss import SegmentCriterion
from convnext.tasks.segment.prediction import SegmentPrediction
from convnext.tasks.shared import (
    check_class_count,
    draw_of,
    measured,
    measured_remarks,
    plain_from,
    reading_of,
    refuse_options,
    skipped_remarks,
)
from convnext.text import beyond_limit, counted

if TYPE_CHECKING:
    from convnext.tasks.exported import TaskExport

_MAX_CHECKED = 2000  # images: more are not all read before a run; `convnext data check` reads them
_MAX_LISTED = 5  # problems in an error message
_ADE20K = 150  # classes


class SegmentTask(Task[SegmentBatch, Tensor, SegmentPrediction, SegmentSource]):
    """Segmentation. The output of a sample is the class (H, W) of every pixel, uint8 or uint16 on the CPU."""

    name: ClassVar[str] = "segment"
    headline: ClassVar[str] = "miou"
    answer: ClassVar[type] = prediction.SegmentAnswer
    best_metrics: ClassVar[tuple[str, ...]] = BEST_METRICS["segment"]
    batch_size: ClassVar[int] = 4  # images are prepared in their own size, and may be large
    columns: ClassVar[tuple[str, ...]] = ("class", "share")
    formats: ClassVar[tuple[str, ...]] = ("masks", "colour-masks")
    own: ClassVar[tuple[str, ...]] = ("augment.extra",)
    hub_pipeline: ClassVar[str] = "image-segmentation"
    demo_recipe: ClassVar[str | None] = "segment_digits"

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError if masks do not fit their images or the classes."""
        data = recipe.data
        if data.channels != 3 and recipe.segment.distort:
            raise UsageError(
                f"segment.distort changes the colours of RGB images, not of {data.channels} channels: add segment.distort=false"
            )
        train = open_segmentation(with_options(data.train, recipe, "segment"))
        refuse_invalid(train, data.max_corrupt)
        read_by(train, reading_of(recipe))
        check_class_count(recipe, train.classes)
        remarks: list[str] = []
        shared: list[str] = []
        if data.val is not None:
            val = open_segmentation(with_options(data.val, recipe, "segment"), train.classes)
            refuse_invalid(val, data.max_corrupt)
            read_by(val, reading_of(recipe))
            shared = shared_images(train, val)
        else:
            rest, held, remarks = hold_out(train, [0] * len(train), recipe)
            train, val = SegmentSubset(train, rest), SegmentSubset(train, held)
        for where, source in (("train", train), ("val", val)):
            remarks += [f"{where}: {remark}" for remark in (self.counts(source), *self.remarks_on(source))]
            if not len(source):
                raise ConvnextError(f"no images in data.{where}")
            remarks += _refuse_problems(where, source, data.max_corrupt)
        recipe, found = auto.measured(recipe, train)
        remarks += shared + found
        given, recipe = recipe, measured(recipe, train)
        remarks += deep.remarks(train, data.range) + measured_remarks(recipe, given)
        samples = SegmentTrainingSamples(train, _train_transform(recipe, len(train.classes)), recipe.seed, plain_from(recipe))
        val_samples = self.evaluation_samples(val, self.preprocessing(recipe))
        draw, found = draw_of(recipe, train.classes, lambda: masks.classes_of_masks(train))
        return TaskData(samples, val_samples, train.classes, remarks + found, class_ids=train.class_ids, draw=draw, recipe=recipe)

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> SegmentSource:
        """Open images with masks to evaluate a network on."""
        source = open_segmentation(where, classes)
        if len(source.classes) != num_classes:
            raise ConvnextError(f"{where} has {len(source.classes)} classes, the network {num_classes}: evaluate on data of its classes")
        return source

    def named(self, where: str, recipe: Recipe) -> str:
        """Return the name of a dataset with the objects that the recipe chooses, unless it has its own choices."""
        return with_options(where, recipe, "segment")

    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with the images and masks, one problem per line, by path and value; reads all of them."""
        source, depths = open_segmentation(where), deep.Depths()
        read_by(source, how)
        if not isinstance(source, masks.Semantic) or not isinstance(source.source, CocoSource):
            return masks.check(source, depths) + depths.problems()
        unreadable: list[str] = []
        found = masks.check(source, depths, unreadable)
        named = tuple(f"{path}: " for path in source.source.missing)  # which the problems of the file have
        unreadable = [reason for reason in unreadable if not reason.startswith(named)]
        return source.source.problems + found + unreadable + depths.problems()

    def counts(self, source: SegmentSource) -> str:
        """Return in one line how many images a source holds, and its classes. Only reading a mask would show which are in it."""
        return described(len(source), source.classes)

    def remarks_on(self, source: SegmentSource) -> list[str]:
        """Return what to report to the user about a source."""
        return [*source.remarks, *skipped_remarks(source.skipped)]

    def overview(self, where: str) -> list[str]:
        """Return the number of images and the classes, what to report of them, and the classes' shares of the pixels."""
        source = open_segmentation(where)
        return [self.counts(source), *self.remarks_on(source), *masks.shares_of_pixels(source)]

    def preprocessing(self, recipe: Recipe) -> SegmentPreprocessing:
        """Return how the trained network will take its images."""
        data, segment = recipe.data, recipe.segment
        return SegmentPreprocessing(
            auto.scale_of(segment), segment.window, segment.stride, *data.normalisation(), range=data.range, channels=data.channels
        )

    def evaluation_samples(self, source: SegmentSource, how: Preprocessing) -> Samples:
        """Return images prepared as the network takes them, with their masks."""
        return SegmentEvaluationSamples(source, how.transform(), seed=0)

    def loss_samples(self, source: SegmentSource, how: Preprocessing) -> Samples:
        """Return whole images and their masks, both at the size at which the network takes the image."""
        assert isinstance(how, SegmentPreprocessing)
        return SegmentTrainingSamples(source, mask_transform(how), seed=0)

    def collate(self, samples: list[Sample]) -> SegmentBatch:
        """Return the samples as a batch."""
        return SegmentBatch.collate(samples)

    def multi_scale(self, how: Preprocessing) -> Preprocessing:
        """Return the test at six scales, with mirror images."""
        assert isinstance(how, SegmentPreprocessing)
        return how.multi_scale()

    def mirrored(self, how: Preprocessing) -> Preprocessing:
        """Return the test with mirror images."""
        assert isinstance(how, SegmentPreprocessing)
        return replace(how, mirror=True)

    def tiled(self, how: Preprocessing, tile: int, overlap: float | None) -> Preprocessing:
        """Raises UsageError: a segmenter's recipe says its windows."""
        raise UsageError("--tile is for detectors; a segmenter has the windows of its recipe, segment.window and segment.stride")

    # Training and evaluation

    def criterion(self, recipe: Recipe, data: TaskData) -> Criterion[SegmentBatch]:
        """Return cross-entropy of both heads, with class weights, the focal factor and dice where the recipe has them."""
        return SegmentCriterion(recipe, cast(SegmentSource, data.train.source))

    def predict(self, model: nn.Module, batch: SegmentBatch, how: Preprocessing) -> Sequence[Tensor]:
        """Return the class of every pixel of each image."""
        mode = prediction.mode_of(how)
        if isinstance(batch.images, Tensor) and mode == inference.Mode():
            return list(model(batch.images).argmax(1).to("cpu", torch.uint8))  # whole images, all at once
        return [inference.predict(model, image, mode) for image in batch.images]

    def metric(self, num_classes: int, source: SegmentSource) -> Metric[SegmentBatch, Tensor]:
        """Return an empty metric."""
        from convnext.tasks.segment.metric import SegmentMetric

        return SegmentMetric(num_classes, source)

    # Report

    def reporter(self) -> Reporter[SegmentSource]:
        """Return the module that words and draws evaluations."""
        from convnext.tasks.segment import report

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
    ) -> list[SegmentPrediction]:
        """Return the class of every pixel of each image; `class_ids` are the values or colours that masks are written in."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, classes, device, class_ids)

    def why_not(
        self, option: str, value: object, model: nn.Module, calibration: Calibration | None, classes: Sequence[str] = ()
    ) -> str | None:
        """Return why a network has no answer to an option of `infer`."""
        if option == "classes":
            return "classes: a segmenter gives every pixel a class, so none can be omitted: choose among the values of its masks instead"
        return super().why_not(option, value, model, calibration)

    def embed(self, model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
        """Return the mean of the backbone's last map of each image, (N, C) float32 on the CPU."""
        return prediction.embed(model, images, preprocessing, device)

    def class_ids(self, classes: Sequence[str] | None, count: int) -> ClassIds | None:
        """Return 1 to 150 for 150 classes without names, which are ADE20K's.

        0 is "other" in its masks, and no class of the network. mmsegmentation writes its results for ADE20K's server in the same way
        (`ADE20KDataset` with `reduce_zero_label`, `format_results`: "the index range of official requirement is from 0 to 150").
        """
        return list(range(1, _ADE20K + 1)) if classes is None and count == _ADE20K else None

    # Export

    def export(self) -> "TaskExport":
        """Return how segmenters are exported, and opened again."""
        from convnext.tasks.segment.graph import SegmentExport

        return SegmentExport()


def _train_transform(recipe: Recipe, classes: int) -> TrainTransform:
    data, segment, augment, own = recipe.data, recipe.segment, recipe.augment, own_transform(recipe)
    return TrainTransform(
        data.image_size,
        auto.scale_of(segment),
        segment.ratio_range,
        segment.max_class_share,
        augment.flip,
        segment.distort,
        *data.normalisation(),
        data.range,
        augment.vflip,
        augment.rotate,
        augment.blur,
        data.channels,
        augment.mosaic,
        None if own is None else ExtraMask(title(str(augment.extra), own), own, classes),
    )


def _refuse_problems(where: str, source: SegmentSource, limit: float) -> list[str]:
    """Return a remark if the source is too large to be checked before a run.

    Raises ConvnextError if something is wrong with it, or if more than that fraction of the images can't be read.
    """
    unreadable: list[str] = []
    problems = source.problems if len(source) > _MAX_CHECKED else masks.check(source, unreadable=unreadable)
    if problems:
        more = f" and {len(problems) - _MAX_LISTED} more; `convnext data check` lists them" if len(problems) > _MAX_LISTED else ""
        raise ConvnextError(f"data.{where} can't be used: {'; '.join(problems[:_MAX_LISTED])}{more}")
    if len(unreadable) > limit * len(source):
        what = f"{len(unreadable)} of {counted(len(source), 'image')} of data.{where} can't be read"
        raise ConvnextError(beyond_limit(what, len(unreadable), len(source), limit, "data.max_corrupt", unreadable))
    if len(source) <= _MAX_CHECKED:
        return []
    return [f"{where}: {counted(len(source), 'mask')} are not checked before the run; `convnext data check` checks them"]
