"""The tasks, one file each: all that differs between them. Everything above this floor is the same for all.

A task is a module that offers `open_data`, `check`, `overview`, `counts`, `open_labelled`, `remarks_on`, `preprocessing`,
`evaluation_samples`, `collate`, `Trainer`, `predict`, `Metric`, `HEADLINE`, `headline`, `summary` and `report_sections`, and from its
file in `convnext.tasks.prediction`, to use what was trained, `infer`, `embed`, `Prediction`, `COLUMNS`, `BATCH_SIZE`, `class_names` and
`class_ids`; `convnext.tasks.classify.task` is the pattern.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from convnext.data.loader import Samples
from convnext.errors import ConvnextError
from convnext.recipe import Recipe
from convnext.tasks.prediction import ClassIds


@dataclass
class Data:
    """What a run trains and is tested on."""

    train: Samples
    val: Samples
    classes: list[str]
    remarks: list[str]  # to be told to the user
    groups: Sequence[int] | None = None  # of the training samples, where a batch shall hold one group only
    class_ids: ClassIds | None = None  # the data's own number of each class, to travel with the weights


def check_class_count(recipe: Recipe, classes: Sequence[str]) -> None:
    """Raise ConvnextError if the training data have other than the number of classes that the recipe is made for."""
    if recipe.data.num_classes not in (None, len(classes)):
        raise ConvnextError(
            f"{recipe.data.train} has {len(classes)} classes, the recipe is for {recipe.data.num_classes}: "
            "check data.train, or set data.num_classes=null"
        )


def get(name: str) -> Any:
    """The module of a task: "classify", "detect" or "segment"."""
    return import_module(f"convnext.tasks.{name}.task")
