"""What a run starts from: a network, and weights with the mean and standard deviation that they want and the head that is kept."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convnext.data import imagenet
from convnext.errors import ConvnextError, UsageError
from convnext.models.registry import find
from convnext.models.weights.open import Opened, open_weights
from convnext.recipe import Recipe

log = logging.getLogger("convnext")

_OF_WEIGHTS = ("mean", "std", "range")  # keys of `data` that are those of the weights where the recipe does not have them
_TOLD = 5  # classes in a message


@dataclass
class Start:
    """A recipe as the weights complete it, and the weights."""

    recipe: Recipe
    weights: Opened | None
    remarks: list[str]  # to be told to the user

    @property
    def source(self) -> str | None:
        """The address of the weights, by the hub's commit; None for files of this machine and random weights."""
        return None if self.weights is None else self.weights.source

    def head_order(self, classes: Sequence[str]) -> list[int] | None:
        """For each class the row of the weights' head that is its own; None where they are in this order or no head is kept.

        Raises UsageError or ConvnextError if a head is to be kept whose classes are not these, or can't be told.
        """
        if self.weights is None or not self.recipe.model.keep_head:
            return None
        return _order_of_head(self.weights, classes, self.recipe.task)


def start_from(recipe: Recipe) -> Start:
    """Read the weights that a recipe names, and take from them what it leaves open.

    Raises UsageError or ConvnextError as `create_model` does for weights that can't be had.
    """
    if recipe.model.weights is None:
        return Start(recipe, None, [])
    weights = open_weights(recipe.model.weights, recipe.model.name)
    wanted = {key: value for key in _OF_WEIGHTS if (value := getattr(weights.preprocessing, key, None)) is not None}
    wanted = {key: value for key, value in wanted.items() if key in type(recipe.data).model_fields}
    stated = {key: getattr(recipe.data, key) for key in wanted if key in recipe.data.model_fields_set}
    taken = {key: value for key, value in wanted.items() if key not in stated}
    remarks = [f"weights: {weights.source or weights.file}"]
    whose = "assumed, for the weights do not say" if weights.assumed else "those of the weights"
    if taken:
        remarks.append(f"images are normalised by {_settings(taken)}, {whose}")
    for key, value in stated.items():
        if _plain(value) != _plain(wanted[key]):
            remarks.append(
                f"images are normalised by {_settings({key: value})} as the recipe says; the weights want {_settings({key: wanted[key]})}"
            )
    completed = recipe.model_copy(update={"data": recipe.data.model_copy(update=taken)})
    return Start(completed, weights, remarks)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _settings(values: dict[str, Any]) -> str:
    # As they are given on the command line.
    return " ".join(f"data.{key}={list(value) if isinstance(value, (list, tuple)) else value}" for key, value in values.items())


def _order_of_head(weights: Opened, classes: Sequence[str], task: str) -> list[int] | None:
    if weights.task != task:
        raise ConvnextError(f"model.keep_head: {weights.file} has no head to keep, only a network to put one on: leave model.keep_head out")
    count = weights.spec.get("num_classes", 0)
    known = [weights.classes] if weights.classes is not None else []
    if not known and task == "classify" and count in imagenet.SUBSETS:
        known = [imagenet.synsets(count), imagenet.descriptions(count)]
    if list(classes) in known:
        return None
    if weights.classes is None and known and list(classes) == [str(i) for i in range(count)]:
        log.warning("model.keep_head: the data name their %d classes by numbers, which are taken for ImageNet's order", count)
        return None
    for names in known:
        if len(set(classes)) == len(classes) == len(names) and set(classes) == set(names):
            if task == "detect":
                raise ConvnextError("model.keep_head: the data have the classes of the weights in another order, " + _two(names, classes))
            log.warning("model.keep_head: the data have the classes of the weights in another order; the head is put in theirs")
            places = {name: row for row, name in enumerate(names)}
            return [places[name] for name in classes]
    if not known:
        raise UsageError(
            f"model.keep_head: {weights.file} does not name its {count} classes, so that they can't be compared with the data's: "
            "leave model.keep_head out, or start from a file that names them, as those that training leaves"
        )
    raise UsageError(f"model.keep_head: the weights' classes are not the data's, {_two(known[0], classes)}: leave model.keep_head out")


def _two(theirs: Sequence[str], ours: Sequence[str]) -> str:
    told = (", ".join(names[:_TOLD]) + (f" … ({len(names)} in all)" if len(names) > _TOLD else "") for names in (theirs, ours))
    return "{} instead of {}".format(*told)


def reorder_head(model: Any, order: list[int] | None) -> None:
    """Put the rows of a network's head in the order of `Start.head_order`."""
    if order is None:
        return
    entry = find(model.spec["name"])
    for key, parameter in model.named_parameters():
        if entry.is_of_classes(model, key):
            parameter.data = parameter.data[order]
