"""Annotations in Pascal VOC's XML and in YOLO's text files, as COCO's JSON."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from convnext.data.images import size_of
from convnext.data.walk import is_clutter, walk
from convnext.errors import ConvnextError, UsageError, nearest

_TOLD = 5  # mistakes in an error's message, of all there are


class _MistakeError(Exception):
    """A mistake in an annotation file; `str()` of it is the file, the line and what is wrong."""


@dataclass
class _Found:
    """One image's annotations."""

    file_name: str
    width: int
    height: int
    objects: list[dict[str, Any]] = field(default_factory=list)  # `class` and what COCO's annotations have


def voc_to_coco(folder: Path) -> dict[str, Any]:
    """The data set in Pascal VOC's layout as COCO's JSON: `Annotations/*.xml` beside `JPEGImages`, in which the file names are.

    Classes are the objects' names, sorted; difficult objects become crowds, which neither count as found nor as missed. Corners are
    taken as VOC has them, whole pixels counted from 1, the last one included. Images need not be there.

    Raises UsageError if there are no annotations, ConvnextError for mistakes in them, each by file and line.
    """
    files = [path for path in sorted((folder / "Annotations").glob("*.xml")) if not is_clutter(path.name)]
    if not files:
        raise UsageError(f"no annotations {folder / 'Annotations'}/*.xml: the layout is Annotations/NAME.xml and JPEGImages/NAME.jpg")
    found = _all_of(files, _read_voc)
    names = sorted({entry["class"] for image in found for entry in image.objects})
    return _to_coco(found, names)


def yolo_to_coco(images: Path, labels: Path, names: Sequence[str | None]) -> dict[str, Any]:
    """The data set of YOLO's text files as COCO's JSON: `labels/…/NAME.txt` for `images/…/NAME.jpg`, in nested folders too.

    A line is a class, counted from 0, and a box's centre, width and height, or else a polygon's corners, in parts of the image's
    width and height. Images without a text file have no objects.

    Args:
        images: the folder of images; their sizes are read.
        labels: the folder of text files.
        names: the classes' names; None for a number that has none, which no line may use.

    Raises UsageError if a folder is missing or has none, ConvnextError for mistakes, each by file and line.
    """
    for place in (images, labels):
        if not place.is_dir():
            raise UsageError(f"no folder {place}")
    paths = sorted(images / path for path in walk(images).images)
    by_stem = {path.relative_to(images).with_suffix(""): path for path in paths}
    if not by_stem:
        raise UsageError(f"no images in {images}")
    if len(by_stem) < len(paths):
        twice = next(path for path in paths if by_stem[path.relative_to(images).with_suffix("")] != path)
        raise ConvnextError(f"{twice} and another image differ in their ending alone: one label file can't be for both")
    texts = sorted(labels / path for path in walk(labels, (".txt",)).images)
    lists = {path.relative_to(labels).with_suffix(""): path for path in texts if path.name != "classes.txt"}
    if lonely := [path for stem, path in lists.items() if stem not in by_stem]:
        known = [stem.name for stem in by_stem]
        raise ConvnextError(f"{len(lonely)} label files have no image in {images}, the first {lonely[0]}{nearest(lonely[0].stem, known)}")

    def read(path: Path) -> _Found:
        stem = path.relative_to(images).with_suffix("")
        width, height = _upright_size(path)
        objects = list(_read_yolo(lists[stem], names, width, height)) if stem in lists else []
        return _Found(path.relative_to(images).as_posix(), width, height, objects)

    return _to_coco(_all_of(by_stem.values(), read), names)


def _all_of(files: Iterable[Path], read: Any) -> list[_Found]:
    """Read all files, so that all their mistakes are told at once."""
    found, mistakes = [], []
    for path in files:
        try:
            found.append(read(path))
        except _MistakeError as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        more = f"; … {len(mistakes)} files in all" if len(mistakes) > _TOLD else ""
        raise ConvnextError("; ".join(mistakes[:_TOLD]) + more)
    return found


def _to_coco(found: list[_Found], names: Sequence[str | None]) -> dict[str, Any]:
    images = [{"id": i, "file_name": one.file_name, "width": one.width, "height": one.height} for i, one in enumerate(found, 1)]
    objects = [(i, entry) for i, one in enumerate(found, 1) for entry in one.objects]
    number = {name: i for i, name in enumerate(names, 1) if name is not None}
    annotations = [
        {"id": i, "image_id": image_id, "category_id": number[entry["class"]]} | {key: entry[key] for key in entry if key != "class"}
        for i, (image_id, entry) in enumerate(objects, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": i, "name": name} for name, i in number.items()]}


@dataclass
class _Element:
    """An XML element that knows its line, which the standard library's do not."""

    tag: str
    file: Path
    line: int
    text: str = ""
    children: list["_Element"] = field(default_factory=list)

    def child(self, tag: str) -> "_Element":
        for child in self.children:
            if child.tag == tag:
                return child
        raise _MistakeError(f"{self.file}, line {self.line}: <{self.tag}> has no <{tag}>")

    def number(self, tag: str) -> float:
        child = self.child(tag)
        try:
            value = float(child.text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _MistakeError(f"{self.file}, line {child.line}: <{tag}> is no number: {child.text.strip()!r}")
        return value


def _parse_xml(file: Path) -> _Element:
    parser = expat.ParserCreate()
    open_elements = [_Element("", file, 0)]

    def start(tag: str, _: Any) -> None:
        element = _Element(tag, file, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def text(data: str) -> None:
        open_elements[-1].text += data

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_elements.pop()
    parser.CharacterDataHandler = text
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise _MistakeError(f"{file}, line {error.lineno}: {expat.ErrorString(error.code)}") from error
    return open_elements[0].children[0]


def _read_voc(file: Path) -> _Found:
    root = _parse_xml(file)
    size = root.child("size")
    width, height = int(size.number("width")), int(size.number("height"))
    if min(width, height) < 1:
        raise _MistakeError(f"{file}, line {size.line}: the image's size is {width} x {height}")
    found = _Found(root.child("filename").text.strip(), width, height)
    for element in root.children:
        if element.tag == "object":
            box = element.child("bndbox")
            left, top, right, bottom = (box.number(key) for key in ("xmin", "ymin", "xmax", "ymax"))
            if right < left or bottom < top or left > width or top > height or right < 1 or bottom < 1:
                corners = f"{left:g}, {top:g} to {right:g}, {bottom:g}"
                raise _MistakeError(f"{file}, line {box.line}: box from {corners} has no area in an image of {width} x {height}")
            difficult = any(child.tag == "difficult" and child.text.strip() == "1" for child in element.children)
            edges = max(0.0, left - 1), max(0.0, top - 1), min(right, width), min(bottom, height)
            found.objects.append({"class": element.child("name").text.strip()} | _box(*edges) | {"iscrowd": int(difficult)})
    return found


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it, by its header alone."""
    try:
        return size_of(path)
    except Exception as error:  # as in `read_image`: damaged headers raise anything
        raise _MistakeError(f"{path}: not an image that can be read") from error


def _read_yolo(file: Path, names: Sequence[str | None], width: int, height: int) -> Iterator[dict[str, Any]]:
    for line, content in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not content.strip():
            continue
        where = f"{file}, line {line}"
        try:
            label, *values = (float(word) for word in content.split())
        except ValueError as error:
            raise _MistakeError(f"{where}: not numbers alone: {content.strip()!r}") from error
        if label not in range(len(names)):
            raise _MistakeError(f"{where}: class {content.split()[0]}, there are {len(names)}, counted from 0")
        if names[int(label)] is None:
            raise _MistakeError(f"{where}: class {content.split()[0]}, which has no name")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise _MistakeError(f"{where}: {len(values)} numbers after the class: a box has 4, a polygon 6, 8, …")
        if not all(-0.01 <= value <= 1.01 for value in values):  # rounding goes a little beyond the border
            raise _MistakeError(f"{where}: {max(values, key=abs):g} is no part of the image's width or height, which are 0 to 1")
        yield {"class": names[int(label)]} | (_yolo_box if len(values) == 4 else _yolo_polygon)(values, width, height, where)


def _yolo_box(values: list[float], width: int, height: int, where: str) -> dict[str, Any]:
    x, y, w, h = values
    left, right = max(0, (x - w / 2) * width), min(width, (x + w / 2) * width)
    top, bottom = max(0, (y - h / 2) * height), min(height, (y + h / 2) * height)
    if right <= left or bottom <= top:
        raise _MistakeError(f"{where}: a box without area, {w:g} wide and {h:g} high around {x:g}, {y:g}")
    return _box(left, top, right, bottom) | {"iscrowd": 0}


def _yolo_polygon(values: list[float], width: int, height: int, where: str) -> dict[str, Any]:
    xs = [min(max(x, 0), 1) * width for x in values[0::2]]
    ys = [min(max(y, 0), 1) * height for y in values[1::2]]
    # The shoelace formula.
    area = abs(sum(x * y2 - x2 * y for x, y, x2, y2 in zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True))) / 2
    if not area:
        raise _MistakeError(f"{where}: a polygon without area")
    corners = [value for point in zip(xs, ys, strict=True) for value in point]
    return _box(min(xs), min(ys), max(xs), max(ys)) | {"area": area, "segmentation": [corners], "iscrowd": 0}


def _box(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
