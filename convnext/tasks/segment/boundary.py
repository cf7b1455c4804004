"""Boundary IoU: intersection over union of the pixels near the contours of each class, which large regions do not hide.

Source: Cheng et al., *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation* (2021), https://arxiv.org/abs/2103.16562.
"""

import math

import numpy as np
import torch
from torch import Tensor

_DISTANCE = 0.02  # of a boundary's pixels from the contour, at most, as a fraction of the image's diagonal


class BoundaryCounts:
    """Counts over a whole evaluation: every image once, in any order. As for IoU, the pixels of all images are counted together.

    Args:
        num_classes: classes of the network.
        ignore: value of the masks' pixels that are not counted. What is predicted there does not matter: contours of ignored regions
            are contours of the prediction too.
    """

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.shared = np.zeros(num_classes, dtype=np.int64)
        self.union = np.zeros(num_classes, dtype=np.int64)

    def update(self, predicted: Tensor, mask: Tensor) -> None:
        """Add an image: predicted and true classes, both (H, W) on the CPU, of any integer type, all below `num_classes`."""
        true = mask.numpy()
        is_counted = true != self.ignore
        found = np.where(is_counted, predicted.numpy(), true.dtype.type(self.ignore))
        near_true, near_found = (near_contours(labels) & is_counted for labels in (true, found))
        shared = self._count(true[near_true & near_found & (true == found)])
        self.shared += shared
        self.union += self._count(true[near_true]) + self._count(found[near_found]) - shared

    def merge(self, other: "BoundaryCounts") -> None:
        """Add the counts of other images."""
        self.shared += other.shared
        self.union += other.union

    def by_class(self) -> Tensor:
        """Return the boundary IoU of each class, 0 to 1 in float64; not a number where a class has no boundary."""
        return torch.from_numpy(self.shared).double() / torch.from_numpy(self.union)

    def _count(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=self.num_classes)


def near_contours(labels: np.ndarray) -> np.ndarray:
    """Return which pixels of a mask (H, W) are near a contour, bool (H, W).

    Those are the pixels that eroding the regions of their class by a square removes. The edges of the image are contours.
    """
    height, width = labels.shape
    reach = max(1, round(_DISTANCE * math.hypot(height, width)))
    # A square has one class if no two neighbours in it differ. Unlike erosion, that takes one pass for all classes.
    near = _any_within(_any_within(labels[:, 1:] != labels[:, :-1], reach, 2 * reach, 1), reach, 2 * reach + 1, 0)
    near |= _any_within(_any_within(labels[1:] != labels[:-1], reach, 2 * reach, 0), reach, 2 * reach + 1, 1)
    near[:reach] = near[-reach:] = True
    near[:, :reach] = near[:, -reach:] = True
    return near


def _any_within(values: np.ndarray, before: int, length: int, axis: int) -> np.ndarray:
    """Return whether any of `length` values in a row is true, from `before` ahead of each position on; outside there is none.

    It doubles the length that one value stands for until it suffices: the time grows with the logarithm of the length.
    """
    padded = np.pad(values, [(before, before) if at == axis else (0, 0) for at in range(2)])
    wide = 1
    while wide < length:
        step = min(wide, length - wide)
        padded = padded[:-step] | padded[step:] if axis == 0 else padded[:, :-step] | padded[:, step:]
        wide += step
    return padded
