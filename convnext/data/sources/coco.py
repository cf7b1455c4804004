"""Datasets in COCO's format: a folder of images, and a JSON file that lists them with their objects."""

import marshal
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from convnext.data.annotations.choices import EVERYTHING, Choices, parse_choices
from convnext.data.annotations.coco_file import CocoAnnotation, CocoFile, CocoImage, annotation_name, area_of, read_coco
from convnext.data.annotations.coco_images import example_name, found_in, stored_sideways, stored_turn
from convnext.data.annotations.objects import ImageObjects
from convnext.data.deep import DeepImage
from convnext.data.images import AS_RGB, CorruptImageError, Reading, read_image, read_pixels
from convnext.data.orientation import turned, turned_image
from convnext.data.run_lengths import EncodedMasks, RunLengths, from_segmentation
from convnext.errors import ConvnextError, UsageError, first_line, nearest_path
from convnext.text import counted

_DRIVE = re.compile(r"(^|:)[A-Za-z]$")  # what precedes the colon of a drive of Windows
_LISTED = 5000  # files whose orientation is read when a dataset is opened: of more it would take long
_NO_MASK = len(marshal.dumps(None))  # bytes of an object without a mask
_FEW_OVER = 0.1  # of the boxes may reach over the border without a remark


class CocoSource:
    """The images that a COCO annotation file lists, with their objects.

    Args:
        annotations: the JSON file.
        folder: the folder of the images, which have there the file names of the JSON, or the ends of these paths.
        classes: the class names that the labels count, if a network already has some; by default the chosen ones, or else the file's
            categories in the order of their ids. There may be more of them than the file has.
        keep_empty: whether to keep the images without objects, crowds not counted. The published training skips them;
            evaluation needs them.
        choices: the objects to use.

    Annotations that can't be used (a box without area or outside the image, a mask that does not fit, …) are skipped: `invalid` names
    each by the file and its id, `remarks` counts them in one line, and `problems` lists everything that is wrong. A missing image keeps
    its position; reading it raises CorruptImageError.

    Raises UsageError if the file or folder does not exist, ConvnextError if it is not a COCO file, or lacks the classes.
    """

    reading: Reading = AS_RGB

    def __init__(
        self,
        annotations: Path,
        folder: Path,
        classes: Sequence[str] | None = None,
        keep_empty: bool = True,
        choices: Choices = EVERYTHING,
    ) -> None:
        content = read_coco(annotations, classes, choices)
        if not folder.is_dir():
            raise UsageError(f"no folder {folder} for the images of {annotations}{nearest_path(folder)}")
        self.file, self.folder, self.classes, self.category_ids = annotations, folder, content.classes, content.category_ids
        self._boxes_are_masks, self.skipped = choices.masks == "boxes", list[str]()
        self.invalid, self.count = content.invalid, content.count  # invalid annotations, of how many
        self.problems, self.remarks = [*content.invalid, *content.corrected], content.remarks
        for what, found in (("skipped", content.invalid), ("used a part of", content.corrected)):
            if found:
                self.remarks.append(f"{what} {counted(len(found), 'invalid annotation')}, the first: {found[0]}")
        is_crowd = self._crowds(content, choices)
        images, usable = content.images, content.annotations
        full = {annotation["image_id"] for annotation, crowd in zip(usable, is_crowd, strict=True) if not crowd}
        if not keep_empty:
            if len(full) < len(images):
                some = f"{len(images) - len(full)} of {len(images)} images, which have no objects"
                self.remarks.append(f"{annotations}: skipped {some} (data.keep_empty=true trains on them)")
            images = {key: image for key, image in images.items() if key in full}
            kept = [annotation["image_id"] in full for annotation in usable]
            usable, is_crowd = [one for one, is_kept in zip(usable, kept, strict=True) if is_kept], is_crowd[kept]
        if not images:
            why = f": {'; '.join(self.remarks)}" if self.remarks else ""
            raise ConvnextError(f"{annotations} lists no images{'' if keep_empty else f' with objects{why}'}")
        self._keep_images(images)
        self._keep_annotations(usable, is_crowd, content.labels)
        self.has_corners = False  # whether boxes look like left, top, right, bottom
        self.remarks += self._box_remarks()

    def _crowds(self, content: CocoFile, choices: Choices) -> np.ndarray:
        """Return which annotations are crowds, bool (n,); those without a mask count as such where masks are required."""
        annotations = content.annotations
        is_crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], dtype=bool) & (not choices.crowds)
        if crowds := int(is_crowd.sum()):
            what = f"{crowds} of {counted(len(annotations), 'object')} {'is a crowd' if crowds == 1 else 'are crowds'} (iscrowd 1)"
            self.remarks.append(
                f"{self.file}: {what}, neither trained on nor counted in evaluation; if they are single objects, as CVAT writes masks, "
                "add data.crowds=objects"
            )
        without = np.array([not annotation.get("segmentation") for annotation in annotations], dtype=bool)
        self.has_masks = not without.any() or choices.masks == "boxes" or (choices.masks == "required" and not without.all())
        if not without.any() or (without.all() and choices.masks != "boxes"):
            return is_crowd
        first = annotation_name(annotations[int(without.argmax())]["id"])
        some = f"{without.sum()} of {counted(len(annotations), 'object')} without a mask, the first {first}"
        rules = {
            "required": "they are ignored in training and evaluation; data.masks_from_boxes=true takes their boxes as masks",
            "boxes": "their boxes are their masks",
            "optional": "the masks of the others are not used",
        }
        self.remarks.append(f"{self.file}: {some}: {rules[choices.masks]}")
        return is_crowd | without if choices.masks == "required" else is_crowd

    def _keep_images(self, images: Mapping[int, CocoImage]) -> None:
        self.ids = list(images)
        self.heights = np.array([image["height"] for image in images.values()])
        self.widths = np.array([image["width"] for image in images.values()])
        given = [image["file_name"] for image in images.values()]
        self.paths, self.missing = found_in(self.folder, given)  # relative to the folder; of those that are not there, with it
        if missing := self.missing:
            if len(missing) == len(self.paths):
                raise ConvnextError(f"none of the {len(missing)} images of {self.file} is in {self.folder}, for instance not {missing[0]}")
            some = f"{len(missing)} of the {len(self.paths)} images of {self.file}"
            self.remarks.append(f"{some} {'is' if len(missing) == 1 else 'are'} missing, the first {missing[0]}")
            self.problems += [f"{self.file}: image {path} is missing" for path in missing]
        if moved := [(old, new) for old, new in zip(given, self.paths, strict=True) if old != new]:
            first = f"{moved[0][0]} as {moved[0][1]}"
            self.remarks.append(f"{self.file}: found {counted(len(moved), 'image')} by the end of the path, the first {first}")
        if sideways := stored_sideways(self.folder, self.paths[:_LISTED], zip(self.widths, self.heights, strict=True)):
            self.remarks.append(
                f"{self.file}: has the size of {counted(len(sideways), 'image')} as stored, which EXIF turns on its side, the first "
                f"{sideways[0]}: taken as stored; if the boxes fit the upright image, exchange its width and height in the file"
            )
        if twice := [path for path, count in Counter(self.paths).items() if count > 1]:
            self.remarks.append(f"{self.file}: lists {counted(len(twice), 'image')} more than once, the first {twice[0]}")

    def _keep_annotations(self, annotations: Sequence[CocoAnnotation], is_crowd: np.ndarray, labels: Mapping[int, int]) -> None:
        # Flat arrays: counting references to millions of Python objects would copy their memory, page by page, into each worker.
        position = {key: at for at, key in enumerate(self.ids)}
        positions = np.array([position[annotation["image_id"]] for annotation in annotations], dtype=np.int64)
        order = positions.argsort(kind="stable")
        annotations = [annotations[at] for at in order]
        self._first = np.searchsorted(positions[order], np.arange(len(self.ids) + 1)).tolist()  # of each image, and the end of the last
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
        self._boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype(np.float32)
        self._labels = np.array([labels[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        self._crowd = is_crowd[order]
        self.object_counts = np.bincount(positions[order][~self._crowd], minlength=len(self.ids))
        self._areas = np.array([area_of(annotation) for annotation in annotations], dtype=np.float32)
        self._annotation_ids = np.array([annotation["id"] for annotation in annotations], dtype=np.int64)
        masks = [marshal.dumps(cast(str, annotation.get("segmentation") or None)) for annotation in annotations]  # lists and dicts are fine
        self._masks, self._ends = b"".join(masks), np.cumsum([0, *map(len, masks)])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if it can't be decoded, or its size is not that of the file."""
        image = read_image(self.folder / self.paths[index], how=self.reading)
        turn = self._turn(index, image.height, image.width)
        return turned_image(image, turn) if isinstance(image, Image) else image.turned(turn)

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor. Raises CorruptImageError as `read` does."""
        pixels = read_pixels(self.folder / self.paths[index], how=self.reading)
        _, height, width = pixels.shape
        turn = self._turn(index, height, width)
        return turned(pixels, turn) if isinstance(pixels, Tensor) else pixels.turned(turn)

    def _turn(self, index: int, height: int, width: int) -> int:
        """Return the orientation by which to turn an upright image, so that it is as the file says, if it was annotated as it is stored."""
        wanted = self.size(index)
        if (height, width) == wanted:
            return 1
        if (width, height) == wanted and (turn := stored_turn(self.folder / self.paths[index])) is not None:
            return turn
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
            if not segmentation:
                left, top, right, bottom = self._boxes[row].tolist()
                segmentation = [[left, top, right, top, right, bottom, left, bottom]]
            try:
                runs.append(from_segmentation(segmentation, *self.size(index)))
            except (RuntimeError, ValueError) as error:
                name = annotation_name(int(self._annotation_ids[row]))
                raise CorruptImageError(f"{self.file}: {name} has a damaged mask: {first_line(error)}") from error
        return runs

    def name(self, index: int) -> str:
        """Return what reports call the image: its path."""
        return str(self.folder / self.paths[index])

    def objects_by_class(self) -> list[int] | None:
        """Return how many objects each class has, crowds not counted."""
        counts: list[int] = np.bincount(self._labels[~self._crowd], minlength=len(self.classes)).tolist()
        return counts

    def key(self, index: int) -> str:
        """Return the image's path within the folder."""
        return str(self.paths[index])

    def label_bytes(self, index: int) -> bytes:
        """Return boxes, classes and areas of the image's objects as bytes, to compare them with a later run's."""
        rows = slice(self._first[index], self._first[index + 1])
        return b"".join(array[rows].tobytes() for array in (self._boxes, self._labels, self._crowd, self._areas))

    def object_labels(self, index: int) -> list[int]:
        """Return the labels of an image's objects, without crowds."""
        rows = slice(self._first[index], self._first[index + 1])
        labels: list[int] = self._labels[rows][~self._crowd[rows]].tolist()
        return labels

    def with_mask(self, index: int) -> list[bool]:
        """Return of each of the image's objects whether its mask is one of the file's, or by choice its box."""
        lengths = np.diff(self._ends[self._first[index] : self._first[index + 1] + 1])
        return [self._boxes_are_masks or length > _NO_MASK for length in lengths.tolist()]

    def annotation_ids(self, index: int) -> list[int]:
        """Return the ids of the image's objects, in the order of `target`; see `annotation_name`."""
        ids: list[int] = self._annotation_ids[self._first[index] : self._first[index + 1]].tolist()
        return ids

    def _box_remarks(self) -> list[str]:
        """Return what to report of boxes that reach over the border of their image: at most one line."""
        images = np.repeat(np.arange(len(self)), np.diff(self._first))
        ends = np.stack([self.widths, self.heights], 1)[images] + 1
        over = (self._boxes[:, 2] > ends[:, 0]) | (self._boxes[:, 3] > ends[:, 1])
        if over.sum() <= _FEW_OVER * len(over):
            return []
        given = self._boxes[:, 2:] - self._boxes[:, :2]  # as the file has them: width and height, or else right and bottom
        self.has_corners = bool(((given > self._boxes[:, :2]) & (given <= ends)).all())
        hint = "; boxes look like corners, and COCO's are left, top, width, height: subtract left and top" if self.has_corners else ""
        name = annotation_name(int(self._annotation_ids[over.argmax()]))
        some = f"{over.sum()} of {counted(len(over), 'object')}"
        return [f"{self.file}: {some} with a box that reaches over the border of its image, the first {name}{hint}"]


def open_coco(where: str, classes: Sequence[str] | None = None, keep_empty: bool = True) -> CocoSource:
    """Return the images of `coco:ANNOTATIONS.json:FOLDER`; for `classes` and `keep_empty` see `CocoSource`, also for what it raises.

    Options after it choose objects, see `parse_choices`.
    """
    base, choices = parse_choices(where)
    annotations, images = _split(base.removeprefix("coco:"))
    if not annotations or not images:
        raise UsageError(f"{where!r}: write {example_name(Path(images))}, with the folder of its images")
    return CocoSource(Path(annotations).expanduser(), Path(images).expanduser(), classes, keep_empty, choices)


def _split(name: str) -> tuple[str, str]:
    """Return the two paths of FILE:FOLDER, split at the last colon that is not one of a drive of Windows; the first is empty without it."""
    for match in reversed(list(re.finditer(":", name))):
        before, after = name[: match.start()], name[match.end() :]
        if not (after.startswith(("/", "\\")) and _DRIVE.search(before)):
            return before, after
    return "", name


def open_coco_layout(where: str, classes: Sequence[str] | None = None, keep_empty: bool = True) -> CocoSource:
    """Return the images of a folder such as `coco/train2017`, annotated in `coco/annotations/instances_train2017.json`.

    Options after it choose objects, see `parse_choices`.

    Raises UsageError if there are no such annotations, and otherwise what `CocoSource` raises.
    """
    base, choices = parse_choices(where)
    folder = Path(base).expanduser()
    annotations = folder.parent / "annotations" / f"instances_{folder.name}.json"
    if annotations.is_file():
        return CocoSource(annotations, folder, classes, keep_empty, choices)
    if parts := [item.stem.removeprefix("instances_") for item in sorted((folder / "annotations").glob("instances_*.json"))]:
        raise UsageError(f"{folder} has several parts: name one, {' or '.join(str(folder / part) for part in parts)}")
    lacking = f"no annotations of {where!r}: {annotations} (COCO's own layout) does not exist"
    name = f"Name the file and the folder of its images, as in {example_name(folder)}, or take scenes:train or scenes:val"
    raise UsageError(f"{lacking}. {name}")
