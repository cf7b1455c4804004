"""Files that name classes: a text with one name per line, or the YAML that YOLO's tools write."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from convnext.errors import ConvnextError, UsageError
from convnext.text import class_name, lines_of, read_text

YAML = (".yaml", ".yml")
_COLOURED = re.compile(r"\D\d+[\s,]+\d+[\s,]+\d+$")  # a line of a classes.txt with a colour


def read_names(path: Path) -> list[str | None]:
    """Return the classes' names in their order: a YAML file's `names`, a list or a mapping from numbers; the lines of other files.

    A number that such a mapping lacks gives None.

    Raises UsageError if there is no such file, ConvnextError for an invalid list: doubles, empty lines, a number of names that differs
    from `nc`, or a text in another format.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}")
    names: list[str | None] = _from_yaml(path) if path.suffix.lower() in YAML else [*_from_lines(read_text(path), path)]
    if not names:
        raise ConvnextError(f"{path} names no class")
    if twice := [name for name in names if name is not None and names.count(name) > 1]:
        raise ConvnextError(f"{path} names {twice[0]!r} twice: each class needs a name of its own")
    return names


def refuse_markup(text: str, path: Path) -> None:
    """Raise ConvnextError if a text that should have one name per line is visibly JSON, YAML, HTML, CSV or a numbered list."""
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
    except (yaml.YAMLError, ValueError):  # ValueError: an invalid date
        return False
    return isinstance(found, dict) or (isinstance(found, list) and bool(found))


def _is_table(lines: Sequence[str]) -> bool:
    """Return whether each line, except perhaps a heading, begins or ends with a number and a separator, and the numbers rise."""
    for rows in (lines, lines[1:]):
        for pattern in (r"(\d+)\s*[,;:\t]", r".*[,;\t]\s*(\d+)$"):
            numbers = [int(match[1]) for line in rows if (match := re.match(pattern, line))]
            if len(rows) > 1 and len(numbers) == len(rows) and all(a < b for a, b in pairwise(numbers)):
                return True
    # "1 euro" and "2 euro" may be names, and so may the digits alone; names behind numbers that count from 0 are numbered.
    words = [line.split() for line in lines]
    return len(lines) > 2 and all(len(line) > 1 and line[0] == str(number) for number, line in enumerate(words))


def _from_lines(text: str, path: Path) -> list[str]:
    refuse_markup(text, path)
    names = [class_name(line.strip()) for line in lines_of(text)]
    if "" in names:
        raise ConvnextError(f"line {names.index('') + 1} of {path} is empty: write the name of the class with that number")
    return names


def yaml_mapping(path: Path) -> dict[object, object]:
    """Return the content of a YAML file, empty if it is no mapping. Raises ConvnextError if it is not YAML."""
    text = read_text(path)
    try:
        content: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConvnextError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def _from_yaml(path: Path) -> list[str | None]:
    content = yaml_mapping(path)
    given: object = content.get("names")
    if isinstance(given, dict):
        given = _in_order(given, path)
    if not isinstance(given, list):
        raise ConvnextError(f"{path} has no `names` that is a list of the classes' names, or a mapping from their numbers")
    names = [None if value is _MISSING else _name(value, path) for value in given]
    count, named = content.get("nc"), len(names) - names.count(None)
    if count is not None and count not in (len(names), named):
        raise ConvnextError(f"{path} has {named} names, and nc says {count} classes: correct the one that is wrong")
    return names


_MISSING, _MAX_NUMBER = object(), 100_000


def _in_order(names: Mapping[object, object], path: Path) -> list[object]:
    """Return the values by their keys, class numbers from 0, with `_MISSING` for numbers that are no keys."""
    by_number: dict[int, object] = {}
    for key, value in names.items():
        number = _number(key)
        if number is None or number in by_number:
            raise ConvnextError(f"{path}: under `names`, {key!r} is not a class's number, counted from 0, or occurs twice")
        by_number[number] = value
    last = max(by_number, default=-1)
    if last > _MAX_NUMBER:
        raise ConvnextError(f"{path}: under `names`, {last} is not a class's number, counted from 0")
    return [by_number.get(number, _MISSING) for number in range(last + 1)]


def _number(key: object) -> int | None:
    if isinstance(key, bool) or not isinstance(key, int | str) or (isinstance(key, str) and not key.strip().isdecimal()):
        return None
    return int(key) if int(key) >= 0 else None


def _name(value: object, path: Path) -> str:
    # YAML reads `no` as false, and 1 as a number: the text of the file is lost.
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ConvnextError(f"{path}: under `names`, {value!r} is not a name: write names in quotation marks")
    return class_name(str(value).strip())
