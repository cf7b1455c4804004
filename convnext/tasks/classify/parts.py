"""The training and the validation part of a classifier's data, as a recipe names them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from convnext.data.counts import described
from convnext.data.sources.base import ClassifySource, ClassifySubset, read_by, target_kind_of
from convnext.data.sources.folder import one_class
from convnext.data.sources.open import hold_out, open_source
from convnext.data.sources.packed.embedded import is_embedded
from convnext.data.sources.table import TableName, TableSource
from convnext.errors import ConvnextError, UsageError
from convnext.recipe.images import Data
from convnext.recipe.schema import Recipe
from convnext.tasks.classify.imbalance import labels_of
from convnext.tasks.held_out import groups_by_path, held_out_remark, refuse_folds, shared_images
from convnext.tasks.shared import check_class_count, reading_of, skipped_remarks
from convnext.text import counted, printable

_OPTIONS = {
    "image_column": "image",
    "label_column": "label",
    "root": "root",
    "group_column": "group",
}  # of a table's name, by the recipe's keys
_SHOWN = 5  # files in a message

Open = Callable[[str, Sequence[str] | None], ClassifySource]
Parts = tuple[ClassifySource, ClassifySource, list[str]]


def open_classes(where: str, classes: Sequence[str] | None = None) -> ClassifySource:
    """Return the images that `where` names, as `open_source` does. Raises UsageError unless each has one class."""
    source = open_source(where, classes)
    if (kind := target_kind_of(source)) != "class":
        what, task = ("a number", "regress") if kind == "value" else ("any number of classes", "multilabel")
        remedy = f"take task={task}, or name a column of one class as data.label_column"
        raise UsageError(f"{where} has {what} for each image, and a classifier learns one class: {remedy}")
    return source


def counts(source: ClassifySource) -> str:
    """Return in one line how many images of which classes a source holds."""
    return described(len(source), source.classes, np.bincount(labels_of(source), minlength=len(source.classes)).tolist())


def open_parts(recipe: Recipe, open_one: Open = open_classes, described_as: Callable[[ClassifySource], str] = counts) -> Parts:
    """Return the images to train on, those to evaluate on, and what to report of both.

    Args:
        recipe: that names them.
        open_one: the task's function from a name, and the class names if they are known, to a source.
        described_as: the task's line on what a source holds.

    Raises ConvnextError for no images, fewer than two classes, a number of classes other than the recipe's, or too many missing files.
    """
    data = recipe.data
    source, remarks = open_whole(recipe, open_one, described_as)
    if data.val is not None:
        train, val = source, open_one(_named(data.val, data), source.classes)
        read_by(val, reading_of(recipe))
        _refuse_missing(val, data.max_corrupt)
        remarks += [f"val: {remark}" for remark in (described_as(val), *remarks_on(val))] + _shared_files(source, val)
    else:
        train, val, found = _held_out(source, recipe)
        remarks += found
    for part, images in (("train", train), ("val", val)):
        if not len(images):
            raise ConvnextError(f"no images in data.{part}")
    return train, val, remarks


def open_whole(
    recipe: Recipe, open_one: Open = open_classes, described_as: Callable[[ClassifySource], str] = counts
) -> tuple[ClassifySource, list[str]]:
    """Return all images of `data.train`, before any are held out, and what to report of them. Arguments and errors as `open_parts`."""
    data = recipe.data
    source = open_one(_named(data.train, data), None)
    read_by(source, reading_of(recipe))
    check_class_count(recipe, source.classes)
    if target_kind_of(source) == "class" and len(source.classes) < 2:
        raise ConvnextError(f"data.train={one_class(data.train, source.classes)}")
    _refuse_missing(source, data.max_corrupt)
    return source, [f"train: {remark}" for remark in (described_as(source), *remarks_on(source))]


def _held_out(source: ClassifySource, recipe: Recipe) -> tuple[ClassifySource, ClassifySource, list[str]]:
    """Return the images of `data.train` in two parts, and what to report of them."""
    data, fold = recipe.data, recipe.data.fold_of()
    groups, remarks = groups_of(source, data)
    parts = parts_of(source, data)
    if parts is not None and fold is None and len(set(parts)) > 1:
        return _as_the_table_says(source, parts, groups)
    if parts is not None and "test" in parts and fold is not None:
        kept = [index for index, part in enumerate(parts) if part != "test"]
        remarks.append(f"by the column split, {len(source) - len(kept)} images of test are in no fold")
        source, groups = ClassifySubset(source, kept), [groups[index] for index in kept] if groups is not None else None
    refuse_folds(recipe, len(source), groups)
    train, val = hold_out(source, data.val_fraction, recipe.seed, groups, fold)
    if not len(val) and groups is not None:
        raise ConvnextError(f"no group can be held out: there are {len(set(groups))}, and each class needs one to train on; give data.val")
    remarks.append(held_out_remark(recipe, len(source), val.indices, groups))
    if target_kind_of(source) == "class" and (groups is not None or fold is not None):
        remarks += _classes_without_images(train, val)
    return train, val, remarks


def groups_of(source: ClassifySource, data: Data) -> tuple[list[str] | None, list[str]]:
    """Return the group of each image by `data.group_column` or `data.group`, and what to report; None without these."""
    if isinstance(source, TableSource) and source.groups is not None:
        return source.groups, []
    if data.group is None:
        return None, []
    return groups_by_path(source, data.group)


def parts_of(source: ClassifySource, data: Data) -> Sequence[str] | None:
    """Return the part of each image by the column `split` of a table; None without such a column, or if `data.train` chose a part."""
    return source.parts if isinstance(source, TableSource) and "split" not in _options(data.train) else None


def _classes_without_images(train: ClassifySource, val: ClassifySource) -> list[str]:
    """Return what to report of classes that one part lacks."""
    found = []
    for part, what in ((train, "train on"), (val, "validate on")):
        present = {part.label(index) for index in range(len(part))}
        if lacking := [name for label, name in enumerate(part.classes) if label not in present]:
            some = f"{', '.join(lacking[:_SHOWN])}{' …' if len(lacking) > _SHOWN else ''}"
            found.append(f"no images to {what} of {counted(len(lacking), 'class')}: {some}")
    return found


def _as_the_table_says(
    source: ClassifySource, parts: Sequence[str], groups: Sequence[str] | None
) -> tuple[ClassifySource, ClassifySource, list[str]]:
    """Return the two parts of a table whose column `split` names them; without a val, test is the second.

    Raises ConvnextError if one is empty, or if a group has images in both.
    """
    second = "val" if "val" in parts else "test"
    places = {wanted: [i for i, part in enumerate(parts) if part == wanted] for wanted in ("train", second)}
    train, val = (ClassifySubset(source, indices) for indices in places.values())
    if not len(train) or not len(val):
        raise ConvnextError(f"the column split has {len(train)} images for train and {len(val)} for validation: give data.val")
    if groups is not None:
        inside = [{groups[index] for index in indices} for indices in places.values()]
        if both := sorted(inside[0] & inside[1]):
            raise ConvnextError(
                f"the column split divides {counted(len(both), 'group')} between train and {second}, the first {printable(both[0])}: "
                "correct the table, or remove that column"
            )
    unused = f"; {parts.count('test')} of test are not used" if second == "val" and "test" in parts else ""
    return train, val, [f"by the column split, {len(train)} images are for training and {len(val)} ({second}) for validation{unused}"]


def with_columns(where: str, data: Data) -> str:
    """Return the name of a table with the columns that a recipe names as options, where it has none of its own; other names as they are."""
    return _with_options(where, {option: value for option, value in _given(data).items() if option in ("image", "label")}) or where


def _named(where: str, data: Data) -> str:
    """Return the name of a table with the recipe's keys as options, where it has none of its own; other names as they are."""
    given = _given(data)
    if (named := _with_options(where, given)) is not None:
        return named
    others = [other for other in (data.train, data.val) if other not in (None, where)]
    if given and not any(_with_options(other, {}) for other in others if other):
        key = next(key for key, option in _OPTIONS.items() if option in given)
        raise UsageError(f"data.{key} is of tables, .csv, .tsv or .parquet, and {where} is none: set it to null")
    return where


def _given(data: Data) -> dict[str, str]:
    return {option: value for key, option in _OPTIONS.items() if (value := getattr(data, key)) is not None}


def _with_options(where: str, given: Mapping[str, str]) -> str | None:
    """Return the name with the options that it lacks; None if it names no table. Raises UsageError for an option that it can't have."""
    if is_embedded(where):
        if other := [key for key, option in _OPTIONS.items() if option in given and option not in ("image", "label")]:
            raise UsageError(f"data.{other[0]} is of tables that name files, and {where} holds the images: set it to null")
        return where + "".join(f":{option}={value}" for option, value in given.items() if f":{option}=" not in where)
    table = TableName.parse(where)
    return None if table is None else str(TableName(table.path, {**given, **table.options}))


def part_of_table(where: str, part: str) -> str:
    """Return the name of one part of a table that has a column `split`."""
    return _with_options(where, {"split": part}) or where


def _options(where: str) -> Sequence[str]:
    table = TableName.parse(where)
    return tuple(table.options) if table is not None else ()


def _refuse_missing(source: ClassifySource, limit: float) -> None:
    """Raise ConvnextError if more of a table's images are missing than may be unreadable."""
    if isinstance(source, TableSource) and len(source.missing) > limit * len(source):
        names = [printable(source.name(index)) for index in sorted(source.missing)[:_SHOWN]]
        raise ConvnextError(
            f"{len(source.missing)} of {len(source)} images are missing, more than {limit:.1%} (data.max_corrupt): {'; '.join(names)}"
            f"{' …' if len(source.missing) > _SHOWN else ''}; correct the paths or data.root, or raise data.max_corrupt"
        )


def _shared_files(train: ClassifySource, val: ClassifySource) -> list[str]:
    """Return what to report of images that are trained and evaluated on, where a table names either part."""
    if not isinstance(train, TableSource) and not isinstance(val, TableSource):
        return []
    return shared_images(train, val)


def remarks_on(source: ClassifySource) -> list[str]:
    """Return what to report to the user about a source."""
    return [*source.remarks, *skipped_remarks(source.skipped)]
