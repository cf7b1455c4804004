"""Datasets from outside the package: a program's own map-style datasets, those that a function opens, and those that a reference names."""

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.images import AS_RGB, ImageLike, Reading, read_image, to_pixels
from convnext.data.randomness import seeded
from convnext.data.sources.base import ClassifySource, DetectSource, SegmentSource
from convnext.errors import ConvnextError, CorruptImageError, UsageError, first_line
from convnext.extend import SOURCES, given, is_marker, module_of, resolve
from convnext.text import class_name

Classes = Sequence[str] | None
Items = Any  # a dataset of another library: `len(items)`, and `items[index]` as (image, label) or a dict

_IMAGES, _LABELS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")  # keys of a dict; those of Hugging Face's datasets
_LISTED = ("targets", "labels", "_labels")  # attributes of torchvision's datasets with all labels


class OwnDataset:
    """A map-style dataset of another library as a source of images with one label each.

    Its items are (image, label), or dicts with image and label. An image is what `read_image` takes, or a tensor (C, H, W), uint8 or
    float32 from 0 to 1. Class names are its `classes`, or its `features`' names, or else its labels in sorted order;
    labels that are numbers count the classes of a network, if there are some. What an item draws
    at random is a function of (seed, epoch, index) in training, and the same in every evaluation.

    Args:
        items: the dataset.
        name: what messages call it.
        classes: the class names that the labels shall count, if a network already has some.

    Raises UsageError for an object that is not such a dataset, ConvnextError for invalid labels, and for classes that the network lacks.
    """

    reading: Reading = AS_RGB

    def __init__(self, items: Items, name: str, classes: Classes = None) -> None:
        if not (hasattr(items, "__getitem__") and hasattr(items, "__len__")):
            raise UsageError(f"{name} is no map-style dataset: it needs __len__ and __getitem__, which gives (image, label)")
        self.items, self.own_name = items, name
        self.skipped: list[str] = []
        self.remarks: list[str] = []
        found, own = _labels(items, self._item), _class_names(items)
        if own is None and classes is not None and not any(isinstance(label, str) for label in found):
            own = list(classes)  # labels that are numbers count the classes that there are
        if own is None:
            own, labels = _named(found, name)
        else:
            labels = _numbers(found, own, name)
        self.classes = own if classes is None else list(classes)
        if self.classes != own:
            labels = self._in_order_of(self.classes, own, labels)
        self._labels = labels
        self._given = found  # as the items give them

    def _in_order_of(self, classes: list[str], own: list[str], labels: np.ndarray) -> np.ndarray:
        if lacking := [name for name in own if name not in classes]:
            raise ConvnextError(f"the classes of {self.own_name} are not the network's: it has no {', '.join(lacking[:5])}")
        return np.array([classes.index(name) for name in own], dtype=np.int64)[labels]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Image.Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if the dataset fails to give it, or gives no image."""
        with seeded(0, index):
            return self._image(index)

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor if it has 8 bits. It draws from the global generators, which training seeds."""
        image = self._image(index)
        return image if isinstance(image, DeepImage) else to_pixels(image, channels=self.reading.channels)

    def label(self, index: int) -> int:
        """Return the position in `classes` of an image's class."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """Return what the dataset's own `name` gives, or else the position."""
        own = getattr(self.items, "name", None)
        return str(own(index)) if callable(own) else f"{self.own_name}[{index}]"

    def key(self, index: int) -> str:
        """Return what stays the same when the dataset moves: its own name of the image, or the position."""
        own = getattr(self.items, "name", None)
        return str(own(index)) if callable(own) else str(index)

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return b"%d" % self.label(index)

    def _item(self, index: int) -> tuple[object, object]:
        item = self.items[index]
        if isinstance(item, Mapping):
            image, label = next((key for key in _IMAGES if key in item), None), next((key for key in _LABELS if key in item), None)
            if image is None or label is None:
                raise UsageError(f"{self.own_name}: an item has the keys {', '.join(map(str, item))}, and needs image and label")
            return item[image], item[label]
        if not isinstance(item, tuple | list) or len(item) != 2:
            kind = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
            raise UsageError(f"{self.own_name}: an item is {kind}, and must be (image, label), or a dict with image and label")
        return item[0], item[1]

    def _image(self, index: int) -> Image.Image | DeepImage:
        try:
            image, label = self._item(index)
        except ConvnextError:
            raise
        except Exception as error:  # a dataset from outside may raise anything for an item that it can't read
            raise CorruptImageError(f"{self.name(index)}: {type(error).__name__}: {first_line(error)}") from error
        if (found := _plain(label)) != _plain(self._given[index]):
            raise ConvnextError(f"{self.name(index)} has the label {found} now, and had {_plain(self._given[index])} when it was opened")
        if isinstance(image, Tensor):
            image = image.detach().cpu().numpy()
            image = image if image.ndim == 2 else np.moveaxis(image, 0, -1)
        return read_image(cast(ImageLike, image), self.name(index), self.reading)


def _plain(label: object) -> int | str:
    """Return a label as a whole number or text. Raises TypeError for anything else."""
    return label if isinstance(label, str) else operator.index(cast(Any, label))


def _labels(items: Items, item: Callable[[int], tuple[object, object]]) -> Sequence[object]:
    """Return the labels of all items, without opening the images where the dataset lists them and does not change them."""
    count = len(items)
    if not count:
        return []
    first = item(0)[1]
    for found in _listed(items):
        if len(found) == count and not isinstance(found[0], Tensor | np.ndarray | list) and _same(found[0], first):
            return found
    return [first, *(item(index)[1] for index in range(1, count))]


def _same(one: object, other: object) -> bool:
    try:
        return _plain(one) == _plain(other)
    except TypeError:
        return False


def _listed(items: Items) -> Sequence[Sequence[Any]]:
    """Return the lists of all labels that a dataset offers: torchvision's attributes, Hugging Face's columns, a subset's of its whole."""
    if hasattr(items, "indices") and hasattr(items, "dataset"):  # torch.utils.data.Subset
        return [[whole[index] for index in items.indices] for whole in _listed(items.dataset)]
    if getattr(items, "target_transform", None) is not None:
        return []
    found = [getattr(items, name) for name in _LISTED if hasattr(items, name)]
    if hasattr(items, "column_names") and not getattr(items, "format", {}).get("format_kwargs"):
        found += [items[name][:] for name in _LABELS if name in items.column_names]
    lists = [one.tolist() if isinstance(one, Tensor | np.ndarray) else one for one in found]
    return [one for one in lists if isinstance(one, Sequence) and not isinstance(one, str)]


def _class_names(items: Items) -> list[str] | None:
    """Return the class names that a dataset has, None if it has none."""
    if (names := getattr(items, "classes", None)) is not None and not callable(names):
        return [class_name(str(name)) for name in names]
    features = getattr(items, "features", None)
    if isinstance(features, Mapping):
        for key in _LABELS:
            if (names := getattr(features.get(key), "names", None)) is not None:
                return [class_name(str(name)) for name in names]
    return _class_names(items.dataset) if hasattr(items, "indices") and hasattr(items, "dataset") else None


def _named(found: Sequence[object], name: str) -> tuple[list[str], np.ndarray]:
    """Return class names and labels of a dataset without class names: its labels in sorted order, or the numbers from 0 on."""
    labels = [_checked(label, name) for label in found]
    if any(isinstance(label, str) for label in labels):
        names = sorted({class_name(str(label)) for label in labels})
        return names, np.array([names.index(class_name(str(label))) for label in labels], dtype=np.int64)
    numbers = np.array(labels, dtype=np.int64)
    if len(numbers) and numbers.min() < 0:
        raise ConvnextError(f"{name} has the label {numbers.min()}: labels count from 0")
    return [str(number) for number in range(int(numbers.max(initial=-1)) + 1)], numbers


def _numbers(found: Sequence[object], classes: list[str], name: str) -> np.ndarray:
    """Return the labels of a dataset with class names."""
    positions = {one: at for at, one in enumerate(classes)}
    labels = [_checked(label, name) for label in found]
    numbers = [positions.get(class_name(label), -1) if isinstance(label, str) else label for label in labels]
    if bad := [label for label, number in zip(labels, numbers, strict=True) if not 0 <= number < len(classes)]:
        raise ConvnextError(f"{name} has the label {bad[0]!r}, and {len(classes)} classes: labels are class names, or count from 0")
    return np.array(numbers, dtype=np.int64)


def _checked(label: object, name: str) -> int | str:
    try:
        return _plain(label)
    except TypeError as error:
        raise ConvnextError(f"{name} has the label {str(label)[:80]}: a label is a whole number or a class name") from error


# From a name to such a dataset


def is_own(where: str) -> bool:
    """Return whether a name is of a dataset from outside: registered, a reference to code, or given from Python."""
    if is_marker(where) or (module_of(where) is not None and not Path(where).exists()):
        return True
    kind, colon, _ = where.partition(":")
    return bool(colon) and kind.isidentifier() and not Path(where).exists() and SOURCES.find(kind) is not None


def _open(where: str, classes: Classes) -> object:
    kind, _, rest = where.partition(":")
    if is_marker(where):
        return given(where)
    if (opener := SOURCES.find(kind)) is not None:
        return opener(rest, classes)
    found = resolve(where)
    return found() if callable(found) and not hasattr(found, "__getitem__") else found


def open_own(where: str, classes: Classes = None) -> ClassifySource:
    """Return the images with one label each of a dataset from outside. Raises UsageError and ConvnextError as `OwnDataset` does."""
    found = _open(where, classes)
    is_source = all(hasattr(found, name) for name in ("pixels", "label", "label_bytes"))
    return cast(ClassifySource, found) if is_source else OwnDataset(found, where.rpartition(":")[2] if is_marker(where) else where, classes)


def open_own_objects(where: str, classes: Classes = None, keep_empty: bool = True) -> DetectSource:
    """Return the images with objects of a dataset from outside. Raises UsageError if it is no `DetectSource`."""
    return cast(DetectSource, _with(_open(where, classes), "encoded_target", where, "DetectSource"))


def open_own_masks(where: str, classes: Classes = None) -> SegmentSource:
    """Return the images with masks of a dataset from outside. Raises UsageError if it is no `SegmentSource`."""
    return cast(SegmentSource, _with(_open(where, classes), "mask", where, "SegmentSource"))


def _with(found: object, method: str, where: str, protocol: str) -> object:
    if not hasattr(found, method):
        raise UsageError(f"{where} gives a {type(found).__name__}: this task needs a {protocol}, see convnext/data/sources/base.py")
    return found
