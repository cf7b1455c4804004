"""Annotations in Pascal VOC's XML as COCO's JSON."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from convnext.data.annotations.coco_file import CocoContent
from convnext.data.convert.common import FoundImage, MistakeError, box_object, read_all, to_coco
from convnext.data.walk import is_clutter
from convnext.errors import UsageError


def voc_to_coco(folder: Path) -> CocoContent:
    """Return a dataset in Pascal VOC's layout as COCO's JSON: `Annotations/*.xml` beside `JPEGImages`, the folder of the images.

    Classes are the objects' names, sorted; difficult objects become crowds, which count neither as found nor as missed. Corners are
    read as VOC defines them: whole pixels counted from 1, the last one included. The images need not exist.

    Raises UsageError if there are no annotations, ConvnextError for mistakes in them, each by file and line.
    """
    files = [path for path in sorted((folder / "Annotations").glob("*.xml")) if not is_clutter(path.name)]
    if not files:
        raise UsageError(f"no annotations {folder / 'Annotations'}/*.xml: the layout is Annotations/NAME.xml and JPEGImages/NAME.jpg")
    found = read_all(files, _read_voc)
    names = sorted({one.class_name for image in found for one in image.objects})
    return to_coco(found, names)


@dataclass
class _Element:
    """An XML element with its line, which the standard library's elements lack."""

    tag: str
    file: Path
    line: int
    text: str = ""
    children: list["_Element"] = field(default_factory=list)

    def child(self, tag: str) -> "_Element":
        for child in self.children:
            if child.tag == tag:
                return child
        raise MistakeError(f"{self.file}, line {self.line}: <{self.tag}> has no <{tag}>")

    def number(self, tag: str) -> float:
        child = self.child(tag)
        try:
            value = float(child.text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise MistakeError(f"{self.file}, line {child.line}: <{tag}> is not a number: {child.text.strip()!r}")
        return value


def _parse_xml(file: Path) -> _Element:
    parser = expat.ParserCreate()
    open_elements = [_Element("", file, 0)]

    def start(tag: str, _: dict[str, str]) -> None:
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
        raise MistakeError(f"{file}, line {error.lineno}: {expat.ErrorString(error.code)}") from error
    return open_elements[0].children[0]


def _read_voc(file: Path) -> FoundImage:
    root = _parse_xml(file)
    size = root.child("size")
    width, height = int(size.number("width")), int(size.number("height"))
    if min(width, height) < 1:
        raise MistakeError(f"{file}, line {size.line}: the image's size is {width} x {height}")
    found = FoundImage(root.child("filename").text.strip(), width, height)
    for element in root.children:
        if element.tag == "object":
            box = element.child("bndbox")
            left, top, right, bottom = (box.number(key) for key in ("xmin", "ymin", "xmax", "ymax"))
            if right < left or bottom < top or left > width or top > height or right < 1 or bottom < 1:
                corners = f"{left:g}, {top:g} to {right:g}, {bottom:g}"
                raise MistakeError(f"{file}, line {box.line}: box from {corners} has no area in an image of {width} x {height}")
            difficult = any(child.tag == "difficult" and child.text.strip() == "1" for child in element.children)
            edges = max(0.0, left - 1), max(0.0, top - 1), min(right, width), min(bottom, height)
            found.objects.append(box_object(element.child("name").text.strip(), *edges, iscrowd=int(difficult)))
    return found
