"""Errors that a user can act on: each names the thing, the file and the remedy.

The command line prints their message on one line and exits with `exit_code`; every other exception is a defect of ours.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any


class ConvnextError(Exception):
    """The work failed for a reason outside the program: a file, a network, a number that is not finite."""

    exit_code = 1
    elsewhere = False  # whether another process of a group met it, and reports it


class UsageError(ConvnextError, ValueError):
    """What was asked for does not exist or makes no sense: an unknown model, recipe, key or option."""

    exit_code = 2


class CorruptImageError(ConvnextError):
    """An image that can't be read. `str()` of it is the file and the reason, on one line."""


class NotFiniteError(ConvnextError):
    """A network's output has a NaN or an infinity in it, so that it says nothing."""

    def __init__(self) -> None:
        super().__init__(
            "the network's output is not finite (NaN or infinite): its weights are damaged, or of a run that diverged; take other weights"
        )


class TooLargeError(ConvnextError):
    """What was asked for takes more memory or time than the caller allows."""


def first_line(error: BaseException | None) -> str:
    """What an error says, in one line; the name of its kind where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known word nearest to `word`, or else all of them if they are few.

    >>> nearest("convnext_tny", ["convnext_tiny", "convnext_base"])
    "; did you mean 'convnext_tiny'?"
    """
    known = sorted(known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f"; did you mean {close[0]!r}?"
    if len(known) <= 12:
        return f"; known: {', '.join(known)}"
    return f"; {len(known)} are known"


def need(module: str, extra: str) -> Any:
    """The module of that name. Raises UsageError that names the extra to install if it is not there."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"this needs {module}: pip install 'convnext[{extra}]'") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write, for instance a full disk, into a ConvnextError that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise ConvnextError(f"could not write {path}: {error}; fix that, and the same command continues where it stopped") from error
