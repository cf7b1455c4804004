"""The labelled images that a network is evaluated on outside of training."""

from pathlib import Path

from convnext.errors import ConvnextError, UsageError
from convnext.extend import is_marker
from convnext.models.load import Loaded
from convnext.recipe import Recipe, load_recipe
from convnext.recipe.load import FITTED
from convnext.tasks.base import AnyTask, Source
from convnext.tasks.objects import refuse_invalid
from convnext.tasks.own import without_own_code

LIMIT_KEY = "--max-corrupt"  # by which the user says how many images and objects may be unusable
_LIMIT = 0.01  # where neither the user nor the network's run says it


def labelled_source(loaded: Loaded, task: AnyTask, data: str | None, max_corrupt: float | None) -> tuple[Source, float]:
    """Return the images to evaluate a network on, and the fraction of images, and of objects, that may be unusable.

    Args:
        loaded: the network, with its run where it has one.
        task: of the network.
        data: names the images; by default the validation images of the run.
        max_corrupt: the fraction; by default the run's `data.max_corrupt`, or else 0.01.

    Raises UsageError or ConvnextError if there are no such images, if they do not fit the network, or if too many objects are invalid.
    """
    path = None if loaded.run is None else Path(loaded.run) / "recipe.yaml"
    given = {} if max_corrupt is None else {"data.max_corrupt": max_corrupt}
    recipe = load_recipe(str(path), given, written=True) if path is not None and path.is_file() else None
    limit = max_corrupt if max_corrupt is not None else _LIMIT if recipe is None else recipe.data.max_corrupt
    if data is None:
        return _of_run(loaded, task, path, recipe), limit
    source = task.open_labelled(data if recipe is None else task.named(data, recipe), loaded.classes, loaded.model.num_classes)
    refuse_invalid(source, limit, LIMIT_KEY)
    return source, limit


def _of_run(loaded: Loaded, task: AnyTask, path: Path | None, recipe: Recipe | None) -> Source:
    if path is None:
        raise UsageError("say with --data what to evaluate on: a folder with one folder of images for each class, or digits:val")
    settings = load_recipe(str(path), written=True) if recipe is None else recipe  # without the file, it says which is missing
    if any(is_marker(where) for where in (settings.data.train, settings.data.val)):
        raise UsageError(f"the images of {loaded.run} were given from Python: say with --data (data=) what to evaluate on")
    if settings.data.val is None and path.with_name(FITTED).is_file():
        raise UsageError(
            f"all images of {settings.data.train} were fitted on, so {loaded.run} has none to be evaluated on: say with --data (data=) "
            "what to take; report.html has its cross-validated accuracy"
        )
    source: Source = task.open(without_own_code(settings)).val.source
    if loaded.classes and list(source.classes) != list(loaded.classes):
        raise ConvnextError(
            f"the classes of the validation data of {loaded.run} changed since the run: {', '.join(source.classes[:10])} now, "
            f"{', '.join(loaded.classes[:10])} then; restore them, or say with --data what to evaluate on"
        )
    return source
