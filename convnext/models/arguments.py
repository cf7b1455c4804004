"""The keyword arguments of a constructor, read without importing it, so that a misspelt one is reported before PyTorch is loaded."""

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)}


@dataclass(frozen=True)
class Argument:
    """A keyword argument of a constructor."""

    annotation: str  # as its source says, for instance "Sequence[int] | None"
    required: bool = False  # whether it has no default

    def accepts(self, value: object) -> bool:
        """Return whether a plain value is of the argument's type; True for a type that is not plain."""
        return any(_is_of(value, kind.strip()) for kind in self.annotation.split("|"))


def arguments_of(build: str | Callable[..., object]) -> dict[str, Argument]:
    """Return the arguments of a constructor by name, those of `**` excepted.

    Args:
        build: a function or class, or where it is, as "package.module:attribute"; then its source is read, not run.
    """
    if isinstance(build, str):
        return dict(_from_source(build))
    parameters = inspect.signature(build).parameters.values()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return {one.name: Argument(_text(one.annotation), one.default is one.empty) for one in named}


def _is_of(value: object, kind: str) -> bool:
    if kind == "Sequence[int]":
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_is_of(one, "int") for one in value)
    if kind not in _TYPES:
        return True
    return isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def _text(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return "object"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("collections.abc.", "").replace("typing.", "")


@cache
def _from_source(build: str) -> tuple[tuple[str, Argument], ...]:
    module, _, attribute = build.partition(":")
    package, *parts = module.split(".")
    found = find_spec(package)  # of the outermost package only: that of a submodule would import the packages around it
    if found is None or found.submodule_search_locations is None:
        raise ImportError(f"no package {package!r}, which an entry of the registry names")
    path = Path(found.submodule_search_locations[0], *parts).with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    node = next(one for one in body if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == attribute)
    if isinstance(node, ast.ClassDef):
        node = next(one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
    positional = [one for one in node.args.args if one.arg != "self"]
    required = len(positional) - len(node.args.defaults)
    named = [(one, i < required) for i, one in enumerate(positional)]
    named += [(one, default is None) for one, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return tuple((one.arg, Argument(ast.unparse(one.annotation) if one.annotation else "object", bare)) for one, bare in named)
