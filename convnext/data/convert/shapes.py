"""Shapes of labelling tools, boxes, polygons, ellipses and masks, as objects that lie within their image."""

import math
from collections.abc import Sequence

import numpy as np

from convnext.data.annotations.json_file import MistakeError
from convnext.data.convert.common import FoundObject
from convnext.data.run_lengths import from_columns
from convnext.text import counted

Point = tuple[float, float]  # x, y in pixels
Size = tuple[int, int]  # width, height in pixels
_CORNERS = 64  # of the polygon for an ellipse, which has 99.8 % of its area


def finite(value: object, what: str) -> float:
    """Return a number of a file, a text or a number. Raises MistakeError if it is missing or not finite."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MistakeError(f"{what} is not a number: {value!r}")
    return number


def box_object(name: str, edges: Sequence[float], size: Size, iscrowd: int = 0) -> FoundObject:
    """Return an object that fills a box, given by its left, top, right and bottom edges in pixels. The part outside the image is cut off.

    Raises MistakeError if nothing remains.
    """
    left, top, right, bottom = max(0.0, edges[0]), max(0.0, edges[1]), min(edges[2], size[0]), min(edges[3], size[1])
    if right <= left or bottom <= top:
        corners = "{:g}, {:g} to {:g}, {:g}".format(*edges)
        raise MistakeError(f"box from {corners} has no area in an image of {size[0]} x {size[1]}")
    return FoundObject(name, [left, top, right - left, bottom - top], (right - left) * (bottom - top), iscrowd)


def polygon_object(name: str, points: Sequence[Point], size: Size) -> FoundObject:
    """Return the object within a polygon. The part outside the image is cut off. Raises MistakeError if nothing remains."""
    if len(points) < 3:
        raise MistakeError(f"polygon of {counted(len(points), 'point')}: it needs three")
    inside = clipped(points, size)
    # The shoelace formula.
    area = abs(sum(x * y2 - x2 * y for (x, y), (x2, y2) in zip(inside, [*inside[1:], *inside[:1]], strict=True))) / 2
    if not area:
        raise MistakeError(f"polygon without area in an image of {size[0]} x {size[1]}")
    xs, ys = zip(*inside, strict=True)
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return FoundObject(name, box, area, segmentation=[[round(value, 3) for point in inside for value in point]])


def clipped(points: Sequence[Point], size: Size) -> list[Point]:
    """Return the part of a polygon within the image, possibly nothing.

    Source: Sutherland, Hodgman, *Reentrant Polygon Clipping* (1974).
    """
    remaining = list(points)
    for axis, sign, bound in ((0, 1, 0), (0, -1, -size[0]), (1, 1, 0), (1, -1, -size[1])):
        found: list[Point] = []
        for a, b in zip([*remaining[-1:], *remaining[:-1]], remaining, strict=True):
            from_a, from_b = sign * a[axis] - bound, sign * b[axis] - bound  # the distance from the edge, positive within
            if (from_a < 0) != (from_b < 0):
                t = from_a / (from_a - from_b)
                found.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
            if from_b >= 0:
                found.append(b)
        remaining = found
    return remaining


def turned(points: Sequence[Point], centre: Point, degrees: float) -> list[Point]:
    """Return points turned clockwise about a centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = [(x - centre[0], y - centre[1]) for x, y in points]
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in moved]


def corners_of(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Return the corners of a box, clockwise from the upper left one."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> list[Point]:
    """Return the corners of a polygon for an ellipse around x, y, turned clockwise. Raises MistakeError for a radius of 0 or less."""
    if min(radius_x, radius_y) <= 0:
        raise MistakeError(f"ellipse with the radii {radius_x:g} and {radius_y:g}")
    angles = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
    return turned([(x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles], (x, y), degrees)


def mask_object(name: str, mask: np.ndarray, left: int, top: int, size: Size) -> FoundObject:
    """Return the object of a mask that covers a window of the image. The part outside the image is cut off.

    Args:
        name: of the class.
        mask: bool (h, w).
        left, top: the window's first column and row.
        size: width and height of the image.

    Raises MistakeError if no pixel remains.
    """
    width, height = size
    mask = mask[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    left, top = max(0, left), max(0, top)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise MistakeError(f"mask without a pixel in an image of {width} x {height}")
    runs = from_columns(np.pad(mask.T, ((0, 0), (1, 0))), top, left, (height, width))
    box = [left + columns[0], top + rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return FoundObject(name, [float(value) for value in box], float(mask.sum()), segmentation=runs)
