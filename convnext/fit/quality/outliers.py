"""Images that are unlike all others of their set, and images on which the head is torn between two classes."""

from dataclasses import dataclass

import numpy as np

from convnext.fit.features import Features
from convnext.fit.quality.neighbours import both_sides, directions, nearest

_NEIGHBOURS = 10
_FENCE = 2.5  # standard deviations above the median of log distances; both are estimated by quartiles, which outliers hardly move
_QUARTILE = 0.6745  # of a normal distribution, in standard deviations
_FEWEST = 20  # images, below which quartiles of distances mean little
_TORN = 0.2  # difference of two probabilities


@dataclass(frozen=True)
class Outlier:
    """An image that is far from all others."""

    row: int  # of the features
    distance: float  # mean cosine distance to its nearest neighbours, 0 to 2
    typical: float  # the median of this distance in the set


@dataclass(frozen=True)
class TornImage:
    """An image whose two most probable classes are about equally probable."""

    row: int  # of the features
    label: int
    first: int  # the most probable class
    second: int
    margin: float  # difference of their probabilities


def distances(features: Features) -> np.ndarray:
    """Return the mean cosine distance of each image to its ten nearest others, or to all others if they are fewer: float64 (N,)."""
    unit = directions(both_sides(features))
    cosines, _ = nearest(unit, unit, _NEIGHBOURS, leave_out_own=True)
    return 1 - cosines.mean(1, dtype=np.float64) if cosines.shape[1] else np.zeros(len(features))


def outliers(features: Features) -> list[Outlier] | None:
    """Return the images that are far from all others, the farthest first; None for too few images."""
    if len(features) < _FEWEST:
        return None
    found = distances(features)
    median, upper = np.quantile(np.log(np.maximum(found, 1e-6)), [0.5, 0.75])  # distances are skewed, their logarithms hardly
    fence, median = np.exp(median + _FENCE * max(upper - median, 1e-3) / _QUARTILE), np.exp(median)
    return [Outlier(int(row), float(found[row]), float(median)) for row in np.argsort(-found, kind="stable") if found[row] > fence]


def torn(labels: np.ndarray, probabilities: np.ndarray) -> list[TornImage]:
    """Return the images whose two most probable classes differ by less than 0.2, the least difference first.

    Args:
        labels: int64 (N,).
        probabilities: float64 (N, classes) of heads that were not fitted on the image.
    """
    if probabilities.shape[1] < 2:
        return []
    top = np.argsort(-probabilities, 1, kind="stable")[:, :2]
    values = np.take_along_axis(probabilities, top, 1)
    margins = values[:, 0] - values[:, 1]
    return [
        TornImage(int(row), int(labels[row]), int(top[row, 0]), int(top[row, 1]), float(margins[row]))
        for row in np.argsort(margins, kind="stable")
        if margins[row] < _TORN
    ]
