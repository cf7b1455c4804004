"""The tasks, one file each: all that differs between them. Everything above this floor is the same for all.

A task is a module that offers `open_data`, `open_labelled`, `remarks_on`, `preprocessing`, `evaluation_samples`, `collate`, `Trainer`,
`predict`, `Metric`, `HEADLINE`, `headline`, `summary` and `report_sections`; `convnext.tasks.classify` is the pattern.
"""

from importlib import import_module
from typing import Any


def get(name: str) -> Any:
    """The module of a task: "classify" or "segment"."""
    return import_module(f"convnext.tasks.{name}")
