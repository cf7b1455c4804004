"""The lines of a run's metrics.jsonl."""

import json
from collections.abc import Sequence
from pathlib import Path

from convnext.errors import ConvnextError

LogLine = dict[str, object]  # "kind" ("train" or "eval"), "step", "epoch", and numbers by name


def read_lines(path: Path) -> tuple[list[LogLine], list[str]]:
    """Return the lines of a metrics.jsonl, and remarks for the reader: a last line that is cut short is skipped.

    Raises ConvnextError if the file is missing or another line is damaged.
    """
    text = read_file(path)
    texts = text.removesuffix("\n").split("\n") if text else []
    lines: list[LogLine] = []
    for number, written in enumerate(texts, start=1):
        try:
            lines.append(_parsed(written))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts) and not text.endswith("\n"):
                return lines, [f"The last line of {path.name} is cut short and was skipped: the run was stopped while it wrote."]
            raise ConvnextError(f"{path} is damaged in line {number}: {error}") from error
    return lines, []


def points(lines: Sequence[LogLine], kind: str, key: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of each line of a kind, "train" or "eval", that has a number under the key."""
    return [
        (epoch, found)
        for line in lines
        if line["kind"] == kind and (found := number(line, key)) is not None and (epoch := number(line, "epoch")) is not None
    ]


def number(line: LogLine, key: str) -> float | None:
    """Return the number that a line has under a key; None if it has none."""
    found = line.get(key)
    return found if isinstance(found, int | float) else None


def read_file(path: Path) -> str:
    """Return the text of a file of a run folder. Raises ConvnextError if it is missing or can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise ConvnextError(f"{path} is missing") from error
    except OSError as error:
        raise ConvnextError(f"{path} can't be read: {error}") from error


def _parsed(text: str) -> LogLine:
    line = json.loads(text)
    if not (isinstance(line["kind"], str) and isinstance(line["step"], int) and isinstance(line["epoch"], int | float)):
        raise TypeError("kind, step and epoch must be a word and two numbers")
    found: LogLine = line
    return found
