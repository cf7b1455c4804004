"""Reading recipes: files, overrides, and messages about what is wrong with them. Imports no PyTorch."""

from collections.abc import Container, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from convnext.errors import UsageError, nearest
from convnext.extend import CALLBACKS, LOSSES, METRICS, TASKS, TRANSFORMS, Register, is_marker, load, module_of
from convnext.models.arguments import Argument
from convnext.models.registry import find, names
from convnext.models.weights.tags.choose import best_tag
from convnext.recipe.checks import check, settled
from convnext.recipe.measured import MEASURED_BY
from convnext.recipe.schema import Model, Recipe, keys
from convnext.recipe.text import Values, override_value, read_values, split_override, take_as_written, text_arguments, text_keys
from convnext.text import read_text

FITTED = "fit.json"  # beside the recipe of a run that `convnext.fit` made

# As overrides these keys of `train` replace the other, in which a recipe may have counted.
_REPLACES = {"epochs": "iterations", "warmup_epochs": "warmup_steps", "warmup_steps": "warmup_epochs"}

_REGISTERS: dict[tuple[str | None, str], Register[Any]] = {  # of whatever type
    (None, "task"): TASKS,
    ("augment", "extra"): TRANSFORMS,
    ("train", "loss"): LOSSES,
    ("eval", "metrics"): METRICS,
    ("train", "callbacks"): CALLBACKS,
}
_OWN_CODE = [("data", "train"), ("data", "val"), *(key for key in _REGISTERS if key != (None, "task"))]  # keys that may name code
_CODE_KEYS = {"imports", *(f"{section}.{key}" for section, key in _OWN_CODE)}


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package: their paths in `convnext/recipe` without the ending."""
    return sorted(_names(files("convnext.recipe")))


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe of the package, or of a file of your own. Raises UsageError if there is neither."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"no recipe file {path}")
        return read_text(path)
    if name not in (known := list_recipes()):
        raise UsageError(f"unknown recipe {name!r}{nearest(name, known)} (a file of your own ends in .yaml)")
    return files("convnext.recipe").joinpath(f"{name}.yaml").read_text("utf-8")


def load_recipe(name: str, overrides: Sequence[str] | Mapping[str, object] = (), *, written: bool = False) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name: of a recipe of the package, or a path ending in .yaml.
        overrides: `["optim.lr=1e-3", …]` or `{"optim.lr": 1e-3, …}`.
        written: whether a run wrote the recipe. Then keys without effect are accepted, as earlier versions did, and the modules that it
            names are not imported: the run may be a stranger's. Names that they would register are not checked.

    Raises UsageError that names the key, its file and the nearest known key, or what is wrong with its value.
    """
    values, as_written = read_values(recipe_text(name), name)
    split = overrides if isinstance(overrides, Mapping) else dict(map(split_override, overrides))
    modules = _modules(values, split if isinstance(overrides, Mapping) else _parsed(split, text_keys(), _CODE_KEYS))
    for module in () if written else modules:
        load(module)
    is_checked = not written or not modules  # or else names may be those of modules that are not imported
    given = split if isinstance(overrides, Mapping) else _parsed(split, text_keys() | _model_texts(values, split))
    if is_checked and "model.name" not in given:
        take_as_written(values, as_written, text_arguments(_arguments(values)))
    known = keys() | (_model_keys(values, given) if is_checked else _any_model_keys(values))
    for key, value in given.items():
        if value is None and _remove(values, key.split(".")):
            continue
        _check_key(key.split("."), f"override {key}", known)
        _set(values, key.split("."), value)
    _complete(values, given)
    for key_path in _paths(values, known):
        _check_key(key_path, f"recipe {name}", known)
    if is_checked:
        _check_model(values, f"recipe {name}")
        _check_names(values, f"recipe {name}")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if str(part).isalnum() or ("_" in str(part) and str(part).isidentifier()))
        got = "" if first["type"] in ("missing", "value_error") else f", not {first['input']!r}"
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"recipe {name}: {key + ': ' if key else ''}{message}{got}{_hint(key)}") from error
    if not written:
        recipe = settled(recipe, given)
        check(recipe, f"recipe {name}")
    return recipe


def _parsed(split: Mapping[str, object], text: Mapping[str, bool], only: Container[str] | None = None) -> dict[str, object]:
    """Return the values of overrides by key, or of those of `only`."""
    return {key: override_value(key, str(value), text) for key, value in split.items() if only is None or key in only}


def _model_texts(values: Values, split: Mapping[str, object]) -> dict[str, bool]:
    """Return the text arguments of the model that overrides or else the recipe names."""
    name = "model.name"
    chosen: Values = {"model": {"name": override_value(name, str(split[name]), text_keys())}} if name in split else values
    return text_arguments(_arguments(chosen))


def load_modules(recipe: Recipe) -> None:
    """Import the modules that a recipe needs, as reading it from a file does. Raises UsageError or ConvnextError as `extend.load` does."""
    for module in _modules(recipe.model_dump(), {}):
        load(module)


def _modules(values: Values, given: Mapping[str, object]) -> list[str]:
    """Return the modules that a recipe needs: those of `imports`, and those that references name."""

    def value_of(section: str | None, key: str) -> object:
        inner = values if section is None else values.get(section)
        return given.get(f"{section}.{key}" if section else key, inner.get(key) if isinstance(inner, dict) else None)

    found = _texts(value_of(None, "imports"))
    for section, key in _OWN_CODE:
        found += [module for text in _texts(value_of(section, key)) if not is_marker(text) and (module := module_of(text)) is not None]
    return list(dict.fromkeys(found))


def _texts(value: object) -> list[str]:
    return [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, str)]


def _any_model_keys(values: Values) -> dict[str, str]:
    model = values.get("model")
    return {f"model.{key}": "" for key in model} if isinstance(model, dict) else {}


def _check_names(values: Values, where: str) -> None:
    """Raise UsageError for the name of a task, transform, loss, metric or callback that nothing registers, with the nearest."""
    for (section, key), register in _REGISTERS.items():
        inner = values if section is None else values.get(section)
        for name in _texts(inner.get(key) if isinstance(inner, dict) else None):
            full = f"{section}.{key}" if section else key
            if ":" not in name and not register.knows(name):
                raise UsageError(f"{where}: {full}: unknown {register.what} {name!r}{nearest(name, register.names())}")
            if ":" in name and not is_marker(name) and module_of(name) is None:
                raise UsageError(f"{where}: {full}: {name!r} names no function; write it as my_module:my_function")


def _complete(values: Values, given: Mapping[str, object]) -> None:
    """Apply what overrides imply, and remove keys without a value, in place."""
    train, model = values.get("train"), values.get("model")
    for key, other in _REPLACES.items():
        if isinstance(train, dict) and given.get(f"train.{key}") is not None and f"train.{other}" not in given:
            train.pop(other, None)
    values.setdefault("data", {})  # so that the message about a missing data.train names that key
    if isinstance(model, dict):
        if str(model.get("weights")).lower() == "none":
            model["weights"] = None
        if model.get("weights") == "best":
            model["weights"] = best_tag(find(str(model.get("name", Model().name))))
        if "model.weights" in given and model["weights"] is None and "model.keep_head" not in given:
            model.pop("keep_head", None)
        for key in [key for key, value in model.items() if value is None and key not in Model.model_fields]:
            del model[key]  # a key of other models, as earlier versions wrote them into every recipe.yaml


def _arguments(values: Values) -> Mapping[str, Argument]:
    """Return the arguments of the model that a recipe may set; the data decide the others. Raises UsageError for an unknown name."""
    model = values.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    found = find(name if isinstance(name, str) else Model().name).arguments
    return {key: argument for key, argument in found.items() if key not in ("num_classes", "in_channels")}


def _model_keys(values: Values, given: Mapping[str, object]) -> dict[str, str]:
    """Return the keys of `model` that depend on its name, with a description."""
    name = given.get("model.name")
    chosen: Values = values if name is None else {"model": {"name": name}}
    return {f"model.{key}": argument.annotation for key, argument in _arguments(chosen).items()}


def _check_model(values: Values, where: str) -> None:
    """Raise UsageError unless the constructors of the model take the arguments that are given, with values of their types."""
    model = values.get("model")
    if not isinstance(model, dict):
        return
    arguments, fields = _arguments(values), Model.model_fields
    for key, value in model.items():
        own = fields.get(key)
        if key in ("name", "weights", "keep_head", "freeze") or (own is not None and value == own.default):
            continue
        if key not in arguments:
            raise UsageError(f"{where}: {model.get('name', Model().name)} has no argument {key!r}{nearest(key, arguments)}")
        if f"model.{key}" in MEASURED_BY and value == "auto":
            continue
        if own is None and (not arguments[key].accepts(value) or (isinstance(value, float) and not isfinite(value))):
            raise UsageError(f"{where}: model.{key} must be {arguments[key].annotation}, not {value!r}")


def _names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _names(item, f"{prefix}{item.name}/")
        elif item.name.endswith(".yaml"):
            yield prefix + item.name.removesuffix(".yaml")


def _set(values: Values, path: list[str], value: object) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{part} must be a table of keys, not {inner!r}")
        values = inner
    values[path[-1]] = value


def _remove(values: Values, path: list[str]) -> bool:
    """Remove a key of the model that an override sets to null. Returns whether some model has that key: this one may not."""
    if len(path) != 2 or path[0] != "model" or path[1] in Model.model_fields:
        return False
    model = values.get("model")
    if isinstance(model, dict) and model.pop(path[1], None) is not None:
        return True
    return any(path[1] in find(name).arguments for name in names())


def _paths(values: Mapping[str, object], known: Container[str], prefix: tuple[str, ...] = ()) -> Iterator[list[str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and ".".join((*prefix, str(key))) not in known:
            yield from _paths(value, known, (*prefix, str(key)))
        else:
            yield [*prefix, str(key)]


def _check_key(path: list[str], where: str, known: Mapping[str, str]) -> None:
    key = ".".join(path)
    if key in known:
        return
    # Someone who writes `lr` or `train.lr` means `optim.lr`: a key's last word says more than its section.
    by_last_word = [full for full in known if full.rpartition(".")[2] == path[-1]]
    closest = by_last_word or get_close_matches(key, known, n=1)
    hint = f"; did you mean {closest[0]!r}?" if closest else "; `convnext recipes keys` lists them all"
    raise UsageError(f"{where}: unknown key {key!r}{hint}")


def _hint(key: str) -> str:
    return f" (give it as {key}=…)" if key == "data.train" else ""
