"""Near duplicates among images, and leaks between the training and the validation part.

Embeddings choose candidates: the nearest few of each image and of its mirror image. Pixels decide, so no threshold depends on the network.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from convnext.data.deep import shown
from convnext.data.sources.base import ImageSource
from convnext.fit.features import Features
from convnext.fit.quality.candidates import Candidate, by_embedding, likely_pairs
from convnext.fit.quality.matching import LEAST_SIDE, compare
from convnext.fit.quality.placement import TILE, tile

_CROPPED = 0.97  # area of a part of an image
_SCALED = 0.03  # relative difference of the sides
_CONTRAST, _BRIGHTER = 0.07, 6.0  # log of the gain; grey levels
_KEPT_OPEN = 8  # images
_FEW, _MORE = 3, 12  # nearest images to compare with, and as many nearest mirror images
_SIMILAR = "similar"

Progress = Callable[[int, int], object]  # called with the numbers of images read and in all


@dataclass(frozen=True, eq=False)
class DataPart:
    """Images to compare, by the name of their part of the data, such as "train"."""

    name: str
    source: ImageSource
    features: Features


@dataclass(frozen=True, order=True)
class Place:
    """An image by its part and its position in the part's source."""

    part: int  # position among the parts
    index: int


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that resemble each other; of a cropped or scaled one, the larger is the first."""

    first: Place
    second: Place
    relation: str  # "identical", "re-encoded", "similar", or what was done to the second, such as "mirrored, cropped, scaled, brightness"
    similarity: float  # correlation of their fine structure, at most 1
    group: int  # from 0; images that are linked by pairs share one


@dataclass(frozen=True)
class Duplicates:
    """What was found among images."""

    pairs: list[DuplicatePair]  # made from the same pixels, in the order of their groups
    similar: list[DuplicatePair]  # of the same scene from the same place, as in a burst or a film, or drawn on
    too_small: int  # images with a side below LEAST_SIDE pixels, of which only identical ones are found


@dataclass(frozen=True)
class _Kinship:
    relation: str
    similarity: float


Found = dict[tuple[int, int], _Kinship]  # by the rows of both images


def find_duplicates(parts: Sequence[DataPart], progress: Progress | None = None) -> Duplicates:
    """Return the near duplicates among the images of all parts, within each part and between parts.

    Reads each image once, and those of likely pairs again. Beside the embeddings it holds 1 KB for each image, and blocks of similarities.
    """
    members = [Place(number, int(index)) for number, part in enumerate(parts) for index in part.features.indices]

    @lru_cache(_KEPT_OPEN)
    def read(row: int) -> Image.Image:
        return shown(parts[members[row].part].source.read(members[row].index))

    tiles, sizes, first_with = _read_all(len(members), read, progress)
    small = sizes.min(1) < LEAST_SIDE
    fit = ~small & (first_with == np.arange(len(members)))
    found: Found = {(int(first), row): _Kinship("identical", 1.0) for row, first in enumerate(first_with) if first != row}
    _compare_near([part.features for part in parts], fit, tiles, sizes, read, found)
    same = {ends: one for ends, one in found.items() if one.relation != _SIMILAR}
    similar = {ends: one for ends, one in found.items() if one.relation == _SIMILAR}
    return Duplicates(_grouped(same, members), _grouped(similar, members), int(small.sum()))


def _compare_near(
    parts: Sequence[Features], fit: np.ndarray, tiles: Tensor, sizes: np.ndarray, read: Callable[[int], Image.Image], found: Found
) -> None:
    """Add the images that resemble each other to `found`; `fit` (N,) are those to compare.

    In a film or a burst the next frames are nearer than a copy is. So images that resemble others, but are no copies of them, are compared
    with more.
    """
    asked, tried = fit, np.empty((0, 3), np.int64)
    for count in (_FEW, _MORE):
        pairs = by_embedding(parts, asked, fit, count)
        keys, known = (one @ (2 * len(fit), 2, 1) for one in (pairs, tried))
        with _one_thread():
            for one in likely_pairs(pairs[~np.isin(keys, known)], tiles, sizes):
                kinship = _kinship(read(one.outer), read(one.inner), one)
                ends = one.outer, one.inner
                before = found.get(ends) or found.get(ends[::-1])
                if kinship is None or (before is not None and before.similarity >= kinship.similarity):
                    continue
                if "cropped" not in kinship.relation:
                    ends = min(ends, ends[::-1], key=lambda pair: (-sizes[pair[0]].prod(), pair[0]))
                found.pop(ends[::-1], None)
                found[ends] = kinship
        copies = {row for ends, one in found.items() if one.relation != _SIMILAR for row in ends}
        alike = {row for ends, one in found.items() if one.relation == _SIMILAR for row in ends}
        asked, tried = np.zeros_like(fit), pairs
        asked[sorted(alike - copies)] = True


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch use one thread inside: small images take longer with more, many times so where other programs are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read_all(count: int, read: Callable[[int], Image.Image], progress: Progress | None) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return all images as tiles, uint8 (N, TILE, TILE), their sizes, int64 (N, 2), and the first row with the same pixels as each."""
    tiles, sizes = torch.empty(count, TILE, TILE, dtype=torch.uint8), np.empty((count, 2), np.int64)
    first_with, seen = np.empty(count, np.int64), dict[bytes, int]()
    for row in range(count):
        image = read(row)
        digest = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
        tiles[row], sizes[row] = torch.from_numpy(tile(image).copy()), image.size
        first_with[row] = seen.setdefault(digest, row)
        if progress is not None:
            progress(row + 1, count)
    return tiles, sizes, first_with


def _kinship(outer: Image.Image, inner: Image.Image, candidate: Candidate) -> _Kinship | None:
    """Return how two images resemble each other; None if they do not."""
    match = compare(outer, ImageOps.mirror(inner) if candidate.mirrored else inner, candidate.box)
    if match is None or not match.is_same:
        return _Kinship(_SIMILAR, match.fine) if match is not None and match.is_similar else None
    width, height = match.box[:2]
    cropped = width * height < _CROPPED
    sizes = inner.width / (width * outer.width), inner.height / (height * outer.height)
    changes = {
        "mirrored": candidate.mirrored,
        "cropped": cropped,
        "scaled": max(abs(size - 1) for size in sizes) > _SCALED if cropped else inner.size != outer.size,
        "brightness": abs(math.log(max(match.gain, 1e-3))) > _CONTRAST or abs(match.shift) > _BRIGHTER,
    }
    return _Kinship(", ".join(name for name, is_so in changes.items() if is_so) or "re-encoded", match.fine)


def _grouped(found: Found, members: Sequence[Place]) -> list[DuplicatePair]:
    """Return the pairs in the order of their groups, of which the one with the first image comes first."""
    heads: dict[int, int] = {}  # the first row of each row's group, or a row on the way to it

    def head(row: int) -> int:
        while heads.setdefault(row, row) != row:
            heads[row] = row = heads[heads[row]]
        return row

    for one, other in found:
        low, high = sorted((head(one), head(other)))
        heads[high] = low
    groups = {row: number for number, row in enumerate(sorted({head(row) for row in list(heads)}))}
    pairs = [
        DuplicatePair(members[outer], members[inner], one.relation, one.similarity, groups[head(outer)])
        for (outer, inner), one in found.items()
    ]
    return sorted(pairs, key=lambda pair: (pair.group, min(pair.first, pair.second), max(pair.first, pair.second)))
