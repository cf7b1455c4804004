"""Detection and instance segmentation: boxes, classes and masks of the objects in an image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from convnext.data import deep
from convnext.data.convert.write.formats import FORMATS
from convnext.data.counts import described
from convnext.data.images import AS_RGB, Reading
from convnext.data.loader import Sample, Samples
from convnext.data.sources.base import DetectSource, classes_of_objects, read_by
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.coco_check import check as check_coco
from convnext.data.sources.open import open_detection
from convnext.data.transforms.detect import DetectAugmentation, DetectPreprocessing, objects_transform, train_transform
from convnext.data.transforms.extra import ExtraObjects
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.models.calibration import Calibration
from convnext.models.detection.postprocess import encode_masks
from convnext.recipe import BEST_METRICS, Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, Reporter, Task, TaskData
from convnext.tasks.detect import auto, prediction, tiles
from convnext.tasks.detect import options as detect_options
from convnext.tasks.detect.batch import DetectBatch, DetectEvaluationSamples, DetectTrainingSamples
from convnext.tasks.detect.limits import limit_remarks, object_count_remarks
from convnext.tasks.detect.options import DetectOptions
from convnext.tasks.detect.parts import open_parts, require_masks
from convnext.tasks.detect.prediction import Detections, DetectPrediction
from convnext.tasks.detect.tiles import MAX_OVERLAP, MAX_TILE, MIN_TILE
from convnext.tasks.objects import with_options
from convnext.tasks.own import own_transform, title
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import draw_of, measured, measured_remarks, plain_from, refuse_options, skipped_remarks

if TYPE_CHECKING:
    from convnext.tasks.exported import TaskExport

_MIN_BATCHES = 10  # of images of one shape, for these to be grouped


class DetectTask(Task[DetectBatch, Detections, DetectPrediction, DetectSource]):
    """Detection. The output of a sample is its detections in the pixels of the image as annotated, masks as run lengths."""

    name: ClassVar[str] = "detect"
    headline: ClassVar[str] = "box_ap"
    answer: ClassVar[type] = prediction.DetectAnswer
    best_metrics: ClassVar[tuple[str, ...]] = BEST_METRICS["detect"]
    batch_size: ClassVar[int] = 2  # they go through the network at some 800 x 1333 pixels
    columns: ClassVar[tuple[str, ...]] = prediction.COLUMNS
    formats: ClassVar[tuple[str, ...]] = ("coco", *FORMATS)
    options: ClassVar[tuple[str, ...]] = ("threshold", "nms", "class_agnostic", "classes", "masks", "max_pixels", "check")
    reorders_head: ClassVar[bool] = False
    own: ClassVar[tuple[str, ...]] = ("augment.extra",)
    hub_pipeline: ClassVar[str] = "object-detection"
    demo_recipe: ClassVar[str | None] = "detect_digits"

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError for data that a detector can't learn from."""
        data, augment = recipe.data, recipe.augment
        train, val, remarks = open_parts(recipe, lambda source: [self.counts(source), *self.remarks_on(source)])
        recipe, found = auto.measured(recipe, train)
        require_masks(recipe, train, val)
        given, recipe = recipe, measured(recipe, train)
        remarks += limit_remarks(recipe, {"train": train, "val": val})
        remarks += deep.remarks(train, data.range) + found + measured_remarks(recipe, given)
        augmentation = DetectAugmentation(
            *auto.training_sizes(recipe.detect), augment.flip, *recipe.data.normalisation(), data.range,
            augment.vflip, augment.blur, data.channels, augment.rotate, augment.copy_paste, augment.mosaic,
            _extra(recipe, len(train.classes)),
        )  # fmt: skip
        transform = train_transform(augmentation)
        upright = (train.heights > train.widths).astype(int)
        samples = DetectTrainingSamples(train, transform, recipe.seed, plain_from(recipe))
        groups = _groups(upright.tolist(), recipe.train.batch_size)
        ids = [train.category_ids[name] for name in train.classes] if train.category_ids else None
        val_samples = self.evaluation_samples(val, self.preprocessing(recipe))
        draw, found = draw_of(recipe, train.classes, lambda: classes_of_objects(train))
        return TaskData(samples, val_samples, train.classes, remarks + found, groups, ids, draw=draw, recipe=recipe)

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> DetectSource:
        """Open annotated images to evaluate a network on."""
        source = open_detection(where, classes)
        if len(source.classes) != num_classes:
            raise ConvnextError(f"{where} has {len(source.classes)} classes, the network {num_classes}: evaluate on data of its classes")
        return source

    def named(self, where: str, recipe: Recipe) -> str:
        """Return the name of a dataset with the objects that the recipe chooses, unless it has its own choices."""
        return with_options(where, recipe, "detect")

    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with images and annotations, one problem per line, by file and annotation id; reads all of them."""
        source = open_detection(where)
        read_by(source, how)
        return check_coco(source) if isinstance(source, CocoSource) else []

    def counts(self, source: DetectSource) -> str:
        """Return in one line how many images and objects of which classes a source holds."""
        return described(len(source), source.classes, source.objects_by_class(), objects=True)

    def remarks_on(self, source: DetectSource) -> list[str]:
        """Return what to report to the user about a source."""
        absent = [name for name in source.classes if name not in source.category_ids] if source.category_ids else []
        verb = "is" if len(absent) == 1 else "are"
        missing = (
            f"{len(absent)} of {len(source.classes)} classes {verb} missing from its categories, the first: {absent[0]!r}" if absent else ""
        )
        return [*source.remarks, *skipped_remarks(source.skipped), *([missing] if missing else [])]

    def overview(self, where: str) -> list[str]:
        """Return the number of images and of objects of each class, and what to report of them."""
        source = open_detection(where)
        return [self.counts(source), *self.remarks_on(source), *object_count_remarks(source)]

    def preprocessing(self, recipe: Recipe) -> DetectPreprocessing:
        """Return how the trained network will take its images."""
        data, detect = recipe.data, recipe.detect
        sizes = auto.evaluation_sizes(detect)
        return DetectPreprocessing(*sizes, *data.normalisation(), data.range, data.channels, detect.most)

    def evaluation_samples(self, source: DetectSource, how: Preprocessing) -> Samples:
        """Return images prepared as the network takes them, with their objects as annotated."""
        return DetectEvaluationSamples(source, how.transform(), seed=0)

    def loss_samples(self, source: DetectSource, how: Preprocessing) -> Samples:
        """Return images prepared as the network takes them, with their objects in the same pixels."""
        assert isinstance(how, DetectPreprocessing)
        return DetectTrainingSamples(source, objects_transform(how), seed=0)

    def collate(self, samples: list[Sample]) -> DetectBatch:
        """Return the samples as a batch."""
        return DetectBatch.collate(samples)

    def tiled(self, how: Preprocessing, tile: int, overlap: float | None) -> Preprocessing:
        """Return the preprocessing that also cuts images into overlapping tiles. Raises UsageError for a size or overlap of no use."""
        assert isinstance(how, DetectPreprocessing)
        overlap = how.overlap if overlap is None else overlap
        if not MIN_TILE <= tile <= MAX_TILE:
            raise UsageError(f"--tile {tile}: give pixels a side, from {MIN_TILE} to {MAX_TILE}")
        if not 0 <= overlap <= MAX_OVERLAP:
            raise UsageError(f"--tile-overlap {overlap}: give a fraction of the tile's side, from 0 to {MAX_OVERLAP}")
        return replace(how, tile=tile, overlap=overlap)

    # Training and evaluation

    def criterion(self, recipe: Recipe, data: TaskData) -> Criterion[DetectBatch]:
        """Return the detector's own losses, with class weights and the focal factor where the recipe has them."""
        from convnext.tasks.detect.loss import DetectCriterion  # loads timm, by way of the losses of classifiers

        return DetectCriterion(recipe, cast(DetectSource, data.train.source))

    def predict(self, model: nn.Module, batch: DetectBatch, how: Preprocessing) -> Sequence[Detections]:
        """Return the detections in each image."""
        sizes = [target["size"] for target in batch.targets]
        outputs: list[Detections] = []
        for one, size in zip(tiles.detect(model, batch.images, sizes, how, detect_options.selection_of(how)), sizes, strict=True):
            found: Detections = {"boxes": one["boxes"], "labels": one["labels"], "scores": one["scores"]}
            if "masks" in one:
                found["masks"] = encode_masks(one["masks"], one["boxes"], size)
            outputs.append(found)
        return outputs

    def metric(self, num_classes: int, source: DetectSource) -> Metric[DetectBatch, Detections]:
        """Return an empty metric."""
        from convnext.tasks.detect.metric import DetectMetric

        return DetectMetric(source)

    # Report

    def reporter(self) -> Reporter[DetectSource]:
        """Return the module that words and draws evaluations."""
        from convnext.tasks.detect import report

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
    ) -> list[DetectPrediction]:
        """Return the objects in each image. `options` are `DetectOptions`. Predictions bear names, and so need no `class_ids`."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, classes, device, cast(DetectOptions, options))

    def why_not(
        self, option: str, value: object, model: nn.Module, calibration: Calibration | None, classes: Sequence[str] = ()
    ) -> str | None:
        """Return why a network has no answer to an option of `infer`; None if it has one."""
        return super().why_not(option, value, model, calibration) or detect_options.why_not(option, value, model, classes)

    def embed(self, model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
        """Return the mean of the backbone's last map of each image, (N, C) float32 on the CPU."""
        return prediction.embed(model, images, preprocessing, device)

    def class_names(self, count: int) -> list[str]:
        """Return COCO's names where the number of classes is COCO's."""
        known = prediction.coco_categories()
        return list(known) if count == len(known) else super().class_names(count)

    def class_ids(self, classes: Sequence[str] | None, count: int) -> ClassIds | None:
        """Return COCO's ids where the names of the classes, or else their number, are COCO's."""
        known = prediction.coco_categories()
        return list(known.values()) if list(classes or self.class_names(count)) == list(known) else None

    # Export

    def export(self) -> "TaskExport":
        """Return how detectors are exported, and opened again."""
        from convnext.tasks.detect.graph import DetectExport

        return DetectExport()


def _extra(recipe: Recipe, classes: int) -> ExtraObjects | None:
    own = own_transform(recipe)
    return None if own is None else ExtraObjects(title(str(recipe.augment.extra), own), own, classes)


def _groups(groups: list[int], batch_size: int) -> list[int] | None:
    # Where a group is too small to fill batches, its images would never be seen.
    smallest = min(groups.count(group) for group in set(groups))
    return groups if len(set(groups)) > 1 and smallest >= _MIN_BATCHES * batch_size else None
