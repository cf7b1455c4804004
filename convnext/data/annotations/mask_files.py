"""Mask files: images whose values, or colours, mean classes; a `classes.txt` says which."""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convnext.data.annotations.names import refuse_markup
from convnext.data.formats.opening import AS_RGB, Reading, opened
from convnext.data.images import CorruptImageError
from convnext.errors import ConvnextError, first_line, nearest
from convnext.text import class_name, counted, lines_of, read_text

IGNORED = 255  # the label of a pixel that counts neither in training nor in evaluation
ENDINGS = (".png", ".tif", ".tiff", ".bmp")  # formats that keep values: JPEG and most WebP files blur them, GIF files reorder them
_UNKNOWN = 254  # in a table: the value is neither a class nor ignored
_COLOURED = ("RGB", "RGBA", "P", "L", "LA", "1")
_INDEXED = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Coding:
    """The meaning of the values of masks, or of their colours (then a value is R << 16 | G << 8 | B).

    `labels` maps each value to a class index, or to 255 if it is ignored. In masks of values 255 is always ignored.
    """

    classes: tuple[str, ...]
    labels: tuple[tuple[int, int], ...]
    by_colour: bool = False

    @property
    def class_ids(self) -> list[int | tuple[int, int, int]] | None:
        """Return the value, or the colour (R, G, B), that means each class in masks. None if some class has no value."""
        values = {label: value for value, label in self.labels}
        found = [values.get(label) for label in range(len(self.classes))]
        ids = [value if not self.by_colour else (value >> 16, value >> 8 & 255, value & 255) for value in found if value is not None]
        return ids if len(ids) == len(found) else None


@dataclass(frozen=True)
class ClassLine:
    """One line of a `classes.txt`."""

    name: str
    is_ignored: bool = False
    colour: int | None = None


def read_classes(path: Path) -> list[ClassLine]:
    """Return the lines of a `classes.txt`: `name`, or `name R G B` if masks are colours. A class with its name in parentheses is ignored.

    Line n, counted from 0, says what the value n means. Text after a tab on a line without a colour is a comment.
    Raises ConvnextError, naming file and line, for an empty line, an invalid colour, a name or colour given twice, and
    colours on some lines only; and for a text in another format.
    """
    entries = []
    text = read_text(path)
    refuse_markup(text, path)
    for number, line in enumerate(lines_of(text), 1):
        match = re.fullmatch(r"\s*(.+?)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)\s*", line)
        name = class_name(match[1] if match else line.split("\t")[0].strip())
        levels = [int(level) for level in match.groups()[1:]] if match else []
        if not name or any(level > 255 for level in levels):
            raise ConvnextError(
                f"line {number} of {path}, {line!r}, is not a class: write a name, or a name and a colour as in 'road 128 64 128'"
            )
        is_ignored = name.startswith("(") and name.endswith(")")
        entries.append(ClassLine(name, is_ignored, (levels[0] << 16 | levels[1] << 8 | levels[2]) if levels else None))
    if len({entry.colour is None for entry in entries}) > 1:
        raise ConvnextError(
            f"{path} gives a colour on some lines and not on others: give one on each line if masks are colours, else on none"
        )
    for number, entry in enumerate(entries):
        before = entries[:number]
        for what, given in (("name", not entry.is_ignored and entry.name), ("colour", entry.colour)):
            if given not in (False, None) and given in [getattr(one, what) for one in before]:
                raise ConvnextError(f"line {number + 1} of {path} has the {what} of a line before it: each class needs one of its own")
    return entries


def coding(entries: Sequence[ClassLine], origin: str, ignored: Iterable[int] = (), classes: Sequence[str] | None = None) -> Coding:
    """Return the meaning of masks from the lines of a `classes.txt`.

    Args:
        entries: the lines.
        origin: the file's name for errors.
        ignored: values that are ignored too; the lines that name them are no classes then.
        classes: the class names in the order of the result's indices, if a network already has some; matched by name.

    Raises ConvnextError if `classes` lack one of the names, or there are no classes or more than 254.
    """
    ignored = set(ignored)
    by_colour = any(entry.colour is not None for entry in entries)
    is_class = [not entry.is_ignored and (by_colour or value not in ignored) for value, entry in enumerate(entries)]
    own = [entry.name for entry, kept in zip(entries, is_class, strict=True) if kept]
    names = [class_name(name) for name in classes] if classes is not None else own
    if unknown := [name for name in own if name not in names]:
        raise ConvnextError(f"{unknown[0]!r} of {origin} is not one of the classes trained on{nearest(unknown[0], names)}")
    if not 0 < len(names) <= _UNKNOWN or len(entries) > IGNORED:
        raise ConvnextError(f"{origin} has {counted(len(names), 'class')}: masks can have 1 to {_UNKNOWN}")
    values = [entry.colour if entry.colour is not None else value for value, entry in enumerate(entries)]
    labels = {value: names.index(entry.name) if kept else IGNORED for value, entry, kept in zip(values, entries, is_class, strict=True)}
    return Coding(tuple(names), tuple((labels | dict.fromkeys(ignored, IGNORED)).items()), by_colour)


def read_mask(path: Path, meaning: Coding, how: Reading = AS_RGB) -> np.ndarray:
    """Return the classes of a mask's pixels, uint8 (H, W), 255 where ignored. The opacity of colours does not matter.

    `how` says how large a mask may be. Raises CorruptImageError if it can't be decoded, and ConvnextError, naming the file, the value and
    how many pixels have it, if it is not a mask of that coding.
    """
    try:
        with opened(path, how) as image:
            mode = image.mode
            values = _colours(image) if meaning.by_colour else np.asarray(image)
    except Exception as error:  # decoders raise anything on damaged input
        raise CorruptImageError(f"{path}: {first_line(error)}") from error
    if mode not in (_COLOURED if meaning.by_colour else _INDEXED) or values.ndim != 2:
        wanted = "colours" if meaning.by_colour else "one value per pixel, or else classes.txt must give colours, as in 'road 128 64 128'"
        raise ConvnextError(f"{path} is an image of mode {mode}, not a mask: save it as PNG with {wanted}")
    if values.dtype == np.uint8 or meaning.by_colour:
        found = _table(meaning)[values]
    else:  # 1, 16 or 32 bits
        fits = (values >= 0) & (values <= 255)
        found = np.where(fits, _table(meaning)[np.where(fits, values, 0)], _UNKNOWN)
    if (found == _UNKNOWN).any():
        raise ConvnextError(_unknown_values(path, meaning, values, found == _UNKNOWN))
    return found


def _colours(image: Image.Image) -> np.ndarray:
    planes = np.asarray(image.convert("RGB"), np.uint32)
    return planes[..., 0] << 16 | planes[..., 1] << 8 | planes[..., 2]


@functools.cache  # 16 MB for colours; kept out of the objects that are sent to workers
def _table(meaning: Coding) -> np.ndarray:
    table = np.full(1 << 24 if meaning.by_colour else 256, _UNKNOWN, np.uint8)
    for value, label in meaning.labels:
        table[value] = label
    if not meaning.by_colour:
        table[IGNORED] = IGNORED
    return table


def _unknown_values(path: Path, meaning: Coding, values: np.ndarray, unknown: np.ndarray) -> str:
    """Return the error message for values that mean no class: the most frequent, in how many pixels, and the first position."""
    found, counts = np.unique(values[unknown], return_counts=True)
    value, count = int(found[counts.argmax()]), int(counts.max())
    y, x = np.argwhere(values == value)[0]
    others = f" (and {len(found) - 1} more such)" if len(found) > 1 else ""
    where = f"in {counted(count, 'pixel')}, first at x {x}, y {y}{others}"
    if meaning.by_colour:
        named = f"the colour {value >> 16} {value >> 8 & 255} {value & 255}"
        remedy = "name it there, in parentheses to ignore it; or give no colours there if masks are values"
    else:
        named = f"the value {value}"
        remedy = f"name it there on line {value + 1}, in parentheses to ignore it; or ignore it with :ignore={value}"
    is_possible = meaning.by_colour or 0 <= value < IGNORED
    return (
        f"{path} has {named} {where}, which is not one of the {len(meaning.classes)} classes: "
        f"correct the mask{f', or if classes.txt is yours, {remedy}' if is_possible else ''}"
    )
