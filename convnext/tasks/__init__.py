"""The tasks: all that differs between classification, detection and segmentation. Everything above this room is the same for all.

`convnext.tasks.base` says what a task is; `convnext.tasks.classify` is the pattern for another one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from convnext.extend import TASKS

if TYPE_CHECKING:
    from convnext.tasks.base import AnyTask

_tasks: "dict[str, AnyTask]" = {}  # the one instance of each that was used


def names() -> list[str]:
    """Return the names of all tasks."""
    return TASKS.names()


def get(name: str) -> "AnyTask":
    """Return the task of that name. Raises UsageError for an unknown one."""
    entry = TASKS.get(name)
    if name not in _tasks or type(_tasks[name]) is not entry:
        _tasks[name] = cast("Callable[[], AnyTask]", entry)()
    return _tasks[name]
