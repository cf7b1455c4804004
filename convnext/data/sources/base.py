"""Sources: classes that read a dataset's labelled images by position, one protocol for each kind of label.

A source is a class with these attributes and methods; it inherits from nothing. `open.py` lists the formats.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.annotations.objects import ImageObjects
from convnext.data.contents import Listed
from convnext.data.deep import DeepImage
from convnext.data.images import CorruptImageError, Reading
from convnext.data.tables.columns import TargetKind

MaskIds = list[int | tuple[int, int, int]]  # the value, or the colour R, G, B, that stands for each class in mask files


class ImageSource(Listed, Protocol):
    """Images by position, whatever their labels. `Listed` gives each a key and its label's bytes, which a resumed run compares."""

    classes: list[str]
    skipped: list[str]  # files in the dataset's folders that are not used
    remarks: list[str]  # other facts to report to the user, one per line

    def read(self, index: int) -> Image.Image | DeepImage:
        """Return the image at a position, upright. Raises CorruptImageError if it can't be decoded."""

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image of `read` as a uint8 (3, H, W) tensor if it has 8 bits: the fastest way, for training."""

    def name(self, index: int) -> str:
        """Return what reports and messages call the image at a position, for instance its path."""


class ClassifySource(ImageSource, Protocol):
    """Images with one label each.

    A source whose labels may be of another kind says which by an attribute `target_kind`; see `target_kind_of`.
    """

    def label(self, index: int) -> int:
        """Return the position in `classes` of an image's class."""


class MultilabelSource(ImageSource, Protocol):
    """Images with any number of classes each."""

    def label(self, index: int) -> tuple[int, ...]:
        """Return the positions in `classes` of an image's classes, in order."""


class ValueSource(ImageSource, Protocol):
    """Images with a number each. Something stands for the name of a class, or `classes` is empty."""

    def label(self, index: int) -> float:
        """Return the number of an image."""


class DetectSource(ImageSource, Protocol):
    """Images with their objects.

    A source that knows without reading an image how many objects it has says so by an attribute `object_counts`; see the function.
    """

    has_masks: bool
    category_ids: dict[str, int]  # the data's own numbers of their classes, by name; empty if they have none
    heights: np.ndarray  # int64 (images,), known without opening an image: training groups images by shape
    widths: np.ndarray

    def target(self, index: int) -> ImageObjects:
        """Return the objects of an image, masks as a tensor of all their pixels."""

    def encoded_target(self, index: int) -> ImageObjects:
        """Return the objects of an image, masks not yet decoded if the format has them encoded."""

    def objects_by_class(self) -> list[int] | None:
        """Return how many objects each class has; None if counting would take reading all images."""


class SegmentSource(ImageSource, Protocol):
    """Images with a mask each."""

    class_ids: MaskIds | None  # None if no mask file uses ids
    problems: list[str]  # what opening the dataset found wrong, one problem per line

    def mask(self, index: int) -> Tensor:
        """Return the mask of an image, uint8 (H, W): class indices from 0, and 255 on ignored pixels."""


def target_kind_of(source: ClassifySource) -> TargetKind:
    """Return what the labels of a source are: "class" (an int), "classes" (a tuple of ints) or "value" (a float)."""
    kind: TargetKind = getattr(source, "target_kind", "class")
    return kind


def object_counts(source: DetectSource) -> np.ndarray | None:
    """Return the number of objects of each image, int64 (images,), crowds not counted; None if the source does not know."""
    counts: np.ndarray | None = getattr(source, "object_counts", None)
    return counts


def read_by(source: object, how: Reading) -> None:
    """Let a source, and those that it takes its images from, open files in that way. Sources without files have RGB images."""
    if hasattr(source, "reading"):
        source.reading = how
    inner = getattr(source, "source", None)
    for one in [*getattr(source, "sources", ()), *([] if inner is None else [inner])]:
        read_by(one, how)


def classes_of_objects(source: DetectSource) -> list[list[int]]:
    """Return the classes of each image's objects, crowds not counted; none where an annotation can't be decoded. Reads no image."""
    found: list[list[int]] = []
    for index in range(len(source)):
        try:
            objects = source.encoded_target(index)
        except CorruptImageError:  # which training reports
            found.append([])
        else:
            found.append(sorted(set(objects.labels[~objects.iscrowd].tolist())))
    return found


SourceT = TypeVar("SourceT", bound=ImageSource)


class Subset(Generic[SourceT]):
    """Some positions of another source.

    Args:
        source: the other source.
        indices: positions in it.
    """

    def __init__(self, source: SourceT, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.classes, self.skipped, self.remarks = source.classes, source.skipped, list(source.remarks)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image | DeepImage:
        return self.source.read(self.indices[index])

    def pixels(self, index: int) -> Tensor | DeepImage:
        return self.source.pixels(self.indices[index])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def key(self, index: int) -> str:
        return self.source.key(self.indices[index])

    def label_bytes(self, index: int) -> bytes:
        return self.source.label_bytes(self.indices[index])


class ClassifySubset(Subset[ClassifySource]):
    """Some positions of a source with one label per image."""

    def __init__(self, source: ClassifySource, indices: Sequence[int]) -> None:
        super().__init__(source, indices)
        self.target_kind = target_kind_of(source)

    def label(self, index: int) -> int:
        return self.source.label(self.indices[index])


class SegmentSubset(Subset[SegmentSource]):
    """Some positions of a source with a mask per image."""

    def __init__(self, source: SegmentSource, indices: Sequence[int]) -> None:
        super().__init__(source, indices)
        self.class_ids, self.problems = source.class_ids, source.problems

    def mask(self, index: int) -> Tensor:
        return self.source.mask(self.indices[index])


class DetectSubset(Subset[DetectSource]):
    """Some positions of a source with objects."""

    def __init__(self, source: DetectSource, indices: Sequence[int]) -> None:
        super().__init__(source, indices)
        self.has_masks, self.category_ids = source.has_masks, source.category_ids
        self.heights, self.widths = source.heights[list(indices)], source.widths[list(indices)]
        counts = object_counts(source)
        self.object_counts = None if counts is None else counts[list(indices)]

    def target(self, index: int) -> ImageObjects:
        return self.source.target(self.indices[index])

    def encoded_target(self, index: int) -> ImageObjects:
        return self.source.encoded_target(self.indices[index])

    def object_labels(self, index: int) -> list[int]:
        return object_labels(self.source, self.indices[index])

    def objects_by_class(self) -> list[int] | None:
        if self.source.objects_by_class() is None:
            return None
        labels = [label for index in range(len(self)) for label in self.object_labels(index)]
        counts: list[int] = np.bincount(labels, minlength=len(self.classes)).tolist()
        return counts


def object_labels(source: DetectSource, index: int) -> list[int]:
    """Return the labels of an image's objects, without crowds: by the source's method of this name, or else by reading them."""
    if hasattr(source, "object_labels"):
        labels: list[int] = source.object_labels(index)
        return labels
    objects = source.encoded_target(index)
    return [int(label) for label in objects.labels[~objects.iscrowd]]
