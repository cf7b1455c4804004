"""Rows of a table as text: CSV in its dialects, and Parquet."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from convnext.errors import ConvnextError, UsageError, first_line, need
from convnext.text import counted, printable

ENDINGS = (".csv", ".tsv", ".parquet")
_MAX_BYTES = 1 << 30  # of a CSV file: some ten million rows
_MAX_ROWS = 20_000_000
_SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Rows:
    """The cells of a table, as text without the blanks around it. A missing cell is an empty text."""

    path: Path
    columns: dict[str, list[str]]  # by the name in the header
    numbers: Sequence[int]  # of each row as a person counts: in a CSV the line, where the header is line 1

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, index: int) -> str:
        """Return how messages name a row."""
        return f"row {self.numbers[index]} of {self.path}"


def read_rows(path: Path) -> Rows:
    """Return the rows of a `.csv`, `.tsv` or `.parquet` file.

    A CSV is UTF-8 or UTF-16, separated by commas, semicolons, tabs or bars, whichever its first line shows. Columns of a Parquet file
    that hold no single value (lists, bytes) are left away.

    Raises UsageError if there is no such file, or Parquet can't be read because pyarrow is missing, and ConvnextError, naming the row,
    for a file that is damaged, empty or too large.
    """
    if not path.is_file():
        raise UsageError(f"no table {path}")
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if not len(rows):
        raise ConvnextError(f"{path} has no rows below its header")
    return rows


def _csv(path: Path) -> Rows:
    text = _text(path)
    header = _records(path, text, _separator(path, text))
    found = iter(header)
    names = [name.strip() for name in next(found, (0, []))[1]]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ConvnextError(f"{path} has two columns {printable(twice[0])!r}: each needs a name of its own")
    columns: list[list[str]] = [[] for _ in names]
    numbers: list[int] = []
    for number, cells in found:
        if len(cells) < len(names) or any(cells[len(names) :]):
            fields = counted(len(cells), "field")
            raise ConvnextError(
                f"row {number} of {path} has {fields}, the header {len(names)}: correct it, or quote what holds a separator"
            )
        if len(numbers) == _MAX_ROWS:
            raise ConvnextError(f"{path} has more than {_MAX_ROWS:,} rows: write shards instead")
        numbers.append(number)
        for column, cell in zip(columns, cells, strict=False):
            column.append(cell.strip())
    return Rows(path, dict(zip(names, columns, strict=True)), numbers)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConvnextError(f"{path} has more than {_MAX_BYTES >> 30} GiB: write it as Parquet, or write shards")
        content = path.read_bytes()
    except OSError as error:
        raise ConvnextError(f"{path} can't be read: {error.strerror}") from error
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConvnextError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error


def _separator(path: Path, text: str) -> str:
    """Return what separates the cells: the mark that splits the first line into most."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    return max(_SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def _records(path: Path, text: str, separator: str) -> Iterable[tuple[int, list[str]]]:
    """Yield the line on which each record begins, and its cells; empty lines are no records."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ConvnextError(f"row {number} of {path} can't be read ({error}): are its quotes complete?") from error
        if cells is None:
            return
        if any(cells):
            yield number, cells


def parquet() -> Any:
    """Return pyarrow's module for Parquet. Raises UsageError, naming the extra to install, if it is missing."""
    need("pyarrow", "tables")
    return import_module("pyarrow.parquet")


def open_parquet(path: Path) -> Any:
    """Return pyarrow's ParquetFile of a path. Raises UsageError if pyarrow is missing, and ConvnextError if the file can't be read."""
    module = parquet()
    try:
        return module.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ConvnextError(f"{path} is not a Parquet file, or is damaged ({first_line(error)}): write or download it again") from error


def _parquet(path: Path) -> Rows:
    file = open_parquet(path)
    if file.metadata.num_rows > _MAX_ROWS:
        raise ConvnextError(f"{path} has more than {_MAX_ROWS:,} rows: write shards instead")
    types = import_module("pyarrow").types
    names = [field.name for field in file.schema_arrow if not types.is_nested(field.type) and not types.is_binary(field.type)]
    try:
        table = file.read(columns=names)
    except (OSError, ValueError) as error:
        raise ConvnextError(f"{path} is damaged ({first_line(error)}): write or download it again") from error
    columns = {name: [_cell(value) for value in table[name].to_pylist()] for name in names}
    return Rows(path, columns, range(1, table.num_rows + 1))


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
