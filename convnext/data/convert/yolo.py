"""Annotations in YOLO's text files as COCO's JSON."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from convnext.data.annotations.coco_file import CocoContent
from convnext.data.convert.common import FoundImage, FoundObject, MistakeError, box_object, read_all, to_coco
from convnext.data.images import size_of
from convnext.data.walk import walk
from convnext.errors import ConvnextError, UsageError, nearest


def yolo_to_coco(images: Path, labels: Path, names: Sequence[str | None]) -> CocoContent:
    """Return a dataset in YOLO's text files as COCO's JSON: `labels/…/NAME.txt` for `images/…/NAME.jpg`, in nested folders too.

    A line is a class, counted from 0, and a box's centre, width and height, or else a polygon's corners, as fractions of the image's
    width and height. Images without a text file have no objects.

    Args:
        images: the folder of images, whose sizes are read.
        labels: the folder of text files.
        names: the classes' names; None for a number without a class, which no line may use.

    Raises UsageError if a folder is missing or has no images, ConvnextError for mistakes, each by file and line.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}")
    paths = sorted(images / path for path in walk(images).images)
    by_stem = {path.relative_to(images).with_suffix(""): path for path in paths}
    if not by_stem:
        raise UsageError(f"no images in {images}")
    if len(by_stem) < len(paths):
        twice = next(path for path in paths if by_stem[path.relative_to(images).with_suffix("")] != path)
        raise ConvnextError(f"{twice} and another image differ only in their ending: one label file can't be for both")
    texts = sorted(labels / path for path in walk(labels, (".txt",)).images)
    lists = {path.relative_to(labels).with_suffix(""): path for path in texts if path.name != "classes.txt"}
    if lonely := [path for stem, path in lists.items() if stem not in by_stem]:
        known = [stem.name for stem in by_stem]
        have = "label file has" if len(lonely) == 1 else "label files have"
        raise ConvnextError(f"{len(lonely)} {have} no image in {images}, the first {lonely[0]}{nearest(lonely[0].stem, known)}")

    def read(path: Path) -> FoundImage:
        stem = path.relative_to(images).with_suffix("")
        width, height = _upright_size(path)
        objects = list(_read_yolo(lists[stem], names, width, height)) if stem in lists else []
        return FoundImage(path.relative_to(images).as_posix(), width, height, objects)

    return to_coco(read_all(by_stem.values(), read), names)


def _upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as `read_image` returns it, from its header."""
    try:
        return size_of(path)
    except Exception as error:  # as in `read_image`: damaged headers raise anything
        raise MistakeError(f"{path}: not an image that can be read") from error


def _read_yolo(file: Path, names: Sequence[str | None], width: int, height: int) -> Iterator[FoundObject]:
    for line, content in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not content.strip():
            continue
        where = f"{file}, line {line}"
        try:
            label, *values = (float(word) for word in content.split())
        except ValueError as error:
            raise MistakeError(f"{where}: not only numbers: {content.strip()!r}") from error
        if label not in range(len(names)):
            raise MistakeError(f"{where}: class {content.split()[0]}, there are {len(names)}, counted from 0")
        if (name := names[int(label)]) is None:
            raise MistakeError(f"{where}: class {content.split()[0]}, which has no name")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise MistakeError(f"{where}: {len(values)} numbers after the class: a box has 4, a polygon 6, 8, …")
        if not all(-0.01 <= value <= 1.01 for value in values):  # rounding may exceed the border a little
            raise MistakeError(f"{where}: {max(values, key=abs):g} is not a fraction of the image's width or height, 0 to 1")
        yield (_yolo_box if len(values) == 4 else _yolo_polygon)(name, values, width, height, where)


def _yolo_box(name: str, values: list[float], width: int, height: int, where: str) -> FoundObject:
    x, y, w, h = values
    left, right = max(0, (x - w / 2) * width), min(width, (x + w / 2) * width)
    top, bottom = max(0, (y - h / 2) * height), min(height, (y + h / 2) * height)
    if right <= left or bottom <= top:
        raise MistakeError(f"{where}: a box without area, {w:g} wide and {h:g} high around {x:g}, {y:g}")
    return box_object(name, left, top, right, bottom)


def _yolo_polygon(name: str, values: list[float], width: int, height: int, where: str) -> FoundObject:
    xs = [min(max(x, 0), 1) * width for x in values[0::2]]
    ys = [min(max(y, 0), 1) * height for y in values[1::2]]
    # The shoelace formula.
    area = abs(sum(x * y2 - x2 * y for x, y, x2, y2 in zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True))) / 2
    if not area:
        raise MistakeError(f"{where}: a polygon without area")
    corners = [value for point in zip(xs, ys, strict=True) for value in point]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return FoundObject(name, box, area, polygon=corners)
