"""What to report of images with more objects than a network can find."""

from collections.abc import Mapping

import numpy as np

from convnext.data.sources.base import DetectSource, object_counts
from convnext.models.registry import find
from convnext.recipe import Recipe
from convnext.recipe.images import Detect
from convnext.text import counted

_PROPOSALS = 1000  # of a detector, where its recipe does not say
_MAX = 10_000  # proposals


def limit_remarks(recipe: Recipe, sources: Mapping[str, DetectSource]) -> list[str]:
    """Return a line for each source, by the key of `data` that names it, some of whose images have more objects than can be found.

    Another line follows where the network has too few proposals for the fullest image.
    """
    remarks, most, fullest = [], recipe.detect.most, 0
    for where, source in sources.items():
        counts = object_counts(source)
        if counts is None or not len(counts):
            continue
        largest, over = int(counts.max()), int(np.sum(counts > most))
        fullest = max(fullest, largest)
        if over:
            has = "has" if over == 1 else "have"
            remarks.append(
                f"{where}: {counted(over, 'image')} {has} more than {most} objects, the fullest {largest}, "
                f"and at most {most} are found in an image: add detect.most={largest}"
            )
    has_proposals = "proposals" in find(recipe.model.name).arguments
    proposals = recipe.model.get("proposals") or _PROPOSALS
    # Several proposals are of one object, so as many as there are objects would not do.
    if has_proposals and isinstance(proposals, int) and proposals < 2 * fullest:
        remarks.append(
            f"an image has {counted(fullest, 'object')}, and the network looks at {proposals} proposals in an image: "
            f"add model.proposals={min(4 * fullest, _MAX)}"
        )
    return remarks


def object_count_remarks(source: DetectSource) -> list[str]:
    """Return what the numbers of objects in the images mean for a recipe that says nothing of them."""
    counts = object_counts(source)
    if counts is None or not len(counts) or not counts.max():
        return []
    remarks, empty, fullest, most = [], int(np.sum(counts == 0)), int(counts.max()), Detect.model_fields["most"].default
    if empty:
        has = "has" if empty == 1 else "have"
        remarks.append(f"{empty} of {counted(len(counts), 'image')} {has} no objects: training skips them unless data.keep_empty=true")
    if fullest > most:
        remarks.append(f"the fullest image has {fullest} objects, and at most {most} are found in an image: add detect.most={fullest}")
    return remarks
