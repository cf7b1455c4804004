"""Annotations of CVAT, its exports "CVAT for images 1.1" and "CVAT for video 1.1", as COCO's JSON.

Source: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from convnext.data.annotations.json_file import MistakeError
from convnext.data.convert.common import Conversion, Converted, FoundImage, FoundObject
from convnext.data.convert.files import Element, NamedImages, read_xml
from convnext.data.convert.shapes import Point, Size, box_object, corners_of, ellipse, finite, mask_object, polygon_object, turned
from convnext.text import class_name, counted

_OTHERS = ("polyline", "points", "cuboid", "skeleton", "tag")  # what COCO has no place for, or only as keypoints


def cvat_to_coco(file: Path, images: Path) -> Converted:
    """Return an XML file of CVAT as COCO's JSON. Boxes, rotated ones as polygons, polygons, masks and ellipses become objects.

    Classes are in the order of the file's labels, without those for other kinds of annotation. Images of a video are found as
    `frame_000012.png` or with another ending; frames without an object are skipped.

    Args:
        file: the XML, `annotations.xml` in the archive that CVAT exports.
        images: the folder of the images.

    Raises UsageError if a file is missing or has another format, ConvnextError if it is damaged or has more mistakes than objects.
    """
    folder, found = NamedImages(images), Conversion()
    labels: list[str] = []
    frames: dict[int, FoundImage | None] = {}
    for element in read_xml(file, "annotations", "an XML of CVAT"):
        if element.tag == "meta":
            labels += _labels(element)
        elif element.tag == "image":
            with found.skipping(element.where):
                _read_image(element, folder, found)
        elif element.tag == "track":
            _read_track(element, folder, found, frames)
    found.images += [frame for _, frame in sorted(frames.items()) if frame is not None]
    if not found.images and not found.mistakes:
        raise MistakeError(f"{file} lists neither images nor tracks")
    return found.converted(found.names(labels))


def _labels(meta: Element) -> list[str]:
    """Return the names of the labels that objects can have, of a task, a job or a project."""
    found = []
    for one in meta.children:
        for labels in one.all("labels"):
            for label in labels.all("label"):
                kind = next((child.text.strip() for child in label.all("type")), "any")
                name = class_name(next((child.text.strip() for child in label.all("name")), ""))
                if name and kind not in _OTHERS and not label.all("parent"):  # a part of a skeleton has a parent
                    found.append(name)
    return found


def _read_image(element: Element, folder: NamedImages, found: Conversion) -> None:
    name = folder.find(element.attribute("name"))
    width, height = (int(finite(element.attributes.get(key, "0"), key)) for key in ("width", "height"))
    image = FoundImage(name, *((width, height) if min(width, height) > 0 else folder.size(name)))
    found.add(image, element.where)
    for shape in element.children:
        _add(shape, shape.attributes.get("label", ""), image, found)


def _read_track(track: Element, folder: NamedImages, found: Conversion, frames: dict[int, FoundImage | None]) -> None:
    for shape in track.children:
        if shape.attributes.get("outside") == "1":  # the object has left the image
            continue
        with found.skipping(shape.where):
            frame = int(finite(shape.attribute("frame"), "frame"))
            if frame not in frames:
                frames[frame] = None
                name = folder.find(f"frame_{frame:06d}.png")
                frames[frame] = FoundImage(name, *folder.size(name))
            if (image := frames[frame]) is not None:
                _add(shape, track.attributes.get("label", ""), image, found)


def _add(shape: Element, label: str, image: FoundImage, found: Conversion) -> None:
    if shape.tag not in _SHAPES:
        found.others[shape.tag] += 1
        return
    with found.skipping(f"{shape.where}, {shape.tag} in {image.file_name}"):
        if not (name := class_name(label.strip())):
            raise MistakeError("it has no label")
        image.objects.append(_SHAPES[shape.tag](shape, name, (image.width, image.height)))


def _numbers(shape: Element, keys: Sequence[str]) -> list[float]:
    return [finite(shape.attribute(key), key) for key in keys]


def _rotation(shape: Element) -> float:
    return finite(shape.attributes.get("rotation", "0"), "rotation")  # degrees, clockwise about the middle


def _box(shape: Element, name: str, size: Size) -> FoundObject:
    left, top, right, bottom = _numbers(shape, ("xtl", "ytl", "xbr", "ybr"))
    if not (degrees := _rotation(shape)):
        return box_object(name, (left, top, right, bottom), size)
    return polygon_object(name, turned(corners_of(left, top, right, bottom), ((left + right) / 2, (top + bottom) / 2), degrees), size)


def _polygon(shape: Element, name: str, size: Size) -> FoundObject:
    points: list[Point] = []
    for pair in shape.attribute("points").split(";"):
        x, comma, y = pair.partition(",")
        if not comma:
            raise MistakeError(f"points are x,y;x,y;…, not {pair!r}")
        points.append((finite(x, "x"), finite(y, "y")))
    return polygon_object(name, points, size)


def _ellipse(shape: Element, name: str, size: Size) -> FoundObject:
    x, y, radius_x, radius_y = _numbers(shape, ("cx", "cy", "rx", "ry"))
    return polygon_object(name, ellipse(x, y, radius_x, radius_y, _rotation(shape)), size)


def _mask(shape: Element, name: str, size: Size) -> FoundObject:
    left, top, width, height = (int(value) for value in _numbers(shape, ("left", "top", "width", "height")))
    if not (0 < width <= size[0] and 0 < height <= size[1]):
        raise MistakeError(f"mask of {width} x {height} in an image of {size[0]} x {size[1]}")
    runs = [int(finite(run.strip(), "a run of rle")) for run in shape.attribute("rle").split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise MistakeError(f"the runs of rle cover {sum(runs)} of {counted(width * height, 'pixel')}")
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # row by row, and the first run is background
    return mask_object(name, values.reshape(height, width), left, top, size)


_SHAPES: dict[str, Callable[[Element, str, Size], FoundObject]] = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
