"""Files that name classes: a text with a name on each line, or the YAML that YOLO's tools write; and telling what is neither."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from convnext.errors import ConvnextError, UsageError
from convnext.text import class_name, lines_of, read_text

YAML = (".yaml", ".yml")
_COLOURED = re.compile(r"\D\d+[\s,]+\d+[\s,]+\d+$")  # a line of a classes.txt with a colour


def read_names(path: Path) -> list[str | None]:
    """The classes' names in their order: of a YAML file its `names`, a list or a mapping from numbers; of others a line each.

    A number that such a mapping leaves out has no name, None.

    Raises UsageError if there is no such file, ConvnextError for what is no such list: doubles, empty lines, another number of names
    than `nc` says, or a text that is another format's.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}")
    text = read_text(path)
    names: list[str | None] = _of_yaml(text, path) if path.suffix.lower() in YAML else [*_of_lines(text, path)]
    if not names:
        raise ConvnextError(f"{path} names no class")
    if twice := [name for name in names if name is not None and names.count(name) > 1]:
        raise ConvnextError(f"{path} names {twice[0]!r} twice: each class needs a name of its own")
    return names


def refuse_markup(text: str, path: Path) -> None:
    """Raise ConvnextError if what should be a list of names, one per line, is visibly JSON, YAML, HTML, CSV or a numbered list."""
    lines = [line.strip() for line in lines_of(text) if line.strip()]
    kind = None
    if lines and re.match(r"<(!doctype|!--|\?xml|html|[a-z]+>)", lines[0], re.IGNORECASE):
        kind = "HTML or XML"
    elif lines and lines[0][0] in "[{" and _is_json(text):
        kind = "JSON"
    elif lines and _is_yaml(text):
        kind = "YAML: give it a name that ends in .yaml, with the classes under `names`"
    elif len(lines) > 1 and not all(_COLOURED.search(line) for line in lines) and _is_table(lines):
        kind = "a table or numbered list"
    if kind is not None:
        raise ConvnextError(f"{path} is not a list of names, one per line, but {kind}")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list | dict)
    except ValueError:
        return False


def _is_yaml(text: str) -> bool:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter: a date that is none
        return False
    return isinstance(found, dict) or (isinstance(found, list) and bool(found))


def _is_table(lines: Sequence[str]) -> bool:
    """Whether each line, but perhaps a heading, begins or ends with a number behind a separator, and these rise from line to line."""
    for rows in (lines, lines[1:]):
        for pattern in (r"(\d+)\s*[,;:\t]", r".*[,;\t]\s*(\d+)$"):
            numbers = [int(match[1]) for line in rows if (match := re.match(pattern, line))]
            if len(rows) > 1 and len(numbers) == len(rows) and all(a < b for a, b in pairwise(numbers)):
                return True
    # "1 euro" and "2 euro" may be names; what is counted from 0 is numbered.
    return len(lines) > 2 and all(line.split()[0] == str(number) for number, line in enumerate(lines))


def _of_lines(text: str, path: Path) -> list[str]:
    refuse_markup(text, path)
    names = [class_name(line.strip()) for line in lines_of(text)]
    if "" in names:
        raise ConvnextError(f"line {names.index('') + 1} of {path} is empty: which class has that number? Write a name on each line")
    return names


def _of_yaml(text: str, path: Path) -> list[str | None]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConvnextError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    given = content.get("names") if isinstance(content, dict) else None
    if isinstance(given, dict):
        given = _in_order(given, path)
    if not isinstance(given, list):
        raise ConvnextError(f"{path} has no `names` that is a list of the classes' names, or a mapping from their numbers")
    names = [None if value is _MISSING else _name(value, path) for value in given]
    count, named = content.get("nc"), len(names) - names.count(None)
    if count is not None and count not in (len(names), named):
        raise ConvnextError(f"{path} has {named} names, and nc says {count} classes: correct the one that is wrong")
    return names


_MISSING, _MOST = object(), 100_000


def _in_order(names: dict[Any, Any], path: Path) -> list[Any]:
    by_number: dict[int, Any] = {}
    for key, value in names.items():
        is_number = (isinstance(key, int) and not isinstance(key, bool)) or (isinstance(key, str) and key.strip().isdecimal())
        if not is_number or int(key) < 0 or int(key) in by_number:
            raise ConvnextError(f"{path}: under `names`, {key!r} is no number of a class, counted from 0, or is there twice")
        by_number[int(key)] = value
    last = max(by_number, default=-1)
    if last > _MOST:
        raise ConvnextError(f"{path}: under `names`, {last} is no number of a class, counted from 0")
    return [by_number.get(number, _MISSING) for number in range(last + 1)]


def _name(value: Any, path: Path) -> str:
    # YAML reads `no` as false, 1 as a number: what was written is not known any more, or is a number.
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ConvnextError(f"{path}: under `names`, {value!r} is no name: write names in quotation marks")
    return class_name(str(value).strip())
