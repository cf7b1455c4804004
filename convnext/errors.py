"""Errors that a user can act on: each names the thing, the file and the remedy.

The command line prints their message on one line and exits with `exit_code`; every other exception is a defect of ours.
"""

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


class ConvnextError(Exception):
    """The work failed for a reason outside the program: a file, a network, a number that is not finite."""

    exit_code = 1


class UsageError(ConvnextError, ValueError):
    """What was asked for does not exist or makes no sense: an unknown model, recipe, key or option."""

    exit_code = 2


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
