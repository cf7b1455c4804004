"""The images held out for validation, by the keys of a recipe: what the tasks share."""

import os
import re
from collections.abc import Sequence

from convnext.data.contents import Listed
from convnext.data.sources.base import ImageSource
from convnext.data.split import held_out
from convnext.errors import ConvnextError
from convnext.recipe.schema import Recipe
from convnext.text import counted, printable


def hold_out(source: Listed, labels: Sequence[int], recipe: Recipe) -> tuple[list[int], list[int], list[str]]:
    """Return the positions to train on, those held out, and what to report, by `data.val_fraction`, `data.fold` and `data.group`.

    Args:
        source: the images of `data.train`.
        labels: what each part shall have its share of.
        recipe: with the keys.

    Raises ConvnextError if there are fewer images or groups than folds, or nothing can be held out.
    """
    data, fold = recipe.data, recipe.data.fold_of()
    groups, remarks = groups_by_path(source, data.group) if data.group is not None else (None, [])
    refuse_folds(recipe, len(source), groups)
    rest, held = held_out(source, labels, data.val_fraction, recipe.seed, groups, fold)
    if not rest or not held:
        units = counted(len(source), "image") if groups is None else counted(len(set(groups)), "group")
        raise ConvnextError(f"nothing can be held out of {units} for validation: name the images to evaluate on as data.val")
    return rest, held, [*remarks, held_out_remark(recipe, len(source), held, groups)]


def refuse_folds(recipe: Recipe, count: int, groups: Sequence[str] | None) -> None:
    """Raise ConvnextError if `data.fold` needs more folds than there are images, or groups of these where they are given."""
    fold, (units, what) = recipe.data.fold_of(), (count, "images") if groups is None else (len(set(groups)), "groups")
    if fold is not None and fold[1] > units:
        raise ConvnextError(f"data.fold={recipe.data.fold} needs {fold[1]} {what}, and there are {units}")


def held_out_remark(recipe: Recipe, count: int, held: Sequence[int], groups: Sequence[str] | None) -> str:
    """Return what to report of the positions that are held out of `count` images, whose groups are given if they have any."""
    among = f" ({len({groups[index] for index in held})} of {counted(len(set(groups)), 'group')})" if groups is not None else ""
    why = "no data.val given" if recipe.data.fold is None else f"data.fold={recipe.data.fold}"
    return f"{why}: {len(held)} of the {count} images{among} are held out for validation"


def groups_by_path(source: Listed, pattern: str) -> tuple[list[str], list[str]]:
    """Return the group of each image, by what the regular expression finds in its path, and what to report.

    Raises ConvnextError if it finds nothing in any path.
    """
    found: list[str] = []
    alone: list[str] = []
    for index in range(len(source)):
        key = source.key(index).replace(os.sep, "/")
        match = re.search(pattern, key)
        if match is None:
            alone.append(key)
        found.append(f"/{key}" if match is None else "/".join(part or "" for part in match.groups() or (match[0],)))
    if len(alone) == len(found) and found:
        raise ConvnextError(f"data.group={pattern} fits no image, for instance not {printable(alone[0])}")
    remark = f"data.group fits {len(found) - len(alone)} of {counted(len(found), 'image')}, not {printable(alone[0])}" if alone else ""
    return found, [f"{remark}: each of the others is a group of its own"] if alone else []


def shared_images(train: ImageSource, val: ImageSource) -> list[str]:
    """Return what to report of images that are trained and evaluated on: at most one line."""
    known = {os.path.abspath(train.name(index)) for index in range(len(train))}
    both = [name for index in range(len(val)) if os.path.abspath(name := val.name(index)) in known]
    both = [name for name in both if os.path.exists(name)]  # others have names that tell nothing, as "scene 0"
    return [f"{len(both)} of the {len(val)} validation images are trained on too, the first {printable(both[0])}"] if both else []
