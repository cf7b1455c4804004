"""Epochs in which images of rare classes come more often: which images each consists of.

A draw is a function of a number of samples and a generator. It returns at least so many positions in random order. The k-th repeat of
image i is i + k * (number of images), so that each repeat is augmented in its own way; see `Samples`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

_NONE = -1  # the class of images without one

Draw = Callable[[int, np.random.Generator], np.ndarray]
Present = Sequence[Sequence[int]]  # the classes that each image shows


def balanced(present: Present) -> Draw:
    """Return the draw that takes equally many images, or one more, for each class; none is repeated before all of its class.

    An image of several classes may be taken for any of them. Images without a class are one more class.
    """
    members: dict[int, list[int]] = {}
    for at, found in enumerate(present):
        for one in set(found) or {_NONE}:
            members.setdefault(one, []).append(at)
    return partial(_balanced, members=[np.array(members[one]) for one in sorted(members)], count=len(present))


def _balanced(total: int, generator: np.random.Generator, members: Sequence[np.ndarray], count: int) -> np.ndarray:
    share, more = divmod(total, len(members))
    luckier = set(generator.permutation(len(members))[:more].tolist())
    drawn = []
    for number, positions in enumerate(members):
        repeats, rest = divmod(share + (number in luckier), len(positions))
        drawn += [positions] * repeats
        drawn.append(generator.permutation(positions)[:rest])
    return generator.permutation(_numbered(np.concatenate(drawn), count))


def repeated(factors: np.ndarray) -> Draw:
    """Return the draw that takes each image on average as often as its factor, at least 1, says.

    The whole part of a factor is certain, and one more comes with the probability of the rest, as in Detectron2's
    `RepeatFactorTrainingSampler`. A draw holds at least as many samples as there are images.
    """
    return partial(_repeated, factors=factors)


def _repeated(total: int, generator: np.random.Generator, factors: np.ndarray) -> np.ndarray:
    whole = np.floor(factors)
    times = (whole + (generator.random(len(factors)) < factors - whole)).astype(np.int64)
    return generator.permutation(_numbered(np.repeat(np.arange(len(factors)), times), len(factors)))


def _numbered(positions: np.ndarray, count: int) -> np.ndarray:
    """Return positions among which the k-th occurrence of i, from 0 on, is i + k * count."""
    order = np.argsort(positions, kind="stable")
    found = positions[order]
    occurrence = np.empty_like(positions)
    occurrence[order] = np.arange(len(positions)) - np.searchsorted(found, found)
    return positions + occurrence * count


def repeat_factors(present: Present, threshold: float) -> np.ndarray:
    """Return the repeat factor of each image, float64 (images,): the largest of its classes, and 1 without any.

    Source: Gupta et al., *LVIS: A Dataset for Large Vocabulary Instance Segmentation* (2019), section 5.2.
    """
    images = np.bincount([one for found in present for one in set(found)], minlength=1)
    by_class = class_factors(images / len(present), threshold)
    return np.array([max((by_class[one] for one in found), default=1.0) for found in present])


def class_factors(fractions: np.ndarray, threshold: float) -> np.ndarray:
    """Return max(1, sqrt(threshold / f)) for the fraction f of the images that show each class; 1 where that is 0."""
    return np.maximum(1, np.sqrt(threshold / np.where(fractions > 0, fractions, threshold)))
