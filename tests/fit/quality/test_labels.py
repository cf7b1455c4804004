"""Suspected wrong labels."""

import numpy as np
import pytest

from convnext.fit.features import Features
from convnext.fit.quality import neighbours
from convnext.fit.quality.labels import suspects
from convnext.fit.quality.neighbours import directions, nearest


def clusters(each=40, classes=3, spread=1.0, seed=0):
    """Features in one cluster per class, and their labels."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 16)) * 2
    labels = np.repeat(np.arange(classes), each)
    rows = (centres[labels] + spread * rng.normal(size=(len(labels), 16))).astype(np.float32)
    return Features(rows, rows, np.arange(len(labels))), labels


def probabilities_of(labels, classes, sureness=0.8):
    found = np.full((len(labels), classes), (1 - sureness) / (classes - 1))
    found[np.arange(len(labels)), labels] = sureness
    return found


def test_flipped_labels_are_the_suspects_with_the_class_they_had():
    features, labels = clusters()
    given, flipped = labels.copy(), [3, 50, 111]
    given[flipped] = (given[flipped] + 1) % 3
    found = suspects(features, given, probabilities_of(given, 3, 0.5))
    assert {one.row for one in found} == set(flipped)
    assert all(one.label == given[one.row] and one.suggested == labels[one.row] for one in found)
    assert all(0.5 < one.score <= 1 for one in found)


def test_suspects_are_in_the_order_of_their_scores():
    features, labels = clusters(spread=4.0)
    rng = np.random.default_rng(1)
    found = suspects(features, labels, rng.dirichlet([1, 1, 1], len(labels)))
    scores = [one.score for one in found]
    assert len(scores) > 10
    assert scores == sorted(scores, reverse=True)


def test_neighbours_decide_where_the_head_is_torn():
    features, labels = clusters()
    given = labels.copy()
    given[[0, 60]] = 1, 2
    torn = np.full((len(labels), 3), 1 / 3)
    assert {one.row for one in suspects(features, given, torn)} == {0, 60}


def test_a_neighbour_whose_label_the_head_doubts_hardly_counts():
    """Half of a cluster is labelled wrongly; the head doubts these labels alone."""
    features, labels = clusters(each=20, classes=2)
    given = labels.copy()
    given[:10] = 1
    probabilities = probabilities_of(labels, 2, 0.9)
    probabilities[10] = 0.5, 0.5  # its label is right, and its neighbours' labels are as often wrong
    assert {one.row for one in suspects(features, given, probabilities)} == set(range(10))


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_have_few_neighbours(count):
    features = Features(np.ones((count, 4), np.float32), np.ones((count, 4), np.float32), np.arange(count))
    assert suspects(features, np.zeros(count, np.int64), np.tile([0.9, 0.1], (count, 1))) == []


def test_neighbours_are_the_same_in_small_blocks(monkeypatch):
    rows = directions(np.random.default_rng(0).normal(size=(57, 8)))
    whole = nearest(rows, rows, 5, leave_out_own=True)
    monkeypatch.setattr(neighbours, "_MAX_BYTES", 4 * 57 * 10)
    blocks = nearest(rows, rows, 5, leave_out_own=True)
    assert np.array_equal(whole[1], blocks[1])
    assert (whole[1] != np.arange(57)[:, None]).all()
    similarities = rows.numpy() @ rows.numpy().T - 2 * np.eye(57)
    assert np.array_equal(whole[1], np.argsort(-similarities, 1)[:, :5])
