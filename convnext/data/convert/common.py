"""Steps that all conversions share: images with their objects become COCO's JSON, and everything skipped is counted and reported."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from convnext.data.annotations.coco_file import CocoAnnotation, CocoContent
from convnext.data.annotations.json_file import MistakeError
from convnext.data.run_lengths import Segmentation
from convnext.errors import ConvnextError
from convnext.text import counted

_REPORTED = 5  # mistakes that are listed
_MAX_PIXELS = 1 << 30


@dataclass
class FoundObject:
    """One annotated object."""

    class_name: str
    bbox: list[float]  # left, top, width, height in pixels
    area: float  # pixels
    iscrowd: int = 0
    segmentation: Segmentation = None
    score: float | None = None  # 0 to 1, of an object that a network found


@dataclass
class FoundImage:
    """One image's annotations. Raises MistakeError for a size that no image has: memory for masks depends on it."""

    file_name: str
    width: int
    height: int
    objects: list[FoundObject] = field(default_factory=list)
    key: int | None = None  # the image's id in a COCO file; by default its position, from 1
    path: Path | None = None  # the image's own file, if it has one

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or self.width * self.height > _MAX_PIXELS:
            raise MistakeError(f"{self.file_name}: an image of {self.width} x {self.height} pixels")


class Converted(NamedTuple):
    """What a conversion gives: the content of a COCO file, and what to report to the user, one remark per line."""

    content: CocoContent
    remarks: list[str]


@dataclass
class Conversion:
    """What a conversion has found so far."""

    images: list[FoundImage] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)  # what was skipped, an object, an image or a file: each by place and reason
    others: Counter[str] = field(default_factory=Counter)  # annotations that are no objects, by kind
    notes: list[str] = field(default_factory=list)  # further remarks
    owners: dict[str, str] = field(default_factory=dict)  # what annotates an image, by its file name

    def add(self, image: FoundImage, owner: str) -> None:
        """Add an image that `owner`, a file or part of one, annotates. Raises MistakeError if another one annotates it too."""
        if (other := self.owners.setdefault(image.file_name, owner)) != owner:
            raise MistakeError(f"{image.file_name} is annotated in {other} too")
        self.images.append(image)

    @contextmanager
    def skipping(self, where: str = "") -> Iterator[None]:
        """Note a MistakeError of the block, and continue after it."""
        try:
            yield
        except MistakeError as mistake:
            self.mistakes.append(f"{where}: {mistake}" if where else str(mistake))

    def names(self, first: Iterable[str] = ()) -> list[str]:
        """Return the classes: those of `first`, then those of other objects, sorted."""
        listed = list(dict.fromkeys(first))
        return listed + sorted({one.class_name for image in self.images for one in image.objects} - set(listed))

    def converted(self, names: Sequence[str | None]) -> Converted:
        """Return the content of a COCO file. Classes get ids from 1 in the order of `names`; None is a number without a class.

        Raises ConvnextError if there are more mistakes than objects: such annotations are of another kind than the user believes.
        """
        number = {name: i for i, name in enumerate(names, 1) if name is not None}
        objects = [(i, one) for i, image in enumerate(self.images, 1) for one in image.objects]
        if len(self.mistakes) > len(objects):
            raise ConvnextError("; ".join(self.mistakes[:_REPORTED]) + self._more("; "))
        if self.others and not objects:
            raise ConvnextError(f"there are no objects: {self._others()}")
        content: CocoContent = {
            "images": [
                {"id": i, "file_name": one.file_name, "width": one.width, "height": one.height} for i, one in enumerate(self.images, 1)
            ],
            "annotations": [coco_annotation(i, image_id, number[one.class_name], one) for i, (image_id, one) in enumerate(objects, 1)],
            "categories": [{"id": i, "name": name} for name, i in number.items()],
        }
        return Converted(content, self._remarks(objects))

    def _remarks(self, objects: Sequence[tuple[int, FoundObject]]) -> list[str]:
        found = list(self.notes)
        if self.others:
            found.append(f"skipped what is no object: {self._others()}")
        found += [f"skipped {mistake}" for mistake in self.mistakes[:_REPORTED]]
        if more := self._more():
            found.append(more)
        boxes = sum(not one.segmentation for _, one in objects)
        if 0 < boxes < len(objects):
            found.append(f"{boxes} of {counted(len(objects), 'object')} have a box and no mask: data.masks_from_boxes=true takes the box")
        return found

    def _others(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))

    def _more(self, before: str = "") -> str:
        return f"{before}… {len(self.mistakes)} mistakes in all" if len(self.mistakes) > _REPORTED else ""


def coco_annotation(key: int, image_id: int, category_id: int, found: FoundObject) -> CocoAnnotation:
    """Return an object as an entry of a COCO file's list `annotations`."""
    annotation: CocoAnnotation = {
        "id": key,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": found.bbox,
        "area": found.area,
        "iscrowd": found.iscrowd,
    }
    if found.segmentation is not None:
        annotation["segmentation"] = found.segmentation
    if found.score is not None:
        annotation["score"] = found.score
    return annotation
