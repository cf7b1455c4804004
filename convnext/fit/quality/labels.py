"""Suspected wrong labels, from out-of-fold probabilities and the labels of the nearest images.

Heads that were fitted on wrong labels learned some of them, and what they say of an image varies with the folds. The labels of the nearest
images are other evidence: a neighbour counts by the probability that the heads give its label, so a wrong one hardly counts.
"""

from dataclasses import dataclass

import numpy as np

from convnext.fit.features import Features
from convnext.fit.quality.neighbours import both_sides, directions, nearest

_NEIGHBOURS = 20
_TEMPERATURE = 0.1  # of the cosines: a neighbour that is farther than the nearest by this counts 1/e
_SHARE = 0.25  # of the neighbours' evidence beside the head's
_PRIOR = 0.5  # neighbours of all classes alike, added so that no class is impossible


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong."""

    row: int  # of the features
    label: int  # its class in the data
    suggested: int  # the class that it seems to be
    score: float  # 0.5 to 1: the evidence for the suggested class as a share of that for both


def suspects(features: Features, labels: np.ndarray, probabilities: np.ndarray) -> list[Suspect]:
    """Return the images that seem to be of another class than their label says, the surest first.

    Args:
        features: of N images.
        labels: int64 (N,).
        probabilities: float64 (N, classes) of heads that were not fitted on the image.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    around = _by_neighbours(features, labels, own, probabilities.shape[1])
    evidence = np.log(np.maximum(probabilities, 1e-12)) + _SHARE * np.log(around)
    label_evidence = evidence[rows, labels].copy()
    evidence[rows, labels] = -np.inf
    suggested = evidence.argmax(1)
    scores = 1 / (1 + np.exp(label_evidence - evidence[rows, suggested]))
    order = np.argsort(-scores, kind="stable")
    return [Suspect(int(i), int(labels[i]), int(suggested[i]), float(scores[i])) for i in order if scores[i] > 0.5]


def _by_neighbours(features: Features, labels: np.ndarray, trust: np.ndarray, classes: int) -> np.ndarray:
    """Return the probabilities (N, classes) that the nearest images' labels give; `trust` (N,), 0 to 1, is how much each label counts."""
    whole = both_sides(features)
    unit = directions(whole, whole.mean(0))
    cosines, positions = nearest(unit, unit, _NEIGHBOURS, leave_out_own=True)
    weights = np.exp((cosines - cosines[:, :1]) / _TEMPERATURE) * trust[positions]
    found = np.full((len(labels), classes), _PRIOR / classes)
    for place in range(positions.shape[1]):
        np.add.at(found, (np.arange(len(labels)), labels[positions[:, place]]), weights[:, place])
    return np.asarray(found / found.sum(1, keepdims=True))
