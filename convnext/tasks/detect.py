"""Detection and instance segmentation: boxes, classes and masks of the objects in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext.data.augment_detection import DetectionPreprocessing, Sizes, train_transform
from convnext.data.coco import Coco, open_detection
from convnext.data.coco import check as check_coco
from convnext.data.loader import Sample, Samples
from convnext.data.objects import DetectionSource
from convnext.errors import ConvnextError
from convnext.metrics.detection import DetectionMetric
from convnext.recipe import Recipe
from convnext.report import drawing, page
from convnext.tasks import Data, check_class_count
from convnext.tasks.predictions.detect import BATCH_SIZE as BATCH_SIZE
from convnext.tasks.predictions.detect import COLUMNS as COLUMNS
from convnext.tasks.predictions.detect import SHOWN_SCORE, decode, encode
from convnext.tasks.predictions.detect import Prediction as Prediction
from convnext.tasks.predictions.detect import class_names as class_names
from convnext.tasks.predictions.detect import embed as embed
from convnext.tasks.predictions.detect import infer as infer

HEADLINE = "box_ap"  # the metric by which the best weights are chosen; higher is better
Target = dict[str, Any]


@dataclass
class Batch:
    """Pictures (3, H, W) float32 of any sizes with their objects, and their positions in the source."""

    images: list[Tensor]
    targets: list[Target]  # `Objects.to_dict()`; in evaluation of the picture as annotated, with its `size` (height, width)
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
    """Samples to train on, whose objects are transformed with the picture."""

    def prepare(self, picture: Any, index: int) -> tuple[Tensor, Target]:
        """Picture (3, H, W) and its objects."""
        image, objects = self.transform(picture, self.source.target(index))
        return image, objects.to_dict()


class WholeSamples(Samples):
    """Samples to evaluate: pictures resized, objects as they are annotated."""

    def prepare(self, picture: Image.Image, index: int) -> tuple[Tensor, Target]:
        """Picture (3, H', W'), and its objects in the picture (H, W) as it was."""
        return self.transform(picture), self.source.target(index).to_dict() | {"size": (picture.height, picture.width)}


def preprocessing(recipe: Recipe) -> DetectionPreprocessing:
    """How the trained network will want its pictures."""
    return DetectionPreprocessing(recipe.detect.test_short, recipe.detect.test_longest, recipe.data.mean, recipe.data.std)


def open_data(recipe: Recipe) -> Data:
    """The training and validation samples of a recipe. Raises ConvnextError for data that a detector can't learn from."""
    data, sizes = recipe.data, recipe.detect
    train = open_detection(data.train, keep_empty=False)
    check_class_count(recipe, train.classes)
    if data.val is None:
        raise ConvnextError(f"no data.val given: name the pictures to test on, in the notation of data.train={data.train}")
    val = open_detection(data.val, train.classes)
    remarks = []
    for where, source in (("train", train), ("val", val)):
        remarks += [f"{where}: {told}" for told in remarks_on(source)]
        if not len(source):
            raise ConvnextError(f"no pictures in data.{where}")
        if not source.has_masks:
            raise ConvnextError(f"data.{where} has boxes but no masks, and Mask R-CNN learns masks too: annotate outlines")
    transform = train_transform(Sizes(sizes.short, sizes.longest, sizes.crop_short, sizes.crop), recipe.augment.flip, data.mean, data.std)
    upright = (train.heights > train.widths).astype(int)
    samples = ObjectSamples(train, transform, recipe.seed)
    groups = _worth_grouping(upright.tolist(), recipe.train.batch_size)
    return Data(samples, evaluation_samples(val, preprocessing(recipe)), train.classes, remarks, groups)


def check(where: str) -> list[str]:
    """Everything wrong with pictures and annotations that `where` names, a line each, by file and annotation id; reads them all."""
    source = open_detection(where)
    return check_coco(source) if isinstance(source, Coco) else []


def _worth_grouping(groups: list[int], batch_size: int) -> list[int] | None:
    # Where a group is too small to fill batches, its pictures would never be seen.
    smallest = min(groups.count(group) for group in set(groups))
    return groups if len(set(groups)) > 1 and smallest >= 10 * batch_size else None


def open_labelled(where: str, classes: list[str] | None, num_classes: int) -> DetectionSource:
    """Annotated pictures to test a network on; `classes` are its names where they are known. Raises ConvnextError if they do not fit."""
    source = open_detection(where, classes)
    if len(source.classes) != num_classes:
        raise ConvnextError(f"{where} has {len(source.classes)} classes, the network {num_classes}")
    return source


def remarks_on(source: DetectionSource) -> list[str]:
    """What is to be told to the user of what a source holds."""
    left_out = [f"{len(source.skipped)} files are left out, the first {source.skipped[0]}"] if source.skipped else []
    return [*source.remarks, *left_out]


def evaluation_samples(source: DetectionSource, how: DetectionPreprocessing) -> Samples:
    """Pictures prepared as the network wants them, nothing random, with their objects."""
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


def predict(model: Any, batch: Batch, samples: Samples) -> list[dict[str, Tensor]]:
    """What `Metric.update` takes: the detections in each picture, in its own pixels."""
    return model.predict(batch.images, [target["size"] for target in batch.targets])


class Metric:
    """Average precision over an evaluation, and the detections in its first pictures, to be shown.

    Args:
        num_classes: outputs of the network.
        source: the pictures.
    """

    KEPT = 8

    def __init__(self, num_classes: int, source: DetectionSource) -> None:
        self.precision = DetectionMetric(source.classes, source.has_masks)
        self.shown: dict[int, dict[str, Any]] = {}

    def update(self, predictions: Sequence[dict[str, Tensor]], batch: Batch) -> None:
        """Add what `predict` gave for a batch."""
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
            raise ConvnextError(f"the {metrics['count']} pictures to test on hold no object: average precision is not defined")
        return metrics

    def details(self) -> dict[str, Any]:
        """Everything that `report_sections` draws, as plain values."""
        return self.precision.details() | {"shown": [{"index": index} | self.shown[index] for index in sorted(self.shown)]}


def headline(metrics: dict[str, float]) -> str:
    """An evaluation in a few words."""
    masks = f", mask AP {metrics['mask_ap']:.2f} %" if "mask_ap" in metrics else ""
    return f"box AP {metrics['box_ap']:.2f} %{masks} ({metrics['count']} pictures)"


def summary(metrics: dict[str, float], details: dict[str, Any]) -> str:
    """An evaluation as lines of text, its headline first."""
    return "\n".join([headline(metrics), "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())])


def examples(details: dict[str, Any], classes: list[str], source: DetectionSource) -> list[tuple[Image.Image, str]]:
    """The first pictures with what is annotated beside what was found, and captions."""
    sheets = []
    for one in details["shown"]:
        picture = source.read(one["index"])
        objects = (source.target(one["index"]).to_dict(), _from_plain(one))
        sheet = _side_by_side([drawing.draw(picture, found, classes) for found in objects])
        sheets.append((sheet, f"{source.name(one['index'])}: annotated, and found with a score of at least {SHOWN_SCORE:g}"))
    return sheets


def report_sections(details: dict[str, Any], classes: list[str], source: DetectionSource) -> list[page.Section]:
    """What a report shows of an evaluation: detections beside the truth, and average precision by class."""
    pictures = [page.picture(sheet, caption) for sheet, caption in examples(details, classes, source)]
    rows = [{key: _percent(value) if key.endswith("_ap") else value for key, value in row.items()} for row in details["classes"]]
    return [page.Section("Predictions", "".join(pictures)), page.Section("By class", page.table(rows))]


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    gap = 8
    sheet = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _plain(found: dict[str, Tensor]) -> dict[str, Any]:
    """The detections that are drawn, masks as run lengths."""
    sure = found["scores"] >= SHOWN_SCORE
    values: dict[str, Any] = {key: found[key][sure].tolist() for key in ("boxes", "labels", "scores")}
    return values | {"masks": [encode(mask[0]) for mask in found["masks"][sure]]}


def _from_plain(values: dict[str, Any]) -> dict[str, Tensor]:
    masks = [decode(mask) for mask in values["masks"]]
    found = {"boxes": torch.tensor(values["boxes"]).reshape(-1, 4), "labels": torch.tensor(values["labels"], dtype=torch.long)}
    found["scores"] = torch.tensor(values["scores"])
    return found | ({"masks": torch.stack(masks)} if masks else {})
