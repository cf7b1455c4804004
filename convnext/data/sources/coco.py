"""Data sets in COCO's format: a folder of images, and a JSON file that lists them with their objects."""

import marshal
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from convnext.data.deep import DeepImage, Depths
from convnext.data.images import CorruptImageError, read_image, read_pixels
from convnext.data.run_lengths import EncodedMasks, RunLengths, decode, of_outline
from convnext.data.sources.coco_file import read_coco
from convnext.data.sources.objects import DetectionSource, Objects
from convnext.errors import ConvnextError, UsageError, nearest


class Coco:
    """The images that a COCO annotation file lists, with their objects.

    Args:
        annotations: the JSON file.
        folder: where the images lie, under the file names of the JSON.
        classes: the class names that the labels count, where a network already has some; by default the file's categories in
            the order of their ids. Given ones may be more than the file's.
        keep_empty: whether to keep the images without objects, crowds not counted. The published training leaves them out;
            evaluation needs them.

    Annotations that can't be used (a box without area or outside the image, a mask that does not fit, …) are left out:
    `problems` tells each by the file and its id, `remarks` in one line how many. A missing image keeps its place, and can't be
    read.

    Raises UsageError if the file or folder does not exist, ConvnextError if it is no COCO file, or its classes are not those given.
    """

    def __init__(self, annotations: Path, folder: Path, classes: Sequence[str] | None = None, keep_empty: bool = True) -> None:
        content = read_coco(annotations, classes)
        if not folder.is_dir():
            raise UsageError(f"no folder {folder} for the images of {annotations}")
        self.file, self.folder, self.classes = annotations, folder, content.classes
        self.category_ids = {content.classes[label]: key for key, label in content.labels.items()}
        self.skipped: list[str] = []
        self.problems, self.remarks = content.problems, []
        if content.problems:
            count = len(content.problems)
            some = "annotation that can't be used is" if count == 1 else "annotations that can't be used are"
            self.remarks.append(f"{count} {some} left out, the first: {content.problems[0]}")
        images, usable = content.images, content.annotations
        if not keep_empty:
            full = {annotation["image_id"] for annotation in usable if not annotation.get("iscrowd")}
            if len(full) < len(images):
                self.remarks.append(f"{annotations}: {len(images) - len(full)} of {len(images)} images are without objects: left out")
            images = {key: image for key, image in images.items() if key in full}
            usable = [annotation for annotation in usable if annotation["image_id"] in full]
        if not images:
            raise ConvnextError(f"{annotations} lists no images{'' if keep_empty else ' with objects'}")
        self._keep_images(images)
        self._keep_annotations(usable, content.labels)

    def _keep_images(self, images: dict[int, dict[str, Any]]) -> None:
        self.ids = list(images)
        self.paths = [image["file_name"] for image in images.values()]  # relative to the folder
        self.heights = np.array([image["height"] for image in images.values()])
        self.widths = np.array([image["width"] for image in images.values()])
        # One listing of each folder is quicker than asking for each of 100,000 files.
        folders = {os.path.dirname(path) for path in self.paths}
        there = {os.path.join(base, name) for base in folders if (self.folder / base).is_dir() for name in os.listdir(self.folder / base)}
        missing = [str(self.folder / path) for path in self.paths if path not in there]
        if len(missing) == len(self.paths):
            raise ConvnextError(f"none of the {len(missing)} images of {self.file} is in {self.folder}, for instance not {missing[0]}")
        if missing:
            self.remarks.append(f"{len(missing)} of the {len(self.paths)} images of {self.file} are missing, the first {missing[0]}")
            self.problems += [f"{self.file}: image {path} is missing" for path in missing]

    def _keep_annotations(self, annotations: list[dict[str, Any]], labels: dict[int, int]) -> None:
        # Flat arrays: the reference counts of millions of Python objects would copy their memory, page by page, into each worker.
        place = {key: at for at, key in enumerate(self.ids)}
        annotations = sorted(annotations, key=lambda annotation: place[annotation["image_id"]])
        places = [place[annotation["image_id"]] for annotation in annotations]
        self._first = np.searchsorted(places, np.arange(len(self.ids) + 1)).tolist()  # of each image, and the end of the last
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
        self._boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype(np.float32)
        self._labels = np.array([labels[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        self._crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], dtype=bool)
        areas = [annotation.get("area", w * h) for annotation, (_, _, w, h) in zip(annotations, boxes, strict=True)]
        self._areas = np.array(areas, dtype=np.float32)
        self._annotation_ids = np.array([annotation["id"] for annotation in annotations], dtype=np.int64)
        outlines = [marshal.dumps(annotation.get("segmentation") or None) for annotation in annotations]
        self._outlines, self._ends = b"".join(outlines), np.cumsum([0, *map(len, outlines)])
        without = [annotation["id"] for annotation in annotations if not annotation.get("segmentation")]
        self.has_masks = not without
        if 0 < len(without) < len(annotations):
            some = f"{len(without)} of {len(annotations)} annotations have no segmentation, the first {without[0]}"
            self.remarks.append(f"{self.file}: {some}: no masks are given of any")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image | DeepImage:
        """The image of that position. Raises CorruptImageError if it can't be decoded, or has not the size that the file says."""
        image = read_image(self.folder / self.paths[index])
        self._check_size(index, image.height, image.width)
        return image

    def pixels(self, index: int) -> Tensor | DeepImage:
        """The same as a uint8 (3, H, W) tensor. Raises CorruptImageError likewise."""
        pixels = read_pixels(self.folder / self.paths[index])
        self._check_size(index, *pixels.shape[1:])
        return pixels

    def _check_size(self, index: int, height: int, width: int) -> None:
        wanted = self.heights[index], self.widths[index]
        if (height, width) != wanted:
            raise CorruptImageError(f"{self.name(index)}: {width} x {height} pixels, {self.file} says {wanted[1]} x {wanted[0]}")

    def target(self, index: int) -> Objects:
        """The objects of that position, as annotated, crowds too. Raises CorruptImageError if a mask can't be decoded."""
        objects = self.encoded_target(index)
        return replace(objects, masks=objects.masks.to_tensor() if isinstance(objects.masks, EncodedMasks) else None)

    def encoded_target(self, index: int) -> Objects:
        """The same, masks as run lengths. Raises CorruptImageError likewise."""
        rows = slice(self._first[index], self._first[index + 1])
        return Objects(
            boxes=torch.tensor(self._boxes[rows]),
            labels=torch.tensor(self._labels[rows]),
            masks=EncodedMasks.whole(self._runs(index), *self._size(index)) if self.has_masks else None,
            iscrowd=torch.tensor(self._crowd[rows]),
            area=torch.tensor(self._areas[rows]),
            image_id=self.ids[index],
        )

    def _size(self, index: int) -> tuple[int, int]:
        return int(self.heights[index]), int(self.widths[index])

    def _runs(self, index: int) -> list[RunLengths]:
        runs = []
        for row in range(self._first[index], self._first[index + 1]):
            outline = marshal.loads(self._outlines[self._ends[row] : self._ends[row + 1]])  # noqa: S302 - our own bytes
            try:
                runs.append(of_outline(outline, *self._size(index)))
            except (RuntimeError, ValueError) as error:
                reason = str(error).split("\n")[0]
                raise CorruptImageError(f"{self.file}: annotation {self._annotation_ids[row]} has a damaged mask: {reason}") from error
        return runs

    def name(self, index: int) -> str:
        """What to call that position in a report: the image's path."""
        return str(self.folder / self.paths[index])

    def objects_by_class(self) -> list[int] | None:
        """How many objects of each class there are, crowds counted as one."""
        counts: list[int] = np.bincount(self._labels, minlength=len(self.classes)).tolist()
        return counts

    def key(self, index: int) -> str:
        """Its path within the folder."""
        return str(self.paths[index])

    def label_bytes(self, index: int) -> bytes:
        """Boxes, classes and areas of its objects, to be compared."""
        rows = slice(self._first[index], self._first[index + 1])
        return b"".join(array[rows].tobytes() for array in (self._boxes, self._labels, self._crowd, self._areas))

    def annotation_ids(self, index: int) -> list[int]:
        """What the file calls the objects of that position, in the order of `target`."""
        ids: list[int] = self._annotation_ids[self._first[index] : self._first[index + 1]].tolist()
        return ids


def check(source: Coco) -> list[str]:
    """Everything wrong with a data set, a line each: what `Coco` left out, and what only reading every image and mask shows."""
    problems, depths = list(source.problems), Depths()
    for index in range(len(source)):
        if (source.folder / source.paths[index]).exists():  # else it was told
            try:
                depths.add(source.pixels(index))
            except CorruptImageError as error:
                problems.append(str(error))
        try:
            objects = source.encoded_target(index)
        except CorruptImageError as error:
            problems.append(str(error))
            continue
        for at, key in enumerate(source.annotation_ids(index)):
            if fault := _misfit(objects, at, *source._size(index)):
                problems.append(f"{source.file}: annotation {key} {fault}")
    return problems + depths.problems()


def _misfit(objects: Objects, at: int, height: int, width: int) -> str | None:
    """What is suspicious of an object that can be used."""
    left, top, right, bottom = box = objects.boxes[at].tolist()
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1:
        return f"has a box that reaches over the border of its image of {width} x {height}: {box}"
    if not isinstance(objects.masks, EncodedMasks):
        return None
    mask = decode(objects.masks.runs[at])
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return "has a mask without a pixel"
    found = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
    # Outlines in another scale or image miss by much; COCO's own boxes are within a pixel or two of their masks.
    if max(abs(a - b) for a, b in zip(box, found, strict=True)) > 2 + 0.1 * max(right - left, bottom - top):
        return f"has a mask that does not fit its box: pixels in {found}, box {box} (left, top, right, bottom)"
    return None


def open_detection(where: str, classes: Sequence[str] | None = None, keep_empty: bool = True) -> DetectionSource:
    """The images with objects that `where` names.

    Args:
        where: `scenes:train` or `scenes:val`; `coco:ANNOTATIONS.json:FOLDER`; or a folder of images in COCO's own layout, such as
            `coco/train2017`, with its annotations in `coco/annotations/instances_train2017.json`.
        classes: the class names that the labels count, where a network already has some.
        keep_empty: whether to keep the images without objects; see `Coco`.
    """
    if where.startswith("scenes:"):
        return _open_scenes(where, classes)
    if where.startswith("coco:"):
        annotations, _, images = where.removeprefix("coco:").rpartition(":")
        if not annotations:
            raise UsageError(f"{where!r}: write coco:ANNOTATIONS.json:FOLDER, with the folder of its images")
        return Coco(Path(annotations).expanduser(), Path(images).expanduser(), classes, keep_empty)
    folder = Path(where).expanduser()
    annotations_of = folder.parent / "annotations" / f"instances_{folder.name}.json"
    if not annotations_of.is_file():
        parts = [item.stem.removeprefix("instances_") for item in sorted((folder / "annotations").glob("instances_*.json"))]
        if parts:
            raise UsageError(f"{folder} has several parts: name one, {' or '.join(str(folder / part) for part in parts)}")
        raise UsageError(
            f"no annotations of {where!r}: neither {annotations_of} (COCO's own layout), "
            "nor does it read coco:ANNOTATIONS.json:FOLDER, scenes:train or scenes:val"
        )
    return Coco(annotations_of, folder, classes, keep_empty)


def _open_scenes(where: str, classes: Sequence[str] | None) -> DetectionSource:
    from convnext.data.sources.scenes import PARTS, Scenes

    part = where.removeprefix("scenes:")
    if part not in PARTS:
        raise UsageError(f"no data is called {where!r}{nearest(where, [f'scenes:{name}' for name in PARTS])}")
    source = Scenes(part)
    if classes is not None and list(classes) != source.classes:
        raise ConvnextError(f"the classes of {where} are {', '.join(source.classes)}, not the network's {', '.join(classes)}")
    return source
