"""Tables as text: for a terminal, as Markdown, as CSV. Rows map a column's key to a plain value, None where it has no value."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

NONE = "–"
_MAX_CONFUSED = 20  # pairs of classes
_ALL, _WORST, _BEST = 24, 8, 4  # classes: up to so many are all shown; of more, so many of the worst and the best

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Column:
    """One column; numbers are aligned right, words left."""

    key: str
    head: str
    digits: int | None = None  # after the point; None for words and whole numbers


def plain(columns: Sequence[Column], rows: Rows) -> str:
    """Return the table for a terminal: columns two blanks apart."""
    cells = [[column.head for column in columns], *([_cell(column, row) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [_is_number(column, rows) for column in columns]
    lines = (
        "  ".join(text.rjust(width) if number else text.ljust(width) for text, width, number in zip(line, widths, right, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def by_class(columns: Sequence[Column], rows: Rows, key: str) -> str:
    """Return a row for each class, for a terminal; of many classes the worst and the best by `key`, and how many are between them.

    Of many classes, those without a value are only counted.
    """
    if len(rows) <= _ALL:
        return plain(columns, rows)
    known = sorted((row for row in rows if _number(row, key) is not None), key=lambda row: _number(row, key) or 0.0)
    if len(known) <= _WORST + _BEST:
        return f"{plain(columns, known)}\n{len(rows) - len(known)} other classes do not occur"
    shown = plain(columns, [*known[:_WORST], *known[-_BEST:]]).split("\n")
    shown.insert(1 + _WORST, f"… {len(known) - _WORST - _BEST} classes between (--json has all)")
    return "\n".join(shown)


def most_confused(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, object]]:
    """Return the pairs of classes that are most often confused, the most frequent first, from counts by [true][predicted] class."""
    pairs = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n]
    return [{"is": classes[i], "taken for": classes[j], "times": n} for n, i, j in sorted(pairs, reverse=True)[:_MAX_CONFUSED]]


def markdown(columns: Sequence[Column], rows: Rows) -> str:
    """Return the table as Markdown, as GitHub and most other readers take it."""
    marks = ["---:" if _is_number(column, rows) else "---" for column in columns]
    lines = [[column.head for column in columns], marks, *([_cell(column, row) for column in columns] for row in rows)]
    escaped = ([text.replace("|", r"\|") for text in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def comma_separated(columns: Sequence[Column], rows: Rows) -> str:
    """Return the table as CSV with the keys as its head: numbers with all digits, empty cells where there is no value."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    writer.writerows([row.get(column.key) for column in columns] for row in rows)
    return text.getvalue().rstrip("\n")


def _cell(column: Column, row: Mapping[str, object]) -> str:
    value = row.get(column.key)
    if value is None:
        return NONE
    return f"{value:.{column.digits}f}" if column.digits is not None else str(value)


def _is_number(column: Column, rows: Rows) -> bool:
    return column.digits is not None or any(_number(row, column.key) is not None for row in rows)


def _number(row: Mapping[str, object], key: str) -> float | None:
    found = row.get(key)
    return found if isinstance(found, int | float) else None
