"""Objects that `convnext.train` is given from Python, and what stands for them in the recipe. Imports no PyTorch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convnext.errors import ConvnextError, UsageError
from convnext.extend import CALLBACKS, LOSSES, METRICS, SOURCES, TRANSFORMS, argument_of, is_marker, marker
from convnext.models.register import imports_of
from convnext.recipe import Recipe, load_recipe
from convnext.recipe.checks import check
from convnext.recipe.load import load_modules
from convnext.recipe.schema import Model

Objects = Mapping[str, object]  # by argument of `convnext.train`; None for those that are not given
Overrides = Sequence[str] | Mapping[str, object]

_KEYS = {  # of the recipe, by argument
    "model": "model.name",
    "train_data": "data.train",
    "val_data": "data.val",
    "transform": "augment.extra",
    "loss": "train.loss",
    "metrics": "eval.metrics",
}


def recipe_with(recipe: str | Recipe, overrides: Overrides, objects: Objects) -> Recipe:
    """Return a recipe in which a marker stands for each object, and `imports` holds every module that its names need.

    A given network replaces the recipe's whole section `model` but `freeze`. Given training data replace `data.val` too, unless it is
    given or overridden.

    Raises UsageError for an object of the wrong kind, for an override of what an object replaces, and for the marker of an object that
    is not given.
    """
    marks = {_KEYS[argument]: _mark(argument, thing) for argument, thing in objects.items() if thing is not None}
    named = {text.partition("=")[0] for text in overrides} if not isinstance(overrides, Mapping) else set(overrides)
    for key in sorted(named):
        of_model = "model.name" in marks and key.startswith("model.") and key != "model.freeze"
        if key in marks or of_model:
            argument = "model" if of_model else next(one for one, full in _KEYS.items() if full == key)
            raise UsageError(f"{key} says what {argument}= gives from Python: leave out one of them")
    data = {key: mark for key, mark in marks.items() if key.startswith("data.")}
    if "data.train" in data and not named & {"data.val"}:
        data.setdefault("data.val", None)
    if not isinstance(recipe, Recipe):
        more = data if isinstance(overrides, Mapping) else [f"{key}={'null' if mark is None else mark}" for key, mark in data.items()]
        together = {**overrides, **more} if isinstance(overrides, Mapping) and isinstance(more, Mapping) else [*overrides, *more]
        recipe = load_recipe(recipe, together)
    else:
        load_modules(recipe)
        check(recipe)
    completed = _with_imports(_with(recipe, {**marks, **data}))
    for key, mark in markers(completed):
        if objects.get(argument_of(mark)) is None:
            raise _missing(f"{key}={mark}", [mark])
    return completed


def _mark(argument: str, thing: object) -> object:
    from torch import nn

    if argument == "model" and not isinstance(thing, nn.Module):
        kind = thing.__name__ if isinstance(thing, type) else type(thing).__name__
        raise UsageError(f"model= is an instance of torch.nn.Module, not {kind}: the recipe's model.name takes names")
    if argument in ("train_data", "val_data") and isinstance(thing, str | Path):
        raise UsageError(f"{argument}= is a dataset: give a folder or a name in the recipe's {_KEYS[argument]}")
    if argument != "metrics":
        if argument in ("transform", "loss") and not callable(thing):
            raise UsageError(f"{argument}= is a function: give a name in the recipe's {_KEYS[argument]}")
        return marker(argument, thing)
    assert isinstance(thing, list)
    found = tuple(marker(argument, one) for one in thing)
    if bad := [one for one in thing if not callable(one)]:
        raise UsageError(f"metrics= are functions, not {bad[0]!r}: give names in the recipe's eval.metrics")
    if len(set(found)) < len(found):
        raise UsageError("two of the metrics have one name: define each as a function of its own")
    return found


def _with(recipe: Recipe, marks: Mapping[str, object]) -> Recipe:
    for key, mark in marks.items():
        section, _, name = key.partition(".")
        changed = (
            Model(name=str(mark), freeze=recipe.model.freeze)
            if key == "model.name"
            else getattr(recipe, section).model_copy(update={name: mark})
        )
        recipe = recipe.model_copy(update={section: changed})
    return recipe


def _with_imports(recipe: Recipe) -> Recipe:
    """Return the recipe with every module that registers one of its names among its `imports`."""
    found = [*recipe.imports, *imports_of(recipe.model.name, recipe.task)]
    for register, names in (
        (TRANSFORMS, [recipe.augment.extra]),
        (LOSSES, [recipe.train.loss]),
        (METRICS, list(recipe.eval.metrics)),
        (CALLBACKS, list(recipe.train.callbacks)),
        (SOURCES, [where and where.partition(":")[0] for where in (recipe.data.train, recipe.data.val)]),
    ):
        found += [register.origins[name] for name in names if name in register.origins]
    imports = tuple(dict.fromkeys(found))
    return recipe if imports == recipe.imports else recipe.model_copy(update={"imports": imports})


def markers(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield each key of a recipe whose value stands for an object that Python gave, with the marker."""
    for key in _KEYS.values():
        section, _, name = key.partition(".")
        value = getattr(getattr(recipe, section), name)
        yield from ((key, one) for one in (value if isinstance(value, tuple) else [value]) if is_marker(one))


def refuse_markers(recipe: Recipe) -> None:
    """Raise UsageError if a recipe needs an object that only Python can give."""
    for key, mark in markers(recipe):
        raise _missing(f"{key}={mark}", [mark])


def refuse_lost(path: Path, recipe: Recipe) -> None:
    """Raise UsageError if the run with its recipe at `path` was given an object that this recipe lacks, naming all such objects."""
    try:
        before = load_recipe(str(path), written=True)
    except (ConvnextError, ValueError):  # damaged, which `RunFolder.check_same` reports
        return
    now = {argument_of(mark) for _, mark in markers(recipe)}
    if lost := [mark for _, mark in markers(before) if argument_of(mark) not in now]:
        raise _missing(str(path.parent), lost, "; add --change (change=True) to continue without")


def _missing(what: str, marks: Sequence[str], else_: str = "") -> UsageError:
    given = ", ".join(f"{argument_of(mark)}={mark.split(':', 2)[2]}" for mark in marks)
    again = ", ".join(dict.fromkeys(f"{argument_of(mark)}=…" for mark in marks))
    verb = "was" if len(marks) == 1 else "were"
    return UsageError(f"{what}: {given} {verb} given from Python: call convnext.train with {again}{else_}")
