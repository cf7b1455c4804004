"""What an evaluation of a segmenter measures: intersection over union and accuracy, in total and by class."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.sources.base import SegmentSource
from convnext.errors import ConvnextError
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.bootstrap import Interval
from convnext.tasks.segment.batch import SegmentBatch
from convnext.tasks.segment.boundary import BoundaryCounts
from convnext.tasks.segment.intervals import IouIntervals
from convnext.text import printable

KEPT_IMAGES = 8  # whose predictions a report shows
KEPT_WORST = 8  # images, of which a report shows these too


class PixelDetails(TypedDict):
    """Values of each class, None where it has none, and counts of pixels."""

    iou: list[float | None]  # in percent
    accuracy: list[float | None]  # in percent: the recall of the class's pixels
    precision: list[float | None]  # in percent
    f1: list[float | None]  # in percent
    confusion: list[list[int]]  # pixels [true][predicted]


class ShownMask(TypedDict):
    """The prediction for an image that a report shows."""

    index: int  # of the image in the source
    prediction: str  # the classes of its pixels, a PNG in base 64


class WorstMask(ShownMask):
    """An image with a low mean IoU of the classes in it."""

    image: str  # its name
    image_miou: float  # in percent


class SegmentDetails(PixelDetails):
    """What the report of a segmenter draws."""

    iou_interval: list[Interval | None]  # 95 %, in percent
    boundary_iou: list[float | None]  # in percent
    worst: list[WorstMask]  # the worst first
    shown: list[ShownMask]


class PixelCounts:
    """Counts over a whole evaluation: every image once, in any order.

    The numbers are mmsegmentation's: counted over the pixels of all images together, without those that the mask ignores.

    Args:
        num_classes: classes of the network.
        ignore: value of the masks' pixels that are not counted.
    """

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.count = 0  # images
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)  # pixels [true, predicted]

    def update(self, predictions: Tensor, masks: Tensor) -> Tensor:
        """Add images: predicted and true classes, both (N, H, W) of any integer type. Returns their pixels [true, predicted].

        Raises ConvnextError if the sizes differ, or if a counted pixel has a class that the network does not have.
        """
        if predictions.shape != masks.shape:
            raise ConvnextError(f"predictions of shape {tuple(predictions.shape)} do not fit masks of shape {tuple(masks.shape)}")
        self.count += len(masks)
        true, predicted = masks.long(), predictions.to(masks.device).long()
        counted = true != self.ignore
        true, predicted = true[counted], predicted[counted]
        for what, classes in (("mask", true), ("prediction", predicted)):
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
                found = int(classes.max()) if int(classes.min()) >= 0 else int(classes.min())
                raise ConvnextError(
                    f"a {what} holds class {found}, but there are {self.num_classes} classes (0 to {self.num_classes - 1}) "
                    f"and {self.ignore} for pixels to ignore: check the number of classes and how the masks are read"
                )
        flat = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        confusion = flat.view_as(self.confusion).cpu()
        self.confusion += confusion
        return confusion

    def merge(self, other: "PixelCounts") -> None:
        """Add the counts of other images."""
        self.count += other.count
        self.confusion += other.confusion

    def compute(self) -> Metrics:
        """Return `miou`, `mean_accuracy` and `overall_accuracy` in percent, and the `count` of images.

        A class that is neither in any mask nor in any prediction has no IoU, and one that is in no mask has no accuracy: the means
        skip it, like mmsegmentation's `nanmean`. Overall accuracy is that of a pixel. Without a counted pixel, only the number of
        images is returned.
        """
        if not int(self.confusion.sum()):
            return {"count": self.count}
        iou, accuracy = self._by_class()
        overall = self.confusion.diag().sum().double() / self.confusion.sum()
        means = {"miou": iou.nanmean(), "mean_accuracy": accuracy.nanmean(), "overall_accuracy": overall}
        return {name: 100 * value.item() for name, value in means.items()} | {"count": self.count}

    def details(self) -> PixelDetails:
        """Return scores of each class and the confusion of pixels, as plain values."""
        iou, accuracy = self._by_class()
        hits, true, predicted = self.confusion.diag().double(), self.confusion.sum(1), self.confusion.sum(0)
        return {
            "iou": _percent(iou),
            "accuracy": _percent(accuracy),
            "precision": _percent(hits / predicted),
            "f1": _percent(2 * hits / (true + predicted)),
            "confusion": self.confusion.tolist(),
        }

    def _by_class(self) -> tuple[Tensor, Tensor]:
        # Fractions in float64, not a number where a class does not occur.
        hits, true, predicted = self.confusion.diag().double(), self.confusion.sum(1), self.confusion.sum(0)
        return hits / (true + predicted - hits), hits / true


class SegmentMetric(Metric[SegmentBatch, Tensor]):
    """Intersection over union over an evaluation, and predictions to be shown: for its first images, and for the worst.

    Args:
        num_classes: outputs of the network.
        source: the images.
    """

    def __init__(self, num_classes: int, source: SegmentSource) -> None:
        self.source: SegmentSource | None = source
        self.counts, self.boundaries, self.intervals = PixelCounts(num_classes), BoundaryCounts(num_classes), IouIntervals(num_classes)
        self.shown: dict[int, str] = {}  # by position in the source, see `ShownMask.prediction`
        self.worst: list[tuple[float, int, str]] = []  # mean IoU of the classes in an image, its position, its prediction

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"source": None}  # each process has its own

    def update(self, outputs: Sequence[Tensor], batch: SegmentBatch) -> None:
        """Add the predicted classes (H, W) of each image of a batch."""
        for predicted, mask, index in zip(outputs, batch.masks, batch.indices, strict=True):
            confusion = self.counts.update(predicted[None], mask[None].cpu()).numpy()
            self.boundaries.update(predicted, mask.cpu())
            shared = confusion.diagonal()
            union = confusion.sum(0) + confusion.sum(1) - shared
            self.intervals.update(index, shared, union)
            if index < KEPT_IMAGES:
                self.shown[index] = _encoded(predicted)
            if union.any():
                present = union > 0
                self._keep_if_worst(100 * float((shared[present] / union[present]).mean()), index, predicted)

    def _keep_if_worst(self, miou: float, index: int, predicted: Tensor) -> None:
        if miou < 100 and (len(self.worst) < KEPT_WORST or (miou, index) < self.worst[-1][:2]):
            self.worst = sorted([*self.worst, (miou, index, _encoded(predicted))])[:KEPT_WORST]

    def merge(self, other: "SegmentMetric") -> None:
        """Add what another process measured on other samples."""
        self.counts.merge(other.counts)
        self.boundaries.merge(other.boundaries)
        self.intervals.merge(other.intervals)
        self.shown |= other.shown
        self.worst = sorted([*self.worst, *other.worst])[:KEPT_WORST]

    def compute(self) -> Metrics:
        """Return the metrics of `PixelCounts.compute`, the ends of mIoU's 95 % interval, and `boundary_miou`, in percent.

        `miou_low` and `miou_high` come from a bootstrap over images, and are missing where there are fewer than 5.
        """
        metrics = self.counts.compute()
        if "miou" not in metrics:
            return metrics
        interval = self.intervals.of_mean()
        bounds = {} if interval is None else {"miou_low": interval[0], "miou_high": interval[1]}
        return {"miou": metrics["miou"]} | bounds | {"boundary_miou": 100 * self.boundaries.by_class().nanmean().item()} | metrics

    def details(self) -> Json:
        """Return the `SegmentDetails` as plain values."""
        shown: list[ShownMask] = [{"index": index, "prediction": self.shown[index]} for index in sorted(self.shown)]
        name = str if self.source is None else self.source.name
        worst: list[WorstMask] = [
            {"index": index, "image": printable(name(index)), "image_miou": miou, "prediction": prediction}
            for miou, index, prediction in self.worst
        ]
        details: SegmentDetails = {
            **self.counts.details(),
            "iou_interval": self.intervals.by_class(),
            "boundary_iou": _percent(self.boundaries.by_class()),
            "worst": worst,
            "shown": shown,
        }
        return dict(details)


def _percent(fractions: Tensor) -> list[float | None]:
    """Return fractions in percent, None where they are not a number."""
    return [None if value != value else 100 * value for value in fractions.tolist()]


def _encoded(classes: Tensor) -> str:
    buffer = BytesIO()
    Image.fromarray(classes.numpy().astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> np.ndarray:
    """Return the classes (H, W), uint8, of a `ShownMask.prediction`."""
    with Image.open(BytesIO(base64.b64decode(text)), formats=("PNG",)) as image:
        return np.asarray(image)
