"""COCO's results: detections as a JSON list, with the ids of the annotation file that they will be compared with.

Source: https://cocodataset.org/#format-results.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from convnext.data.annotations.coco_file import CocoIds, read_ids
from convnext.errors import UsageError, nearest
from convnext.inference.answers import PredictsFor
from convnext.models.weights.files import write_atomically
from convnext.tasks.base import ClassIds, Json
from convnext.text import counted

log = logging.getLogger("convnext")

ImageId = int | str

_OWN_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})")  # of COCO's images: 000000000139.jpg, COCO_val2014_000000000139.jpg
_NAMED = 5  # images listed in an error message


def write_results(path: Path, objects: Iterable[Mapping[str, object]]) -> None:
    """Write the JSON list of results, one object per line, all of it or nothing."""

    def write(file_path: Path) -> None:
        with file_path.open("w", encoding="utf-8") as file:
            file.write("[")
            file.writelines(("," if i else "") + "\n" + json.dumps(one, allow_nan=False) for i, one in enumerate(objects))
            file.write("\n]\n")

    write_atomically(path, write)


def category_ids(classes: Sequence[str], class_ids: ClassIds | None, listed: CocoIds | None) -> dict[str, int]:
    """Return the category id of each class: the annotation file's, by name; else that of the weights; else its index, from 1.

    Raises UsageError if the annotation file lacks a class.
    """
    if listed is not None:
        if missing := [name for name in classes if name not in listed.categories]:
            others = f" and {len(missing) - 1} more of the network's classes" if len(missing) > 1 else ""
            raise UsageError(
                f"{listed.file} has no category {missing[0]!r}{others}{nearest(missing[0], listed.categories)}: "
                "name its categories as the network's classes"
            )
        return {name: listed.categories[name] for name in classes}
    ids = [number for number in class_ids or () if isinstance(number, int)]
    return dict(zip(classes, ids if len(ids) == len(classes) else range(1, len(classes) + 1), strict=True))


def ids_of(predictor: PredictsFor, annotations: Path | None) -> tuple[CocoIds | None, dict[str, int]]:
    """Return the ids of the annotation file, if one is named, and the category id of each class of the network.

    Raises UsageError or ConvnextError if the file can't be read or lacks a class.
    """
    listed = None if annotations is None else read_ids(annotations)
    return listed, category_ids(predictor.classes, predictor.class_ids, listed)


def box_of(found: Json) -> list[float]:
    """Return the box of an object of a JSON line as COCO has it: left, top, width, height, in hundredths of a pixel."""
    left, top, right, bottom = cast(list[float], found["box"])
    return [left, top, round(right - left, 2), round(bottom - top, 2)]


def image_ids(names: Iterable[str], listed: CocoIds | None) -> dict[str, ImageId]:
    """Return the image id of each image, by its name in the outputs: the annotation file's, by file name, or else one from the name.

    The name without folders and ending is the id: as a number if it is one (000000000139.jpg is 139), else as text.

    Raises UsageError if the annotation file does not list an image, or two images would have one id.
    """
    names = list(names)
    ids = _listed_ids(names, listed) if listed is not None else {name: _id_in(name) for name in names}
    owners: dict[ImageId, str] = {}
    for name, key in ids.items():
        if (other := owners.setdefault(key, name)) != name:
            remedy = "predict each into its own file" if listed is not None else "name the file that lists them with --annotations FILE"
            raise UsageError(f"{other} and {name} would both be image {key}: {remedy}")
    return ids


def remark(path: Path, ids: Mapping[str, ImageId], listed: CocoIds | None) -> None:
    """Warn if image ids are guesses, as for all names but COCO's, and if images of the annotation file are missing."""
    if listed is None and not all(_OWN_NAME.fullmatch(_stem(name)) for name in ids):
        log.warning(
            "%s: its image ids are taken from the file names, and match those of an annotation file only by chance; "
            "--annotations FILE uses the file's",
            path,
        )
    if listed is not None and (absent := len({key for _, key in listed.images} - set(ids.values()))):
        which = f"{counted(absent, 'image')} that {'is' if absent == 1 else 'are'} not predicted here"
        log.warning("%s lists %s: an evaluation counts their objects as missed", listed.file, which)


def _id_in(name: str) -> ImageId:
    stem = _stem(name)
    own = _OWN_NAME.fullmatch(stem)
    return int(own[1]) if own else int(stem) if stem.isdecimal() else stem


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _listed_ids(names: Sequence[str], listed: CocoIds) -> dict[str, ImageId]:
    """Return ids by the file's `file_name` where it is the end of the image's path; else by base name, if only one has it."""
    by_base: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for path, key in listed.images:
        by_base.setdefault(_parts(path)[-1], []).append((_parts(path), key))
    ids: dict[str, ImageId] = {}
    unknown: list[str] = []
    for name in names:
        parts = _parts(name)
        same = by_base.get(parts[-1], [])
        ends = [(path, key) for path, key in same if parts[-len(path) :] == path]
        longest = max((len(path) for path, _ in ends), default=0)
        found = [key for path, key in ends if len(path) == longest] or [key for _, key in same]
        if len(found) > 1:
            raise UsageError(f"{name} could be any of {len(found)} images of that name in {listed.file}: predict within its folders")
        if found:
            ids[name] = found[0]
        else:
            unknown.append(name)
    if unknown:
        some = ", ".join(unknown[:_NAMED]) + (f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else "")
        raise UsageError(f"{listed.file} does not list {some}: predict the images that it lists, or omit --annotations")
    return ids


def _parts(path: str) -> tuple[str, ...]:
    """Return the folders and the name of a path of any system, in one Unicode form."""
    parts = PurePosixPath(unicodedata.normalize("NFC", path.replace("\\", "/"))).parts
    return tuple(part for part in parts if part not in ("/", ".")) or ("",)
