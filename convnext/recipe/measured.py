"""Keys that may be `auto`: a task measures them on the training data, and the run's recipe has the numbers. Imports no PyTorch."""

from collections.abc import Iterable, Mapping

from convnext.recipe.schema import Recipe

MEASURED_BY: dict[str, tuple[str, ...] | None] = {  # the tasks of the package that measure each key; None for all
    "data.mean": None,
    "detect.size": ("detect",),
    "segment.scale": ("segment",),
    "train.iterations": ("detect",),
    "model.anchor_scale": ("detect",),
    "model.masks": ("detect",),
}


def value_of(recipe: Recipe, key: str) -> object:
    """Return the value of a dotted key; None for an argument of the model that the recipe does not set."""
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name, None)


def with_values(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    """Return the recipe with values of dotted keys, which are not checked."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})
    return recipe


def to_measure(recipe: Recipe, keys: Iterable[str] = MEASURED_BY) -> list[str]:
    """Return those of the keys whose value in a recipe is `auto`."""
    return [key for key in keys if value_of(recipe, key) == "auto"]


def with_measured(recipe: Recipe, before: Recipe) -> Recipe:
    """Return the recipe with what an earlier start of the run measured, whose recipe `before` is, in place of `auto`."""
    keys = to_measure(recipe)
    return with_values(recipe, {key: value_of(before, key) for key in [*keys, *(["data.std"] if "data.mean" in keys else [])]})
