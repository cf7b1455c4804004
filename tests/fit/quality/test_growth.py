"""Accuracy over the number of images."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from convnext.fit.quality import growth as growing
from convnext.fit.quality.growth import growth


def grown(rows, labels, fold, seen=None):
    """The growth of a logistic regression."""
    fit, logits = heads(rows, labels, seen), np.empty((len(labels), labels.max() + 1))
    for number in np.unique(fold):
        logits[fold == number] = fit(np.flatnonzero(fold != number), np.flatnonzero(fold == number))
    return growth(fit, logits, labels, fold)


def data(count, overlap=1.0, classes=3, width=24, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return 2 * np.eye(width)[labels] + overlap * rng.normal(size=(count, width)), labels


def heads(rows, labels, seen=None):
    def outputs(train, held):
        if seen is not None:
            seen.append((train, held))
        return LogisticRegression(C=0.1).fit(rows[train], labels[train]).decision_function(rows[held])

    return outputs


def test_accuracy_grows_and_twice_the_images_bring_what_they_bring():
    rows, labels = data(600)
    found = grown(rows, labels, np.arange(600) // 3 % 5)
    assert [point.images for point in found.points] == [75, 150, 300, 600]
    accuracies = [point.accuracy for point in found.points]
    assert accuracies[0] < accuracies[-1]
    more_rows, more_labels = data(1200, seed=1)
    bigger = grown(more_rows, more_labels, np.arange(1200) // 3 % 5).points[-1]
    assert found.doubled.images == 1200
    assert found.doubled.low - 2 * bigger.error <= bigger.accuracy <= found.doubled.high + 2 * bigger.error
    assert found.doubled.low <= found.doubled.accuracy <= found.doubled.high


def test_no_image_is_predicted_by_a_head_that_was_fitted_on_it():
    rows, labels = data(120)
    seen, fold = [], np.arange(120) // 3 % 5
    grown(rows, labels, fold, seen)
    for train, held in seen:
        assert len(np.unique(fold[held])) == 1
        assert fold[held[0]] not in fold[train]
        assert set(labels[train]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("count", "classes", "words"), [(39, 3, "39 images are too few"), (60, 20, "smallest class has 3 images, too few")]
)
def test_too_few_images_are_said_to_be(count, classes, words):
    rows, labels = data(count, classes=classes)
    found = grown(rows, labels, np.arange(count) // classes % 3)
    assert found.doubled is None
    assert words in found.reason


def test_a_wide_interval_is_said_to_tell_nothing():
    rows, labels = data(48, overlap=2.0)
    found = grown(rows, labels, np.arange(48) // 3 % 4)
    assert found.doubled is None
    assert "too few for a" in found.reason
    assert len(found.points) == 4


def test_the_law_is_found_again():
    sizes = np.array([50.0, 100, 200, 400])
    law = growing._power_law(sizes, 0.95 - 1.2 * sizes**-0.5, np.ones(4))
    assert law == pytest.approx((0.95, 1.2, 0.5), abs=1e-6)


@pytest.mark.parametrize("values", [[0.9, 0.8, 0.7, 0.6], [0.5, 0.7, 0.9, 1.0], [0.7, 0.7, 0.7, 0.7], [1.0, 1.0, 1.0, 1.0]])
def test_the_law_never_falls_and_never_exceeds_one(values):
    sizes = np.array([50.0, 100, 200, 400])
    law = growing._power_law(sizes, np.array(values), np.ones(4))
    at = [growing._at(law, size) for size in (50, 400, 800, 1e6)]
    assert at == sorted(at)
    assert at[-1] <= 1


def test_the_same_seed_gives_the_same_curve():
    rows, labels = data(90)
    fold = np.arange(90) // 3 % 5
    assert grown(rows, labels, fold) == grown(rows, labels, fold)
