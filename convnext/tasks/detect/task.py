"""Detection and instance segmentation: boxes, classes and masks of the objects in an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext.data import deep
from convnext.data.counts import described
from convnext.data.loader import Sample, Samples
from convnext.data.run_lengths import decode
from convnext.data.sources.coco import Coco, open_detection
from convnext.data.sources.coco import check as check_coco
from convnext.data.sources.objects import DetectionSource
from convnext.data.transforms.detect import DetectPreprocessing, Sizes, train_transform
from convnext.errors import ConvnextError
from convnext.models.detection.postprocess import encode_masks
from convnext.recipe import Recipe
from convnext.report import drawing, page, tables
from convnext.tasks import Data, check_class_count
from convnext.tasks.detect.average_precision import DetectionMetric
from convnext.tasks.detect.prediction import BATCH_SIZE as BATCH_SIZE
from convnext.tasks.detect.prediction import COLUMNS as COLUMNS
from convnext.tasks.detect.prediction import SHOWN_SCORE
from convnext.tasks.detect.prediction import Prediction as Prediction
from convnext.tasks.detect.prediction import class_ids as class_ids
from convnext.tasks.detect.prediction import class_names as class_names
from convnext.tasks.detect.prediction import embed as embed
from convnext.tasks.detect.prediction import infer as infer
from convnext.text import printable

HEADLINE = "box_ap"  # the metric by which the best weights are chosen; higher is better
Target = dict[str, Any]
Found = dict[str, Any]  # `boxes`, `labels`, `scores` as tensors, and `masks` as run lengths


@dataclass
class Batch:
    """Images (3, H, W) float32 of any sizes with their objects, and their positions in the source.

    In training objects are `Objects.to_dict()`; in evaluation `Objects.to_encoded()` of the image as annotated, with its `size`
    (height, width).
    """

    images: list[Tensor]
    targets: list[Target]
    indices: list[int]
    corrupt: list[tuple[int, str]]  # positions that could not be read, with the reason

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "Batch":
        return Batch(self.images[part], self.targets[part], self.indices[part], self.corrupt)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        targets = [{key: _to(value, device) for key, value in target.items()} for target in self.targets]
        return Batch(images, targets, self.indices, self.corrupt)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


class ObjectSamples(Samples):
    """Samples to train on, whose objects are transformed with the image."""

    def prepare(self, image: Any, index: int) -> tuple[Tensor, Target]:
        """Image (3, H, W) and its objects."""
        prepared, objects = self.transform(image, self.source.encoded_target(index))
        return prepared, objects.to_dict()


class WholeSamples(Samples):
    """Samples to evaluate: images resized, objects as they are annotated."""

    def prepare(self, image: Image.Image | deep.DeepImage, index: int) -> tuple[Tensor, Target]:
        """Image (3, H', W'), and its objects in the image (H, W) as it was."""
        return self.transform(image), self.source.encoded_target(index).to_encoded() | {"size": (image.height, image.width)}


def preprocessing(recipe: Recipe) -> DetectPreprocessing:
    """How the trained network will want its images."""
    data, sizes = recipe.data, recipe.detect
    return DetectPreprocessing(sizes.test_short, sizes.test_longest, data.mean, data.std, data.range)


def open_data(recipe: Recipe) -> Data:
    """The training and validation samples of a recipe. Raises ConvnextError for data that a detector can't learn from."""
    data, sizes = recipe.data, recipe.detect
    train = open_detection(data.train, keep_empty=False)
    check_class_count(recipe, train.classes)
    if data.val is None:
        raise ConvnextError(f"no data.val given: name the images to test on, in the notation of data.train={data.train}")
    val = open_detection(data.val, train.classes)
    remarks = []
    for where, source in (("train", train), ("val", val)):
        remarks += [f"{where}: {told}" for told in (counts(source), *remarks_on(source))]
        if not len(source):
            raise ConvnextError(f"no images in data.{where}")
        if not source.has_masks and recipe.model.masks is not False:
            raise ConvnextError(f"data.{where} has boxes but no masks: annotate outlines, or find boxes alone with model.masks=false")
    remarks += deep.remarks(train, data.range)
    chosen = Sizes(sizes.short, sizes.longest, sizes.crop_short, sizes.crop)
    transform = train_transform(chosen, recipe.augment.flip, data.mean, data.std, data.range)
    upright = (train.heights > train.widths).astype(int)
    samples = ObjectSamples(train, transform, recipe.seed)
    groups = _worth_grouping(upright.tolist(), recipe.train.batch_size)
    ids = [train.category_ids[name] for name in train.classes] if train.category_ids else None
    return Data(samples, evaluation_samples(val, preprocessing(recipe)), train.classes, remarks, groups, ids)


def check(where: str) -> list[str]:
    """Everything wrong with images and annotations that `where` names, a line each, by file and annotation id; reads them all."""
    source = open_detection(where)
    return check_coco(source) if isinstance(source, Coco) else []


def overview(where: str) -> list[str]:
    """What the images that `where` names are, a line each: how many, with how many objects of which classes, and what is to be told."""
    source = open_detection(where)
    return [counts(source), *remarks_on(source)]


def counts(source: DetectionSource) -> str:
    """How many images and objects of which classes a source holds, as `described` says it."""
    return described(len(source), source.classes, source.objects_by_class(), objects=True)


def _worth_grouping(groups: list[int], batch_size: int) -> list[int] | None:
    # Where a group is too small to fill batches, its images would never be seen.
    smallest = min(groups.count(group) for group in set(groups))
    return groups if len(set(groups)) > 1 and smallest >= 10 * batch_size else None


def open_labelled(where: str, classes: list[str] | None, num_classes: int) -> DetectionSource:
    """Annotated images to test a network on; `classes` are its names where they are known. Raises ConvnextError if they do not fit."""
    source = open_detection(where, classes)
    if len(source.classes) != num_classes:
        raise ConvnextError(f"{where} has {len(source.classes)} classes, the network {num_classes}")
    return source


def remarks_on(source: DetectionSource) -> list[str]:
    """What is to be told to the user of what a source holds."""
    left_out = [f"{len(source.skipped)} files are left out, the first {printable(source.skipped[0])}"] if source.skipped else []
    absent = [name for name in source.classes if name not in source.category_ids] if source.category_ids else []
    unmeasured = [f"{len(absent)} of {len(source.classes)} classes are no category there, the first {absent[0]!r}"] if absent else []
    return [*source.remarks, *left_out, *unmeasured]


def evaluation_samples(source: DetectionSource, how: DetectPreprocessing) -> Samples:
    """Images prepared as the network wants them, nothing random, with their objects."""
    return WholeSamples(source, how.transform(), seed=0)


def collate(samples: list[Sample]) -> Batch:
    """Samples to a batch; those that could not be read are left out and noted."""
    corrupt = [bad for sample in samples for bad in sample.corrupt]
    good = [sample for sample in samples if sample.image is not None]
    return Batch([sample.image for sample in good], [sample.label for sample in good], [sample.index for sample in good], corrupt)


class Trainer:
    """The loss of a batch in training: the sum of all the detector's losses."""

    def __init__(self, recipe: Recipe, classes: list[str]) -> None:
        pass

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The sum (scalar, float32). Its randomness, which regions count, comes from PyTorch's global generator."""
        losses: dict[str, Tensor] = model(batch.images, batch.targets)
        return torch.stack([loss.float() for name, loss in losses.items() if "loss" in name]).sum()


def predict(model: Any, batch: Batch, samples: Samples) -> list[Found]:
    """What `Metric.update` takes: the detections in each image, in its own pixels, masks as run lengths."""
    sizes = [target["size"] for target in batch.targets]
    found: list[Found] = model.predict(batch.images, sizes, masks="small")
    for one, size in zip(found, sizes, strict=True):
        if "masks" in one:
            one["masks"] = encode_masks(one["masks"], one["boxes"], size)
    return found


class Metric:
    """Average precision over an evaluation, and the detections in its first images, to be shown.

    Args:
        num_classes: outputs of the network.
        source: the images.
    """

    KEPT = 8

    def __init__(self, num_classes: int, source: DetectionSource) -> None:
        self.precision = DetectionMetric(source.classes, source.has_masks)
        self.shown: dict[int, dict[str, Any]] = {}
        self.category_ids = source.category_ids

    def update(self, predictions: Sequence[Found], batch: Batch) -> None:
        """Add what `predict` gave for a batch."""
        if self.precision.with_masks and any("masks" not in found for found in predictions):
            self.precision = DetectionMetric(self.precision.classes, with_masks=False)  # so it is from the first batch on
        self.precision.update(predictions, batch.targets)
        for found, index in zip(predictions, batch.indices, strict=True):
            if index < self.KEPT:
                self.shown[index] = _plain(found)

    def merge(self, other: "Metric") -> None:
        """Add what another process measured on other samples."""
        self.precision.merge(other.precision)
        self.shown |= other.shown

    def compute(self) -> dict[str, float]:
        """See `DetectionMetric.compute`. Raises ConvnextError if there is no object to find: AP is not defined then."""
        metrics = self.precision.compute()
        if HEADLINE not in metrics:
            raise ConvnextError(f"the {metrics['count']} images to test on hold no object: average precision is not defined")
        return metrics

    def results(self) -> list[dict[str, Any]]:
        """All that was found as COCO's results, with the data's ids. What is of a class that the data do not have has no id there."""
        ids = self.category_ids or {name: i for i, name in enumerate(self.precision.classes, 1)}
        return self.precision.results([ids.get(name) for name in self.precision.classes])

    def details(self) -> dict[str, Any]:
        """Everything that `report_sections` draws, as plain values."""
        return self.precision.details() | {"shown": [{"index": index} | self.shown[index] for index in sorted(self.shown)]}


def headline(metrics: dict[str, float]) -> str:
    """An evaluation in a few words."""
    masks = f", mask AP {metrics['mask_ap']:.2f} %" if "mask_ap" in metrics else ""
    return f"box AP {metrics['box_ap']:.2f} %{masks} ({metrics['count']} images)"


def summary(metrics: dict[str, float], details: dict[str, Any], classes: list[str]) -> str:
    """An evaluation as lines of text, its headline first, average precision by class last."""
    columns = [tables.Column("class", "class"), tables.Column("objects", "objects"), tables.Column("box_ap", "box AP %", 2)]
    if "mask_ap" in metrics:
        columns.append(tables.Column("mask_ap", "mask AP %", 2))
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return "\n".join([headline(metrics), numbers, tables.by_class(columns, details["classes"], "box_ap")])


def examples(details: dict[str, Any], classes: list[str], source: DetectionSource) -> list[tuple[Image.Image, str]]:
    """The first images with what is annotated beside what was found, and captions."""
    sheets = []
    for one in details["shown"]:
        image = deep.shown(source.read(one["index"]))
        annotated = source.encoded_target(one["index"]).to_encoded()
        objects = (annotated | ({"masks": map(decode, annotated["masks"])} if "masks" in annotated else {}), _from_plain(one))
        sheet = _side_by_side([drawing.draw(image, found, classes) for found in objects])
        sheets.append((sheet, f"{source.name(one['index'])}: annotated, and found with a score of at least {SHOWN_SCORE:g}"))
    return sheets


def report_sections(details: dict[str, Any], classes: list[str], source: DetectionSource) -> list[page.Section]:
    """What a report shows of an evaluation: detections beside the truth, and average precision by class."""
    images = [page.image(sheet, caption) for sheet, caption in examples(details, classes, source)]
    rows = [{key: _percent(value) if key.endswith("_ap") else value for key, value in row.items()} for row in details["classes"]]
    return [page.Section("Predictions", "".join(images)), page.Section("By class", page.table(rows))]


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    gap = 8
    sheet = Image.new("RGB", (sum(p.width + gap for p in images) - gap, max(p.height for p in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + gap
    return sheet


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _plain(found: Found) -> dict[str, Any]:
    """The detections that are drawn."""
    sure = found["scores"] >= SHOWN_SCORE
    values: dict[str, Any] = {key: found[key][sure].tolist() for key in ("boxes", "labels", "scores")}
    if "masks" in found:
        values["masks"] = [mask for mask, shown in zip(found["masks"], sure.tolist(), strict=True) if shown]
    return values


def _from_plain(values: dict[str, Any]) -> Found:
    found: Found = {"boxes": torch.tensor(values["boxes"]).reshape(-1, 4), "labels": torch.tensor(values["labels"], dtype=torch.long)}
    found["scores"] = torch.tensor(values["scores"])
    return found | ({"masks": map(decode, values["masks"])} if "masks" in values else {})
