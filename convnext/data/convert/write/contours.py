"""Contours of masks: polygons that COCO's rasteriser turns back into the same pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np

from convnext.data.run_lengths import RunLengths, Segmentation, from_segmentation, sampled


@dataclass(frozen=True, eq=False)
class Contour:
    """One part of an object: float64 (k, 2), x and y of the corners in pixels, the first one not repeated."""

    outer: np.ndarray
    holes: Sequence[np.ndarray] = ()

    def corners(self) -> list[list[float]]:
        """Return the corners of the outer border as [x, y], rounded to a thousandth of a pixel."""
        return _plain(self.outer)


def run_lengths(segmentation: Segmentation, width: int, height: int) -> RunLengths:
    """Return a segmentation as compressed run lengths. Raises ValueError or RuntimeError if it can't be decoded."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return {"size": segmentation["size"], "counts": segmentation["counts"]}
    return from_segmentation(segmentation, height, width)


def contours(segmentation: Segmentation, width: int, height: int) -> list[Contour]:
    """Return the parts of an object: polygons as they are, and of a mask its borders, largest part first.

    A border passes half-way between pixel centres within the mask and outside of it, as marching squares draw it.
    """
    if isinstance(segmentation, list):
        return [Contour(np.reshape(np.asarray(polygon, float), (-1, 2))) for polygon in segmentation]
    mask, left, top = window(run_lengths(segmentation, width, height))
    return traced(mask, left, top)


def traced(mask: np.ndarray, left: int = 0, top: int = 0) -> list[Contour]:
    """Return the parts of a mask, bool (h, w), whose first column and row are `left` and `top` of the image; the largest first."""
    from contourpy import FillType, contour_generator

    generator = contour_generator(z=np.pad(mask.astype(np.float32), 1), fill_type=FillType.OuterOffset)
    points, offsets = cast(tuple[list[np.ndarray], list[np.ndarray]], generator.filled(0.5, np.inf))
    found, origin = [], np.array([left - 0.5, top - 0.5])
    for corners, ends in zip(points, offsets, strict=True):
        rings = [_without_straight(corners[start : end - 1] + origin) for start, end in pairwise(ends)]
        found.append(Contour(rings[0], rings[1:]))
    return sorted(found, key=lambda one: -_area(one.outer))


def window(runs: RunLengths) -> tuple[np.ndarray, int, int]:
    """Return the part of a mask within its box, bool (h, w), and the box's left and top; (0, 0) for a mask without a pixel."""
    from faster_coco_eval import mask as library

    left, top, width, height = (int(value) for value in library.toBbox({"size": runs["size"], "counts": runs["counts"].encode()}))
    return sampled(runs, np.arange(top, top + height), np.arange(left, left + width)).astype(bool), left, top


def exact_polygons(segmentation: Segmentation, width: int, height: int) -> Segmentation:
    """Return the polygons that COCO's rasteriser turns into the same pixels, or the run lengths of a mask that has holes."""
    if segmentation is None or isinstance(segmentation, list):
        return segmentation
    runs = run_lengths(segmentation, width, height)
    parts = contours(runs, width, height)
    if not parts or any(part.holes for part in parts):
        return runs
    polygons = [[value for corner in part.corners() for value in corner] for part in parts]
    return polygons if from_segmentation(polygons, height, width)["counts"] == runs["counts"] else runs


def one_polygon(segmentation: Segmentation, width: int, height: int) -> tuple[list[list[float]], int]:
    """Return one polygon, [x, y] in pixels, for an object of any parts and holes, and how many of these were joined to its largest part.

    They are joined by lines of no width, there and back on the same way, which add no pixel.
    """
    from scipy.spatial import KDTree

    if isinstance(segmentation, list) and len(segmentation) > 1:  # they may overlap
        segmentation = from_segmentation(segmentation, height, width)
    parts = contours(segmentation, width, height)
    if not parts:
        return [], 0
    largest, *others = sorted([ring for part in parts for ring in (part.outer, *part.holes)], key=lambda ring: -_area(ring))
    near = KDTree(largest)
    joints: dict[int, list[np.ndarray]] = {}  # rings by the corner of the largest that is nearest
    for ring in others:
        distances, corners = near.query(ring)
        first = int(distances.argmin())
        joints.setdefault(int(corners[first]), []).append(np.concatenate([ring[first:], ring[: first + 1]]))
    pieces = [piece for at, corner in enumerate(largest) for piece in ([corner], *((*ring, corner) for ring in joints.get(at, ())))]
    return _plain(np.concatenate(pieces)), len(others)


def _without_straight(ring: np.ndarray) -> np.ndarray:
    """Return a ring without the corners at which it does not turn."""
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _plain(ring: np.ndarray) -> list[list[float]]:
    corners: list[list[float]] = ring.round(3).tolist()
    return corners
