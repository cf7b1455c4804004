"""Held-out groups and folds: functions of names and classes, not of order."""

import random
from collections import Counter

import pytest

from convnext.data.split import folds, group_folds, split_groups

NAMES = [f"{label}/{i}.jpg" for label in (0, 1, 2) for i in range(20 + label)]
LABELS = [int(name[0]) for name in NAMES]


def by_name(names, values):
    return dict(zip(names, values, strict=True))


def shuffled(*lists):
    order = list(range(len(lists[0])))
    random.Random(3).shuffle(order)
    return ([one[i] for i in order] for one in lists)


def test_folds_are_as_even_as_they_can_be_and_do_not_depend_on_order():
    found = folds(NAMES, 5, LABELS)
    assert set(Counter(found).values()) == {12, 13}
    for label in range(3):
        counts = Counter(fold for fold, own in zip(found, LABELS, strict=True) if own == label)
        assert max(counts.values()) - min(counts.values()) <= 1
    names, labels = shuffled(NAMES, LABELS)
    assert by_name(names, folds(names, 5, labels)) == by_name(NAMES, found)


def test_the_folds_of_names_stay_the_same_for_ever():
    """The mean over folds that different versions trained would count images twice."""
    assert folds([f"{i}.jpg" for i in range(10)], 3, [0] * 10) == [1, 0, 1, 2, 1, 0, 2, 0, 0, 2]


GROUPS = [f"patient {i * 7 % 13}" for i in range(len(NAMES))]


def test_a_group_is_in_one_fold_and_folds_are_nearly_even():
    found = group_folds(4, LABELS, GROUPS)
    assert len(set(zip(GROUPS, found, strict=True))) == 13
    assert min(Counter(found).values()) >= 10
    labels, groups = shuffled(LABELS, GROUPS)
    assert by_name(groups, group_folds(4, labels, groups)) == by_name(GROUPS, found)


def test_group_folds_keep_classes_even_where_each_group_has_one_class():
    labels = [i % 2 for i in range(40)]
    groups = [f"g{i // 4 * 2 + i % 2}" for i in range(40)]  # ten groups of two images in each class
    found = group_folds(5, labels, groups)
    assert Counter(zip(found, labels, strict=True)) == {(fold, label): 4 for fold in range(5) for label in (0, 1)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [5, 10, 40])
def test_groups_are_held_out_whole_and_make_up_the_fraction_of_each_class(seed, count):
    groups = [f"p{i % count}" for i in range(400)]
    labels = [int(i % count % 5 == 0) for i in range(400)] if count > 5 else [i // count % 2 for i in range(400)]
    rest, held = split_groups(0.2, seed, labels, groups)
    assert sorted(rest + held) == list(range(400))
    assert {groups[i] for i in rest}.isdisjoint(groups[i] for i in held)
    if count != 10:
        assert [sum(labels[i] == label for i in held) / labels.count(label) for label in (0, 1)] == pytest.approx([0.2, 0.2], abs=0.07)
    mixed_labels, mixed_groups = shuffled(labels, groups)
    again = split_groups(0.2, seed, mixed_labels, mixed_groups)[1]
    assert {mixed_groups[i] for i in again} == {groups[i] for i in held}


def test_removing_a_group_moves_hardly_any_other():
    groups = [f"p{i // 3}" for i in range(300)]
    labels = [i // 3 % 2 for i in range(300)]
    before = {groups[i] for i in split_groups(0.2, 0, labels, groups)[1]}
    for gone in ("p3", "p50", "p99"):
        kept = [i for i in range(300) if groups[i] != gone]
        after = {groups[kept[i]] for i in split_groups(0.2, 0, [labels[i] for i in kept], [groups[i] for i in kept])[1]}
        assert len((before ^ after) - {gone}) <= 1


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("seed", range(5))
def test_each_class_can_be_trained_on_and_is_validated_on_if_its_groups_allow(fraction, seed):
    labels, groups = [0, 0, 1, 1, 2], ["a", "b", "c", "d", "e"]
    rest, held = split_groups(fraction, seed, labels, groups)
    assert {labels[i] for i in rest} == {0, 1, 2}
    assert {labels[i] for i in held} == {0, 1}
