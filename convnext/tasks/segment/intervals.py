"""How far the choice of the images may move IoU: 95 % intervals by a bootstrap over images.

The draws are a function of the image's position, so that the images may come in any order and from any process.
"""

import numpy as np

from convnext.tasks.bootstrap import ENDS, MIN_IMAGES, REPLICATES, Interval, middle

_SEED = 0


class IouIntervals:
    """Replicates of an evaluation: every image once, in any order. Memory does not grow with the images: 16 kB for each class.

    Args:
        num_classes: classes of the network.
    """

    def __init__(self, num_classes: int) -> None:
        self.count = 0  # images
        self.images = np.zeros(num_classes, dtype=np.int64)  # in which a class is in the mask or in the prediction
        self.sums = np.zeros((num_classes, 2, REPLICATES), dtype=np.int64)  # intersections and unions, in pixels

    def update(self, index: int, shared: np.ndarray, union: np.ndarray) -> None:
        """Add the image at a position of the source: pixels of each class in the intersection and in the union, int64 (classes,)."""
        weights = np.random.default_rng((_SEED, index)).poisson(1.0, REPLICATES)
        present = np.flatnonzero(union)
        self.count += 1
        self.images[present] += 1
        self.sums[present] += np.stack([shared[present], union[present]], 1)[..., None] * weights

    def merge(self, other: "IouIntervals") -> None:
        """Add other images."""
        self.count += other.count
        self.images += other.images
        self.sums += other.sums

    def by_class(self) -> list[Interval | None]:
        """Return the interval of the IoU of each class; None of a class in fewer than 5 images."""
        is_known = self.images >= MIN_IMAGES
        ends = np.zeros((2, len(self.images)))
        ends[:, is_known] = np.nanpercentile(self._ious()[is_known], ENDS, axis=1)
        return [(float(low), float(high)) if known else None for known, low, high in zip(is_known, *ends, strict=True)]

    def of_mean(self) -> Interval | None:
        """Return the interval of the mean IoU of the classes that occur; None of fewer than 5 images."""
        if self.count < MIN_IMAGES or not self.images.any():
            return None
        values = self._ious()
        is_defined = ~np.isnan(values)
        is_drawn = is_defined.any(0)  # whether a replicate holds any image
        means = np.where(is_defined, values, 0).sum(0)[is_drawn] / is_defined.sum(0)[is_drawn]
        return middle(means)

    def _ious(self) -> np.ndarray:
        """Return the IoU of each class in each replicate, in percent: (classes, replicates), not a number where it is not defined."""
        with np.errstate(invalid="ignore"):
            return 100 * self.sums[:, 0] / self.sums[:, 1]
