"""Steps that all conversions share: images with their objects become COCO's JSON, and the mistakes of all files are reported together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convnext.data.annotations.coco_file import CocoAnnotation, CocoContent
from convnext.errors import ConvnextError

_REPORTED = 5  # mistakes in an error's message


class MistakeError(Exception):
    """A mistake in an annotation file; `str()` of it is the file, the line and what is wrong."""


@dataclass
class FoundObject:
    """One annotated object."""

    class_name: str
    bbox: list[float]  # left, top, width, height in pixels
    area: float  # pixels
    iscrowd: int = 0
    polygon: list[float] | None = None  # x, y, x, y, … in pixels


@dataclass
class FoundImage:
    """One image's annotations."""

    file_name: str
    width: int
    height: int
    objects: list[FoundObject] = field(default_factory=list)


def read_all(files: Iterable[Path], read: Callable[[Path], FoundImage]) -> list[FoundImage]:
    """Return what `read` returns for each file. Raises ConvnextError that lists the first mistakes of all files."""
    found, mistakes = [], []
    for path in files:
        try:
            found.append(read(path))
        except MistakeError as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        more = f"; … {len(mistakes)} files in all" if len(mistakes) > _REPORTED else ""
        raise ConvnextError("; ".join(mistakes[:_REPORTED]) + more)
    return found


def to_coco(found: Sequence[FoundImage], names: Sequence[str | None]) -> CocoContent:
    """Return the content of a COCO file. Classes get ids from 1 in the order of `names`; None is a number without a class."""
    number = {name: i for i, name in enumerate(names, 1) if name is not None}
    objects = [(i, one) for i, image in enumerate(found, 1) for one in image.objects]
    return {
        "images": [{"id": i, "file_name": one.file_name, "width": one.width, "height": one.height} for i, one in enumerate(found, 1)],
        "annotations": [_annotation(i, image_id, number[one.class_name], one) for i, (image_id, one) in enumerate(objects, 1)],
        "categories": [{"id": i, "name": name} for name, i in number.items()],
    }


def _annotation(key: int, image_id: int, category_id: int, found: FoundObject) -> CocoAnnotation:
    annotation: CocoAnnotation = {
        "id": key,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": found.bbox,
        "area": found.area,
        "iscrowd": found.iscrowd,
    }
    if found.polygon is not None:
        annotation["segmentation"] = [found.polygon]
    return annotation


def box_object(class_name: str, left: float, top: float, right: float, bottom: float, iscrowd: int = 0) -> FoundObject:
    """Return an object that fills its box, given by its edges in pixels."""
    return FoundObject(class_name, [left, top, right - left, bottom - top], (right - left) * (bottom - top), iscrowd)
