"""Resuming a run: which changes since it was stopped are allowed, and how its state takes them.

Nothing is written here: a run that is refused stays as it was.
"""

from typing import cast

from convnext import distributed
from convnext.data.contents import DataContents, differences
from convnext.errors import UsageError
from convnext.recipe import Recipe
from convnext.training.folder.run_folder import Changed, Report, RunFolder
from convnext.training.state import Saved, State

_ANOTHER_RUN = "start a new run in another --output"
_OF_THE_START = ("model.weights", "model.keep_head", "model.head_init_scale", "model.layer_scale")


def restore(state: State, saved: Saved, recipe: Recipe, changed: Changed, folder: RunFolder, change: bool, report: Report) -> None:
    """Give a fresh state, whose `data` describe the data as they are now, the values of a saved one.

    Args:
        state: of the network that the recipe makes.
        saved: the result of `State.to_save`.
        changed: keys of the recipe that changed since.
        folder: the run's.
        change: whether changed data are accepted. Other classes never are: they are other outputs of the network.
        report: takes remarks.

    Raises UsageError, saying what changed and what to do, if the run can't be continued.
    """
    data = state.data
    before = cast(DataContents | None, saved.get("data"))
    found = distributed.from_main(differences(before, data) if before and data else [])
    if found and before:
        _check_data(found, before["classes"], folder, change)
    if not saved.get("count"):
        _check_old(recipe, changed, report)
    _restore_network(state, saved, changed, folder)
    state.data = data
    for text in found:
        report(f"data changed: {text}")
    if any(text.startswith("train: ") for text in found):
        state.corrupt = {}  # by position
    if any(text.startswith("val: ") for text in found):
        state.best = -float("inf")
        report("the validation data changed: the best weights are chosen again")
    if "optim.name" in changed:
        report(f"the moments that {recipe.optim.name} needs and {changed['optim.name'][0]} did not keep begin at zero")
    if "eval.best_by" in changed:
        state.best = -float("inf")
        report("eval.best_by changed: the best weights are chosen again")
    if useless := [key for key in _OF_THE_START if key in changed]:
        report(f"{', '.join(useless)}: no effect on a run that has begun")


def _check_data(found: list[str], classes: list[str], folder: RunFolder, change: bool) -> None:
    begun = f"the data of {folder.path} changed since the run was stopped: {'; '.join(found)}"
    if not any(text.startswith(("train: ", "val: ")) for text in found):
        raise UsageError(
            f"{begun}. The outputs of its network are the {len(classes)} classes in their order then, so restore these, or {_ANOTHER_RUN} "
            f"(with model.weights={folder.last} it starts from this run's weights)"
        )
    if not change:
        raise UsageError(f"{begun}; add --change to continue with the data as they are now, restore them, or {_ANOTHER_RUN}")


def _check_old(recipe: Recipe, changed: Changed, report: Report) -> None:
    """Report what the state of an earlier version does not say: its data, and how many samples it has seen."""
    if "train.batch_size" in changed:
        raise UsageError(f"this run's checkpoint is of an earlier version, so train.batch_size can't change: {_ANOTHER_RUN}")
    message = "the checkpoint is of an earlier version and does not describe its data: whether they changed is not known"
    if recipe.data.val is None:
        message += "; the rule by which images are held out has changed, so some validation images were trained on before"
    report(message)


def _restore_network(state: State, saved: Saved, changed: Changed, folder: RunFolder) -> None:
    differences = "; ".join(f"{key} was {before}, now {now}" for key, (before, now) in changed.items())
    if fixed := [key for key in ("task", "model.name") if key in changed]:
        raise UsageError(f"{folder.path} can't be continued with another {fixed[0]} ({differences}): {_ANOTHER_RUN}")
    try:
        state.restore(saved)
    except (RuntimeError, ValueError) as error:  # of tensors of other shapes or names
        reason = " ".join(str(error).split())[:300]
        why = f"the recipe now makes another network ({differences})" if changed else "the checkpoint is of another network"
        raise UsageError(f"{folder.path} can't be continued: {why}: {reason}; restore that, or {_ANOTHER_RUN}") from error
