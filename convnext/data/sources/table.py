"""Images and labels that a table names: `labels.csv`, `labels.tsv` or `labels.parquet`, with options as `labels.csv:label=species`."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.images import AS_RGB, CorruptImageError, Reading, read_image, read_pixels
from convnext.data.sources.base import ClassifySource
from convnext.data.sources.folder import part_kind
from convnext.data.tables.columns import SPLIT, Labels, Target, TargetKind, column, image_column, labels, split_column
from convnext.data.tables.files import ImageFiles, root_of
from convnext.data.tables.rows import ENDINGS, Rows, read_rows
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.text import counted, printable

_OPTIONS = ("image", "label", "root", "group", "split")
_NAME = re.compile(rf"(?P<path>.*?(?:{'|'.join(map(re.escape, ENDINGS))}))(?P<options>(?::\w+=.*)?)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class TableName:
    """The name of a table with its options: `labels.csv:image=photo:label=species:root=photos:group=patient:split=val`."""

    path: Path
    options: Mapping[str, str]

    @classmethod
    def parse(cls, where: str) -> "TableName | None":
        """Return the parts of a name; None if it names no table. Raises UsageError for an unknown option."""
        if (match := _NAME.fullmatch(where)) is None:
            return None
        path = Path(match["path"]).expanduser()
        if path.is_dir():
            return None
        pairs = [part.split("=", 1) for part in re.split(r":(?=\w+=)", match["options"])[1:]]
        for name, value in pairs:
            if name not in _OPTIONS:
                raise UsageError(f"{where}: unknown option {name!r}{nearest(name, _OPTIONS)}")
            if not value:
                raise UsageError(f"{where}: the option {name} has no value")
        return cls(path, dict(map(tuple, pairs)))

    def __str__(self) -> str:
        return "".join([str(self.path), *(f":{name}={value}" for name, value in self.options.items())])


TargetT = TypeVar("TargetT", bound=Target)


class TableSource(Generic[TargetT]):
    """The images of a table, in its order, each once. `open_table` creates it.

    Args:
        root: the folder that the paths start from.
        paths: of the images.
        found: the labels.
        missing: positions of images that are not there: reading one raises CorruptImageError.
        remarks: facts to report to the user, one per line.
        groups: the group of each image, where the table has any.
        parts: "train", "val" or "test" of each image, where the table says.
    """

    reading: Reading = AS_RGB

    def __init__(
        self,
        root: Path,
        paths: list[str],
        found: Labels,
        missing: frozenset[int],
        remarks: list[str],
        groups: list[str] | None = None,
        parts: list[str] | None = None,
    ) -> None:
        self.root, self.paths, self.targets = root, paths, cast(list[TargetT], found.targets)
        self.classes = found.classes
        self.target_kind: TargetKind = found.kind
        self.missing, self.remarks, self.groups, self.parts = missing, remarks, groups, parts
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image | DeepImage:
        """Return the image at a position. Raises CorruptImageError if it is missing or can't be decoded."""
        return read_image(self._file(index), how=self.reading)

    def pixels(self, index: int) -> Tensor | DeepImage:
        """Return the image as a uint8 (3, H, W) tensor. Raises CorruptImageError as `read` does."""
        return read_pixels(self._file(index), how=self.reading)

    def _file(self, index: int) -> Path:
        if index in self.missing:
            raise CorruptImageError(f"{self.name(index)}: there is no such file")
        return self.root / self.paths[index]

    def label(self, index: int) -> TargetT:
        """Return an int where `target_kind` is "class", the position in `classes`; a tuple of such for "classes", a float for "value"."""
        return self.targets[index]

    def name(self, index: int) -> str:
        """Return what reports call the image: its path."""
        return str(self.root / self.paths[index])

    def key(self, index: int) -> str:
        """Return the image's path as the table has it, with its ending."""
        return self.paths[index]

    def label_bytes(self, index: int) -> bytes:
        """Return the label as bytes, to compare it with a later run's."""
        return repr(self.targets[index]).encode()


def is_table(where: str) -> bool:
    """Return whether `where` names a table, by its ending."""
    return _NAME.fullmatch(where) is not None and TableName.parse(where) is not None


def open_table(where: str, classes: Sequence[str] | None = None) -> ClassifySource:
    """Return the images that a table names, with their labels.

    Args:
        where: the file, and options: `image` and `label`, the columns; `root`, the folder that paths start from, by default the table's
            own; `group`, a column; `split`, the part to take (train, val or test) of the column `split`.
        classes: the class names in the order of their labels; by default those of the table.

    The source's `target_kind` says what a label is, see `columns.labels`.

    Raises UsageError if there is no such file or column, and ConvnextError, naming the row, for a label that is empty or not one of the
    classes, for an image with two labels, and if no image is there.
    """
    name = TableName.parse(where)
    if name is None:
        raise UsageError(f"{where} names no table: its ending must be one of {', '.join(ENDINGS)}")
    rows, options = read_rows(name.path), name.options
    images = image_column(rows, options.get("image"))
    group = column(rows, options["group"], "data.group_column") if "group" in options else None
    for index in range(len(rows) if group is not None else 0):
        if not rows.columns[cast(str, group)][index]:
            raise ConvnextError(f"{rows.at(index)} has no group in the column {printable(cast(str, group))!r}: add it")
    parts, remarks = _parts(rows, None if SPLIT in (images, group) else split_column(rows))
    others = [images, group, split_column(rows)]
    found = labels(rows, options.get("label"), others, classes, {i for i, part in enumerate(parts or []) if part == "test"})
    paths, root, missing = _paths(rows, images, name, options.get("root"))
    chosen = _chosen(rows, found, paths, parts, options.get("split"), remarks)
    if not chosen:
        raise ConvnextError(f"{where} names no images with labels")
    used = f"{printable(images)} names the images" + ("" if len(found.columns) > 1 else f", {printable(found.columns[0])} their labels")
    absent = frozenset(place for place, index in enumerate(chosen) if index in missing)
    if len(absent) == len(chosen):
        raise ConvnextError(
            f"none of the {counted(len(chosen), 'image')} of {name.path} is in {root}, the first {printable(paths[chosen[0]])}: "
            f"give the folder that the paths start from, data.root=FOLDER or {name.path}:root=FOLDER"
        )
    if root != name.path.parent and "root" not in options:
        used += f"; they are in {printable(str(root))}"
    if absent:
        first = printable(paths[chosen[min(absent)]])
        remarks.append(f"{len(absent)} of {counted(len(chosen), 'image')} of the table can't be found, the first {first}")
    groups = [rows.columns[group][index] for index in chosen] if group is not None else None
    kept = [parts[index] for index in chosen] if parts is not None else None
    taken = Labels(found.kind, found.classes, [found.targets[index] for index in chosen], found.columns)
    # Labels are ints if `target_kind` says so, which `open_classes` of the task checks.
    return TableSource[int](root, [paths[index] for index in chosen], taken, absent, [f"columns: {used}", *remarks], groups, kept)


def images_of(where: str) -> list[tuple[str, Path]]:
    """Return the images that a table names, each once, as they are called there and as files. Labels are not needed.

    Raises UsageError if there is no such file or column.
    """
    name = TableName.parse(where)
    if name is None:
        raise UsageError(f"{where} names no table: its ending must be one of {', '.join(ENDINGS)}")
    rows = read_rows(name.path)
    parts, _ = _parts(rows, split_column(rows))
    if (wanted := name.options.get("split")) is not None and parts is None:
        raise UsageError(f"{name.path} has no column {SPLIT!r} from which to take the part {wanted!r}")
    paths, root, _ = _paths(rows, image_column(rows, name.options.get("image")), name, name.options.get("root"))
    taken = [path for index, path in enumerate(paths) if wanted is None or (parts or [])[index] == part_kind(wanted)]
    return [(path, root / path) for path in dict.fromkeys(taken)]


def _paths(rows: Rows, images: str, name: TableName, given: str | None) -> tuple[list[str], Path, set[int]]:
    """Return the path of the image of each row, the folder that paths start from, and which rows' images are not there."""
    names = rows.columns[images]
    for index, text in enumerate(names):
        if not text:
            raise ConvnextError(f"{rows.at(index)} names no image in the column {printable(images)!r}: add it, or remove the row")
    root = Path(given).expanduser() if given is not None else root_of(names, name.path, "data.root")
    if not root.is_dir():
        raise UsageError(f"no folder {root}, which the paths of {name.path} start from (data.root)")
    files = ImageFiles(root)
    found = [files.find(text) for text in names]
    return [path or text for path, text in zip(found, names, strict=True)], root, {i for i, path in enumerate(found) if path is None}


def _parts(rows: Rows, name: str | None) -> tuple[list[str] | None, list[str]]:
    """Return the part of each row as the column `split` says, and what to report of that column."""
    if name is None:
        return None, []
    kinds = {cell: part_kind(cell) for cell in set(rows.columns[name])}
    if unknown := [cell for cell, kind in kinds.items() if kind is None]:
        return None, [f"the column {printable(name)!r} holds {printable(min(unknown))!r}, not only train, val and test: it is not used"]
    return [cast(str, kinds[cell]) for cell in rows.columns[name]], []


def _chosen(rows: Rows, found: Labels, paths: Sequence[str], parts: list[str] | None, wanted: str | None, remarks: list[str]) -> list[int]:
    """Return the rows to take: those of the wanted part that have a label, each image once. Adds to `remarks` what is left away."""
    if wanted is not None and (parts is None or part_kind(wanted) not in parts):
        raise UsageError(f"{rows.path} has no images of the part {wanted!r}: its column {SPLIT!r} says {_counts(parts) or 'nothing'}")
    if parts is not None and wanted is None:
        remarks.append(f"column {SPLIT}: {_counts(parts)}")
    first: dict[str, int] = {}
    repeated: list[int] = []
    for index, path in enumerate(paths):
        earlier = first.setdefault(path, index)
        if earlier == index:
            continue
        for what, values in (("labels", found.targets), ("parts", parts)):
            if values is not None and values[index] != values[earlier]:
                raise ConvnextError(
                    f"{printable(path)} has two {what} in {rows.path}, rows {rows.numbers[earlier]} and {rows.numbers[index]}: remove one"
                )
        repeated.append(index)
    if repeated:
        example = f"row {rows.numbers[repeated[0]]} ({printable(paths[repeated[0]])})"
        verb = "repeats" if len(repeated) == 1 else "repeat"
        remarks.append(f"skipped {counted(len(repeated), 'row')} that {verb} an earlier one, the first {example}")
    indices = [index for index in first.values() if wanted is None or (parts or [])[index] == part_kind(wanted)]
    unlabelled = sum(found.targets[index] == -1 for index in indices) if found.kind == "class" else 0
    if unlabelled:
        remarks.append(f"skipped {counted(unlabelled, 'image')} of the part test without a label")
    return [index for index in indices if found.kind != "class" or found.targets[index] != -1]


def _counts(parts: Sequence[str] | None) -> str:
    counts = Counter(parts or [])
    return ", ".join(f"{kind} {counts[kind]}" for kind in ("train", "val", "test") if counts[kind])
