"""Segmentation: one class a pixel."""

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data import deep
from convnext.data.counts import described
from convnext.data.loader import Sample, Samples
from convnext.data.sources import masks
from convnext.data.sources.masks import MaskSource, hold_out, mask_of, open_segmentation
from convnext.data.transforms.segment import SegmentPreprocessing, TrainTransform
from convnext.errors import ConvnextError
from convnext.models.segmentation import inference, upernet
from convnext.recipe import Recipe
from convnext.report import overlay, page, tables
from convnext.tasks import Data, check_class_count
from convnext.tasks.segment.iou import SegmentationMetric
from convnext.tasks.segment.prediction import BATCH_SIZE as BATCH_SIZE
from convnext.tasks.segment.prediction import COLUMNS as COLUMNS
from convnext.tasks.segment.prediction import Prediction as Prediction
from convnext.tasks.segment.prediction import class_ids as class_ids
from convnext.tasks.segment.prediction import class_names as class_names
from convnext.tasks.segment.prediction import embed as embed
from convnext.tasks.segment.prediction import infer as infer
from convnext.text import counted, printable

HEADLINE = "miou"  # the metric by which the best weights are chosen; higher is better
_CHECKED = 2000  # images: more are not all read before a run; `convnext data check` reads them
_TOLD = 5  # problems in an error message


@dataclass
class Batch:
    """Images and masks with their positions in the source: tensors (N, 3, H, W) and (N, H, W), or lists where sizes differ."""

    images: Tensor | list[Tensor]  # float32
    masks: Tensor | list[Tensor]  # uint8, 255 for what is ignored
    indices: list[int]
    corrupt: list[tuple[int, str]]  # positions that could not be read, with the reason

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "Batch":
        return Batch(self.images[part], self.masks[part], self.indices[part], self.corrupt)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, images in channels-last; lists stay, their images go there one by one."""
        if isinstance(self.images, list) or isinstance(self.masks, list):
            return self
        images = self.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return Batch(images, self.masks.to(device, non_blocking=True), self.indices, self.corrupt)


class MaskedSamples(Samples):
    """Samples to train on, whose mask is transformed with the image."""

    def prepare(self, image: Any, index: int) -> tuple[Tensor, Tensor]:
        """Image (3, crop, crop) and mask (crop, crop)."""
        return self.transform(image, mask_of(self.source, index, image))


class WholeSamples(Samples):
    """Samples to evaluate: images in their own size, masks as they are."""

    def __init__(self, source: MaskSource, how: SegmentPreprocessing) -> None:
        super().__init__(source, how.transform(), seed=0)
        self.how = how

    def prepare(self, image: Any, index: int) -> tuple[Tensor, Tensor]:
        """Image (3, H, W) and mask (H, W)."""
        return self.transform(image), mask_of(self.source, index, image)


def preprocessing(recipe: Recipe) -> SegmentPreprocessing:
    """How the trained network will want its images."""
    data, segment = recipe.data, recipe.segment
    return SegmentPreprocessing(segment.scale, segment.window, segment.stride, data.mean, data.std, range=data.range)


def open_data(recipe: Recipe) -> Data:
    """The training and validation samples of a recipe. Raises ConvnextError if masks do not fit their images or the classes."""
    data, segment = recipe.data, recipe.segment
    train = open_segmentation(data.train)
    check_class_count(recipe, train.classes)
    remarks = []
    if data.val is not None:
        val = open_segmentation(data.val, train.classes)
    else:
        train, val = hold_out(train, data.val_fraction, recipe.seed)
        remarks.append(f"no data.val given: {len(val)} of the {len(train) + len(val)} images are held out for validation")
    for where, source in (("train", train), ("val", val)):
        remarks += [f"{where}: {told}" for told in (counts(source), *remarks_on(source))]
        if not len(source):
            raise ConvnextError(f"no images in data.{where}")
        _refuse_problems(where, source, remarks)
    remarks += deep.remarks(train, data.range)
    transform = TrainTransform(
        data.image_size,
        segment.scale,
        segment.ratio_range,
        segment.max_class_share,
        recipe.augment.flip,
        segment.distort,
        data.mean,
        data.std,
        data.range,
    )
    samples = MaskedSamples(train, transform, recipe.seed)
    return Data(samples, evaluation_samples(val, preprocessing(recipe)), train.classes, remarks, class_ids=train.class_ids)


def check(where: str) -> list[str]:
    """Everything wrong with the images and masks that `where` names, a line each, by path and value; reads them all."""
    depths = deep.Depths()
    return masks.check(open_segmentation(where), depths) + depths.problems()


def overview(where: str) -> list[str]:
    """What the images that `where` names are, a line each: how many, of which classes, and what is to be told of them."""
    source = open_segmentation(where)
    return [counts(source), *remarks_on(source)]


def counts(source: MaskSource) -> str:
    """How many images a source holds, and its classes: which are in a mask only reading it tells."""
    return described(len(source), source.classes)


def _refuse_problems(where: str, source: MaskSource, remarks: list[str]) -> None:
    problems = source.problems if len(source) > _CHECKED else masks.check(source)
    if problems:
        more = f" and {len(problems) - _TOLD} more; `convnext data check` lists them" if len(problems) > _TOLD else ""
        raise ConvnextError(f"data.{where} can't be trained or tested on: {'; '.join(problems[:_TOLD])}{more}")
    if len(source) > _CHECKED:
        remarks.append(f"{where}: {len(source)} masks are not checked before the run; `convnext data check` does")


def open_labelled(where: str, classes: list[str] | None, num_classes: int) -> MaskSource:
    """Images with masks to test a network on; `classes` are its names where they are known. Raises ConvnextError if they do not fit."""
    source = open_segmentation(where, classes)
    if len(source.classes) != num_classes:
        raise ConvnextError(f"{where} has {len(source.classes)} classes, the network {num_classes}")
    return source


def remarks_on(source: MaskSource) -> list[str]:
    """What is to be told to the user of what a source holds."""
    left_out = [f"{counted(len(source.skipped), 'file')} left out, the first {printable(source.skipped[0])}"] if source.skipped else []
    return [*source.remarks, *left_out]


def evaluation_samples(source: MaskSource, how: SegmentPreprocessing) -> Samples:
    """Images prepared as the network wants them, nothing random, with their masks."""
    return WholeSamples(source, how)


def collate(samples: list[Sample]) -> Batch:
    """Samples to a batch; those that could not be read are left out and noted."""
    corrupt = [bad for sample in samples for bad in sample.corrupt]
    good = [sample for sample in samples if sample.image is not None]
    images, labels = [sample.image for sample in good], [sample.label for sample in good]
    indices = [sample.index for sample in good]
    if len({image.shape for image in images}) == 1:
        return Batch(torch.stack(images), torch.stack(labels), indices, corrupt)
    return Batch(images, labels, indices, corrupt)


class Trainer:
    """The loss of a batch in training, the auxiliary head's included."""

    def __init__(self, recipe: Recipe, classes: list[str]) -> None:
        pass

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Mean loss (scalar, float32)."""
        assert isinstance(batch.images, Tensor)  # crops have one size
        assert isinstance(batch.masks, Tensor)
        return upernet.loss(model, batch.images, batch.masks)


def predict(model: Any, batch: Batch, samples: Samples) -> list[Tensor]:
    """The class of every pixel of each image of a batch, uint8 (H, W) on the CPU, by the test that `samples` are prepared for."""
    how: SegmentPreprocessing = samples.how  # type: ignore[attr-defined]
    mode = inference.mode_of(how)
    if isinstance(batch.images, Tensor) and mode == inference.Mode():
        return list(model(batch.images).argmax(1).to("cpu", torch.uint8))  # whole images, all at once
    return [inference.predict(model, image, mode) for image in batch.images]


class Metric:
    """Intersection over union over an evaluation, and the predictions of its first images, to be shown.

    Args:
        num_classes: outputs of the network.
        source: the images.
    """

    KEPT = 8

    def __init__(self, num_classes: int, source: MaskSource) -> None:
        self.counts = SegmentationMetric(num_classes)
        self.shown: dict[int, str] = {}  # position → the predicted classes as a PNG in base 64

    def update(self, predictions: list[Tensor], batch: Batch) -> None:
        """Add what `predict` gave for a batch."""
        for found, mask, index in zip(predictions, batch.masks, batch.indices, strict=True):
            self.counts.update(found[None], mask[None].cpu())
            if index < self.KEPT:
                self.shown[index] = _to_text(found)

    def merge(self, other: "Metric") -> None:
        """Add what another process measured on other samples."""
        self.counts.merge(other.counts)
        self.shown |= other.shown

    def compute(self) -> dict[str, float]:
        """See `SegmentationMetric.compute`."""
        return self.counts.compute()

    def details(self) -> dict[str, Any]:
        """Everything that `report_sections` draws, as plain values."""
        return self.counts.details() | {"shown": [{"index": index, "prediction": self.shown[index]} for index in sorted(self.shown)]}


def headline(metrics: dict[str, float]) -> str:
    """An evaluation in a few words."""
    return f"mIoU {metrics['miou']:.2f} %, {metrics['overall_accuracy']:.2f} % of the pixels right ({metrics['count']} images)"


def summary(metrics: dict[str, float], details: dict[str, Any], classes: list[str]) -> str:
    """An evaluation as lines of text, its headline first, IoU by class last."""
    rows = [
        {"class": name, "iou": iou, "accuracy": accuracy}
        for name, iou, accuracy in zip(classes, details["iou"], details["accuracy"], strict=True)
    ]
    columns = [tables.Column("class", "class"), tables.Column("iou", "IoU %", 2), tables.Column("accuracy", "accuracy %", 2)]
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return "\n".join([headline(metrics), numbers, tables.by_class(columns, rows, "iou")])


def examples(details: dict[str, Any], classes: list[str], source: MaskSource) -> list[tuple[Image.Image, str]]:
    """The first images with their masks beside what was predicted, and captions."""
    sheets = []
    for one in details["shown"]:
        at = one["index"]
        sheet = overlay.side_by_side(deep.shown(source.read(at)), source.mask(at), _from_text(one["prediction"]), classes)
        sheets.append((sheet, source.name(at)))
    return sheets


def report_sections(details: dict[str, Any], classes: list[str], source: MaskSource) -> list[page.Section]:
    """What a report shows of an evaluation: predictions beside the truth, and the intersection over union of each class."""
    images = [page.image(sheet, caption) for sheet, caption in examples(details, classes, source)]
    rows = [
        {"class": name, "IoU": _percent(iou), "accuracy": _percent(accuracy), "pixels": sum(row)}
        for name, iou, accuracy, row in zip(classes, details["iou"], details["accuracy"], details["confusion"], strict=True)
    ]
    return [page.Section("Predictions", "".join(images)), page.Section("By class", page.table(rows))]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _to_text(classes: Tensor) -> str:
    buffer = BytesIO()
    Image.fromarray(classes.numpy().astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _from_text(text: str) -> np.ndarray:
    with Image.open(BytesIO(base64.b64decode(text)), formats=("PNG",)) as image:
        return np.asarray(image)
