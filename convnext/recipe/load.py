"""Reading recipes: files, overrides, and messages about what is wrong with them. Imports no PyTorch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from convnext.errors import UsageError, nearest
from convnext.extend import LOSSES, METRICS, TASKS, TRANSFORMS, Register, is_marker, load, module_of
from convnext.models.arguments import Argument
from convnext.models.registry import find, names
from convnext.recipe.schema import Model, Recipe, keys
from convnext.text import read_text

Values = dict[str, object]

_REGISTERS: dict[tuple[str | None, str], Register[Any]] = {  # of whatever type
    (None, "task"): TASKS,
    ("augment", "extra"): TRANSFORMS,
    ("train", "loss"): LOSSES,
    ("eval", "metrics"): METRICS,
}
_OWN_CODE = [("data", "train"), ("data", "val"), ("augment", "extra"), ("train", "loss"), ("eval", "metrics")]  # keys that may name code


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


def load_recipe(name: str, overrides: Sequence[str] | Mapping[str, object] = (), import_own: bool = True) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name: of a recipe of the package, or a path ending in .yaml.
        overrides: `["optim.lr=1e-3", …]` or `{"optim.lr": 1e-3, …}`.
        import_own: import the modules that the recipe names. A recipe that the user did not start, as that of a run folder, which may be
            a stranger's, is read without them; then names that they would register are not checked.

    Raises UsageError that names the key, its file and the nearest known key, or what is wrong with its value.
    """
    try:
        values = yaml.safe_load(recipe_text(name)) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"recipe {name} must be a table of keys, not {type(values).__name__}")
    given = overrides if isinstance(overrides, Mapping) else dict(_parse_override(text) for text in overrides)
    modules = _modules(values, given)
    if import_own:
        for module in modules:
            load(module)
    is_checked = import_own or not modules  # or else names may be those of modules that are not imported
    known = keys() | (_model_keys(values, given) if is_checked else _any_model_keys(values))
    for key, value in given.items():
        if value is None and _remove(values, key.split(".")):
            continue
        _check_key(key.split("."), f"override {key}", known)
        _set(values, key.split("."), value)
    _complete(values, given)
    for key_path in _paths(values):
        _check_key(key_path, f"recipe {name}", known)
    if is_checked:
        _check_model(values, f"recipe {name}")
        _check_names(values, f"recipe {name}")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        got = "" if first["type"] in ("missing", "value_error") else f", not {first['input']!r}"
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"recipe {name}: {key + ': ' if key else ''}{message}{got}{_hint(key)}") from error


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
    """Raise UsageError for the name of a task, transform, loss or metric that nothing registers, with the nearest."""
    for (section, key), register in _REGISTERS.items():
        inner = values if section is None else values.get(section)
        for name in _texts(inner.get(key) if isinstance(inner, dict) else None):
            full = f"{section}.{key}" if section else key
            if ":" not in name and register.find(name) is None:
                raise UsageError(f"{where}: {full}: unknown {register.what} {name!r}{nearest(name, register.entries)}")
            if ":" in name and not is_marker(name) and module_of(name) is None:
                raise UsageError(f"{where}: {full}: {name!r} names no function; write it as my_module:my_function")


def _complete(values: Values, given: Mapping[str, object]) -> None:
    """Apply what overrides imply, and remove keys without a value, in place."""
    train, model = values.get("train"), values.get("model")
    if isinstance(train, dict) and "train.epochs" in given and "train.iterations" not in given:
        train.pop("iterations", None)
    values.setdefault("data", {})  # so that the message about a missing data.train names that key
    if isinstance(model, dict):
        if str(model.get("weights")).lower() == "none":
            model["weights"] = None
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
        if key in ("name", "weights", "keep_head") or (own is not None and value == own.default):
            continue
        if key not in arguments:
            raise UsageError(f"{where}: {model.get('name', Model().name)} has no argument {key!r}{nearest(key, arguments)}")
        if own is None and not arguments[key].accepts(value):
            raise UsageError(f"{where}: model.{key} must be {arguments[key].annotation}, not {value!r}")


def _names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _names(item, f"{prefix}{item.name}/")
        elif item.name.endswith(".yaml"):
            yield prefix + item.name.removesuffix(".yaml")


def _parse_override(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not an override; write it as key=value, for instance train.epochs=4")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"override {key}: {value!r} is not a YAML value; quote it, or close its brackets") from error
    if isinstance(parsed, str):
        with suppress(ValueError):
            parsed = float(parsed)  # YAML reads 1e-3 as text
    return key, parsed


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


def _paths(values: Mapping[str, object], prefix: tuple[str, ...] = ()) -> Iterator[list[str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, (*prefix, str(key)))
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
