"""COCO's annotation JSON: reading it, and finding the annotations that can't be used.

Source: Lin et al., *Microsoft COCO: Common Objects in Context* (2014), https://cocodataset.org/#format-data.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np

from convnext.data.annotations.choices import EVERYTHING, Choices
from convnext.data.annotations.coco_faults import box_fault, ids_fault, is_whole, mask_fault
from convnext.data.annotations.json_file import read_json
from convnext.data.run_lengths import RunLengths, Segmentation, lengths
from convnext.errors import ConvnextError, UsageError, nearest, nearest_path
from convnext.text import class_name, counted

_KEYS: dict[str, tuple[str, ...]] = {"images": ("id", "file_name", "height", "width"), "annotations": (), "categories": ("id", "name")}
_MAX_BYTES = 4 << 30  # of a file: the largest public ones have some 2 GB
_MAX_SIDE = 1 << 20  # pixels
_MAX_ID = 1 << 62


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
    area: NotRequired[float | None]  # pixels
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
    classes: list[str]
    labels: dict[int, int]  # category id → position in `classes`, of the categories that are used
    category_ids: dict[str, int]  # class → category id; of several that a class unites, that of its name, or else the first
    count: int  # annotations in the file
    annotations: list[CocoAnnotation] = field(default_factory=list)  # the valid ones of the used categories
    invalid: list[str] = field(default_factory=list)  # what is wrong with those that are not, by file and annotation id
    corrected: list[str] = field(default_factory=list)  # what is wrong with those of which a part is used, likewise
    remarks: list[str] = field(default_factory=list)  # what else to report to the user, one per line


def read_coco(file: Path, classes: Sequence[str] | None = None, choices: Choices = EVERYTHING) -> CocoFile:
    """Return the content of an annotation file, with what is wrong with its invalid annotations.

    Args:
        file: the JSON.
        classes: the class names that the labels count; by default those of `choices`, or else the file's categories in the order of
            their ids.
        choices: the categories to use. Annotations of others are dropped and counted.

    Raises UsageError if there is no such file or it lacks a chosen category, ConvnextError if it is not a COCO file or has a category
    that `classes` lack.
    """
    content = cast(CocoContent, _load(file, _KEYS))  # its annotations are checked below
    found = _with_classes(file, content, classes, choices)
    categories = {category["id"]: category["name"] for category in content["categories"]}
    others: Counter[str] = Counter()
    for position, (annotation, key) in enumerate(zip(content["annotations"], _own_ids(content["annotations"]), strict=True)):
        where = f"{file}: annotation {key if key is not None else f'at position {position}'}"
        if (fault := ids_fault(annotation, found.images, categories)) is not None:
            found.invalid.append(f"{where} {fault}")
        elif annotation["category_id"] not in found.labels:
            others[categories[annotation["category_id"]]] += 1
        else:
            _add(found, annotation if key is not None else annotation | {"id": -1 - position}, where)
    if without := sum(annotation["id"] < 0 for annotation in found.annotations):
        found.remarks.append(f"{file}: numbered {without} of {counted(found.count, 'annotation')} anew, whose id is missing or repeated")
    if others:
        some = ", ".join(f"{name} {count}" for name, count in others.most_common(5)) + (" …" if len(others) > 5 else "")
        found.remarks.append(f"{file}: dropped {counted(others.total(), 'object')} of other categories than the chosen classes: {some}")
    return found


def annotation_name(key: int) -> str:
    """Return what messages call an annotation of `CocoFile`; an id below 0 says the position of one without an id of its own."""
    return f"annotation {key if key >= 0 else f'at position {-1 - key}'}"


def area_of(annotation: CocoAnnotation) -> float:
    """Return an object's area in pixels: the file's, or else that of its mask, by the shoelace formula for polygons, or of its box."""
    if (area := annotation.get("area")) is not None:
        return float(area)
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return float(annotation["bbox"][2]) * float(annotation["bbox"][3])
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return float(sum(counts[1::2]) if isinstance(counts, list) else lengths(cast(RunLengths, segmentation))[1::2].sum())
    points = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    return float(sum(abs(np.dot(one[:, 0], np.roll(one[:, 1], -1)) - np.dot(one[:, 1], np.roll(one[:, 0], -1))) / 2 for one in points))


def _own_ids(annotations: Sequence[object]) -> Iterator[int | None]:
    """Yield the id of each annotation; None where it is missing, is not a number, or is that of an earlier one."""
    seen: set[int] = set()
    for annotation in annotations:
        key = annotation.get("id") if isinstance(annotation, dict) else None
        if not isinstance(key, int) or not 0 <= key < _MAX_ID or key in seen:
            yield None
        else:
            seen.add(key)
            yield key


def _add(found: CocoFile, annotation: CocoAnnotation, where: str) -> None:
    """Add an annotation whose ids are valid, without the invalid ones of its polygons, or what is wrong with it."""
    image = found.images[annotation["image_id"]]
    width, height = image["width"], image["height"]
    if (fault := box_fault(annotation.get("bbox"), annotation.get("area"), width, height)) is not None:
        found.invalid.append(f"{where} {fault}")
        return
    given = annotation.get("segmentation")
    fault, kept = mask_fault(given, width, height)
    if fault is not None and kept is None:
        found.invalid.append(f"{where} {fault}")
        return
    if fault is not None:
        found.corrected.append(f"{where} {fault}; its other polygons are used")
    if isinstance(given, list) and kept != given:
        annotation = annotation | {"segmentation": kept}
    found.annotations.append(annotation)


def _with_classes(file: Path, content: CocoContent, classes: Sequence[str] | None, choices: Choices) -> CocoFile:
    """Return the content without annotations, its categories matched with the classes."""
    known = [class_name(name) for name in classes] if classes is not None else choices.names or None
    categories, remarks = _one_of_a_name(file, content, known if not choices.classes else None)
    names = [category["name"] for category in categories]
    known = names if known is None else known
    unites = {own: name for name, every in choices.classes for own in every}
    if classes is None and (unknown := [own for own in unites if own not in names]):
        raise UsageError(f"data.classes: {file} has no category {unknown[0]!r}{nearest(unknown[0], names)}")
    wanted = list(unites.values()) if choices.classes else names
    if other := [name for name in wanted if name not in known]:
        hint = f"{nearest(other[0], known)}; to use some categories only, name them at the end of the data's name, as in :classes=car,bus"
        raise ConvnextError(f"{file}: category {other[0]!r} is not one of the classes trained on{hint if not choices.classes else ''}")
    chosen = {category["id"]: unites.get(category["name"]) if unites else category["name"] for category in categories}
    labels = {key: known.index(name) for key, name in chosen.items() if name is not None}
    ids: dict[str, int] = {}
    for category in categories:
        if (name := chosen[category["id"]]) is not None and (name not in ids or name == category["name"]):
            ids[name] = category["id"]
    images = {image["id"]: image for image in content["images"]}
    return CocoFile(images, known, labels, ids, len(content["annotations"]), remarks=remarks)


def _one_of_a_name(file: Path, content: CocoContent, known: Container[str] | None) -> tuple[list[CocoCategory], list[str]]:
    """Return the categories in the order of their ids, and what to report of those that are ignored.

    A category without an annotation is ignored if another one has its name, as Roboflow's root may, or if it is not `known`.
    Raises ConvnextError if two with annotations have one name.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    annotations: Sequence[object] = content.get("annotations") or ()
    used = {one.get("category_id") for one in annotations if isinstance(one, dict) and is_whole(one.get("category_id"))}
    kept: list[CocoCategory] = []
    remarks: list[str] = []
    for category in categories:
        name, is_used = category["name"], category["id"] in used
        twin = next((one for one in categories if one is not category and one["name"] == name), None)
        if twin is not None and (is_used == (twin["id"] in used)):
            raise ConvnextError(f"{file}: two categories are called {name!r}: rename one, or give their annotations one id")
        if is_used or (twin is None and (known is None or name in known)):
            kept.append(category)
        else:
            why = "another one has its name" if twin is not None else "it is not one of the classes trained on"
            remarks.append(f"{file}: ignored the category {name!r} (id {category['id']}), which has no annotation: {why}")
    return kept, remarks


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
    categories, _ = _one_of_a_name(file, content, None)
    return CocoIds(file, images, {category["name"]: category["id"] for category in categories})


def _load(file: Path, wanted: Mapping[str, tuple[str, ...]]) -> object:
    """Return the JSON after checking that it has the lists `wanted`, and their entries the keys."""
    if not file.is_file():
        raise UsageError(f"no annotation file {file}{nearest_path(file)}")
    content = read_json(file, _MAX_BYTES)
    if not isinstance(content, dict):
        content = {}
    if lacking := [key for key in wanted if not isinstance(content.get(key), list)]:
        raise ConvnextError(f"{file} is not a COCO annotation file: it lacks the list {lacking[0]!r}; it needs {', '.join(wanted)}")
    for kind, keys in wanted.items():
        _check_entries(file, kind, content[kind], keys)
    for category in content["categories"]:
        category["name"] = class_name(category["name"])
    return content


def _check_entries(file: Path, kind: str, entries: list[object], keys: tuple[str, ...]) -> None:
    # An annotation of an image or category that is not valid could only be guessed at, so these must all be valid.
    seen: set[object] = set()
    for position, entry in enumerate(entries if keys else ()):
        where = f"{file}: entry {position} of {kind!r}"
        for key in keys:
            wanted = str if key in ("file_name", "name") else int
            if isinstance(entry, dict) and wanted is int and is_whole(entry.get(key)):
                entry[key] = int(entry[key])  # tables, pandas' for instance, may have made it 1.0
            if not isinstance(entry, dict) or not isinstance(entry.get(key), wanted):
                raise ConvnextError(f"{where} has no {key!r} that is {'a text' if wanted is str else 'a whole number'}")
        assert isinstance(entry, dict)  # there are keys
        if entry["id"] in seen:
            raise ConvnextError(f"{where} has the id {entry['id']} of an earlier one: give each its own")
        if "height" in keys and not 1 <= min(entry["height"], entry["width"]) <= max(entry["height"], entry["width"]) <= _MAX_SIDE:
            raise ConvnextError(f"{where}, id {entry['id']}, is {entry['width']} x {entry['height']} pixels")
        seen.add(entry["id"])
