"""The weights that a run writes, with their description. Weights that are not finite are never written."""

from convnext import distributed
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError
from convnext.models.weights.files import write_weights
from convnext.recipe import Recipe
from convnext.tasks.base import Json, TaskData
from convnext.training.folder.run_folder import RunFolder
from convnext.training.state import State


def write_run_weights(
    folder: RunFolder, state: State, recipe: Recipe, data: TaskData, how: Preprocessing, metrics: dict[str, float], is_best: bool
) -> None:
    """Write a run's network, with the EMA weights if it has any, to last.safetensors, and to best.safetensors if it is the best."""
    description: Json = {
        "task": recipe.task,
        "model": state.model.spec,
        "classes": data.classes,
        "preprocessing": how.to_json(),
        "metrics": metrics,
        "step": state.step,
    }
    if data.class_ids is not None:
        description["class_ids"] = list(data.class_ids)
    if folder.source:
        description["source"] = folder.source
    weights = state.ema_or_model.state_dict()
    write_weights(folder.last, weights, description)
    if is_best:
        write_weights(folder.best, weights, description)


def check_finite(folder: RunFolder, state: State, recipe: Recipe) -> None:
    """Raise ConvnextError on all processes if a weight of one of them is not finite."""
    if not all(distributed.gather(state.is_finite())):
        raise ConvnextError(f"weights are not finite after step {state.step} and were not saved; {remedy(folder, recipe)}")


def remedy(folder: RunFolder, recipe: Recipe) -> str:
    """Return the end of a message about numbers that are not finite: where the run was still good, and what to change."""
    last = folder.last_state()
    warmup = "train.warmup_epochs" if recipe.train.warmup_steps is None else "train.warmup_steps"  # the one that counts
    return f"last good checkpoint: {last if last else 'none yet'}. Lower optim.lr or lengthen {warmup}"
