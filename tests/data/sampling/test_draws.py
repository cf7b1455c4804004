"""Draws of an epoch's images, against the formulas of LVIS and Detectron2 written out."""

import math
from collections import defaultdict

import numpy as np
import pytest

from convnext.data.annotations.objects import ImageObjects
from convnext.data.sampling.draws import balanced, class_factors, repeat_factors, repeated
from convnext.data.sampling.order import EpochOrder
from convnext.data.sources.base import classes_of_objects
from convnext.data.sources.masks import Semantic, classes_of_masks
from convnext.data.sources.scenes import Scenes


def pictures(count=200, seed=0):
    """The classes of images, of which class 3 is in few, and some images show none."""
    rng = np.random.default_rng(seed)
    shares = [0.7, 0.3, 0.05, 0.01]
    return [[one for one, share in enumerate(shares) if rng.random() < share or (one == 3 and at == 7)] for at in range(count)]


def detectron2_factors(present, threshold):
    """`RepeatFactorTrainingSampler.repeat_factors_from_category_frequency`, in the words of its comments."""
    frequency = defaultdict(float)
    for shown in present:
        for one in shown:
            frequency[one] += 1 / len(present)
    by_class = {one: max(1.0, math.sqrt(threshold / share)) for one, share in frequency.items()}
    return [max([by_class[one] for one in shown] or [1.0]) for shown in present]


@pytest.mark.parametrize("threshold", [0.001, 0.02, 0.3, 1.0])
def test_factors_are_detectron2s(threshold):
    present = pictures()
    assert np.allclose(repeat_factors(present, threshold), detectron2_factors(present, threshold))
    assert class_factors(np.array([0.5, 0.01, 0.0]), 0.04).tolist() == [1, 2, 1]


def epochs(order, count):
    for order.epoch in range(count):
        yield [index for batch in order for _, index in batch]


def test_images_come_as_often_as_their_factors_say():
    present = pictures()
    factors = repeat_factors(present, 0.3)
    assert factors.max() > 4
    order, times = EpochOrder(200, 8, seed=1, draw=repeated(factors)), np.zeros(200)
    for indices in epochs(order, 400):
        assert len(set(indices)) == len(indices) == 200
        times += np.bincount(np.array(indices) % 200, minlength=200)
    found, wanted = times / times.sum(), factors / factors.sum()
    spread = np.sqrt(wanted * 400 * 200) / (400 * 200)  # of a count, if it were Poisson's
    assert (np.abs(found - wanted) / spread).max() < 4.5


def test_the_whole_part_of_a_factor_is_certain_and_the_rest_a_chance():
    factors = np.array([1.0, 2.25, 3.0, 1.5])
    counts = np.array([
        np.bincount(repeated(factors)(4, np.random.default_rng(seed)) % 4, minlength=4) for seed in range(2000)
    ])  # fmt: skip
    assert [set(column) for column in counts.T] == [{1}, {2, 3}, {3}, {1, 2}]
    assert np.allclose(counts.mean(0), factors, atol=0.04)
    repeats = repeated(factors)(4, np.random.default_rng(0))
    assert sorted(index for index in repeats if index % 4 == 2) == [2, 6, 10]


def test_every_class_is_drawn_equally_often_and_images_without_one_are_a_class():
    present = pictures()
    kinds = [*range(4), None]
    order = EpochOrder(200, 8, seed=3, draw=balanced(present))
    for indices in epochs(order, 3):
        assert len(set(indices)) == len(indices) == 200
        at = np.array(indices) % 200
        shown = {kind: sum((kind in present[one]) if kind is not None else not present[one] for one in at) for kind in kinds}
        assert min(shown.values()) >= 40  # a fifth each; an image of several classes counts for all of them
        rare = [one for one in range(200) if 3 in present[one]]
        assert np.ptp(np.bincount(at, minlength=200)[rare]) <= 40 / len(rare) + 5


@pytest.mark.parametrize("make", [balanced, lambda present: repeated(repeat_factors(present, 0.5))])
@pytest.mark.parametrize("seed", range(4))
def test_an_epoch_has_as_many_batches_as_without_whatever_the_groups(make, seed):
    present = pictures(seed=seed)
    groups = [int((at * 7 + seed) % 5 == 0 or 3 in shown) for at, shown in enumerate(present)]
    plain, order = EpochOrder(200, 8, 1, groups=groups), EpochOrder(200, 8, 1, groups=groups, draw=make(present))
    for order.epoch in range(20):
        batches = [[index for _, index in batch] for batch in order]
        assert len(batches) == len(order) == plain.batches
        assert all(len(batch) == 8 and len({groups[index % 200] for index in batch}) == 1 for batch in batches)
    whole = list(order)
    order.start = 5
    assert list(order) == whole[5:]
    halves = [list(EpochOrder(200, 8, 1, rank, 2, groups, draw=make(present))) for rank in range(2)]
    order.epoch, order.start = 0, 0
    assert [first + second for first, second in zip(*halves, strict=True)] == list(order)


class Crowded(Scenes):
    def encoded_target(self, index):
        objects = super().encoded_target(index)
        crowd = objects.iscrowd.clone()
        crowd[:1] = index == 0
        return ImageObjects(objects.boxes, objects.labels, objects.masks, crowd, objects.area, index)


def test_the_classes_of_objects_and_of_masks():
    source = Crowded("train", 4, size=64)
    labels = [source.target(index).labels.tolist() for index in range(4)]
    assert classes_of_objects(source) == [sorted(set(found[index == 0 :])) for index, found in enumerate(labels)]
    assert classes_of_masks(Semantic(source)) == [[0, *sorted({label + 1 for label in found})] for found in labels]
