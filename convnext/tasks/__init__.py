"""The tasks: all that differs between classification, detection and segmentation. Everything above this room is the same for all.

`convnext.tasks.base` says what a task is; `convnext.tasks.classify` is the pattern for another one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from convnext.errors import UsageError, nearest

if TYPE_CHECKING:
    from convnext.tasks.base import AnyTask

# By name, the class as "module:attribute", imported when the task is first used; then its one instance.
_TASKS: "dict[str, str | AnyTask]" = {
    "classify": "convnext.tasks.classify.task:ClassifyTask",
    "multilabel": "convnext.tasks.multilabel.task:MultilabelTask",
    "regress": "convnext.tasks.regress.task:RegressTask",
    "detect": "convnext.tasks.detect.task:DetectTask",
    "segment": "convnext.tasks.segment.task:SegmentTask",
}


def names() -> list[str]:
    """Return the names of all tasks."""
    return list(_TASKS)


def get(name: str) -> "AnyTask":
    """Return the task of that name. Raises UsageError for an unknown one."""
    entry = _TASKS.get(name)
    if entry is None:
        raise UsageError(f"unknown task {name!r}{nearest(name, names())}")
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        entry = _TASKS[name] = cast("AnyTask", getattr(import_module(module), attribute)())
    return entry
