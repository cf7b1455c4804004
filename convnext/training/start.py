"""What a run starts from: a network, weights, the normalisation that these need, and the head that is kept."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from convnext import tasks
from convnext.errors import ConvnextError, UsageError
from convnext.models.network import Network
from convnext.models.registry import find
from convnext.models.weights import published
from convnext.models.weights.open import Opened, open_weights
from convnext.models.weights.tags.table import terms
from convnext.recipe import Recipe

log = logging.getLogger("convnext")

_OF_WEIGHTS = ("mean", "std", "range")  # keys of `data` that default to those of the weights
_SHOWN = 5  # classes in a message


@dataclass
class Start:
    """A recipe with the values that its weights give, and the weights."""

    recipe: Recipe
    weights: Opened | None
    remarks: list[str]  # to report to the user

    @property
    def source(self) -> str | None:
        """Return the address of the weights, by the hub's commit; None for files of this machine and random weights."""
        return None if self.weights is None else self.weights.source

    def head_order(self, classes: Sequence[str]) -> list[int] | None:
        """Return for each class its row in the weights' head; None if the rows are in this order, or no head is kept.

        Raises UsageError or ConvnextError if a head is kept whose classes are not these, or not known.
        """
        if self.weights is None or not self.recipe.model.keep_head:
            return None
        return _order_of_head(self.weights, classes, self.recipe.task)


def start_from(recipe: Recipe) -> Start:
    """Read the weights that a recipe names, and complete the recipe with their normalisation.

    Raises UsageError or ConvnextError, as `create_model` does, for weights that cannot be read.
    """
    if recipe.model.weights is None:
        return Start(recipe, None, [])
    weights = open_weights(recipe.model.weights, recipe.model.name)
    wanted: dict[str, object] = {key: value for key in _OF_WEIGHTS if (value := getattr(weights.preprocessing, key, None)) is not None}
    if getattr(weights.preprocessing, "channels", 3) != recipe.data.channels or recipe.data.mean == "auto":
        wanted = {key: value for key, value in wanted.items() if key not in ("mean", "std")}  # numbers of other channels
    stated = {key: getattr(recipe.data, key) for key in wanted if key in recipe.data.model_fields_set}
    taken = {key: value for key, value in wanted.items() if key not in stated}
    licence = published.licence_of(weights.source or weights.file)
    remarks = [f"weights: {weights.source or weights.file}" + (f", licence: {terms(licence)}" if licence is not None else "")]
    whose = "assumed, because the weights do not say" if weights.assumed else "those of the weights"
    if taken:
        remarks.append(f"images are normalised by {_settings(taken)}, {whose}")
    for key, value in stated.items():
        if _plain(value) != _plain(wanted[key]):
            remarks.append(
                f"images are normalised by {_settings({key: value})} as the recipe says; the weights expect {_settings({key: wanted[key]})}"
            )
    completed = recipe.model_copy(update={"data": recipe.data.model_copy(update=taken)})
    return Start(completed, weights, remarks)


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _settings(values: dict[str, object]) -> str:
    # As they are given on the command line.
    return " ".join(f"data.{key}={list(value) if isinstance(value, (list, tuple)) else value}" for key, value in values.items())


def _order_of_head(weights: Opened, classes: Sequence[str], task_name: str) -> list[int] | None:
    remedy = "train without model.keep_head"
    if weights.task != task_name or weights.spec.get("num_classes") == 0:
        raise ConvnextError(f"model.keep_head: {weights.file} has no head to keep, only a network to put one on: {remedy}")
    task, count = tasks.get(task_name), cast(int, weights.spec.get("num_classes", 0))
    known = [weights.classes] if weights.classes is not None else task.possible_class_names(count)
    if list(classes) in known:
        return None
    if weights.classes is None and known and list(classes) == [str(i) for i in range(count)]:
        log.warning("model.keep_head: the data name their %d classes by numbers; their order is assumed to be ImageNet's", count)
        return None
    for names in known:
        if len(set(classes)) == len(classes) == len(names) and set(classes) == set(names):
            if not task.reorders_head:
                raise ConvnextError(
                    "model.keep_head: the data have the classes of the weights in another order, " + _compared(names, classes)
                )
            log.warning("model.keep_head: the data have the classes of the weights in another order; the head is put in that order")
            rows = {name: row for row, name in enumerate(names)}
            return [rows[name] for name in classes]
    if not known:
        raise UsageError(
            f"model.keep_head: {weights.file} does not name its {count} classes, so they can't be compared with the data's: "
            f"{remedy}, or start from a file that names them, as training writes them"
        )
    raise UsageError(f"model.keep_head: the weights' classes are not the data's, {_compared(known[0], classes)}: {remedy}")


def _compared(theirs: Sequence[str], ours: Sequence[str]) -> str:
    shown = (", ".join(names[:_SHOWN]) + (f" … ({len(names)} in all)" if len(names) > _SHOWN else "") for names in (theirs, ours))
    return "{} instead of {}".format(*shown)


def reorder_head(model: Network, order: list[int] | None) -> None:
    """Put the rows of a network's head in the order of `Start.head_order`."""
    if order is None:
        return
    entry = find(str(model.spec["name"]))
    for key, parameter in model.named_parameters():
        if entry.is_of_classes(model, key):
            parameter.data = parameter.data[order]
