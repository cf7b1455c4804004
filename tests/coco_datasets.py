"""A COCO dataset with whatever its annotations may hold."""

import json

import numpy as np
import torch
from helpers import sample_image

from convnext.data.run_lengths import encode

SIZE = (120, 90)  # width, height
NAMES = ("a b.jpg", "ü,ö.jpg", "sub/x.jpg", "other/x.jpg", "none.jpg")
CLASSES = {'red & "green" <x>': 3, "blü, no": 7}


def masks():
    """A ring, two discs of one object, and a disc."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5

    def disc(cx, radius):
        return (x - cx) ** 2 + (y - 45) ** 2 < radius**2

    return disc(60, 30) & ~disc(60, 12), disc(30, 17) | disc(90, 17), disc(60, 20)


def of_mask(mask):
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {"segmentation": encode(torch.from_numpy(mask)), "bbox": [int(edge) for edge in box], "area": int(mask.sum())}


def coco_dataset(root, names=NAMES):
    """Five images, the last without objects, and seven objects: three masks, polygons of one part and of two, a box and a crowd."""
    images, (ring, two, disc) = [], masks()
    for i, name in enumerate(names):
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        sample_image(i, SIZE).save(root / "photos" / name)
        images.append({"id": 10 + i, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
    triangle, square = [10, 10, 60.5, 12, 50, 70], [70, 10, 90, 10, 90, 30, 70, 30]
    found = [
        (10, 3, of_mask(ring)),
        (11, 3, of_mask(two)),
        (12, 3, of_mask(disc)),
        (13, 7, {"segmentation": [triangle], "bbox": [10, 10, 50.5, 60], "area": 1515}),
        (13, 7, {"segmentation": [triangle, square], "bbox": [10, 10, 80, 60], "area": 1915}),
        (10, 7, {"bbox": [3.25, 4.5, 40.5, 30.25], "area": 1225}),
        (11, 7, of_mask(disc) | {"iscrowd": 1}),
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "iscrowd": 0} | more for i, (image, category, more) in enumerate(found, 1)
    ]
    categories = [{"id": key, "name": name} for name, key in CLASSES.items()]
    file = root / "train.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file, root / "photos"
