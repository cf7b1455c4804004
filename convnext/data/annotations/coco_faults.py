"""What is wrong with an annotation of a COCO file, as a predicate for messages ("has a box without area"); None if nothing is."""

import math
from collections.abc import Container
from typing import cast

from convnext.data.run_lengths import RunCounts, Segmentation, lengths

_SMALL = 4  # pixels a side: in an image of more, a box of less than one pixel at the corner is one in parts of the image


def ids_fault(annotation: object, images: Container[int], categories: Container[int]) -> str | None:
    """Return what is wrong with the ids of an annotation's image and category; `images` and `categories` are those of the file."""
    if not isinstance(annotation, dict):
        return "is not a JSON object"
    for key in ("image_id", "category_id"):
        if not is_whole(annotation.get(key)):
            return f"has no {key!r} that is a whole number"
    if annotation["image_id"] not in images:
        return f"is of image {annotation['image_id']}, which the file does not list"
    if annotation["category_id"] not in categories:
        return f"is of category {annotation['category_id']}, which the file does not list"
    if annotation.get("iscrowd") not in (None, 0, 1):
        return f"has an 'iscrowd' of {annotation['iscrowd']!r}, which is neither 0 nor 1"
    return None


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, also as 1.0."""
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def box_fault(box: object, area: object, image_width: int, image_height: int) -> str | None:
    """Return what is wrong with a box and an area, which may be None, as the file has them."""
    try:
        x, y, width, height = map(float, box)  # type: ignore[call-overload]  # whatever the file has there
        number = float(0 if area is None else area)  # type: ignore[arg-type]  # likewise
    except (TypeError, ValueError):
        return f"has no box of four numbers, or an area that is not a number: {box}, {area}"
    if not math.isfinite(x + y + width + height + number):
        return f"has a box or area that is not finite: {box}, {area}"
    if width <= 0 or height <= 0:
        return f"has a box without area: {box}"
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return f"has a box outside its image of {image_width} x {image_height}: {box}"
    if min(x, y) >= 0 and max(x, y, width, height) <= 1 and max(image_width, image_height) > _SMALL:
        return f"has a box in parts of its image, not in pixels: {box}; multiply it by its image's {image_width} x {image_height}"
    return None


def mask_fault(segmentation: Segmentation, image_width: int, image_height: int) -> tuple[str | None, Segmentation]:
    """Return what is wrong with a mask, and what remains of it: the valid ones of its polygons, or None."""
    try:
        if isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if not isinstance(polygon, list) or polygon]
            faults = [_polygon_fault(polygon, max(image_height, image_width)) for polygon in polygons]
            kept = [polygon for polygon, fault in zip(polygons, faults, strict=True) if fault is None]
            return next((fault for fault in faults if fault), None), kept or None
        if not segmentation:
            return None, None
        fault = _runs_fault(cast(RunCounts, segmentation), image_width, image_height)
        return fault, None if fault else segmentation
    except (TypeError, KeyError, IndexError, ValueError):
        return "has a segmentation that is neither polygons nor run lengths", None


def _runs_fault(segmentation: RunCounts, width: int, height: int) -> str | None:
    size, counts = segmentation["size"], segmentation["counts"]
    if list(size) != [height, width]:
        return f"has a mask of {size[1]} x {size[0]}, its image is {width} x {height}"
    if not isinstance(counts, (list, str)):
        return "has a mask whose counts are neither a list nor a text"
    if isinstance(counts, list) and (min(counts) < 0 or sum(counts) != height * width):
        return f"has a mask whose runs cover {sum(counts)} of the image's {height * width} pixels"
    if isinstance(counts, str) and not _covers(counts, height, width):
        return f"has a damaged mask: its runs do not cover the image's {height * width} pixels"
    return None


def _covers(counts: str, height: int, width: int) -> bool:
    try:
        return int(lengths({"size": [height, width], "counts": counts}).sum()) == height * width
    except (IndexError, ValueError):  # of a text that ends within a number
        return False


def _polygon_fault(polygon: list[float], longest: int) -> str | None:
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has a polygon of {len(polygon)} numbers: three points or more have six or more"
    if not math.isfinite(sum(polygon)):
        return "has a polygon with a number that is not finite"
    # The decoder's memory grows with the polygon's length in pixels: one stray coordinate of 1e9 would exhaust it.
    if min(polygon) < -longest or max(polygon) > 2 * longest:
        return f"has a polygon far outside its image, from {min(polygon):g} to {max(polygon):g}"
    return None
