"""COCO's annotation JSON: reading it, and finding the annotations that can't be used.

Source: Lin et al., *Microsoft COCO: Common Objects in Context* (2014), https://cocodataset.org/#format-data.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from convnext.data.run_lengths import Segmentation
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name

_KEYS: dict[str, tuple[str, ...]] = {"images": ("id", "file_name", "height", "width"), "annotations": (), "categories": ("id", "name")}


class CocoImage(TypedDict):
    """An entry of the list `images`."""

    id: int
    file_name: str
    height: int
    width: int


class CocoCategory(TypedDict):
    """An entry of the list `categories`."""

    id: int
    name: str


class CocoAnnotation(TypedDict):
    """An entry of the list `annotations`: one object."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]  # left, top, width, height in pixels
    area: NotRequired[float]  # pixels
    iscrowd: NotRequired[int]
    segmentation: NotRequired[Segmentation]
    score: NotRequired[float]  # 0 to 1, of an object that a network found


class CocoContent(TypedDict):
    """The whole JSON."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


@dataclass
class CocoFile:
    """The content of an annotation file, checked."""

    images: dict[int, CocoImage]  # by id, in the file's order
    annotations: list[CocoAnnotation]  # the valid ones
    classes: list[str]
    labels: dict[int, int]  # category id → position in `classes`
    problems: list[str] = field(default_factory=list)  # what is wrong with the others, by file and annotation id


def read_coco(file: Path, classes: Sequence[str] | None = None) -> CocoFile:
    """Return the content of an annotation file, its invalid annotations listed as problems.

    Args:
        file: the JSON.
        classes: the class names that the labels count; by default the file's categories in the order of their ids.

    Raises UsageError if there is no such file, ConvnextError if it is not a COCO file or has a category that `classes` lack.
    """
    content = cast(CocoContent, _load(file, _KEYS))  # its annotations are checked below
    images = {image["id"]: image for image in content["images"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    known = [class_name(name) for name in classes] if classes is not None else names
    if unknown := [name for name in names if name not in known]:
        raise ConvnextError(f"{file}: category {unknown[0]!r} is not one of the classes trained on{nearest(unknown[0], known)}")
    found = CocoFile(images, [], known, {category["id"]: known.index(category["name"]) for category in categories})
    seen: set[int] = set()
    for position, annotation in enumerate(content["annotations"]):
        fault = _ids_fault(annotation, found, seen) or _box_fault(annotation, images[annotation["image_id"]])
        fault = fault or _mask_fault(annotation.get("segmentation") or [], images[annotation["image_id"]])
        if fault is None:
            found.annotations.append(annotation)
        else:
            key = annotation.get("id") if isinstance(annotation, dict) else None
            found.problems.append(f"{file}: annotation {key if key is not None else f'without id at position {position}'} {fault}")
    return found


@dataclass(frozen=True)
class CocoIds:
    """A file's ids of its images and categories: all that results need of it."""

    file: Path
    images: list[tuple[str, int]]  # file name and id
    categories: dict[str, int]  # ids by name


def read_ids(file: Path) -> CocoIds:
    """Return the ids of an annotation file, or of one that lists test images without annotations. Raises as `read_coco` does."""
    content = cast(CocoContent, _load(file, {"images": ("id", "file_name"), "categories": ("id", "name")}))
    images = [(image["file_name"], image["id"]) for image in content["images"]]
    return CocoIds(file, images, {category["name"]: category["id"] for category in content["categories"]})


def _load(file: Path, wanted: Mapping[str, tuple[str, ...]]) -> object:
    """Return the JSON after checking that it has the lists `wanted`, and their entries the keys."""
    try:
        with open(file, "rb") as stream:
            content: object = json.load(stream)
    except OSError as error:
        raise UsageError(f"no annotation file {file}: {error.strerror}") from error
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise ConvnextError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        content = {}
    if lacking := [key for key in wanted if not isinstance(content.get(key), list)]:
        raise ConvnextError(f"{file} is not a COCO annotation file: it lacks the list {lacking[0]!r}; it needs {', '.join(wanted)}")
    for kind, keys in wanted.items():
        _check_entries(file, kind, content[kind], keys)
    for category in content["categories"]:
        category["name"] = class_name(category["name"])
    names = [category["name"] for category in content["categories"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConvnextError(f"{file}: two categories are called {twice[0]!r}: rename one, or give their annotations one id")
    return content


def _check_entries(file: Path, kind: str, entries: list[object], keys: tuple[str, ...]) -> None:
    # An annotation of an image or category that is not valid could only be guessed at, so these must all be valid.
    seen: set[object] = set()
    for position, entry in enumerate(entries if keys else ()):
        where = f"{file}: entry {position} of {kind!r}"
        for key in keys:
            wanted = str if key in ("file_name", "name") else int
            if not isinstance(entry, dict) or not isinstance(entry.get(key), wanted):
                raise ConvnextError(f"{where} has no {key!r} that is {'a text' if wanted is str else 'a whole number'}")
        assert isinstance(entry, dict)  # there are keys
        if entry["id"] in seen:
            raise ConvnextError(f"{where} has the id {entry['id']} of an earlier one: give each its own")
        if "height" in keys and min(entry["height"], entry["width"]) < 1:
            raise ConvnextError(f"{where}, id {entry['id']}, is {entry['width']} x {entry['height']} pixels")
        seen.add(entry["id"])


def _ids_fault(annotation: object, found: CocoFile, seen: set[int]) -> str | None:
    """Return what is wrong with an annotation's ids, as a predicate; None if nothing is. Adds its id to `seen`."""
    if not isinstance(annotation, dict):
        return "is not a JSON object"
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


def _box_fault(annotation: CocoAnnotation, image: CocoImage) -> str | None:
    box: object = annotation.get("bbox")
    try:
        x, y, width, height = map(float, box)  # type: ignore[call-overload]  # whatever the file has there
        area = float(annotation.get("area", 0))
    except (TypeError, ValueError):
        return f"has no box of four numbers, or an area that is not a number: {box}, {annotation.get('area')}"
    if not math.isfinite(x + y + width + height + area):
        return f"has a box or area that is not finite: {box}, {area}"
    if width <= 0 or height <= 0:
        return f"has a box without area: {box}"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return f"has a box outside its image of {image['width']} x {image['height']}: {box}"
    return None


def _mask_fault(segmentation: Segmentation, image: CocoImage) -> str | None:
    height, width = image["height"], image["width"]
    try:
        if isinstance(segmentation, list):
            return next((fault for polygon in segmentation if (fault := _polygon_fault(polygon, max(height, width)))), None)
        if segmentation is None:
            return None
        size, counts = segmentation["size"], segmentation["counts"]
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
    # The decoder's memory grows with the polygon's length in pixels: one stray coordinate of 1e9 would exhaust it.
    if min(polygon) < -longest or max(polygon) > 2 * longest:
        return f"has a polygon far outside its image, from {min(polygon):g} to {max(polygon):g}"
    return None
