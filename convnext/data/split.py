"""Which images are held out for validation where a data set has no such part: a function of each image's name alone."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence

from convnext.data.contents import Listed


def split(source: Listed, fraction: float, seed: int, groups: Sequence[int]) -> tuple[list[int], list[int]]:
    """The positions of a source in two parts, in their order: those to train on, and those held out, about `fraction` of them.

    An image is held out if a hash of the seed and its path within the data set, as a number from 0 to 1, is below `fraction`. So
    neither moving the data nor adding or removing other images moves an image from one part to the other. The one exception: where
    this leaves a group of two or more images (a class) without any in one of the parts, it gets the image nearest to the threshold.

    Args:
        source: the images.
        fraction: from 0 to 1.
        seed: another one draws other images.
        groups: of each image.
    """
    places = [_place(source.key(index), seed) for index in range(len(source))]
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    held: set[int] = set()
    for indices in members.values():
        chosen = [index for index in indices if places[index] < fraction]
        if len(indices) > 1 and not chosen:
            chosen = [min(indices, key=places.__getitem__)]
        elif len(chosen) == len(indices):
            chosen.remove(max(chosen, key=places.__getitem__))  # also of one image alone: it is trained on
        held.update(chosen)
    return [index for index in range(len(source)) if index not in held], sorted(held)


def _place(key: str, seed: int) -> float:
    # Composed and with slashes, so that the same files under another system are the same.
    text = unicodedata.normalize("NFC", key.replace(os.sep, "/"))
    digest = hashlib.blake2b(f"{seed}/{text}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
