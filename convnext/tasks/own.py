"""A user's own losses, metrics and transforms, by the names, references and markers of a recipe."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext.errors import ConvnextError, UsageError, first_line
from convnext.extend import LOSSES, METRICS, TRANSFORMS, Register, find, is_marker, qualified
from convnext.ops.memory import is_out_of_memory
from convnext.recipe import Recipe, load_recipe
from convnext.tasks.base import AnyTask, Function, Metrics


def own_loss(recipe: Recipe) -> Function | None:
    """Return the loss that a recipe names, None if it names none. Raises UsageError for one that is not known here."""
    return None if recipe.train.loss is None else _found(LOSSES, "train.loss", recipe.train.loss)


def own_transform(recipe: Recipe) -> Function | None:
    """Return the transform that a recipe names, None if it names none. Raises UsageError for one that is not known here."""
    return None if recipe.augment.extra is None else _found(TRANSFORMS, "augment.extra", recipe.augment.extra)


def own_metrics(recipe: Recipe) -> dict[str, Function]:
    """Return the metrics that a recipe names, by the names under which they are logged. Raises UsageError for one not known here."""
    if twice := [name for name, count in Counter(metric_names(recipe)).items() if count > 1]:
        raise UsageError(f"eval.metrics: two metrics are named {twice[0]!r}")
    return {name: function for one in recipe.eval.metrics for name, function in own_metric(one).items()}


def own_metric(name: str) -> dict[str, Function]:
    """Return the metric of that name in a recipe, by the name under which it is logged. Raises UsageError for one not known here."""
    return {column(name): _found(METRICS, "eval.metrics", name)}


def metrics_of_run(run: Path | None) -> tuple[dict[str, Function], list[str]]:
    """Return the own metrics that the recipe of a run folder names, and a remark on each that is not known here. It imports nothing."""
    found: dict[str, Function] = {}
    remarks: list[str] = []
    recipe = None if run is None or not (run / "recipe.yaml").is_file() else load_recipe(str(run / "recipe.yaml"), written=True)
    for name in () if recipe is None else recipe.eval.metrics:
        try:
            found |= own_metric(name)
        except UsageError as error:
            remarks.append(f"the run's metric {name} is not measured: {error}")
    return found, remarks


def without_own_code(recipe: Recipe) -> Recipe:
    """Return a recipe without the user's own transform, to open its validation images by."""
    return recipe.model_copy(update={"augment": recipe.augment.model_copy(update={"extra": None})})


def metric_names(recipe: Recipe) -> list[str]:
    """Return the names under which a recipe's own metrics are logged, beside the task's. One that returns a dict logs each key."""
    return [column(name) for name in recipe.eval.metrics]


def check_own(task: AnyTask, recipe: Recipe) -> None:
    """Raise UsageError if a recipe names code of a user that its task does not honour, or that is not known here."""
    named = {"augment.extra": recipe.augment.extra, "train.loss": recipe.train.loss, "eval.metrics": list(recipe.eval.metrics)}
    for key, value in named.items():
        if value and key not in task.own:
            raise UsageError(f"{key}={value} has no effect on the task {task.name!r}: leave it out")
    own_transform(recipe)
    own_loss(recipe)
    own_metrics(recipe)


def column(name: str) -> str:
    """Return the name under which a metric of a recipe is logged: that of its function."""
    return name.rpartition(":")[2].rpartition(".")[2].strip("<>")


def _found(register: Register[Function], key: str, name: str) -> Function:
    found = find(register, name)
    if not callable(found):
        raise UsageError(f"{key}={name} is a {type(found).__name__}, not a function")
    return found


def called(what: str, function: Function, *arguments: object) -> object:
    """Return what a user's function returns. Raises ConvnextError, naming it, in place of its own errors, those of memory excepted."""
    try:
        return function(*arguments)
    except ConvnextError:
        raise
    except Exception as error:  # a user's function may raise anything
        if is_out_of_memory(error):
            raise
        raise ConvnextError(f"{what} failed: {type(error).__name__}: {first_line(error)} (--debug shows where)") from error


def parts_of_loss(what: str, found: object) -> dict[str, Tensor]:
    """Return the named parts of what a user's loss returned, float32. Raises UsageError unless these are scalars of a network."""
    given: Mapping[str, object] = found if isinstance(found, Mapping) else {"loss": found}
    parts: dict[str, Tensor] = {}
    for name, part in given.items():
        if not isinstance(part, Tensor) or part.ndim or not isinstance(name, str):
            kind = f"of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise UsageError(f"{what} must return a scalar tensor, or a dict of them by name; {name!r} is {kind}")
        parts[name] = part.float()
    if not parts:
        raise UsageError(f"{what} returned an empty dict")
    return parts


def values_of_metric(name: str, found: object, known: Sequence[str]) -> Metrics:
    """Return the numbers of what a user's metric returned, by name. Raises UsageError unless they are numbers with names of their own."""
    values: Mapping[str, Any] = found if isinstance(found, Mapping) else {name: found}  # of another library's numbers
    numbers: Metrics = {}
    for key, value in values.items():
        if str(key) in known:
            raise UsageError(f"the metric {name} gives {key!r}, which the task measures already: give it another name")
        try:
            numbers[str(key)] = float(value.item() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"the metric {name} must return a number, or a dict of them; {key!r} is a {type(value).__name__}") from error
    return numbers


def title(name: str, function: Function) -> str:
    """Return what messages call a function of a recipe."""
    return qualified(function) if is_marker(name) else name
