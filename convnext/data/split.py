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


def _hash(key: str, seed: int) -> float:
    """Return a number from 0 to 1. Unicode is composed and separators are slashes, so that it is the same on every system."""
    text = unicodedata.normalize("NFC", key.replace(os.sep, "/"))
    digest = hashlib.blake2b(f"{seed}/{text}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_groups(fraction: float, seed: int, labels: Sequence[int], groups: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return positions in two parts as `split` does, but whole groups: no group has images in both.

    A group is held out if a hash of the seed and its name is below `fraction`. Where this leaves a class of two or more groups without
    any in the second part, the group nearest to the threshold moves there; a class without any group to train on gets one back.

    Args:
        fraction: about the fraction of the groups to hold out, from 0 to 1.
        seed: another seed holds out other groups.
        labels: the class of each image.
        groups: the group of each image.
    """
    hashes = {group: _hash(group, seed) for group in groups}
    by_class: dict[int, list[str]] = {}
    for label, group in sorted(set(zip(labels, groups, strict=True))):
        by_class.setdefault(label, []).append(group)
    held = {group for group in hashes if hashes[group] < fraction}
    for members in by_class.values():
        if len(members) > 1 and held.isdisjoint(members):
            held.add(min(members, key=hashes.__getitem__))
    for members in by_class.values():
        if held.issuperset(members):
            held.remove(max(members, key=hashes.__getitem__))  # training needs it more
    rest = [index for index, group in enumerate(groups) if group not in held]
    return rest, [index for index, group in enumerate(groups) if group in held]


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
    totals = Counter(labels)
    members: dict[str, Counter[int]] = {}
    for label, group in zip(labels, groups, strict=True):
        members.setdefault(group, Counter())[label] += 1
    inside = [Counter[int]() for _ in range(count)]
    chosen: dict[str, int] = {}
    for group in sorted(members, key=lambda name: (-members[name].total(), _hash(name, 0), name)):
        shares = members[group].items()
        costs = [(sum(images * fold[label] / totals[label] for label, images in shares), fold.total()) for fold in inside]
        chosen[group] = min(range(count), key=costs.__getitem__)
        inside[chosen[group]] += members[group]
    return [chosen[group] for group in groups]
