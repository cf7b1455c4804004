"""The images of a fit, the recipe that names them, and the folder that takes the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import cast

from convnext import tasks
from convnext.data.images import Reading
from convnext.data.sources.base import ClassifySource, read_by
from convnext.data.sources.open import train_and_val
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.fit.kinds import KINDS, MINIMUM, task_of
from convnext.fit.network import FitStart
from convnext.recipe import Recipe
from convnext.tasks.classify.parts import groups_of, open_whole, part_of_table, parts_of
from convnext.tasks.classify.task import ClassifyTask
from convnext.tasks.shared import skipped_remarks
from convnext.text import counted
from convnext.training.folder.run_paths import RunPaths
from convnext.training.given import recipe_with


@dataclass(frozen=True, eq=False)
class FitData:
    """The images of a fit."""

    train: ClassifySource
    val: ClassifySource | None
    groups: list[str] | None  # of the training images
    recipe: Recipe  # that names both parts, where a table has them in one file
    remarks: list[str]  # to report to the user


def open_data(recipe: Recipe) -> FitData:
    """Open the images that a recipe names, none held out. Raises ConvnextError for images that can't be learned from."""
    kind, task = KINDS[recipe.task], cast(ClassifyTask, tasks.get(recipe.task))
    source, remarks = open_whole(recipe, kind.open, task.counts)
    groups, more = groups_of(source, recipe.data)
    remarks += more
    val: ClassifySource | None = None
    if recipe.data.val is not None:
        val = kind.open(task.named(recipe.data.val, recipe), source.classes)
        read_by(val, Reading(recipe.data.channels, recipe.data.max_pixels))
        remarks += [f"val: {remark}" for remark in (task.counts(val), *val.remarks, *skipped_remarks(val.skipped))]
    elif (parts := parts_of(source, recipe.data)) is not None and "train" in parts and len(set(parts)) > 1:
        named = {"train": part_of_table(recipe.data.train, "train"), "val": part_of_table(recipe.data.train, _second(parts))}
        return open_data(recipe.model_copy(update={"data": recipe.data.model_copy(update=named)}))
    if len(source) < MINIMUM:
        raise ConvnextError(f"{counted(len(source), 'image')} to fit are too few: give at least {MINIMUM}")
    return FitData(source, val, groups, recipe, remarks)


def _second(parts: Sequence[str]) -> str:
    return "val" if "val" in parts else "test"


def recipe_of(source: object, val: object, start: FitStart, task: str | None, objects: Mapping[str, object], **more: object) -> Recipe:
    """Return the recipe by which a training would continue: the same images, prepared alike, and the same weights.

    Args:
        source, val, task: as for `fit`.
        start: the weights.
        objects: datasets from Python, by argument of `convnext.train`.
        more: other keys of the recipe's section `data`.
    """
    given: dict[str, object] = {"model.name": start.opened.name, "model.weights": start.weights, **preparation(start.how)}
    given |= {f"model.{key}": value for key, value in start.architecture.items()}
    given |= {f"data.{key}": value for key, value in more.items()}
    where = None if "train_data" in objects else str(source)
    if where is not None and val is None:
        where, val = _parts(where)
    given |= {} if where is None else {"data.train": where}
    given |= {"data.val": str(val)} if isinstance(val, str | PathLike) else {}
    given["task"] = task or ("classify" if where is None else task_of(where))
    return recipe_with("finetune", {key: value for key, value in given.items() if value is not None}, objects)


def preparation(how: ClassifyPreprocessing) -> dict[str, object]:
    """Return the keys of a recipe by which images are prepared in this way."""
    whole = {"eval.warp": True} if how.warp else {"eval.letterbox": True} if how.letterbox else {"eval.crop_ratio": how.crop_ratio}
    numbers = {"data.mean": list(how.mean), "data.std": list(how.std), "data.range": how.range}
    return {**numbers, **whole, "data.channels": how.channels, "data.image_size": how.image_size, "eval.interpolation": how.interpolation}


def _parts(where: str) -> tuple[str, str | None]:
    """Return the training part of a dataset and its validation part; the name itself if it has no parts."""
    try:
        return train_and_val(where)
    except UsageError:
        return where, None


def check_folder(folder: RunPaths) -> None:
    """Raise UsageError unless the folder is empty or an earlier fit's."""
    if folder.is_blank() or folder.fitted.exists() or (folder.features.is_dir() and not folder.recipe.exists()):
        return
    what = "holds a run of a training" if folder.recipe.exists() else "is not empty and holds no run"
    raise UsageError(f"{folder.path} {what}: choose another folder for --output")
