"""What the columns of a table mean: which names the images, and which hold the labels, groups and parts."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convnext.data.tables.rows import Rows
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import class_name, printable

TargetKind = Literal["class", "classes", "value"]  # one class of an image (int), any number of classes (tuple of ints), a number (float)
Target = int | tuple[int, ...] | float
VALUE = "value"  # what stands for the class of data whose labels are numbers

# Names of columns, the first of them that a table has. They are compared without case, and with _ for blanks and dashes.
_IMAGES = (
    "image", "image_path", "path", "file_path", "filepath", "file", "filename", "file_name", "image_name", "image_id", "img", "id",
)  # fmt: skip
_CLASS = ("label", "class", "category", "target")
SPLIT = "split"
_SHOWN = 12  # columns in a message


@dataclass(frozen=True)
class Labels:
    """The labels of all rows."""

    kind: TargetKind
    classes: list[str]  # VALUE alone for numbers
    targets: list[Target]  # of each row
    columns: list[str]  # that they come from


def column(rows: Rows, name: str, key: str) -> str:
    """Return the table's own spelling of a column that the user names. Raises UsageError, with the recipe's `key`, if it has none."""
    for own in (*(own for own in rows.columns if own == name), *(own for own in rows.columns if _plain(own) == _plain(name))):
        return own
    raise UsageError(f"{key}={name}: {rows.path} has no such column{nearest(name, rows.columns)}")


def image_column(rows: Rows, name: str | None) -> str:
    """Return the column that names the images. Raises UsageError for a table without one."""
    if name is not None:
        return column(rows, name, "data.image_column")
    found = _first(rows, _IMAGES)
    if found is None:
        raise UsageError(f"{rows.path} has no column of images ({_listed(rows)}): {_remedy(rows, 'image')}")
    return found


def split_column(rows: Rows) -> str | None:
    """Return the column that says to which part, train, val or test, an image belongs; None without such a column."""
    return _first(rows, (SPLIT,))


def labels(rows: Rows, name: str | None, others: Sequence[str | None], classes: Sequence[str] | None, unlabelled: set[int]) -> Labels:
    """Return the labels of all rows.

    They are in a column `label`, `class`, `category` or `target` (one class for each image); in `labels`, separated by `|`, or in one
    column of 0 and 1 for each class (any number of classes); or in `value` (a number).

    Args:
        rows: the table.
        name: of the column of labels; by default it is found by its name.
        others: columns that hold no labels.
        classes: the class names in the order of their labels; by default those that the table has, sorted: numbers as numbers.
        unlabelled: rows that may lack a label, which is then -1: those of another part.

    Raises UsageError if there is no such column, and ConvnextError, naming the row, for a label that is empty or not one of the classes.
    """
    chosen = column(rows, name, "data.label_column") if name is not None else _first(rows, (*_CLASS, "labels"))
    if chosen is None and (binary := _binary(rows, others)):
        return _from_binary(rows, binary, classes)
    chosen = chosen if chosen is not None else _first(rows, ("value",))
    if chosen is None:
        raise UsageError(f"{rows.path} has no column of labels ({_listed(rows)}): {_remedy(rows, 'label')}")
    if _plain(chosen) == "value":
        return Labels("value", [VALUE], [_number(rows, index, chosen) for index in range(len(rows))], [chosen])
    if _plain(chosen) == "labels":
        texts = [[class_name(part.strip()) for part in cell.split("|") if part.strip()] for cell in rows.columns[chosen]]
        known = _classes(classes, [text for cell in texts for text in cell])
        places = _Places(rows, known)
        found: list[Target] = [tuple(sorted({places(text, index) for text in cell})) for index, cell in enumerate(texts)]
        return Labels("classes", known, found, [chosen])
    cells = [class_name(cell) for cell in rows.columns[chosen]]
    for index, cell in enumerate(cells):
        if not cell and index not in unlabelled:
            raise ConvnextError(f"{rows.at(index)} has no label in the column {printable(chosen)!r}: add it, or remove the row")
    known = _classes(classes, [cell for cell in cells if cell])
    places = _Places(rows, known)
    return Labels("class", known, [places(cell, index) if cell else -1 for index, cell in enumerate(cells)], [chosen])


class _Places:
    """The position of each class."""

    def __init__(self, rows: Rows, classes: Sequence[str]) -> None:
        self.rows, self.known = rows, {name: place for place, name in enumerate(classes)}

    def __call__(self, name: str, index: int) -> int:
        if name not in self.known:
            raise ConvnextError(f"{self.rows.at(index)}: {name} is not one of the classes trained on{nearest(name, self.known)}")
        return self.known[name]


def _classes(given: Sequence[str] | None, found: Sequence[str]) -> list[str]:
    if given is not None:
        return [class_name(name) for name in given]
    names = set(found)
    return sorted(names, key=int) if all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", name) for name in names) else sorted(names)


def _binary(rows: Rows, others: Sequence[str | None]) -> list[str]:
    """Return the columns other than `others`, if each holds 0 and 1 alone and there are two or more."""
    names = [name for name in rows.columns if name not in others and name]
    return names if len(names) > 1 and all(set(rows.columns[name]) <= {"0", "1", "0.0", "1.0"} for name in names) else []


def _from_binary(rows: Rows, names: Sequence[str], classes: Sequence[str] | None) -> Labels:
    own = [class_name(name) for name in names]
    known = own if classes is None else [class_name(name) for name in classes]
    if unknown := [name for name in own if name not in known]:
        raise ConvnextError(f"{rows.path}: the column {unknown[0]} is not one of the classes trained on{nearest(unknown[0], known)}")
    marked: list[list[int]] = [[] for _ in range(len(rows))]
    for name, own_name in zip(names, own, strict=True):
        place = known.index(own_name)
        for index, cell in enumerate(rows.columns[name]):
            if cell.startswith("1"):
                marked[index].append(place)
    return Labels("classes", known, [tuple(sorted(places)) for places in marked], list(names))


def _number(rows: Rows, index: int, name: str) -> float:
    cell = rows.columns[name][index]
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = f"{cell[:40]!r}, which is not a number" if cell else "no number"
        raise ConvnextError(f"{rows.at(index)} has {what} in the column {printable(name)!r}: correct it, or remove the row")
    return value


def _first(rows: Rows, names: Sequence[str]) -> str | None:
    own = {_plain(name): name for name in reversed(rows.columns)}
    return next((own[name] for name in names if name in own), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def _listed(rows: Rows) -> str:
    names = [printable(name) for name in rows.columns]
    return f"it has {', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"


def _remedy(rows: Rows, what: str) -> str:
    return f"the first row must name the columns; say which with data.{what}_column=NAME, or give {rows.path}:{what}=NAME"
