"""From the text of `data.train` and `data.val` to a source: the table of all formats of datasets.

A new format is one file and one entry of `_FORMATS`; a program adds its own data with `convnext.register_source`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from convnext.data import imagenet
from convnext.data.sources.base import (
    ClassifySource,
    ClassifySubset,
    DetectSource,
    MultilabelSource,
    SegmentSource,
    ValueSource,
    target_kind_of,
)
from convnext.data.sources.cifar import VERSIONS, open_cifar
from convnext.data.sources.coco import open_coco, open_coco_layout
from convnext.data.sources.digits import open_digit_facts, open_digit_values, open_digits
from convnext.data.sources.folder import ImageFolder, parts_of
from convnext.data.sources.masks import open_semantic
from convnext.data.sources.own import is_own, open_own, open_own_masks, open_own_objects
from convnext.data.sources.packed.archive import ArchiveFolder, archive_parts, is_archive
from convnext.data.sources.packed.embedded import is_embedded, open_embedded
from convnext.data.sources.packed.shards import is_shards, open_shards
from convnext.data.sources.pixelwise.mask_folder import open_mask_folder
from convnext.data.sources.pixelwise.published import open_ade20k, open_cityscapes
from convnext.data.sources.scenes import open_scenes
from convnext.data.sources.table import is_table, open_table
from convnext.data.sources.unlabelled import Unlabelled, UnlabelledFolder
from convnext.data.split import held_out
from convnext.data.storage.connection import is_stored, scheme_of
from convnext.data.tables.columns import TargetKind
from convnext.errors import UsageError, nearest
from convnext.extend import SOURCES

Classes = Sequence[str] | None  # the class names that the labels count, if a network already has some


@dataclass(frozen=True)
class SourceFormat:
    """A format of datasets: which names it recognises, and how it opens them for each kind of label that it has.

    The openers raise UsageError for a name that is wrong, and ConvnextError for data that can't be used or lack the classes.
    """

    name: str
    prefixes: tuple[str, ...] = ()  # of the names that it recognises, up to the colon: "digits" of digits:train
    recognises: Callable[[str], bool] | None = None  # other names that it recognises
    classify: Callable[[str, Classes], ClassifySource] | None = None
    multilabel: Callable[[str, Classes], MultilabelSource] | None = None  # else the one label of `classify` is taken as a set of one
    values: Callable[[str, Classes], ValueSource] | None = None
    detect: Callable[[str, Classes, bool], DetectSource] | None = None  # the flag: whether to keep images without objects
    segment: Callable[[str, Classes], SegmentSource] | None = None
    has_choices: bool = False  # whether options at the end of a name choose objects; see `annotations.choices`

    def takes(self, where: str) -> bool:
        """Return whether a name is of this format."""
        if self.recognises is not None and self.recognises(where):
            return True
        return where.startswith(tuple(f"{prefix}:" for prefix in self.prefixes))


def _is_digits(where: str) -> bool:
    return where == "digits"


def _is_path(where: str) -> bool:
    """Return whether a name is a path: it does not begin with a word and a colon, or it exists."""
    return not re.match(r"[\w-]{2,}:", where) or Path(where).exists()  # one letter and a colon are a drive of Windows


def _open_image_folder(where: str, classes: Classes) -> ImageFolder:
    return ImageFolder(Path(where).expanduser(), classes)


def _any_name(where: str) -> bool:
    return True


# A name goes to the first format that takes it. The formats of plain folders are last.
_FORMATS = [
    SourceFormat("digits", ("digits",), _is_digits, classify=open_digits),
    SourceFormat("facts about digits", ("digit-facts",), multilabel=open_digit_facts),
    SourceFormat("digits as numbers", ("digit-values",), values=open_digit_values),
    SourceFormat("CIFAR", tuple(VERSIONS), classify=open_cifar),
    SourceFormat("scenes", ("scenes",), detect=open_scenes, segment=partial(open_semantic, open_scenes)),
    SourceFormat("COCO file", ("coco",), detect=open_coco, segment=partial(open_semantic, open_coco), has_choices=True),
    SourceFormat("ADE20K", ("ade20k",), segment=open_ade20k),
    SourceFormat("Cityscapes", ("cityscapes",), segment=open_cityscapes),
    SourceFormat("tables of images", (), is_embedded, classify=open_embedded),
    SourceFormat("tables", (), is_table, classify=open_table),
    SourceFormat("archives", (), is_archive, classify=ArchiveFolder),
    SourceFormat("shards", (), is_shards, classify=open_shards),
    SourceFormat("from outside", (), is_own, classify=open_own, detect=open_own_objects, segment=open_own_masks),
    SourceFormat("folders of classes", (), _is_path, classify=_open_image_folder),
    SourceFormat("COCO's layout", (), _any_name, detect=open_coco_layout, has_choices=True),
    SourceFormat("images and masks", (), _any_name, segment=open_mask_folder),
]


def register_format(entry: SourceFormat) -> None:
    """Add a format of datasets. Names go to the format that was registered last among those that take them."""
    _FORMATS.insert(0, entry)


def formats() -> Iterator[SourceFormat]:
    """Return all formats, in the order in which they are tried."""
    return iter(tuple(_FORMATS))


def _taking(where: str) -> Iterator[SourceFormat]:
    """Return the formats that take a name, in their order. Raises UsageError for data in storage, such as `s3://`, that are no shards."""
    if is_stored(where) and not is_shards(where) and SOURCES.find(scheme_of(where)) is None:
        raise UsageError(f"{where}: of data in storage, only .tar shards of images with classes are read: download it, and give its folder")
    return (entry for entry in _FORMATS if entry.takes(where))


def open_source(where: str, classes: Classes = None) -> ClassifySource:
    """Return the images with one label each that `where` names.

    Args:
        where: `digits:train` or `digits:val`; `cifar10:train`, `cifar100:val` and so on, or `cifar10:/folder:train`;
            a table, `labels.csv` (see `open_table`); a dataset with images in Parquet (see `open_embedded`);
            a zip or tar of class folders (see `ArchiveFolder`);
            WebDataset shards (`x-{000..007}.tar`, `x-*.tar`, a folder of them, an `https://` or `hf://datasets/…` address);
            a dataset from outside the package, `my_module:function` or `PREFIX:…` of `convnext.register_source`;
            or a folder with one folder of images per class, named freely or by ImageNet's synsets.
        classes: the class names that the labels count, if a network already has some.

    Raises UsageError if nothing has this name, and ConvnextError if the data can't be used or lack the classes.
    """
    for entry in _taking(where):
        if entry.classify is not None:
            return entry.classify(where, classes)
    kind, _, folder = where.partition(":")
    if kind in imagenet.EVALUATION_SETS:
        raise UsageError(f"{where} is a set for `convnext eval --data` alone; to train on its images give the folder, {folder}")
    known = [prefix for entry in _FORMATS if entry.classify is not None for prefix in entry.prefixes] + list(SOURCES.entries)
    raise UsageError(f"unknown dataset {where!r}{nearest(f'{kind}:', [f'{name}:' for name in (*known, *imagenet.EVALUATION_SETS)])}")


def open_multilabel(where: str, classes: Classes = None) -> MultilabelSource | ClassifySource:
    """Return the images with any number of classes each that `where` names: `digit-facts:train`, or what `open_source` takes.

    Raises UsageError if nothing has this name, and ConvnextError if the data can't be used or lack the classes.
    """
    for entry in _taking(where):
        if entry.multilabel is not None:
            return entry.multilabel(where, classes)
    return open_source(where, classes)


def open_values(where: str) -> ValueSource | ClassifySource:
    """Return the images with a number each that `where` names, `digit-values:train`, or else what `open_source` takes.

    Raises UsageError if nothing has this name, and ConvnextError if the data can't be used.
    """
    for entry in _taking(where):
        if entry.values is not None:
            return entry.values(where, None)
    return open_source(where)


def label_kind(where: str) -> TargetKind:
    """Return what the labels of the data that `where` names are: "class", "classes" or "value". Raises as `open_source` does."""
    first = next((entry for entry in _taking(where) if entry.classify or entry.multilabel or entry.values), None)
    if first is not None and first.classify is None:
        return "classes" if first.multilabel is not None else "value"
    return target_kind_of(open_source(where))


def open_unlabelled(where: str) -> Unlabelled | UnlabelledFolder:
    """Return the images that `where` names: all those below a folder, or those of what `open_values` takes, without their labels.

    Raises UsageError if nothing has this name, and ConvnextError if the data can't be used.
    """
    first = next((entry for entry in _taking(where) if entry.classify or entry.values), None)
    if first is not None and first.classify is _open_image_folder:
        return UnlabelledFolder(Path(where).expanduser())
    return Unlabelled(open_values(where))


def open_detection(where: str, classes: Classes = None, keep_empty: bool = True) -> DetectSource:
    """Return the images with objects that `where` names.

    Args:
        where: `scenes:train` or `scenes:val`; `coco:ANNOTATIONS.json:FOLDER`; or a folder of images in COCO's own layout, such as
            `coco/train2017`, with its annotations in `coco/annotations/instances_train2017.json`; options behind the last two choose
            objects, see `parse_choices`.
        classes: the class names that the labels count, if a network already has some.
        keep_empty: whether to keep the images without objects; see `CocoSource`.

    Raises UsageError if nothing has this name, and ConvnextError if the data can't be used or lack the classes.
    """
    for entry in _taking(where):
        if entry.detect is not None:
            return entry.detect(where, classes, keep_empty)
    raise UsageError(f"unknown dataset {where!r}")


def open_segmentation(where: str, classes: Classes = None) -> SegmentSource:
    """Return the images with masks that `where` names.

    Args:
        where: `ade20k:train`, `ade20k:val` or `ade20k:/folder:train`; likewise `cityscapes:train`; a folder with images/, masks/ and
            classes.txt, or `FOLDER:train` for its images/train and masks/train, followed by `:ignore=11` if the value 11 is no class;
            or detection data, `scenes:train` or `coco:ANNOTATIONS.json:FOLDER`, whose pixels are objects or background.
        classes: the class names that the masks count, if a network already has some.

    Line n of classes.txt, counted from 0, names the class that the value n of a mask means, or, as `road 128 64 128`, that a colour
    means. A name in parentheses, as `(void)`, is ignored, and so is the value 255. See `mask_files.read_classes`.

    Raises UsageError if nothing has this name, and ConvnextError if the data can't be used or lack the classes.
    """
    for entry in _taking(where):
        if entry.segment is not None:
            return entry.segment(where, classes)
    raise UsageError(f"unknown dataset {where!r}")


def takes_choices(where: str, kind: Literal["detect", "segment"]) -> bool:
    """Return whether options at the end of that name of data for detection or segmentation choose objects."""
    return next(entry.has_choices for entry in _FORMATS if getattr(entry, kind) is not None and entry.takes(where))


def kind_of(where: str) -> str:
    """Return what the data of that name are made for: "detect" or "segment" for a prefix of such data alone, else "classify"."""
    first = next((entry for entry in _FORMATS if entry.prefixes and entry.takes(where)), None)
    if first is None or first.classify or first.multilabel or first.values:
        return "classify"
    return "detect" if first.detect is not None else "segment"


def train_and_val(where: str) -> tuple[str, str]:
    """Return the two names, for `open_source`, of the training and the validation part of a dataset.

    Args:
        where: `digits`, `cifar10`, `cifar100`, or a folder with train/ and val/ or with train-*.tar and val-*.tar.

    Raises UsageError if the dataset lacks one of them.
    """
    if where in ("digits", "cifar10", "cifar100"):
        return f"{where}:train", f"{where}:val"
    folder = Path(where).expanduser()
    train, val = parts_of(folder) if folder.is_dir() else (None, None)
    if train is not None and val is not None:
        return str(train), str(val)
    if any(folder.glob("train-*.tar")) and any(folder.glob("val-*.tar")):
        return str(folder / "train-*.tar"), str(folder / "val-*.tar")
    if is_archive(where) and (found := archive_parts(where)):
        return found
    raise UsageError(f"{where} has no train and val: neither folders of these names nor shards train-*.tar and val-*.tar")


def hold_out(
    source: ClassifySource, fraction: float, seed: int, groups: Sequence[str] | None = None, fold: tuple[int, int] | None = None
) -> tuple[ClassifySubset, ClassifySubset]:
    """Return a source in two parts, the second with about `fraction` of each class, chosen by name; see `split.held_out`.

    With `groups`, the group of each image, no group has images in both. With a fold, its number from 1 and their number, the second part
    is that fold, whatever the fraction and the seed.
    """
    strata = [source.label(index) if target_kind_of(source) == "class" else 0 for index in range(len(source))]
    rest, held = held_out(source, strata, fraction, seed, groups, fold)
    return ClassifySubset(source, rest), ClassifySubset(source, held)
