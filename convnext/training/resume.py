"""Resuming a run: what of it may have changed since it was stopped, and what then becomes of its state.

Nothing is written here: who is refused finds the run as it was.
"""

from collections.abc import Callable, Mapping
from typing import Any

from convnext import distributed
from convnext.data.contents import differences
from convnext.errors import UsageError
from convnext.recipe import Recipe
from convnext.training.run_folder import RunFolder
from convnext.training.state import State

Changed = Mapping[str, tuple[Any, Any]]  # key of the recipe: before, now

_ANOTHER_RUN = "begin a new run in another --output"
_OF_THE_START = ("model.weights", "model.keep_head", "model.head_init_scale", "model.layer_scale")


def restore(
    state: State, saved: dict[str, Any], recipe: Recipe, changed: Changed, folder: RunFolder, change: bool, tell: Callable[[str], None]
) -> None:
    """Bring a fresh state, whose `data` are those of today, to where the saved one was.

    Args:
        state: of the network that the recipe makes.
        saved: what `State.to_save` gave.
        changed: keys of the recipe that changed since.
        folder: the run's.
        change: whether data that changed are accepted. Other classes never are: they are other outputs of the network.
        tell: takes remarks.

    Raises UsageError, saying what changed and what to do, where the run can't be continued.
    """
    data = state.data
    found: list[str] = distributed.from_main(differences(saved["data"], data) if saved.get("data") and data else [])
    if found:
        _check_data(found, saved["data"]["classes"], folder, change)
    if not saved.get("count"):
        _check_old(recipe, changed, tell)
    _restore_network(state, saved, changed, folder)
    state.data = data
    for text in found:
        tell(f"data changed: {text}")
    if any(text.startswith("train: ") for text in found):
        state.corrupt = {}  # by position
    if any(text.startswith("val: ") for text in found):
        state.best = -float("inf")
        tell("the validation data changed: the best weights are chosen anew")
    if useless := [key for key in _OF_THE_START if key in changed]:
        tell(f"{', '.join(useless)}: changes nothing in a run that has begun")


def _check_data(found: list[str], classes: list[str], folder: RunFolder, change: bool) -> None:
    begun = f"the data of {folder.path} changed since the run was stopped: {'; '.join(found)}"
    if not any(text.startswith(("train: ", "val: ")) for text in found):
        raise UsageError(
            f"{begun}. The outputs of its network are {len(classes)} classes in the order of before, so restore these, or {_ANOTHER_RUN} "
            f"(with model.weights={folder.last} it starts from this run's weights)"
        )
    if not change:
        raise UsageError(f"{begun}; add --change to continue with the data as they are now, restore them, or {_ANOTHER_RUN}")


def _check_old(recipe: Recipe, changed: Changed, tell: Callable[[str], None]) -> None:
    """Of a state that an earlier version saved, which says neither what its data were nor how many samples it has seen."""
    if "train.batch_size" in changed:
        raise UsageError(f"this run's checkpoint is of an earlier version, with which train.batch_size can't change: {_ANOTHER_RUN}")
    told = "the checkpoint is of an earlier version and does not say what the data were: whether they changed is not known"
    if recipe.data.val is None:
        told += "; images are held out by another rule since, so some of those validated on now were trained on before"
    tell(told)


def _restore_network(state: State, saved: dict[str, Any], changed: Changed, folder: RunFolder) -> None:
    told = "; ".join(f"{key} was {before}, now {now}" for key, (before, now) in changed.items())
    if fixed := [key for key in ("task", "model.name") if key in changed]:
        raise UsageError(f"{folder.path} can't be continued with another {fixed[0]} ({told}): {_ANOTHER_RUN}")
    try:
        state.restore(saved)
    except (RuntimeError, ValueError) as error:  # of tensors of other shapes or names
        reason = " ".join(str(error).split())[:300]
        why = f"the recipe now makes another network ({told})" if changed else "the checkpoint is of another network"
        raise UsageError(f"{folder.path} can't be continued: {why}: {reason}; restore that, or {_ANOTHER_RUN}") from error
