"""What a detector's recipe leaves to the data: the size of the images, the anchors, the number of steps, and whether there are masks."""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from convnext.data.annotations.objects import ImageObjects
from convnext.data.images import CorruptImageError
from convnext.data.sources.base import DetectSource
from convnext.models.detection.anchors import best_iou
from convnext.recipe import Recipe
from convnext.recipe.images import Detect
from convnext.recipe.measured import to_measure, with_values

_KEYS = ("model.masks", "detect.size", "model.anchor_scale", "train.iterations")
_MAX_IMAGES = 500  # whose objects are measured, evenly spread
_QUANTILE, _PIXELS = 0.25, 36  # images are so large that a quarter of the objects has at most so many pixels a side
_SIDES = (224, 448)  # smallest and largest long side; images that are smaller themselves get at least ...
_LEAST = 128
_UNIT = 32  # of sides: the stride of the backbone's last map
_WORK = 8.0e7  # steps x squared side: some minutes on two CPU cores
_STEPS = (600, 3000)
_AS_GOOD = 0.02  # of mean IoU
_SCALES = (2.0, 3.0, 4.0, 6.0, 8.0)  # an anchor's side in strides


def measured(recipe: Recipe, train: DetectSource) -> tuple[Recipe, list[str]]:
    """Return the recipe with what the training data say in place of `auto`, and what to report of it."""
    keys = to_measure(recipe, _KEYS)
    if not keys:
        return recipe, []
    values: dict[str, object] = {}
    if "model.masks" in keys:
        values["model.masks"] = train.has_masks
    objects, image = _sizes(train)
    if "detect.size" in keys:
        values["detect.size"] = size_for(objects, image)
    recipe = with_values(recipe, values)
    side = recipe.detect.size if isinstance(recipe.detect.size, int) else recipe.detect.test_longest
    if "model.anchor_scale" in keys:
        values["model.anchor_scale"] = anchor_scale_for(objects * side)
    if "train.iterations" in keys:
        values["train.iterations"] = steps_for(side)
    shown = " ".join(f"{key}={str(value).lower() if isinstance(value, bool) else f'{value:g}'}" for key, value in values.items())
    what = f"half of the objects are wider than {np.median(objects[:, 0]) * side:.0f} pixels" if len(objects) else "there are no objects"
    return with_values(recipe, values), [f"from the training data: {shown} ({what} in an image of {side})"]


def sampled(source: DetectSource) -> Iterator[tuple[int, ImageObjects]]:
    """Yield up to 500 positions of a source, evenly spread, and the objects there; images whose masks are damaged are skipped."""
    for index in range(0, len(source), max(1, -(-len(source) // _MAX_IMAGES))):
        with suppress(CorruptImageError):  # which training meets again, and reports
            yield index, source.encoded_target(index)


def _sizes(train: DetectSource) -> tuple[np.ndarray, float]:
    """Return width and height of objects (n, 2) as parts of their image's long side, crowds not counted, and the median long side."""
    long_sides, found = np.maximum(train.heights, train.widths), [np.zeros((0, 2))]
    for index, objects in sampled(train):
        boxes = objects.boxes[~objects.iscrowd].numpy()
        found.append((boxes[:, 2:] - boxes[:, :2]) / long_sides[index])
    return np.concatenate(found), float(np.median(long_sides))


def size_for(objects: np.ndarray, image: float) -> int:
    """Return the long side in pixels for objects (n, 2), parts of a long side, in images with a long side of `image` pixels.

    A quarter of the objects is then at most 36 pixels a side, the geometric mean of width and height. The side is from 224 to 448
    pixels. Images are not enlarged, unless they are smaller than 128 pixels.
    """
    least, most = _SIDES
    wanted = _PIXELS / max(float(np.quantile(np.sqrt(objects.prod(1)), _QUANTILE)), 1e-3) if len(objects) else most
    return round(float(min(np.clip(wanted, least, most), max(image, _LEAST))) / _UNIT) * _UNIT


def anchor_scale_for(objects: np.ndarray) -> float:
    """Return the side of an anchor, in strides, for objects (n, 2) in pixels: the largest whose grid fits them.

    What counts is the mean IoU of objects and their best anchors. Larger anchors at equal fit find objects on finer maps.
    """
    fits = [best_iou(objects, scale).mean() if len(objects) else 0.0 for scale in _SCALES]
    return max(scale for scale, fit in zip(_SCALES, fits, strict=True) if fit >= max(fits) - _AS_GOOD)


def steps_for(side: int) -> int:
    """Return the number of steps at that image size: fewer of larger images, so that the run takes minutes."""
    return int(np.clip(round(_WORK / side**2, -2), *_STEPS))


def training_sizes(detect: Detect) -> tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, int]]:
    """Return short sides, longest side, short sides before a crop, and sides of the crop, as `DetectAugmentation` takes them."""
    if detect.size is None:
        return detect.short, detect.longest, detect.crop_short, detect.crop
    side = _known(detect)
    return (side,), side, (side,), (max(side * 3 // 4, 1), side)


def evaluation_sizes(detect: Detect) -> tuple[int, int]:
    """Return short and longest side in evaluation."""
    return (detect.test_short, detect.test_longest) if detect.size is None else (_known(detect),) * 2


def _known(detect: Detect) -> int:
    assert isinstance(detect.size, int)  # measured by now
    return detect.size
