"""Write scenes of handwritten digits as files that look like your own: `python examples/practice_data.py practice`, seconds.

The folder then holds images/train and images/val, their objects in COCO's format (train.json, val.json), and a mask for each image
(masks/train, masks/val, classes.txt).
"""

import sys
from pathlib import Path

import PIL.Image

from convnext.data.convert.common import FoundImage, FoundObject
from convnext.data.convert.write.coco import coco_files
from convnext.data.convert.write.common import OutgoingDataset
from convnext.data.run_lengths import encode
from convnext.data.sources.masks import BACKGROUND
from convnext.data.sources.scenes import Scenes


def write(folder: Path, part: str, count: int) -> str:
    """Write the first scenes of a part, "train" or "val", and return what was written."""
    scenes, found = Scenes(part, count), []
    for kind in ("images", "masks"):
        (folder / kind / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name = f"{index:03d}"
        scenes.read(index).save(folder / "images" / part / f"{name}.jpg", quality=95)
        PIL.Image.fromarray(scenes.semantic(index).numpy()).save(folder / "masks" / part / f"{name}.png")
        objects, image = scenes.target(index), FoundImage(f"{name}.jpg", scenes.size, scenes.size)
        for box, label, mask in zip(objects.boxes.tolist(), objects.labels.tolist(), objects.masks, strict=True):
            bbox = [*box[:2], box[2] - box[0], box[3] - box[1]]
            image.objects.append(FoundObject(scenes.classes[label], bbox, float(mask.sum()), segmentation=encode(mask)))
        found.append(image)
    dataset = OutgoingDataset(lambda: found, {name: number for number, name in enumerate(scenes.classes, 1)})
    (folder / f"{part}.json").write_text("".join(next(coco_files(dataset)).pieces), "utf-8")
    (folder / "classes.txt").write_text("\n".join([BACKGROUND, *scenes.classes]) + "\n", "utf-8")
    return f"{folder / part}.json: {count} images, {sum(len(image.objects) for image in found)} objects"


if __name__ == "__main__":
    for part, count in {"train": 200, "val": 50}.items():
        print(write(Path(sys.argv[1]), part, count))
