"""Annotations of LabelMe, one JSON file per image, as COCO's JSON. X-AnyLabeling writes the same files.

Source: https://github.com/wkentaro/labelme.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image

from convnext.data.annotations.json_file import MistakeError, read_json
from convnext.data.convert.common import Conversion, Converted, FoundImage, FoundObject
from convnext.data.convert.files import NamedImages, like_json
from convnext.data.convert.shapes import Point, Size, box_object, corners_of, ellipse, finite, mask_object, polygon_object
from convnext.data.images import CorruptImageError, read_image
from convnext.data.run_lengths import decode, from_segmentation
from convnext.data.walk import walk
from convnext.errors import UsageError
from convnext.text import class_name, counted

_OTHERS = ("line", "linestrip", "point", "points")  # shapes without an area


def labelme_to_coco(folder: Path, images: Path) -> Converted:
    """Return LabelMe's files as COCO's JSON. Polygons, rectangles, circles and masks become objects.

    Shapes of the same class with the same `group_id` are parts of one object. Classes are the shapes' labels, sorted. The images are
    found by `imagePath`; a copy of the image within the JSON is not used.

    Args:
        folder: with the JSON files, in nested folders too; or one such file.
        images: the folder of the images.

    Raises UsageError if there are no such files, ConvnextError if there are more mistakes than objects.
    """
    files = [folder] if folder.is_file() else [folder / path for path in sorted(walk(folder, (".json",)).images)] if folder.is_dir() else []
    if not files:
        raise UsageError(f"no JSON files of LabelMe in {folder}")
    known, found, other = NamedImages(images), Conversion(), ""
    count = 0
    for file in files:
        with found.skipping():
            try:
                content = read_json(file)
            except UsageError as error:
                other = other or str(error)
                raise MistakeError(str(error)) from error
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                other = other or f"{file} is not a JSON of LabelMe: it has no list 'shapes'{like_json(content)}"
                raise MistakeError(f"{file}: not a JSON of LabelMe")
            count += 1
            with found.skipping(str(file)):
                _read(file, content, known, found)
    if not count and other:
        raise UsageError(other)
    return found.converted(found.names())


def _read(file: Path, content: Mapping[str, object], known: NamedImages, found: Conversion) -> None:
    given = content.get("imagePath")
    name = known.find(given if isinstance(given, str) and given.strip() else file.with_suffix("").name)
    width, height = content.get("imageWidth"), content.get("imageHeight")
    is_given = isinstance(width, int) and isinstance(height, int) and min(width, height) > 0
    image = FoundImage(name, *((width, height) if is_given else known.size(name)))  # type: ignore[arg-type]  # integers, see above
    found.add(image, str(file))
    shapes = content["shapes"]
    assert isinstance(shapes, list)  # see labelme_to_coco
    groups: dict[object, list[FoundObject]] = {}
    for position, shape in enumerate(shapes):
        if not isinstance(shape, dict):
            found.mistakes.append(f"{file}, shape {position}: not a JSON object")
        elif (kind := str(shape.get("shape_type") or "polygon")) in _OTHERS:
            found.others[kind] += 1
        else:
            with found.skipping(f"{file}, shape {position} ({kind})"):
                one = _object(kind, shape, (image.width, image.height))
                group = shape.get("group_id")
                is_part = isinstance(group, int | str)
                groups.setdefault((one.class_name, group) if is_part else position, []).append(one)
    image.objects = [_joined(parts, (image.width, image.height)) for parts in groups.values()]


def _object(kind: str, shape: Mapping[str, object], size: Size) -> FoundObject:
    label = shape.get("label")
    if not isinstance(label, str) or not label.strip():
        raise MistakeError("it has no label")
    name, points = class_name(label.strip()), _points(shape.get("points"))
    if kind in ("polygon", "rotation"):
        return polygon_object(name, points, size)
    if kind == "circle" and len(points) == 2:  # its centre, and a point of its edge
        radius = math.dist(*points)
        return polygon_object(name, ellipse(*points[0], radius, radius), size)
    if kind in ("rectangle", "mask") and len(points) >= 2:
        xs, ys = zip(*points, strict=True)
        if kind == "mask":
            return _mask(name, shape.get("mask"), min(xs), min(ys), size)
        return box_object(name, (min(xs), min(ys), max(xs), max(ys)), size)
    known = "polygon, rectangle, circle, mask and rotation are read"
    raise MistakeError(
        f"it has {counted(len(points), 'point')}" if kind in ("circle", "rectangle", "mask") else f"an unknown kind of shape: {known}"
    )


def _points(given: object) -> list[Point]:
    if not isinstance(given, list) or not all(isinstance(point, list) and len(point) == 2 for point in given):
        raise MistakeError("points are not a list of [x, y]")
    return [(finite(x, "x"), finite(y, "y")) for x, y in given]


def _mask(name: str, given: object, left: float, top: float, size: Size) -> FoundObject:
    if not isinstance(given, str):
        raise MistakeError("the mask is not a text")
    try:
        opened = read_image(base64.b64decode(given, validate=True), "the mask")
    except (binascii.Error, CorruptImageError, ValueError) as error:
        raise MistakeError(f"the mask is not a PNG in base64: {error}") from error
    if not isinstance(opened, Image):
        raise MistakeError("the mask has more than 8 bits")
    return mask_object(name, np.asarray(opened).max(axis=-1) > 0, round(left), round(top), size)


def _joined(parts: Sequence[FoundObject], size: Size) -> FoundObject:
    """Return one object of all parts, which are of one class."""
    if len(parts) == 1:
        return parts[0]
    width, height = size
    contours = [part.segmentation or _contour(part) for part in parts]
    left, top = min(part.bbox[0] for part in parts), min(part.bbox[1] for part in parts)
    right, bottom = max(part.bbox[0] + part.bbox[2] for part in parts), max(part.bbox[1] + part.bbox[3] for part in parts)
    if any(isinstance(contour, dict) for contour in contours):
        masks = [decode(from_segmentation(contour, height, width)).numpy() for contour in contours]
        return mask_object(parts[0].class_name, np.logical_or.reduce(masks), 0, 0, size)
    polygons = [polygon for contour in contours if isinstance(contour, list) for polygon in contour]
    box = [left, top, right - left, bottom - top]
    return FoundObject(parts[0].class_name, box, sum(part.area for part in parts), segmentation=polygons)


def _contour(part: FoundObject) -> list[list[float]]:
    left, top, width, height = part.bbox
    return [[value for corner in corners_of(left, top, left + width, top + height) for value in corner]]
