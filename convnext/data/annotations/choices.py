"""Which annotated objects of a dataset are used, and as what: options at the end of its name, as `:classes=car,bus:crowds=objects`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args
from urllib.parse import quote, unquote

from convnext.errors import UsageError
from convnext.text import class_name

MasksRule = Literal["required", "boxes", "optional"]
_OPTIONS = re.compile(r":(classes|crowds|masks)=([^:]*)$")


@dataclass(frozen=True)
class Choices:
    """The objects that are used."""

    classes: tuple[tuple[str, tuple[str, ...]], ...] = ()  # each class with the data's categories that it unites; empty for all of them
    crowds: bool = False  # whether crowds are objects like any other
    # What to do with an object without a mask where others have one: leave it out (required), take its box as its mask (boxes), which
    # makes masks of boxes alone too, or use boxes alone everywhere (optional).
    masks: MasksRule = "required"

    @property
    def names(self) -> list[str]:
        """The chosen classes in their order."""
        return [name for name, _ in self.classes]

    @property
    def options(self) -> dict[str, str]:
        """The choices that differ from the defaults, as options of a name. Names are escaped as in addresses where they need it."""
        found = {"classes": ",".join(_class_option(name, own) for name, own in self.classes)} if self.classes else {}
        return found | ({"crowds": "objects"} if self.crowds else {}) | ({"masks": self.masks} if self.masks != "required" else {})


EVERYTHING = Choices()


def _class_option(name: str, own: tuple[str, ...]) -> str:
    return _escaped(name) if own == (name,) else f"{_escaped(name)}={'+'.join(map(_escaped, own))}"


def _escaped(name: str) -> str:
    return quote(name, safe=" ()/'!&;@") if re.search("[%:,=+]", name) else name


def parse_choices(where: str) -> tuple[str, Choices]:
    """Return a dataset's name without the options at its end, and these.

    `classes=car,bus` names the categories to use, and `classes=vehicle=car+bus,person` unites some under a new name; `%2C` is a comma
    within a name. `crowds=objects` and `masks=boxes` are the keys data.crowds and data.masks_from_boxes.

    Raises UsageError for an option with another value, or given twice.
    """
    base, options = _split(where)
    choices = EVERYTHING
    if "classes" in options:
        choices = replace(choices, classes=united(dict(_classes(options["classes"], where))))
    if "crowds" in options:
        if options["crowds"] not in ("ignore", "objects"):
            raise UsageError(f"{where}: crowds={options['crowds']} must be crowds=ignore or crowds=objects")
        choices = replace(choices, crowds=options["crowds"] == "objects")
    if "masks" in options:
        rule = next((rule for rule in get_args(MasksRule) if rule == options["masks"]), None)
        if rule is None:
            raise UsageError(f"{where}: masks={options['masks']} must be masks=required, masks=boxes or masks=optional")
        choices = replace(choices, masks=rule)
    return base, choices


def with_choices(where: str, choices: Choices) -> str:
    """Return a dataset's name with the choices as options, where it has none of its own. Raises UsageError as `parse_choices` does."""
    _, given = _split(where)
    return where + "".join(f":{key}={value}" for key, value in choices.options.items() if key not in given)


def united(classes: dict[str, tuple[str, ...]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return classes with the categories that each unites as `Choices` has them. Raises UsageError if two unite the same category."""
    found = tuple((class_name(name), tuple(map(class_name, own))) for name, own in classes.items())
    every = [name for _, own in found for name in own]
    if twice := [name for name in every if every.count(name) > 1]:
        raise UsageError(f"data.classes names {twice[0]!r} twice: a category belongs to one class")
    return found


def _split(where: str) -> tuple[str, dict[str, str]]:
    options: dict[str, str] = {}
    while match := _OPTIONS.search(where):
        if match[1] in options:
            raise UsageError(f"{where}:{match[1]}={options[match[1]]} has the option {match[1]!r} twice: leave one of them")
        options[match[1]], where = match[2], where[: match.start()]
    return where, options


def _classes(text: str, where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    seen: set[str] = set()
    for part in text.split(","):
        name, _, others = part.partition("=")
        own = [unquote(one).strip() for one in (others or name).split("+")]
        name = unquote(name).strip()
        if not name or not all(own) or name in seen:
            raise UsageError(f"{where}: write classes as in classes=car,bus, or with new names as in classes=vehicle=car+bus,person")
        seen.add(name)
        yield name, tuple(own)
