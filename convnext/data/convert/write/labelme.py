"""LabelMe's JSON, one file per image. X-AnyLabeling reads the same files.

Source: https://github.com/wkentaro/labelme.
"""

import base64
import json
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from convnext.data.convert.common import FoundImage, FoundObject
from convnext.data.convert.write.common import OutgoingDataset, TextFile, below
from convnext.data.convert.write.contours import contours, run_lengths, window


def labelme_files(dataset: OutgoingDataset) -> Iterator[TextFile]:
    """Yield labels/…/NAME.json for each image, whose `imagePath` leads to images/…/NAME.jpg.

    Boxes are rectangles and masks polygons, of which those of one object share a `group_id`; masks with holes stay masks. The score of a
    prediction is the key `score` of a shape, which X-AnyLabeling shows and LabelMe keeps.
    """
    for image in dataset.images():
        path = below(image.file_name, ".json")
        above = "../" * (1 + path.count("/"))
        yield TextFile(f"labels/{path}", [json.dumps(_content(image, f"{above}images/{below(image.file_name)}", dataset), indent=1) + "\n"])


def _content(image: FoundImage, where: str, dataset: OutgoingDataset) -> dict[str, object]:
    shapes: list[dict[str, object]] = []
    for group, one in enumerate(dataset.objects(image)):
        found = _shapes(one, image)
        dataset.lost["invalid object"] += not found
        score = {} if one.score is None else {"score": one.score}
        number = group if len(found) > 1 else None
        common: dict[str, object] = {"label": one.class_name, "group_id": number, "description": "", "flags": {}, "mask": None}
        shapes += [common | shape | score for shape in found]
    size = {"imageHeight": image.height, "imageWidth": image.width}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": where, "imageData": None, **size}


def _shapes(one: FoundObject, image: FoundImage) -> list[dict[str, object]]:
    if not one.segmentation:
        left, top, width, height = one.bbox
        return [{"shape_type": "rectangle", "points": [[left, top], [left + width, top + height]]}]
    parts = contours(one.segmentation, image.width, image.height)
    if any(part.holes for part in parts):
        mask, left, top = window(run_lengths(one.segmentation, image.width, image.height))
        last = [left + mask.shape[1] - 1, top + mask.shape[0] - 1]
        return [{"shape_type": "mask", "points": [[left, top], last], "mask": _png(mask)}]
    return [{"shape_type": "polygon", "points": part.corners()} for part in parts]


def _png(mask: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
