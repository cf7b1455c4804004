"""The training losses of a segmenter."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data.images import CorruptImageError
from convnext.data.sources.base import SegmentSource
from convnext.models.segmentation import upernet
from convnext.recipe import Recipe
from convnext.tasks.base import Losses
from convnext.tasks.classify.imbalance import check_class_weights, class_weights
from convnext.tasks.segment.batch import SegmentBatch

_MAX_MASKS = 500  # whose pixels are counted, evenly spread
_UNSURE = 1e-6  # smallest 1 - p in the focal factor, whose slope at 0 is infinite for a gamma below 1


class SegmentCriterion:
    """Cross-entropy of the decode head and of the auxiliary head; `pixel_losses` with class weights or a focal factor; and dice.

    Args:
        recipe: of the run: `train.class_weights`, `train.focal_gamma` and `train.dice`.
        source: of the training images, whose pixels are counted for weights.

    Raises UsageError for weights of unknown classes.
    """

    def __init__(self, recipe: Recipe, source: SegmentSource) -> None:
        train, self.dice, self.pixel_loss = recipe.train, recipe.train.dice, None
        if not train.class_weights and not train.focal_gamma:
            return
        check_class_weights(recipe, source.classes)
        weights = class_weights(recipe, source.classes, pixel_counts(source)) if train.class_weights else None
        self.pixel_loss = partial(pixel_losses, weights=weights, gamma=train.focal_gamma)

    def __call__(self, model: nn.Module, batch: SegmentBatch) -> Losses:
        """Return the mean losses `decode` and `auxiliary`, the latter with its weight, and `dice` with its own if it has one."""
        assert isinstance(batch.images, Tensor)  # crops have one size
        assert isinstance(batch.masks, Tensor)
        return upernet.losses(model, batch.images, batch.masks, pixel_loss=self.pixel_loss, dice=self.dice)


def pixel_losses(logits: Tensor, masks: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    """Return w_c (1 - p_c)^gamma CE of each pixel, where c is its class: (N, H, W), 0 on ignored pixels.

    Args:
        logits: float32 (N, C, H, W).
        masks: int64 (N, H, W), 255 on ignored pixels.
        weights: w of each class, float32 (C,); None for 1.
        gamma: of the focal loss (Lin et al., 2017), 0 for none.
    """
    losses = F.cross_entropy(logits, masks, ignore_index=upernet.IGNORED, reduction="none")
    factors = torch.ones_like(losses) if not gamma else (-torch.expm1(-losses)).clamp_min(_UNSURE) ** gamma
    if weights is not None:
        factors = factors * weights.to(losses.device)[torch.where(masks == upernet.IGNORED, 0, masks)]
    return factors * losses


def pixel_counts(source: SegmentSource) -> list[int]:
    """Return the number of pixels of each class in up to 500 masks, evenly spread; those that can't be read are skipped."""
    counts = torch.zeros(len(source.classes), dtype=torch.int64)
    for index in range(0, len(source), max(1, -(-len(source) // _MAX_MASKS))):
        try:
            mask = source.mask(index).flatten()
        except CorruptImageError:  # which training meets again, and reports
            continue
        counts += mask[mask != upernet.IGNORED].bincount(minlength=len(counts))
    found: list[int] = counts.tolist()
    return found
