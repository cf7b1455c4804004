"""What a segmenter's recipe leaves to the data: the size of the images."""

import numpy as np

from convnext.data.images import CorruptImageError
from convnext.data.sources.base import SegmentSource
from convnext.recipe import Recipe
from convnext.recipe.images import Segment
from convnext.recipe.measured import to_measure, with_values

_MAX_IMAGES = 50  # that are opened, evenly spread
_SIDES = (256, 512)  # smallest and largest long side that is chosen
_UNIT = 32  # of sides: the stride of the backbone's last map


def measured(recipe: Recipe, train: SegmentSource) -> tuple[Recipe, list[str]]:
    """Return the recipe with what the training images say in place of `auto`, and what to report of it."""
    if not to_measure(recipe, ["segment.scale"]):
        return recipe, []
    sides = []
    for index in range(0, len(train), max(1, -(-len(train) // _MAX_IMAGES))):
        try:
            image = train.read(index)
        except CorruptImageError:  # which training meets again, and reports
            continue
        sides.append(max(image.width, image.height))
    side = size_for(sides)
    median = f" (half of the images have a long side of at most {np.median(sides):.0f} pixels)" if sides else ""
    return with_values(recipe, {"segment.scale": (side, side)}), [f"from the training data: segment.scale=[{side},{side}]{median}"]


def size_for(sides: list[int]) -> int:
    """Return the long side in pixels for images with these long sides: their median, from 256 to 512."""
    wanted = float(np.median(sides)) if sides else _SIDES[1]
    return round(float(np.clip(wanted, *_SIDES)) / _UNIT) * _UNIT


def scale_of(segment: Segment) -> tuple[int, int] | None:
    """Return the largest number of pixels of the long and the short side, which is measured by now; None for images as they are."""
    assert segment.scale != "auto"
    return segment.scale
