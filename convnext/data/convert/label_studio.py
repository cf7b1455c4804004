"""Annotations of Label Studio, its export "JSON", as COCO's JSON.

Sources: https://labelstud.io/guide/export and, for the masks of brushes, `brush.decode_rle` in
https://github.com/HumanSignal/label-studio-sdk (converter).
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from convnext.data.annotations.json_file import MistakeError, read_json
from convnext.data.convert.common import Conversion, Converted, FoundImage, FoundObject
from convnext.data.convert.files import NamedImages, like_json
from convnext.data.convert.shapes import Point, Size, box_object, corners_of, ellipse, finite, mask_object, polygon_object, turned
from convnext.data.images import ENDINGS
from convnext.errors import UsageError
from convnext.text import class_name, counted

_UPLOADED = re.compile(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)")
_SHAPES = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "labels")


def label_studio_to_coco(file: Path, images: Path) -> Converted:
    """Return Label Studio's export "JSON" as COCO's JSON.

    Rectangles, rotated ones as polygons, polygons, ellipses and masks of brushes become objects.

    Of several annotations of a task the last one that was not cancelled counts. Tasks without one are skipped and counted, for nobody
    said that their images show nothing. Classes are the labels, sorted. Images are found by the names at the end of their addresses.

    Args:
        file: the JSON.
        images: the folder of the images.

    Raises UsageError if a file is missing or is another export, ConvnextError if there are more mistakes than objects.
    """
    tasks = read_json(file)
    _check(file, tasks)
    assert isinstance(tasks, list)  # see _check
    folder, found, without = NamedImages(images), Conversion(), 0
    for position, task in enumerate(tasks):
        where = f"{file}, task {task.get('id', f'at position {position}') if isinstance(task, dict) else f'at position {position}'}"
        with found.skipping(where):
            if not isinstance(task, dict):
                raise MistakeError("not a JSON object")
            if (result := _last_result(task)) is None:
                without += 1
                continue
            name = _find(task, folder)
            image = FoundImage(name, *folder.size(name))
            found.add(image, where)
            for one in result:
                with found.skipping(f"{where}, {name}"):
                    _add(one, image, found)
    if without:
        found.notes.append(f"skipped {counted(without, 'task')} without an annotation, or with a cancelled one")
    return found.converted(found.names())


def _check(file: Path, tasks: object) -> None:
    """Raise UsageError, naming the export to choose, if the content is not a list of tasks with their annotations."""
    choose = "choose the export 'JSON' of Label Studio"
    first = tasks[0] if isinstance(tasks, list) and tasks else None
    if isinstance(tasks, list) and any(isinstance(task, dict) and ("annotations" in task or "completions" in task) for task in tasks):
        return
    if isinstance(first, dict) and ("annotator" in first or "annotation_id" in first or "lead_time" in first):
        raise UsageError(f"{file} is the export JSON_MIN, which lacks cancelled annotations and their order: {choose}")
    if isinstance(first, dict) and "data" in first:
        raise UsageError(f"{file} lists tasks without annotations, as for an import: {choose}")
    raise UsageError(f"{file} is not a list of Label Studio's tasks: {choose}{like_json(tasks)}")


def _last_result(task: Mapping[str, object]) -> list[object] | None:
    """Return the entries of the last annotation that was not cancelled; None if there is none."""
    annotations = task.get("annotations", task.get("completions"))  # versions before 1.0 say completions
    valid = [one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")] if isinstance(annotations, list) else []
    if not valid:
        return None
    result = valid[-1].get("result")
    if not isinstance(result, list):
        raise MistakeError("the annotation has no list 'result'")
    return result


def _find(task: Mapping[str, object], folder: NamedImages) -> str:
    """Return the image of a task. Names of uploaded files may begin with eight digits and a hyphen, which Label Studio adds."""
    data = task.get("data")
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    named = [text for text in texts if any(path.lower().endswith(tuple(ENDINGS)) for path in _paths(text))] or texts
    if not named:
        raise MistakeError("no address of an image in 'data'")
    for path in _paths(named[0]):
        for name in (path, _UPLOADED.sub(r"\1", path)):
            with suppress(MistakeError):
                return folder.find(name)
    raise MistakeError(f"no image, or more than one, for {named[0]!r} in {folder.folder}")


def _paths(address: str) -> list[str]:
    """Return what may be the path in an address: of /data/upload/…, of local files (`?d=`), of s3:// and other storages, of the web."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return [address]
    return [*parse_qs(parts.query).get("d", []), unquote(parts.path), address]


def _add(one: object, image: FoundImage, found: Conversion) -> None:
    if not isinstance(one, dict) or not isinstance(one.get("value"), dict):
        raise MistakeError("an entry of 'result' without a value")
    kind, value = str(one.get("type")), one["value"]
    if kind not in _SHAPES or (kind == "labels" and not {"x", "points", "rle"} & value.keys()):
        found.others[kind] += 1
        return
    labels = value.get(kind)
    if not isinstance(labels, list) or not labels or not isinstance(labels[0], str) or not labels[0].strip():
        raise MistakeError(f"{kind} without a label")
    if len(labels) > 1:
        raise MistakeError(f"{kind} with {len(labels)} labels: an object has one class")
    if one.get("image_rotation"):
        raise MistakeError(f"{kind} on an image that was turned by {one['image_rotation']} degrees while it was labelled")
    image.objects.append(_object(class_name(labels[0].strip()), one, value, (image.width, image.height)))


def _object(name: str, one: Mapping[str, object], value: Mapping[str, object], size: Size) -> FoundObject:
    width, height = size

    def pixels(key: str, side: int) -> float:
        return finite(value.get(key), key) / 100 * side

    if "rle" in value:
        return _brush(name, value["rle"], one, size)
    if "points" in value:
        return polygon_object(name, _points(value["points"], size), size)
    x, y, degrees = pixels("x", width), pixels("y", height), finite(value.get("rotation") or 0, "rotation")
    if "radiusX" in value:
        return polygon_object(name, ellipse(x, y, pixels("radiusX", width), pixels("radiusY", height), degrees), size)
    right, bottom = x + pixels("width", width), y + pixels("height", height)
    if not degrees:
        return box_object(name, (x, y, right, bottom), size)
    return polygon_object(name, turned(corners_of(x, y, right, bottom), (x, y), degrees), size)  # about the first corner


def _points(given: object, size: Size) -> list[Point]:
    if not isinstance(given, list) or not all(isinstance(point, list) and len(point) == 2 for point in given):
        raise MistakeError("points are not a list of [x, y]")
    return [(finite(x, "x") / 100 * size[0], finite(y, "y") / 100 * size[1]) for x, y in given]


def _brush(name: str, given: object, one: Mapping[str, object], size: Size) -> FoundObject:
    width, height = one.get("original_width"), one.get("original_height")
    if (width, height) not in (size, (None, None)):
        raise MistakeError(f"mask of {width} x {height}, the image is {size[0]} x {size[1]}")
    if not isinstance(given, list) or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in given):
        raise MistakeError("the mask's rle is not a list of bytes")
    values = _decoded(given, 4 * size[0] * size[1])
    return mask_object(name, values.reshape(size[1], size[0], 4)[..., 3] > 0, 0, 0, size)  # RGBA, of which the last is the mask


def _decoded(content: Sequence[int], count: int) -> np.ndarray:
    """Return the numbers, uint8 (count,), of Label Studio's run lengths: a stream of bits, the format of @thi.ng/rle-pack.

    It begins with the count of numbers (32 bits), the bits of a number (5, less one) and four bits each for the bits of a run's
    length, less one. Each run is a bit that says whether one number is repeated, two bits that choose among the four, its length less
    one, and the number or numbers.
    """
    bits, at = "".join(f"{byte:08b}" for byte in content), 0

    def read(length: int) -> int:
        nonlocal at
        at += length
        if at > len(bits):
            raise MistakeError("the mask's rle ends before its last pixel")
        return int(bits[at - length : at], 2)

    if (given := read(32)) != count:
        raise MistakeError(f"the mask's rle has {given} values, its image {count}")
    word = read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(count, dtype=np.uint8)
    done = 0
    while done < count:
        is_run = read(1)
        end = min(done + read(lengths[read(2)]) + 1, count)
        if is_run:
            values[done:end] = read(word) & 255
        else:
            values[done:end] = [read(word) & 255 for _ in range(done, end)]
        done = end
    return values
