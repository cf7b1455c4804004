"""The training and the validation part of a detector's data, as a recipe names them."""

from collections import Counter
from collections.abc import Callable

from convnext.data.sources.base import DetectSource, DetectSubset, object_labels, read_by
from convnext.data.sources.open import open_detection
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import Recipe
from convnext.tasks.held_out import hold_out, shared_images
from convnext.tasks.objects import refuse_invalid, with_options
from convnext.tasks.shared import check_class_count, reading_of
from convnext.text import counted

_SHOWN = 5  # classes in a message
_NO_OBJECT = -1  # stands for the class of an image without objects

Described = Callable[[DetectSource], list[str]]


def open_parts(recipe: Recipe, described: Described) -> tuple[DetectSource, DetectSource, list[str]]:
    """Return the images to train on, those to evaluate on, and what to report of both.

    Args:
        recipe: that names them.
        described: the task's lines on a source.

    Raises ConvnextError for no images, no objects, another number of classes than the recipe's, or too many invalid annotations.
    """
    data = recipe.data
    train = open_detection(with_options(data.train, recipe, "detect"), keep_empty=data.keep_empty or data.val is None)
    check_class_count(recipe, train.classes)
    _refuse(train, "train", recipe)
    remarks = [f"train: {remark}" for remark in described(train)]
    if data.val is not None:
        val = open_detection(with_options(data.val, recipe, "detect"), train.classes)
        _refuse(val, "val", recipe)
        remarks += [f"val: {remark}" for remark in described(val)] + shared_images(train, val)
    else:
        train, val, found = _held_out(train, recipe)
        remarks += found
    for part, source in (("train", train), ("val", val)):
        read_by(source, reading_of(recipe))
        if not len(source):
            raise ConvnextError(f"no images in data.{part}")
    return train, val, remarks


def require_masks(recipe: Recipe, train: DetectSource, val: DetectSource) -> None:
    """Raise ConvnextError or UsageError if the recipe needs masks that the data do not have, or measures masks without finding any."""
    finds_masks = recipe.model.get("masks") is not False
    if (recipe.eval.best_by or "").startswith("mask") and not finds_masks:
        raise UsageError(f"eval.best_by={recipe.eval.best_by}: with model.masks=false there are no masks to measure")
    for part, source in (("train", train), ("val", val)):
        if finds_masks and not source.has_masks:
            raise ConvnextError(
                f"data.{part} has boxes but no masks: annotate instance masks, or detect boxes alone with model.masks=false, or take the "
                "boxes as masks with data.masks_from_boxes=true"
            )
    if recipe.augment.copy_paste and not train.has_masks:
        raise UsageError(
            f"augment.copy_paste={recipe.augment.copy_paste:g} cuts objects out by their masks, and data.train has boxes alone: "
            "remove it, or take augment.mosaic"
        )


def _refuse(source: DetectSource, part: str, recipe: Recipe) -> None:
    """Raise ConvnextError for data that a detector can't learn from, or be evaluated on."""
    refuse_invalid(source, recipe.data.max_corrupt)
    if (counts := source.objects_by_class()) is not None and not sum(counts):
        why = f": {'; '.join(source.remarks)}" if source.remarks else ""
        raise ConvnextError(f"the {counted(len(source), 'image')} of data.{part} hold no object{why}")


def _held_out(whole: DetectSource, recipe: Recipe) -> tuple[DetectSource, DetectSource, list[str]]:
    """Return the images of `data.train` in two parts, and what to report of them.

    Each part has its share of the images of each class, counted by the class of an image that fewest images have, and of those without
    objects; of these only the validation part has some, unless the recipe keeps them. Where counting would take reading all images,
    they are all alike.
    """
    if whole.objects_by_class() is None:
        rest, held, remarks = hold_out(whole, [0] * len(whole), recipe)
        return DetectSubset(whole, rest), DetectSubset(whole, held), remarks
    labels = [object_labels(whole, index) for index in range(len(whole))]
    images = Counter(label for found in labels for label in set(found))
    strata = [min(found, key=lambda label: (images[label], label)) if found else _NO_OBJECT for found in labels]
    rest, held, remarks = hold_out(whole, strata, recipe)
    if not any(labels[index] for index in held):
        held_out = f"the {counted(len(held), 'image')} held out of data.train hold no object"
        raise ConvnextError(f"{held_out}: name the images to evaluate on as data.val")
    empty = 0 if recipe.data.keep_empty else sum(not labels[index] for index in rest)
    if empty:
        rest = [index for index in rest if labels[index]]
        remarks.append(f"train: skipped {counted(empty, 'image')} without objects (data.keep_empty=true trains on them)")
    for indices, what in ((rest, "train on"), (held, "validate on")):
        there = {label for index in indices for label in labels[index]}
        if lacking := [name for label, name in enumerate(whole.classes) if label in images and label not in there]:
            some = f"{', '.join(lacking[:_SHOWN])}{' …' if len(lacking) > _SHOWN else ''}"
            remarks.append(f"no objects to {what} of {counted(len(lacking), 'class')}: {some}")
    return DetectSubset(whole, rest), DetectSubset(whole, held), remarks
