"""The pages of the reference that are written from the code: mkdocs calls `on_page_markdown` for each page that it builds.

A comment `<!-- generated: NAME -->` in a page is replaced by what `GENERATED[NAME]` returns, so the page can't fall behind the code.
"""

import re
from collections.abc import Callable, Iterator
from inspect import unwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo
from typer.main import get_command

from convnext.cli import app
from convnext.cli.help import GROUPS
from convnext.recipe.checks import BEST_METRICS, tasks_that_use
from convnext.recipe.schema import Recipe
from convnext.recipe.section import RecipeSection


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page with its generated parts."""
    return re.sub(r"<!-- generated: ([\w-]+) -->", lambda found: GENERATED[found[1]](), markdown)


def command_line() -> str:
    """Return a section for each group of commands, with the arguments, options and examples of each command."""
    commands = list(_leaves(get_command(app)))
    lines: list[str] = []
    for group in GROUPS:
        lines += [f"## {group}", ""]
        for words, command, of in commands:
            if of == group:
                lines += [f"### convnext {words}", "", *_paragraphs(command.help or ""), "", "```bash"]
                lines += [*(command.epilog or f"convnext {words}").splitlines(), "```", ""]
                types = get_type_hints(unwrap(command.callback), include_extras=True)
                lines += [line for one in command.params if one.name in types for line in _parameter(one, types[one.name])]
    return "\n".join(lines)


def _leaves(command: Any, words: str = "", group: str = "") -> Iterator[tuple]:
    for name, one in command.commands.items():
        of = group or one.rich_help_panel
        if hasattr(one, "commands"):
            if one.invoke_without_command:
                yield words + name, one, of
            yield from _leaves(one, f"{words}{name} ", of)
        else:
            yield words + name, one, of


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) if part.strip() else "" for part in re.split(r"\n(?=\n)|(?<=\n)\n", text)]


def _parameter(parameter: Any, annotation: object) -> list[str]:
    """Return an argument or option as an entry of a definition list.

    Args:
        parameter: as Typer parses it.
        annotation: the type of the function's parameter, `Annotated` with what Typer reads of it.
    """
    kind, *infos = get_args(annotation)
    is_option = parameter.param_type_name == "option"
    written = " / ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else (parameter.metavar or parameter.name.upper())
    facts = ["required"] if parameter.required else []
    if is_option and not parameter.is_flag:
        facts.append(_kind(kind)[0].removesuffix(" or `null`"))
    for one in infos:
        facts += [f"at least {one.min:g}"] if one.min is not None else []
        facts += [f"at most {one.max:g}"] if one.max is not None else []
    if parameter.envvar:
        facts.append(f"environment: `{parameter.envvar}`")
    if parameter.default not in (None, False, ()) and not callable(parameter.default) and not parameter.required:
        facts.append("default: on" if parameter.default is True else f"default `{parameter.default}`")
    return _definition(f"`{written}`", _plain(parameter.help or ""), facts)


def recipe_keys() -> str:
    """Return a section for each part of a recipe, with the type, range, default and tasks of each key."""
    lines = ["## The recipe itself", ""]
    sections: list[tuple[str, type[RecipeSection]]] = []
    for name, info in Recipe.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, RecipeSection):
            sections.append((name, info.annotation))
        else:
            lines += _key(name, info)
    for name, section in sections:
        lines += [f"## {name}", "", *_paragraphs(section.__doc__ or ""), ""]
        for key, info in section.model_fields.items():
            lines += _key(f"{name}.{key}", info)
    return "\n".join(lines)


def _key(key: str, info: FieldInfo) -> list[str]:
    kind, bounds = _kind(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation)
    facts = [f"{kind} {bounds}".strip(), "required" if info.is_required() else f"default `{_written(info.default)}`"]
    if (tasks := tasks_that_use(key)) and len(tasks) < len(BEST_METRICS):
        facts.append(f"tasks: {', '.join(tasks)}")
    return _definition(f"`{key}`{{ #{key} }}", _plain(info.description or ""), facts)


def _kind(annotation: object) -> tuple[str, str]:
    """Return what values of a type are, and their range."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind, bounds = _kind(inner[0])
        null = " or `null`" if kind.endswith(" or `null`") else ""
        return " ".join(filter(None, [kind.removesuffix(null), bounds, _bounds(inner[1:])])) + null, ""
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner), ""
    if origin in (Union, UnionType):
        found = [_kind(one) for one in inner if one is not NoneType]
        null = " or `null`" if NoneType in inner else ""
        return " or ".join(f"{kind} {bounds}".strip() for kind, bounds in found) + null, ""
    if origin is tuple:
        plural = _kind(inner[0])[0].replace("number", "numbers").replace("text", "texts").replace("a list of", "lists of")
        return (f"list of {plural}" if inner[-1] is Ellipsis else f"{len(inner)} {plural}"), ""
    if origin is dict:
        return f"mapping of names to {_kind(inner[1])[0]}", ""
    if origin is list:
        return _kind(inner[0])[0] + ", may be given several times", ""
    return {Path: "path", bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}[annotation], ""  # type: ignore[index]


def _bounds(metadata: tuple[object, ...]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    flat = [inner for one in metadata for inner in (one.metadata if isinstance(one, FieldInfo) else [one])]
    found = [f"{text} {getattr(one, name):g}" for one in flat for name, text in words.items() if getattr(one, name, None) is not None]
    return " and ".join(found)


def _written(value: object) -> str:
    """Return a value as YAML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _definition(term: str, text: str, facts: list[str]) -> list[str]:
    return [term, f":   {text}{'' if text.endswith('.') else '.'} *{' · '.join(filter(None, facts))}*" if facts else f":   {text}", ""]


def _plain(text: str) -> str:
    """Return text that Markdown leaves as it is."""
    return re.sub(r"(`[^`]*`)|([*_<|])", lambda found: found[1] or "\\" + found[2], text)


GENERATED: dict[str, Callable[[], str]] = {"command-line": command_line, "recipe-keys": recipe_keys}
