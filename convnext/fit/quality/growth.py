"""Accuracy over the number of images, from the same features, and what twice the images would bring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convnext.fit.heads import Outputs
from convnext.text import counted

_SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the images
_DRAWS, _LARGE = (4, 3, 2, 1), 5000  # draws of each share; of more images than these, one of each
_FEWEST = 40  # images
_LEAST = 2  # images of the smallest class in a share
_EXPONENTS = np.linspace(0.1, 1.5, 15)  # of the power law
_RESAMPLES = 200
_WIDEST = 0.15  # of the interval, beyond which the curve says nothing


@dataclass(frozen=True)
class GrowthPoint:
    """The accuracy that a part of the images gives."""

    images: int  # of which each head was fitted on all but one fold
    accuracy: float  # 0 to 1, by cross-validation on all images, the mean of the draws
    error: float  # its standard error


@dataclass(frozen=True)
class Doubled:
    """The accuracy that twice the images would give, by a power law through the points."""

    images: int
    accuracy: float  # 0 to 1
    low: float  # 5 % of the resamples give less
    high: float  # 5 % of the resamples give more
    curve: tuple[tuple[float, float], ...]  # the law: numbers of images and accuracies


@dataclass(frozen=True)
class Growth:
    """How accuracy grows with the images."""

    points: tuple[GrowthPoint, ...]
    doubled: Doubled | None
    reason: str = ""  # why there is no prediction for twice the images


def growth(outputs: Outputs, logits: np.ndarray, labels: np.ndarray, fold: np.ndarray, seed: int = 0) -> Growth:
    """Return the cross-validated accuracy over parts of the images, and what twice the images would bring.

    Args:
        outputs: fits a head on rows, and predicts others.
        logits: float64 (N, classes), of heads that were fitted on all rows of the other folds.
        labels: int64 (N,).
        fold: int64 (N,), of the cross-validation.
        seed: of the draws.
    """
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    if len(labels) < _FEWEST:
        return Growth((), None, f"{counted(len(labels), 'image')} are too few for a prediction: {_FEWEST} are needed")
    rng = np.random.default_rng(seed)
    draws = _DRAWS if len(labels) <= _LARGE else (1,) * len(_DRAWS)
    enough = [(share, count) for share, count in zip(_SHARES, draws, strict=True) if share * counts.min() >= _LEAST]
    hits = [[_correct(outputs, labels, fold, share, rng) for _ in range(count)] for share, count in enough if share < 1]
    hits += [[logits.argmax(1) == labels]] * (len(enough) - len(hits))
    sizes = np.array([share * len(labels) for share, _ in enough])
    points = tuple(_point(size, rows) for size, rows in zip(sizes, hits, strict=True))
    if len(points) < 3:
        return Growth(points, None, f"the smallest class has {counted(int(counts.min()), 'image')}, too few for a prediction")
    doubled = _doubled(sizes, hits, rng)
    if doubled.high - doubled.low > _WIDEST:
        span = f"{100 * doubled.low:.0f} to {100 * doubled.high:.0f} %"
        return Growth(
            points, None, f"twice the images would give {span}: {counted(len(labels), 'image')} are too few for a closer prediction"
        )
    return Growth(points, doubled)


def _correct(outputs: Outputs, labels: np.ndarray, fold: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return which images are classified correctly, bool (N,), by heads that were fitted on a share of the other folds' images."""
    found = np.zeros(len(labels), bool)
    order = rng.random(len(labels))
    for number in np.unique(fold):
        held, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        found[held] = outputs(_drawn(train, labels, order, share), held).argmax(1) == labels[held]
    return found


def _drawn(rows: np.ndarray, labels: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """Return a share of each class's rows, at least one of each, those first in `order`."""
    chosen = []
    for label in np.unique(labels[rows]):
        of_class = rows[labels[rows] == label]
        chosen.append(of_class[np.argsort(order[of_class])[: max(1, round(share * len(of_class)))]])
    return np.sort(np.concatenate(chosen))


def _point(size: float, hits: Sequence[np.ndarray]) -> GrowthPoint:
    mean = np.mean(hits, 0)
    return GrowthPoint(round(size), float(mean.mean()), float(mean.std() / np.sqrt(len(mean))))


def _doubled(sizes: np.ndarray, hits: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> Doubled:
    """Return what twice the images would give. Its spread is that over resampled images and draws: the points share their images."""
    count, twice = len(hits[0][0]), 2 * sizes[-1]
    means = np.array([np.mean(rows) for rows in hits])
    weights = np.array([float(len(rows)) for rows in hits])
    found = []
    for _ in range(_RESAMPLES):
        images = rng.integers(0, count, count)
        resampled = [np.mean([rows[i][images].mean() for i in rng.integers(0, len(rows), len(rows))]) for rows in hits]
        found.append(_at(_power_law(sizes, np.array(resampled), weights), twice))
    low, high = np.quantile(found, [0.05, 0.95])
    law = _power_law(sizes, means, weights)
    curve = tuple((float(x), _at(law, x)) for x in np.geomspace(sizes[0], twice, 40))
    best = _at(law, twice)
    return Doubled(round(twice), best, float(min(low, best)), float(max(high, best)), curve)


Law = tuple[float, float, float]  # a, b and c of the accuracy a - b n^-c


def _at(law: Law, size: float) -> float:
    a, b, c = law
    return float(a - b * size**-c)


def _power_law(sizes: np.ndarray, values: np.ndarray, weights: np.ndarray) -> Law:
    """Return the power law nearest to the values, by weighted squares, that meets the last one, never falls and never exceeds 1.

    The last value is that of all images, the surest one, and twice the images are compared with it.
    """
    last, least = float(values[-1]), np.inf
    best = last, 0.0, 1.0
    for c in _EXPONENTS:
        x = sizes[-1] ** -c - sizes**-c  # of the last point and below it, so that the law is last + b x
        steepest = (1 - last) / sizes[-1] ** -c
        b = float(np.clip(np.average((values - last) * x, weights=weights) / np.average(x**2, weights=weights), 0, steepest))
        loss = float(np.average((last + b * x - values) ** 2, weights=weights))
        if loss < least:
            best, least = (last + b * float(sizes[-1] ** -c), b, float(c)), loss
    return best
