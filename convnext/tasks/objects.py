"""The objects that detectors and segmenters learn, as the keys of a recipe choose them."""

from typing import Literal

from convnext.data.annotations.choices import Choices, MasksRule, united, with_choices
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.masks import Semantic
from convnext.data.sources.open import takes_choices
from convnext.errors import ConvnextError, UsageError
from convnext.recipe.schema import Recipe
from convnext.text import counted, printable

_SHOWN = 5  # annotations in a message


def with_options(where: str, recipe: Recipe, kind: Literal["detect", "segment"]) -> str:
    """Return the name of a dataset with the choices of a recipe as options, where it has none of its own.

    Raises UsageError for a key of COCO files where the name is of other data.
    """
    data = recipe.data
    masks: MasksRule = "boxes" if data.masks_from_boxes else "optional" if recipe.model.get("masks") is False else "required"
    choices = Choices(united(data.united_classes()), data.crowds == "objects", masks)
    if takes_choices(where, kind):
        return with_choices(where, choices)
    given = {"classes": data.classes, "crowds": choices.crowds, "masks_from_boxes": data.masks_from_boxes}
    if keys := [f"data.{key}" for key, value in given.items() if value]:
        remedy = "; in classes.txt, put the names of classes to ignore in parentheses" if kind == "segment" and data.classes else ""
        raise UsageError(f"{keys[0]} is of annotations in COCO's format, coco:FILE.json:FOLDER, and {where} has none: remove it{remedy}")
    return where


def refuse_invalid(source: object, limit: float, limit_key: str = "data.max_corrupt") -> None:
    """Raise ConvnextError if more of a COCO file's annotations are invalid than may be: one always may.

    `source` has the objects, or masks that are made of them, and `limit_key` is how the user says the limit.
    """
    source = source.source if isinstance(source, Semantic) else source
    if isinstance(source, CocoSource) and len(source.invalid) > max(1, limit * source.count):
        some = "; ".join(map(printable, source.invalid[:_SHOWN])) + (" …" if len(source.invalid) > _SHOWN else "")
        what = f"{len(source.invalid)} of {counted(source.count, 'annotation')} are invalid"
        remedy = f"`convnext data check` lists all: correct them, or raise {limit_key}"
        raise ConvnextError(f"{what}, more than {limit:.1%} ({limit_key}): {some}; {remedy}")
