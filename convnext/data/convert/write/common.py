"""What all writers share: the dataset to write, safe paths and texts, and the account of what a format can't hold."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from convnext.data.annotations.coco_file import CocoAnnotation, CocoContent
from convnext.data.annotations.json_file import MistakeError
from convnext.data.convert.common import FoundImage, FoundObject
from convnext.data.convert.shapes import box_object, clipped
from convnext.data.run_lengths import Segmentation, from_segmentation
from convnext.errors import UsageError
from convnext.text import counted, printable

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
_REMARKS = {  # of what a format can't hold, by kind
    "crowd": "skipped {}: {} has no regions of many objects",
    "mask": "skipped {}: {} has boxes",
    "score": "skipped {}: {} has none",
    "boxed:object": "wrote {} of a box as four corners: the other objects of their images have polygons",
    "joined:object": "{} of several parts or with holes became one polygon each, whose parts are joined by lines of no width",
    "image": "{} could not be linked, missing or within an archive: put them where the format expects them",
    "file name": "{} with characters that XML can't hold: escaped as in Python",
    "invalid object": "skipped {} whose box or mask has no pixel within its image",
}


class TextFile(NamedTuple):
    """A file to write: its path below the output folder, or the ending in place of the output file's ("" for itself), and its text."""

    path: str
    pieces: Iterable[str]


@dataclass
class OutgoingDataset:
    """A dataset to write: COCO's objects, or those that a detector found."""

    images: Callable[[], Iterable[FoundImage]]  # those to write, in order, each with its objects
    categories: Mapping[str, int]  # the classes in order, each with its id in COCO's format
    is_predicted: bool = False
    lost: Counter[str] = field(default_factory=Counter)  # what the format can't hold, by kind
    escaped: set[str] = field(default_factory=set)  # names that the format can't hold as they are

    def objects(self, image: FoundImage, crowds: bool = False) -> Iterator[FoundObject]:
        """Yield the objects of an image. Crowds are skipped, and counted as lost, unless the format has them."""
        for one in image.objects:
            if one.iscrowd and not crowds:
                self.lost["crowd"] += 1
            else:
                yield one

    def remarks(self, kind: str) -> list[str]:
        """Return what a format of that name could not hold, one remark per kind."""
        lost = self.lost | Counter({"file name": len(self.escaped)})
        return [_REMARKS[what].format(counted(count, what.rpartition(":")[2]), kind) for what, count in lost.items() if count]

    def xml(self, text: str) -> str:
        """Return a name as the text of an XML element."""
        return escape(self._xml_characters(text), {"\r": "&#13;"})

    def attribute(self, text: str) -> str:
        """Return a name as the value of an XML attribute, in quotation marks."""
        return quoteattr(self._xml_characters(text))

    def _xml_characters(self, text: str) -> str:
        found = _NOT_XML.sub(lambda match: printable(match[0]).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff"), text)
        if found != text:
            self.escaped.add(text)
        return found


def below(file_name: str, ending: str | None = None) -> str:
    """Return the path of an image below an output folder, or with another ending that of the file that describes it.

    Raises MistakeError for a name without a part that can be a file's.
    """
    parts = [part for part in PurePosixPath(file_name).parts if part not in ("/", "..")]
    if not parts or "\0" in file_name:
        raise MistakeError(f"an image has the name {file_name!r}: name its file")
    path = PurePosixPath(*parts)
    return (path if ending is None else path.with_suffix(ending)).as_posix()


def refuse_clashes(images: Iterable[tuple[str, str]], ending: str) -> None:
    """Raise UsageError if two images would have one name in the dataset, or be described by one file.

    Args:
        images: each with what an error calls it, and its file name.
        ending: of the file per image; "" if one file describes all.
    """
    owners: dict[str, str] = {}
    for name, file_name in images:
        path = below(file_name, ending) if ending else file_name
        if (other := owners.setdefault(path, name)) != name:
            raise UsageError(f"{other} and {name} would both be {path} in the dataset: rename one, or write two datasets")


def images_of(content: CocoContent, folder: Path, mistakes: list[str]) -> Iterator[FoundImage]:
    r"""Yield the images of a COCO file's valid content with their objects, cut at the image's borders, masks as compressed run lengths.

    A file name with \ means folders, unless there is such a file. Objects of which nothing remains, and masks that can't be decoded, are
    added to `mistakes`.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image: dict[int, list[CocoAnnotation]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for about in content["images"]:
        name = about["file_name"]
        if "\\" in name and not os.path.exists(folder / name):
            name = name.replace("\\", "/")
        try:
            below(name)
            image = FoundImage(name, about["width"], about["height"], key=about["id"], path=folder / name)
        except MistakeError as mistake:
            mistakes.append(str(mistake))
            continue
        for annotation in by_image.get(about["id"], ()):
            try:
                image.objects.append(_object(annotation, names[annotation["category_id"]], image))
            except (MistakeError, ValueError, RuntimeError) as error:
                mistakes.append(f"annotation {annotation['id']}: {error}")
        yield image


def _object(annotation: CocoAnnotation, name: str, image: FoundImage) -> FoundObject:
    size = (image.width, image.height)
    left, top, width, height = map(float, annotation["bbox"])
    one = box_object(name, (left, top, left + width, top + height), size, int(bool(annotation.get("iscrowd"))))
    one.segmentation = _within(annotation.get("segmentation"), image)
    one.area = float(annotation.get("area") or one.area)
    score = annotation.get("score")
    one.score = float(score) if isinstance(score, int | float) else None
    return one


def _within(segmentation: Segmentation, image: FoundImage) -> Segmentation:
    if not segmentation:
        return None
    size = (image.width, image.height)
    if isinstance(segmentation, dict):
        return from_segmentation(segmentation, image.height, image.width)
    parts = [clipped(list(zip(polygon[0::2], polygon[1::2], strict=True)), size) for polygon in segmentation]
    if not (kept := [[value for point in part for value in point] for part in parts if len(part) > 2]):
        raise MistakeError("no polygon lies within its image")
    return kept
