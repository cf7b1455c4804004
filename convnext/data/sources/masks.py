"""Images with masks, whatever format they come in: their checks, their parts, and objects turned into masks."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.annotations.mask_files import IGNORED
from convnext.data.deep import DeepImage, Depths
from convnext.data.images import CorruptImageError
from convnext.data.run_lengths import extent, lengths, sampled
from convnext.data.sources.base import DetectSource, MaskIds, SegmentSource
from convnext.data.sources.coco import CocoSource
from convnext.errors import ConvnextError
from convnext.text import counted

BACKGROUND = "background"
_SAMPLED = 500  # masks that `shares_of_pixels` reads: of all of a large set it would take minutes


def mask_of(source: SegmentSource, index: int, image: Image.Image | DeepImage | Tensor) -> Tensor:
    """Return the mask of a position, uint8 (H, W), after comparing its size with that of `image`, which is read from there.

    Raises CorruptImageError if the mask can't be decoded, and ConvnextError if it is not a mask of that image.
    """
    mask = source.mask(index)
    height, width = image.shape[1:] if isinstance(image, Tensor) else image.size[::-1]
    if mask.shape != (height, width):
        raise ConvnextError(
            f"{source.name(index)} is {width} x {height} pixels, its mask {mask.shape[1]} x {mask.shape[0]}: "
            "a mask must have the size of its image, upright as EXIF says"
        )
    return mask


def check(source: SegmentSource, depths: Depths | None = None, unreadable: list[str] | None = None) -> list[str]:
    """Return everything wrong with images and masks, one problem per line, by path. Reads all of them, in up to eight threads.

    Args:
        depths: collects the images with more than 8 bits.
        unreadable: collects why images can't be read, which otherwise are problems, too.
    """

    def read(index: int) -> tuple[str | None, set[int]]:
        try:
            image = source.pixels(index)
        except CorruptImageError as error:
            if unreadable is None:
                return str(error), set()
            unreadable.append(str(error))
            return None, set()
        try:
            if depths is not None:
                depths.add(image)
            mask = mask_of(source, index, image)
        except (ConvnextError, CorruptImageError) as error:
            return str(error), set()
        return None, set(torch.bincount(mask.flatten()).nonzero().flatten().tolist())

    # Decoding an image sets and restores Python's filter of warnings, and threads may do so in any order.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(read, range(len(source))))
    if unreadable is not None:
        unreadable.sort()  # threads end in any order
    problems = source.problems + [message for message, _ in found if message]
    labelled = set().union(*(labels for _, labels in found)) - {IGNORED}
    if not problems and len(labelled) < 2:
        only = "no class at all" if not labelled else f"no class but {source.classes[labelled.pop()]!r}"
        problems.append(
            f"all masks together hold {only}: 255 is ignored, so where it is a class, give classes.txt colours ('thing 255 255 255')"
        )
    return problems


def classes_of_masks(source: SegmentSource) -> list[list[int]]:
    """Return the classes that each image's mask shows; none where it can't be read. Reads all masks, in up to eight threads."""
    counts = _pixels_by_value(source, range(len(source)))
    return [[value for value in row.nonzero().flatten().tolist() if value != IGNORED] for row in counts]


def shares_of_pixels(source: SegmentSource) -> list[str]:
    """Return which share of the pixels each class has, and in how many images it is, one per line; then the same of ignored pixels.

    Of more than 500 masks it reads 500, evenly spread over the source, in up to eight threads. Masks that can't be read do not count.
    """
    every = max(1, len(source) / _SAMPLED)
    indices = [int(i * every) for i in range(min(len(source), _SAMPLED))]
    counts = torch.stack(_pixels_by_value(source, indices))
    pixels, images = counts.sum(0).tolist(), (counts > 0).sum(0).tolist()
    named = [*enumerate(source.classes), *([(IGNORED, "ignored")] if pixels[IGNORED] else [])]
    of = "all" if len(indices) == len(source) else f"{len(indices)} of the"
    lines = [f"pixels by class in {of} {counted(len(source), 'mask')}:"]
    for value, name in named:
        share = f"{100 * pixels[value] / max(1, sum(pixels)):.2f} %"
        lines.append(f"  {name}: {share}, in {counted(images[value], 'image')}" if images[value] else f"  {name}: in no image")
    return lines


def _pixels_by_value(source: SegmentSource, indices: Sequence[int]) -> list[Tensor]:
    """Return the number of pixels of each value, int64 (256,), in the mask of each position; zeros where it can't be read."""

    def read(index: int) -> Tensor:
        try:
            mask = source.mask(index)
        except (ConvnextError, CorruptImageError):  # which training and `check` report
            return torch.zeros(IGNORED + 1, dtype=torch.int64)
        return torch.bincount(mask.flatten(), minlength=IGNORED + 1)

    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, indices))


class Semantic:
    """Images of a detection source with masks (H, W): 0 for background, 1 for its first class.

    Smaller objects cover larger ones, whatever their order: a plate lies on a table. What only an object without a mask covers is ignored.
    """

    def __init__(self, source: DetectSource) -> None:
        self.source, self.classes = source, [BACKGROUND, *source.classes]
        self.skipped, self.remarks = source.skipped, source.remarks
        self.problems: list[str] = []
        self.class_ids: MaskIds | None = None  # there are no mask files

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Image.Image | DeepImage:
        return self.source.read(index)

    def pixels(self, index: int) -> Tensor | DeepImage:
        return self.source.pixels(index)

    def mask(self, index: int) -> Tensor:
        """Return the class of each pixel, uint8 (H, W). Raises CorruptImageError if an object's mask can't be decoded."""
        objects = self.source.encoded_target(index)
        found = torch.zeros(int(self.source.heights[index]), int(self.source.widths[index]), dtype=torch.uint8)
        is_known = self.source.with_mask(index) if isinstance(self.source, CocoSource) else [True] * len(objects)
        labels = [label + 1 if known else IGNORED for label, known in zip(objects.labels.tolist(), is_known, strict=True)]
        shapes = zip(labels, objects.run_lengths() or (), strict=True)
        for label, runs in sorted(shapes, key=lambda one: (one[0] != IGNORED, -int(lengths(one[1])[1::2].sum()))):
            if (box := extent(runs)) is not None:
                left, top, right, bottom = box
                ink = torch.from_numpy(sampled(runs, np.arange(top, bottom), np.arange(left, right))).bool()
                found[top:bottom, left:right][ink] = label
        return found

    def name(self, index: int) -> str:
        return self.source.name(index)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def label_bytes(self, index: int) -> bytes:
        return self.source.label_bytes(index)


def open_semantic(
    open_objects: Callable[[str, Sequence[str] | None, bool], DetectSource], where: str, classes: Sequence[str] | None = None
) -> Semantic:
    """Return the images that `where` names, each pixel labelled with its object's class or background.

    Args:
        open_objects: opens `where` as detection data.
        where: as for `open_detection`: `scenes:train`, `coco:ANNOTATIONS.json:FOLDER`.
        classes: the class names that the masks count, if a network already has some; background is the first.

    Raises ConvnextError if the annotations have no masks, or if the classes do not begin with background.
    """
    if classes is not None and (not classes or classes[0] != BACKGROUND):
        raise ConvnextError(f"{where} gives every pixel the class of an object or {BACKGROUND!r}, and the network has no such class")
    source = open_objects(where, None if classes is None else classes[1:], True)
    if not source.has_masks:
        raise ConvnextError(f"{where} has boxes but no masks: segmentation needs masks")
    return Semantic(source)
