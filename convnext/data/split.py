"""The choice of the images held out for validation if a dataset has no such part: a function of the images' names and classes alone."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence

from convnext.data.contents import Listed


def split(source: Listed, fraction: float, seed: int, groups: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the positions of a source in two parts, in their order: those to train on, and about `fraction` of them held out.

    An image is held out if a hash of the seed and its path within the dataset, as a number from 0 to 1, is below `fraction`. So
    neither moving the data nor adding or removing other images moves an image from one part to the other. The one exception: if
    this leaves a group of two or more images (a class) without any in one part, that part gets the image nearest to the threshold.

    Args:
        source: the images.
        fraction: from 0 to 1.
        seed: another seed holds out other images.
        groups: the group of each image.
    """
    hashes = [_hash(source.key(index), seed) for index in range(len(source))]
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    held: set[int] = set()
    for indices in members.values():
        chosen = [index for index in indices if hashes[index] < fraction]
        if len(indices) > 1 and not chosen:
            chosen = [min(indices, key=hashes.__getitem__)]
        elif len(chosen) == len(indices):
            chosen.remove(max(chosen, key=hashes.__getitem__))  # a single image too: training needs it
        held.update(chosen)
    return [index for index in range(len(source)) if index not in held], sorted(held)


def held_out(
    source: Listed,
    labels: Sequence[int],
    fraction: float,
    seed: int,
    groups: Sequence[str] | None = None,
    fold: tuple[int, int] | None = None,
) -> tuple[list[int], list[int]]:
    """Return the positions of a source in two parts, in their order: those to train on, and those held out.

    Args:
        source: the images.
        labels: what each part shall have its share of, for instance the class of each image.
        fraction: of the images to hold out, from 0 to 1, without `fold`.
        seed: another seed holds out other images, without `fold`.
        groups: the group of each image, if no group shall have images in both parts.
        fold: a number, from 1, and how many: that fold is held out.
    """
    if fold is None:
        return split(source, fraction, seed, labels) if groups is None else split_groups(fraction, seed, labels, groups)
    number, count = fold
    keys = [source.key(index) for index in range(len(source))]
    found = folds(keys, count, labels) if groups is None else group_folds(count, labels, groups)
    rest, held = ([i for i, one in enumerate(found) if (one == number - 1) == wanted] for wanted in (False, True))
    return rest, held


def _hash(key: str, seed: int) -> float:
    """Return a number from 0 to 1. Unicode is composed and separators are slashes, so that it is the same on every system."""
    text = unicodedata.normalize("NFC", key.replace(os.sep, "/"))
    digest = hashlib.blake2b(f"{seed}/{text}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_groups(fraction: float, seed: int, labels: Sequence[int], groups: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return positions in two parts as `split` does, but whole groups: no group has images in both.

    The groups are gone through in the order of a hash of the seed and their names. A group is held out if that brings the held-out
    fractions of its classes nearer to `fraction`. So few groups give about that fraction too, and adding or removing a group moves
    hardly any other. A class of two or more groups has at least one in the second part, and each class has one to train on.

    Args:
        fraction: of the images of each class to hold out, from 0 to 1.
        seed: another seed holds out other groups.
        labels: the class of each image.
        groups: the group of each image.
    """
    members, totals = _members(labels, groups), Counter(labels)
    hashes = {group: _hash(group, seed) for group in members}
    order = sorted(members, key=lambda name: (hashes[name], name))
    held: set[str] = set()
    inside: Counter[int] = Counter()

    def distance(label: int, more: int) -> float:
        return abs((inside[label] + more) / totals[label] - fraction)

    for group in order:
        if sum(distance(label, count) - distance(label, 0) for label, count in members[group].items()) < 0:
            held.add(group)
            inside.update(members[group])
    by_class: dict[int, list[str]] = {label: [] for label in sorted(totals)}
    for group in order:
        for label in members[group]:
            by_class[label].append(group)
    for own in by_class.values():
        if len(own) > 1 and held.isdisjoint(own):
            held.add(min(own, key=lambda name: members[name].total()))  # the first of the smallest
    for own in by_class.values():
        if held.issuperset(own):
            held.remove(own[-1])  # training needs it more
    rest = [index for index, group in enumerate(groups) if group not in held]
    return rest, [index for index, group in enumerate(groups) if group in held]


def _members(labels: Sequence[int], groups: Sequence[str]) -> dict[str, Counter[int]]:
    """Return for each group how many images of which class it has."""
    members: dict[str, Counter[int]] = {}
    for label, group in zip(labels, groups, strict=True):
        members.setdefault(group, Counter())[label] += 1
    return members


def folds(keys: Sequence[str], count: int, labels: Sequence[int]) -> list[int]:
    """Return the fold, from 0, of each image for cross-validation: a function of all names and classes, not of their order.

    Sizes differ by at most one image, in all and in each class.

    Args:
        keys: the path of each image within the dataset.
        count: the number of folds.
        labels: the class of each image.
    """
    order = sorted(range(len(keys)), key=lambda index: (labels[index], _hash(keys[index], 0), keys[index]))
    found = [0] * len(keys)
    for place, index in enumerate(order):
        found[index] = place % count
    return found


def group_folds(count: int, labels: Sequence[int], groups: Sequence[str]) -> list[int]:
    """Return the fold of each image as `folds` does, but all images of a group in one fold.

    The largest group comes first; each goes where its classes are rarest so far, which keeps folds and classes as even as groups allow.
    """
    members, totals = _members(labels, groups), Counter(labels)
    inside, sizes = [Counter[int]() for _ in range(count)], [0] * count
    chosen: dict[str, int] = {}
    for group in sorted(members, key=lambda name: (-members[name].total(), _hash(name, 0), name)):
        shares = members[group].items()
        costs = [
            (sum(images * fold[label] / totals[label] for label, images in shares), size) for fold, size in zip(inside, sizes, strict=True)
        ]
        chosen[group] = min(range(count), key=costs.__getitem__)
        inside[chosen[group]].update(members[group])
        sizes[chosen[group]] += members[group].total()
    return [chosen[group] for group in groups]
