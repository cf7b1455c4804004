"""Intersection over union and accuracy of a segmenter, in total and by class."""

from typing import Any

import torch
from torch import Tensor

from convnext.errors import ConvnextError


class SegmentationMetric:
    """Counts over a whole evaluation: every image once, in any order.

    The numbers are mmsegmentation's: counted over the pixels of all images together, those aside that the mask ignores.

    Args:
        num_classes: classes of the network.
        ignore: value of the masks' pixels that are not counted.
    """

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.count = 0  # images
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)  # pixels [true, predicted]

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Add images: predicted and true classes, both (N, H, W) of any integer type.

        Raises ConvnextError if the sizes differ or a counted pixel's class is none of the network's.
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
        self.confusion += flat.view_as(self.confusion).cpu()

    def merge(self, other: "SegmentationMetric") -> None:
        """Add the counts of other images."""
        self.count += other.count
        self.confusion += other.confusion

    def compute(self) -> dict[str, float]:
        """miou, mean_accuracy and overall_accuracy in percent, and the number of images.

        A class that is neither in any mask nor in any prediction has no IoU, and one that is in no mask no accuracy: the means
        leave it out, like mmsegmentation's `nanmean`. Overall accuracy is that of a pixel. Without a counted pixel there is only
        the number of images.
        """
        if not int(self.confusion.sum()):
            return {"count": self.count}
        iou, accuracy = self._by_class()
        overall = self.confusion.diag().sum().double() / self.confusion.sum()
        means = {"miou": iou.nanmean(), "mean_accuracy": accuracy.nanmean(), "overall_accuracy": overall}
        return {name: 100 * value.item() for name, value in means.items()} | {"count": self.count}

    def details(self) -> dict[str, Any]:
        """Plain lists for a report: IoU and accuracy of each class in percent (None where it has none), and pixels [true][predicted]."""
        iou, accuracy = ([None if value != value else 100 * value for value in values.tolist()] for values in self._by_class())
        return {"iou": iou, "accuracy": accuracy, "confusion": self.confusion.tolist()}

    def _by_class(self) -> tuple[Tensor, Tensor]:
        # Fractions in float64, not a number where a class does not occur.
        hits, true, predicted = self.confusion.diag().double(), self.confusion.sum(1), self.confusion.sum(0)
        return hits / (true + predicted - hits), hits / true
