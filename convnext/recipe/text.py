"""The text of recipe files and of overrides: YAML, but what the schema calls text is taken as it is written."""

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import cast

import yaml
from pydantic import BaseModel

from convnext.errors import UsageError
from convnext.models.arguments import Argument
from convnext.recipe.schema import Recipe
from convnext.recipe.section import RecipeSection

Values = dict[str, object]

_NULL = ("", "~", "null", "Null", "NULL")
_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def text_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, bool]:
    """Return the keys of the schema whose values are text, dotted, and whether each may be null instead."""
    found: dict[str, bool] = {}
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, RecipeSection):
            found |= text_keys(info.annotation, f"{prefix}{name}.")
        elif info.annotation in (str, str | None):
            found[prefix + name] = info.annotation is not str
    return found


def text_arguments(arguments: Mapping[str, Argument]) -> dict[str, bool]:
    """Return the same for the arguments of a model."""
    known = {"str": False, "str | None": True}
    return {f"model.{key}": known[one.annotation] for key, one in arguments.items() if one.annotation in known}


def split_override(text: str) -> tuple[str, str]:
    """Return the key and the value, as written, of "key=value". Raises UsageError if there is no key."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not an override; write it as key=value, for instance train.epochs=4")
    return key, value


def override_value(key: str, value: str, text: Mapping[str, bool]) -> object:
    """Return the value of an override: as written, or as quoted, if its key is one of `text`, else what YAML reads.

    Raises UsageError for a value that is not YAML.
    """
    if key in text:
        return None if text[key] and value in _NULL else _unquoted(value)
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"override {key}: {value!r} is not a YAML value; quote it, or close its brackets") from error
    if isinstance(parsed, str):
        with suppress(ValueError):
            return float(parsed)  # YAML reads 1e-3 as text
    return parsed


def _unquoted(value: str) -> str:
    """Return the text within the quotes of a value that is a whole YAML or JSON string, as programs write it; others as they are."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        with suppress(yaml.YAMLError):
            return str(yaml.safe_load(value))
    return value


def read_values(text: str, name: str) -> tuple[Values, dict[str, str]]:
    """Return the values of a recipe file, and the text of each single value as written, by its dotted key.

    Values of the schema's text keys are text, whatever YAML takes them for; sections without a value are missing.

    Raises UsageError, naming the recipe, for what is not YAML or no table of keys, and for a key that is given twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        written = dict(_scalars(node, name)) if node is not None else {}
        for key in text_keys().keys() & written.keys():
            if written[key].tag != "tag:yaml.org,2002:null":
                written[key].tag = _STRING
        loader = yaml.SafeLoader("")
        values = {} if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise error if isinstance(error, UsageError) else UsageError(f"recipe {name} is not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(f"recipe {name} must be a table of keys, not {type(values).__name__}")
    for key, info in Recipe.model_fields.items():
        if values.get(key, "") is None and isinstance(info.annotation, type) and issubclass(info.annotation, RecipeSection):
            del values[key]
    return cast(Values, values), {key: one.value for key, one in written.items()}


def take_as_written(values: Values, written: Mapping[str, str], text: Container[str]) -> None:
    """Replace numbers, dates and the like of text keys by their text, in place."""
    model = values.get("model")
    if isinstance(model, dict):
        kept = {key: written[f"model.{key}"] for key in model if f"model.{key}" in text and model[key] is not None}
        model.update(kept)


def _scalars(node: yaml.Node, name: str, prefix: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Yield the single values of a table by dotted key. Raises UsageError for a key that is given twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        path, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if key.value in lines:
            raise UsageError(f"recipe {name}: key {path!r} is given twice, in lines {lines[key.value]} and {line}: keep one of them")
        lines[key.value] = line
        if isinstance(value, yaml.ScalarNode):
            yield path, value
        else:
            yield from _scalars(value, name, f"{path}.")
