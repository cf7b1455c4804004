"""The choice of the images held out for validation if a dataset has no such part: a function of each image's name alone."""

import hashlib
import os
import unicodedata
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
