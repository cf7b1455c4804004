"""Datasets in COCO's format: a folder of images, and a JSON file that lists them with their objects."""

import marshal
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from convnext.data.annotations.coco_file import CocoAnnotation, CocoImage, read_coco
from convnext.data.annotations.objects import ImageObjects
from convnext.data.deep import DeepImage, Depths
from convnext.data.images import AS_RGB, CorruptImageError, Reading, read_image, read_pixels
from convnext.data.run_lengths import EncodedMasks, RunLengths, decode, from_segmentation
from convnext.errors import ConvnextError, UsageError, first_line
from convnext.text import counted


class CocoSource:
    """The images that a COCO annotation file lists, with their objects.

    Args:
        annotations: the JSON file.
        folder: the folder of the images, which have there the file names of the JSON.
        classes: the class names that the labels count, if a network already has some; by default the file's categories in
            the order of their ids. There may be more of them than the file has.
        keep_empty: whether to keep the images without objects, crowds not counted. The published training skips them;
            evaluation needs them.

    Annotations that can't be used (a box without area or outside the image, a mask that does not fit, …) are skipped:
    `problems` names each by the file and its id, `remarks` counts them in one line. A missing image keeps its position; reading it
    raises CorruptImageError.

    Raises UsageError if the file or folder does not exist, ConvnextError if it is not a COCO file, or lacks the classes.
    """

    reading: Reading = AS_RGB

    def __init__(self, annotations: Path, folder: Path, classes: Sequence[str] | None = None, keep_empty: bool = True) -> None:
        content = read_coco(annotations, classes)
        if not folder.is_dir():
            raise UsageError(f"no folder {folder} for the images of {annotations}")
        self.file, self.folder, self.classes = annotations, folder, content.classes
        self.category_ids = {content.classes[label]: key for key, label in content.labels.items()}
        self.skipped: list[str] = []
        self.problems, self.remarks = content.problems, []
        if content.problems:
            self.remarks.append(f"skipped {counted(len(content.problems), 'invalid annotation')}, the first: {content.problems[0]}")
        images, usable = content.images, content.annotations
        if not keep_empty:
            full = {annotation["image_id"] for annotation in usable if not annotation.get("iscrowd")}
            if len(full) < len(images):
                self.remarks.append(f"{annotations}: skipped {len(images) - len(full)} of {len(images)} images, which have no objects")
            images = {key: image for key, image in images.items() if key in full}
            usable = [annotation for annotation in usable if annotation["image_id"] in full]
        if not images:
            raise ConvnextError(f"{annotations} lists no images{'' if keep_empty else ' with objects'}")
        self._keep_images(images)
        self._keep_annotations(usable, content.labels)

    def _keep_images(self, images: Mapping[int, CocoImage]) -> None:
        self.ids = list(images)
        self.paths = [image["file_name"] for image in images.values()]  # relative to the folder
        self.heights = np.array([image["height"] for image in images.values()])
        self.widths = np.array([image["width"] for image in images.values()])
        # Listing each folder once is faster than looking for each of 100,000 files.
        folders = {os.path.dirname(path) for path in self.paths}
        there = {os.path.join(base, name) for base in folders if (self.folder / base).is_dir() for name in os.listdir(self.folder / base)}
        missing = [str(self.folder / path) for path in self.paths if path not in there]
        if len(missing) == len(self.paths):
            raise ConvnextError(f"none of the {len(missing)} images of {self.file} is in {self.folder}, for instance not {missing[0]}")
        if missing:
            self.remarks.append(f"{len(missing)} of the {len(self.paths)} images of {self.file} are missing, the first {missing[0]}")
            self.problems += [f"{self.file}: image {path} is missing" for path in missing]

    def _keep_annotations(self, annotations: Sequence[CocoAnnotation], labels: Mapping[int, int]) -> None:
        # Flat arrays: counting references to millions of Python objects would copy their memory, page by page, into each worker.
        position = {key: at for at, key in enumerate(self.ids)}
        annotations = sorted(annotations, key=lambda annotation: position[annotation["image_id"]])
        positions = [position[annotation["image_id"]] for annotation in annotations]
        self._first = np.searchsorted(positions, np.arange(len(self.ids) + 1)).tolist()  # of each image, and the end of the last
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
        self._boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype(np.float32)
        self._labels = np.array([labels[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        self._crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], dtype=bool)
        self.object_counts = np.bincount(np.array(positions, dtype=np.int64)[~self._crowd], minlength=len(self.ids))
        areas = [annotation.get("area", w * h) for annotation, (_, _, w, h) in zip(annotations, boxes, strict=True)]
        self._areas = np.array(areas, dtype=np.float32)
        self._annotation_ids = np.array([annotation["id"] for annotation in annotations], dtype=np.int64)
        masks = [marshal.dumps(cast(str, annotation.get("segmentation") or None)) for annotation in annotations]  # lists and dicts are fine
        self._masks, self._ends = b"".join(masks), np.cumsum([0, *map(len, masks)])
        without = [annotation["id"] for annotation in annotations if not annotation.get("segmentation")]
        self.has_masks = not without
        if 0 < len(without) < len(annotations):
            some = f"{len(without)} of {len(annotations)} annotations have no segmentation, the first {without[0]}"
            self.remarks.append(f"{self.file}: {some}: the masks of the others are not used")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if it can't be decoded, or its size is not that of the file."""
        image = read_image(self.folder / self.paths[index], how=self.reading)
        self._check_size(index, image.height, image.width)
        return image

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor. Raises CorruptImageError as `read` does."""
        pixels = read_pixels(self.folder / self.paths[index], how=self.reading)
        _, height, width = pixels.shape
        self._check_size(index, height, width)
        return pixels

    def _check_size(self, index: int, height: int, width: int) -> None:
        wanted = self.heights[index], self.widths[index]
        if (height, width) != wanted:
            raise CorruptImageError(f"{self.name(index)}: {width} x {height} pixels, {self.file} says {wanted[1]} x {wanted[0]}")

    def target(self, index: int) -> ImageObjects:
        """Return the objects of an image as annotated, crowds too. Raises CorruptImageError if a mask can't be decoded."""
        objects = self.encoded_target(index)
        return replace(objects, masks=objects.masks.to_tensor() if isinstance(objects.masks, EncodedMasks) else None)

    def encoded_target(self, index: int) -> ImageObjects:
        """Return the objects of an image, masks as run lengths. Raises CorruptImageError if a mask can't be decoded."""
        rows = slice(self._first[index], self._first[index + 1])
        return ImageObjects(
            boxes=torch.tensor(self._boxes[rows]),
            labels=torch.tensor(self._labels[rows]),
            masks=EncodedMasks.whole(self._runs(index), *self.size(index)) if self.has_masks else None,
            iscrowd=torch.tensor(self._crowd[rows]),
            area=torch.tensor(self._areas[rows]),
            image_id=self.ids[index],
        )

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, as the file says."""
        return int(self.heights[index]), int(self.widths[index])

    def _runs(self, index: int) -> list[RunLengths]:
        runs = []
        for row in range(self._first[index], self._first[index + 1]):
            segmentation = marshal.loads(self._masks[self._ends[row] : self._ends[row + 1]])  # noqa: S302 - our own bytes
            try:
                runs.append(from_segmentation(segmentation, *self.size(index)))
            except (RuntimeError, ValueError) as error:
                annotation = self._annotation_ids[row]
                raise CorruptImageError(f"{self.file}: annotation {annotation} has a damaged mask: {first_line(error)}") from error
        return runs

    def name(self, index: int) -> str:
        """Return what reports call the image: its path."""
        return str(self.folder / self.paths[index])

    def objects_by_class(self) -> list[int] | None:
        """Return how many objects each class has; a crowd counts as one."""
        counts: list[int] = np.bincount(self._labels, minlength=len(self.classes)).tolist()
        return counts

    def key(self, index: int) -> str:
        """Return the image's path within the folder."""
        return str(self.paths[index])

    def label_bytes(self, index: int) -> bytes:
        """Return boxes, classes and areas of the image's objects as bytes, to compare them with a later run's."""
        rows = slice(self._first[index], self._first[index + 1])
        return b"".join(array[rows].tobytes() for array in (self._boxes, self._labels, self._crowd, self._areas))

    def annotation_ids(self, index: int) -> list[int]:
        """Return the file's ids of the image's objects, in the order of `target`."""
        ids: list[int] = self._annotation_ids[self._first[index] : self._first[index + 1]].tolist()
        return ids


def check(source: CocoSource) -> list[str]:
    """Return everything wrong with a dataset, one problem per line: what opening it found, and what reading all images and masks finds."""
    problems, depths = list(source.problems), Depths()
    for index in range(len(source)):
        if (source.folder / source.paths[index]).exists():  # opening has reported missing ones
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
            if fault := _misfit(objects, at, *source.size(index)):
                problems.append(f"{source.file}: annotation {key} {fault}")
    return problems + depths.problems()


def _misfit(objects: ImageObjects, at: int, height: int, width: int) -> str | None:
    """Return what makes an object suspicious although it can be used, as a predicate; None if nothing does."""
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
    # Masks of another scale or image miss their box by much; COCO's own boxes are within a pixel or two of their masks.
    if max(abs(a - b) for a, b in zip(box, found, strict=True)) > 2 + 0.1 * max(right - left, bottom - top):
        return f"has a mask that does not fit its box: pixels in {found}, box {box} (left, top, right, bottom)"
    return None


def open_coco(where: str, classes: Sequence[str] | None = None, keep_empty: bool = True) -> CocoSource:
    """Return the images of `coco:ANNOTATIONS.json:FOLDER`; for `classes` and `keep_empty` see `CocoSource`, also for what it raises."""
    annotations, _, images = where.removeprefix("coco:").rpartition(":")
    if not annotations:
        raise UsageError(f"{where!r}: write coco:ANNOTATIONS.json:FOLDER, with the folder of its images")
    return CocoSource(Path(annotations).expanduser(), Path(images).expanduser(), classes, keep_empty)


def open_coco_layout(where: str, classes: Sequence[str] | None = None, keep_empty: bool = True) -> CocoSource:
    """Return the images of a folder such as `coco/train2017`, annotated in `coco/annotations/instances_train2017.json`.

    Raises UsageError if there are no such annotations, and otherwise what `CocoSource` raises.
    """
    folder = Path(where).expanduser()
    annotations = folder.parent / "annotations" / f"instances_{folder.name}.json"
    if annotations.is_file():
        return CocoSource(annotations, folder, classes, keep_empty)
    if parts := [item.stem.removeprefix("instances_") for item in sorted((folder / "annotations").glob("instances_*.json"))]:
        raise UsageError(f"{folder} has several parts: name one, {' or '.join(str(folder / part) for part in parts)}")
    raise UsageError(
        f"no annotations of {where!r}: {annotations} (COCO's own layout) does not exist. "
        "Name the file and the folder, as in coco:ANNOTATIONS.json:FOLDER, or take scenes:train or scenes:val"
    )
