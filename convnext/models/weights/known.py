"""Whether the network and the task that a file describes are known here, and what to import where they are not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from convnext.errors import ConvnextError, UsageError
from convnext.extend import TASKS, is_marker, where_from
from convnext.models.entry import Entry
from convnext.models.own_entry import own_entry
from convnext.models.registry import find


def is_ours(name: str) -> bool:
    """Return whether a network is wholly of the package: no part of it comes from outside, and its name is known."""
    try:
        entry = find(name)
    except UsageError:
        return False
    return not any(part.is_own for part in (entry, entry.backbone) if part is not None)


def entry_for(name: str, task: str, imports: Sequence[str]) -> Entry:
    """Return the entry of the network that a file describes, for a network from outside one with the preprocessing of its task.

    Raises UsageError for an unknown name.
    """
    try:
        return own_entry(name, _unknown, task) if is_marker(name) else find(name)
    except UsageError:
        if not imports:
            raise
        return own_entry(name, _unknown, task)


def _unknown() -> None:
    """Build nothing: such an entry says of a network only how its images are prepared."""


def entry_of(about: Mapping[str, object], path: Path) -> Entry:
    """Return the entry of the network that a file describes, by which its preprocessing is known.

    Raises ConvnextError, naming the file, if the network is unknown.
    """
    imports = cast("Sequence[str]", about.get("imports", ()))
    try:
        return entry_for(str(cast("Mapping[str, object]", about["model"])["name"]), str(about["task"]), imports)
    except UsageError as error:
        raise ConvnextError(f"{path} describes an unknown network: {error}") from error


def check_known(about: Mapping[str, object], path: Path, network: bool = True) -> None:
    """Raise ConvnextError, naming the modules to import, if a file needs a network or a task from outside that is not registered.

    Nothing is imported because a file names it: the file may be a stranger's.

    Args:
        about: what the file says of itself.
        path: of the file, for messages.
        network: whether the network is needed, and not only its task.
    """
    imports, name = cast("Sequence[str]", about.get("imports", ())), str(cast("Mapping[str, object]", about["model"])["name"])
    remedy = where_from(imports) + (" (in Python, import it first)" if imports else "")
    if TASKS.find(str(about["task"])) is None:
        raise ConvnextError(f"{path} is for the task {about['task']!r}, which is not known here{remedy}")
    if network and imports and not is_marker(name):
        try:
            find(name)
        except UsageError as error:
            raise ConvnextError(f"{path} holds a {name}, which is not known here{remedy}") from error
