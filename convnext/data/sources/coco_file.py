"""Reading COCO's annotation JSON, and finding what in it can't be used.

Source: Lin et al., *Microsoft COCO: Common Objects in Context* (2014), https://cocodataset.org/#format-data.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name

_KEYS: dict[str, tuple[str, ...]] = {"images": ("id", "file_name", "height", "width"), "annotations": (), "categories": ("id", "name")}


@dataclass
class CocoFile:
    """What an annotation file holds, checked."""

    images: dict[int, dict[str, Any]]  # by id, in the file's order
    annotations: list[dict[str, Any]]  # those that can be used
    classes: list[str]
    labels: dict[int, int]  # category id → position in `classes`
    problems: list[str] = field(default_factory=list)  # why others can't be used, by file and annotation id


def read_coco(file: Path, classes: Sequence[str] | None = None) -> CocoFile:
    """Read an annotation file, and sort out the annotations that can't be used.

    Args:
        file: the JSON.
        classes: the class names that the labels count; by default the file's categories in the order of their ids.

    Raises UsageError if there is no such file, ConvnextError if it is no COCO file or has a category that is none of `classes`.
    """
    content = _load(file, _KEYS)
    images = {image["id"]: image for image in content["images"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    known = [class_name(name) for name in classes] if classes is not None else names
    if unknown := [name for name in names if name not in known]:
        raise ConvnextError(f"{file}: category {unknown[0]!r} is none of the classes trained on{nearest(unknown[0], known)}")
    found = CocoFile(images, [], known, {category["id"]: known.index(category["name"]) for category in categories})
    seen: set[int] = set()
    for place, annotation in enumerate(content["annotations"]):
        fault = _ids_fault(annotation, found, seen) or _box_fault(annotation, images[annotation["image_id"]])
        fault = fault or _outline_fault(annotation.get("segmentation") or [], images[annotation["image_id"]])
        if fault is None:
            found.annotations.append(annotation)
        else:
            key = annotation.get("id") if isinstance(annotation, dict) else None
            found.problems.append(f"{file}: annotation {key if key is not None else f'without id in place {place}'} {fault}")
    return found


@dataclass(frozen=True)
class CocoIds:
    """How a file calls its images and categories: all that results need of it."""

    file: Path
    images: list[tuple[str, int]]  # file name and id
    categories: dict[str, int]  # ids by name


def read_ids(file: Path) -> CocoIds:
    """The ids of an annotation file, or of one that lists images to test on, without annotations. Raises as `read_coco` does."""
    content = _load(file, {"images": ("id", "file_name"), "categories": ("id", "name")})
    images = [(image["file_name"], image["id"]) for image in content["images"]]
    return CocoIds(file, images, {category["name"]: category["id"] for category in content["categories"]})


def _load(file: Path, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            content = json.load(stream)
    except OSError as error:
        raise UsageError(f"no annotation file {file}: {error.strerror}") from error
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise ConvnextError(f"{file} is no JSON: {error}") from error
    if lacking := [key for key in wanted if not (isinstance(content, dict) and isinstance(content.get(key), list))]:
        raise ConvnextError(f"{file} is no COCO annotation file: it lacks the list {lacking[0]!r}; needed are {', '.join(wanted)}")
    for kind, keys in wanted.items():
        _check_entries(file, kind, content[kind], keys)
    for category in content["categories"]:
        category["name"] = class_name(category["name"])
    names = [category["name"] for category in content["categories"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConvnextError(f"{file}: two categories are called {twice[0]!r}: rename one, or give their annotations one id")
    return content


def _check_entries(file: Path, kind: str, entries: list[Any], keys: tuple[str, ...]) -> None:
    # Whatever refers to an image or category that is not sound would be guessed: no training on that.
    seen: set[int] = set()
    for place, entry in enumerate(entries if keys else ()):
        where = f"{file}: entry {place} of {kind!r}"
        for key in keys:
            wanted = str if key in ("file_name", "name") else int
            if not isinstance(entry, dict) or not isinstance(entry.get(key), wanted):
                raise ConvnextError(f"{where} has no {key!r} that is {'a text' if wanted is str else 'a whole number'}")
        if entry["id"] in seen:
            raise ConvnextError(f"{where} has the id {entry['id']} of an earlier one: give each its own")
        if "height" in keys and min(entry["height"], entry["width"]) < 1:
            raise ConvnextError(f"{where}, id {entry['id']}, is {entry['width']} x {entry['height']} pixels")
        seen.add(entry["id"])


def _ids_fault(annotation: Any, found: CocoFile, seen: set[int]) -> str | None:
    if not isinstance(annotation, dict):
        return "is no JSON object"
    for key in ("id", "image_id", "category_id"):
        if not isinstance(annotation.get(key), int):
            return f"has no {key!r} that is a whole number"
    if annotation["id"] in seen:
        return "has the id of an earlier one"
    seen.add(annotation["id"])
    if annotation["image_id"] not in found.images:
        return f"is of image {annotation['image_id']}, which the file does not list"
    if annotation["category_id"] not in found.labels:
        return f"is of category {annotation['category_id']}, which the file does not list"
    return None


def _box_fault(annotation: dict[str, Any], image: dict[str, Any]) -> str | None:
    box = annotation.get("bbox")
    try:
        x, y, width, height = map(float, box)  # type: ignore[arg-type]
        area = float(annotation.get("area", 0))
    except (TypeError, ValueError):
        return f"has no box of four numbers, or an area that is none: {box}, {annotation.get('area')}"
    if not math.isfinite(x + y + width + height + area):
        return f"has a box or area that is not finite: {box}, {area}"
    if width <= 0 or height <= 0:
        return f"has a box without area: {box}"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return f"has a box outside its image of {image['width']} x {image['height']}: {box}"
    return None


def _outline_fault(outline: Any, image: dict[str, Any]) -> str | None:
    height, width = image["height"], image["width"]
    try:
        if isinstance(outline, list):
            return next((fault for polygon in outline if (fault := _polygon_fault(polygon, max(height, width)))), None)
        size, counts = outline["size"], outline["counts"]
        if list(size) != [height, width]:
            return f"has a mask of {size[1]} x {size[0]}, its image is {width} x {height}"
        if isinstance(counts, list) and (min(counts) < 0 or sum(counts) != height * width):
            return f"has a mask whose runs cover {sum(counts)} of the image's {height * width} pixels"
        if not isinstance(counts, (list, str)):
            return "has a mask whose counts are neither a list nor a text"
    except (TypeError, KeyError, IndexError, ValueError):
        return "has a segmentation that is neither polygons nor run lengths"
    return None


def _polygon_fault(polygon: list[float], longest: int) -> str | None:
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has a polygon of {len(polygon)} numbers: three points or more have six or more"
    if not math.isfinite(sum(polygon)):
        return "has a polygon with a number that is not finite"
    # The decoder's memory grows with the outline's length: one stray coordinate of 1e9 would take all there is.
    if min(polygon) < -longest or max(polygon) > 2 * longest:
        return f"has a polygon far outside its image, from {min(polygon):g} to {max(polygon):g}"
    return None
