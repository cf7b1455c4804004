"""Pairs of images that may be near duplicates: those that embeddings and then small grey tiles leave to be compared pixel by pixel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.fit.features import Features
from convnext.fit.quality.neighbours import directions, nearest
from convnext.fit.quality.placement import TILE, place

_COARSE, _LIKELY = 0.65, 0.8  # correlations of tiles of half and of whole resolution below which a pair is dropped
_MARGIN = 0.85  # of an image's shorter side: a tile takes no more pixels
_BLOCK = 4096  # pairs in memory at a time


@dataclass(frozen=True)
class Candidate:
    """Two images, by their rows, of which one may be a part of the other."""

    outer: int
    inner: int
    mirrored: bool  # whether it is the mirror image of `inner`
    box: Tensor  # float32 (4,), of `place`


def likely_pairs(pairs: np.ndarray, tiles: Tensor, sizes: np.ndarray) -> Iterator[Candidate]:
    """Yield those of the pairs whose small grey images agree.

    Args:
        pairs: int64 (P, 3), of `by_embedding`.
        tiles: uint8 (N, TILE, TILE), of `placement.tile`.
        sizes: int64 (N, 2), width and height of each image.
    """
    ratios = torch.from_numpy(sizes[:, 0] / sizes[:, 1]).float()
    large = torch.from_numpy(sizes.min(1) * _MARGIN >= TILE)
    for start in range(0, len(pairs), _BLOCK):
        one, other, mirrored = torch.from_numpy(pairs[start : start + _BLOCK]).T
        mirrored = mirrored.bool()
        scores, boxes = _agreement(tiles, large, ratios, one, other, mirrored)
        swapped_scores, swapped_boxes = _agreement(tiles, large, ratios, other, one, mirrored)
        for at in torch.nonzero(torch.maximum(scores, swapped_scores) >= _LIKELY)[:, 0].tolist():
            if scores[at] >= swapped_scores[at]:
                yield Candidate(int(one[at]), int(other[at]), bool(mirrored[at]), boxes[at])
            else:
                yield Candidate(int(other[at]), int(one[at]), bool(mirrored[at]), swapped_boxes[at])


def by_embedding(parts: Sequence[Features], asked: np.ndarray, fit: np.ndarray, count: int) -> np.ndarray:
    """Return pairs of images with near embeddings, int64 (P, 3): two rows, and 1 if one image is near the other's mirror image, else 0.

    Args:
        parts: embeddings of the images of each part; rows are counted through all parts, N in all.
        asked: bool (N,), the images whose neighbours are wanted.
        fit: bool (N,), the images that may be neighbours, those asked for among them.
        count: how many neighbours of each image in each part, and as many near its mirror image.
    """
    starts = np.cumsum([0, *map(len, parts)])
    rows = [start + np.flatnonzero(fit[start : start + len(part)]) for start, part in zip(starts, parts, strict=False)]
    plain = [directions(part.plain[kept - start]) for start, part, kept in zip(starts, parts, rows, strict=False)]
    found = [np.empty((0, 3), np.int64)]
    for mirrored in (0, 1):
        for number, part in enumerate(parts):
            ours = rows[number][asked[rows[number]]]
            queries = directions((part.mirrored if mirrored else part.plain)[ours - starts[number]])
            for others, unit in zip(rows, plain, strict=True):
                _, positions = nearest(queries, unit, count + 1)  # an image is its own nearest
                first, second = np.repeat(ours, positions.shape[1]), others[positions.ravel()]
                found.append(np.stack([np.minimum(first, second), np.maximum(first, second), np.full_like(first, mirrored)], 1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return np.asarray(pairs[pairs[:, 0] < pairs[:, 1]])


def _agreement(tiles: Tensor, large: Tensor, ratios: Tensor, outer: Tensor, inner: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
    """Return how well tiles agree, (P,), and where, (P, 4), as `place` does; -1 where a look at half the resolution rules it out."""
    ratio = ratios[inner] / ratios[outer]
    whole, part = tiles[outer].float(), tiles[inner].float()
    part = torch.where(mirrored[:, None, None], part.flip(-1), part)
    scores, boxes = place(F.avg_pool2d(whole, 2), F.avg_pool2d(part, 2), ratio)
    scores[scores < _COARSE] = -1
    finer = (scores >= _COARSE) & large[outer] & large[inner]
    scores[finer], boxes[finer] = place(whole[finer], part[finer], ratio[finer])
    return scores, boxes
