"""YOLO's text files, and the data.yaml that names classes and folders, as Ultralytics' tools read them.

Source: https://docs.ultralytics.com/datasets/segment/.
"""

from collections.abc import Iterable, Iterator

import yaml

from convnext.data.convert.common import FoundImage, FoundObject
from convnext.data.convert.shapes import corners_of
from convnext.data.convert.write.common import OutgoingDataset, TextFile, below
from convnext.data.convert.write.contours import one_polygon

_PARTS = "# One part: to train, split it, or name another folder for val. Paths start from this file.\n"


def yolo_files(dataset: OutgoingDataset) -> Iterator[TextFile]:
    """Yield labels/…/NAME.txt for each image, empty for one without objects, and data.yaml.

    A line is a box or one polygon. Where an image has a polygon its boxes are written as polygons of four corners, because readers take
    all lines of a file for the same. Scores are skipped: a sixth number makes Ultralytics refuse the file.
    """
    for image in dataset.images():
        yield TextFile(f"labels/{below(image.file_name, '.txt')}", _lines(image, dataset))
    about = {"train": "images", "val": "images", "names": dict(enumerate(dataset.categories))}
    yield TextFile("data.yaml", [_PARTS, yaml.safe_dump(about, allow_unicode=True, sort_keys=False)])


def _lines(image: FoundImage, dataset: OutgoingDataset) -> Iterator[str]:
    labels = {name: label for label, name in enumerate(dataset.categories)}
    objects = list(dataset.objects(image))
    has_polygons = any(one.segmentation for one in objects)
    for one in objects:
        dataset.lost["score"] += one.score is not None
        dataset.lost["boxed:object"] += has_polygons and not one.segmentation
        numbers = _polygon(one, image, dataset) if has_polygons else _box(one, image)
        if numbers:
            yield f"{labels[one.class_name]} {' '.join(f'{number:.8g}' for number in numbers)}\n"
        else:
            dataset.lost["invalid object"] += 1


def _box(one: FoundObject, image: FoundImage) -> list[float]:
    left, top, width, height = one.bbox
    return [(left + width / 2) / image.width, (top + height / 2) / image.height, width / image.width, height / image.height]


def _polygon(one: FoundObject, image: FoundImage, dataset: OutgoingDataset) -> list[float]:
    left, top, width, height = one.bbox
    corners: Iterable[Iterable[float]] = corners_of(left, top, left + width, top + height)
    if one.segmentation:
        corners, joined = one_polygon(one.segmentation, image.width, image.height)
        dataset.lost["joined:object"] += joined > 0
    return [value for x, y in corners for value in (x / image.width, y / image.height)]
