"""A whole dataset in COCO's format: images, categories, and annotations with their scores as a further key.

Source: https://cocodataset.org/#format-data.
"""

import json
from collections.abc import Iterator

from convnext.data.convert.common import FoundImage, coco_annotation
from convnext.data.convert.write.common import OutgoingDataset, TextFile
from convnext.data.convert.write.contours import exact_polygons


def coco_files(dataset: OutgoingDataset) -> Iterator[TextFile]:
    """Yield one JSON. Masks are polygons where these give the same pixels, which more tools read, else run lengths."""
    yield TextFile("", _pieces(dataset))


def _pieces(dataset: OutgoingDataset) -> Iterator[str]:
    yield '{"info": {"description": "written by convnext"}, "licenses": [],\n"categories": '
    yield json.dumps([{"id": key, "name": name, "supercategory": ""} for name, key in dataset.categories.items()])
    yield ',\n"images": ['
    for i, (key, image) in enumerate(_numbered(dataset)):
        about = {"id": key, "file_name": image.file_name, "width": image.width, "height": image.height}
        yield (",\n" if i else "\n") + json.dumps(about)
    yield '\n],\n"annotations": ['
    count = 0
    for key, image in _numbered(dataset):
        for one in dataset.objects(image, crowds=True):
            count += 1
            found = coco_annotation(count, key, dataset.categories[one.class_name], one)
            if one.segmentation and not one.iscrowd:
                found["segmentation"] = exact_polygons(one.segmentation, image.width, image.height)
            yield (",\n" if count > 1 else "\n") + json.dumps(found, allow_nan=False)
    yield "\n]}\n"


def _numbered(dataset: OutgoingDataset) -> Iterator[tuple[int, FoundImage]]:
    return ((position if image.key is None else image.key, image) for position, image in enumerate(dataset.images(), 1))
