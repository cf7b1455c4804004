"""The training losses of a detector."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data.sources.base import DetectSource
from convnext.errors import UsageError
from convnext.models.registry import find
from convnext.recipe import Recipe
from convnext.tasks.base import Losses
from convnext.tasks.classify.imbalance import check_class_weights, class_weights
from convnext.tasks.classify.loss import weighted_losses
from convnext.tasks.detect.auto import sampled
from convnext.tasks.detect.batch import DetectBatch


class DetectCriterion:
    """The detector's own losses, by the names that it gives them.

    Args:
        recipe: of the run. With `train.class_weights` or `train.focal_gamma` the loss of the classes of regions is `region_loss`.
        source: of the training images, whose objects are counted for weights.

    Raises UsageError for weights of unknown classes, and for a network from outside, whose losses are its own.
    """

    def __init__(self, recipe: Recipe, source: DetectSource) -> None:
        train, self.more = recipe.train, {}
        if not train.class_weights and not train.focal_gamma:
            return
        if find(recipe.model.name).is_own:
            key = "train.class_weights" if train.class_weights else "train.focal_gamma"
            raise UsageError(f"{key}: {recipe.model.name} computes its own losses: leave it out")
        check_class_weights(recipe, source.classes)
        weights = class_weights(recipe, source.classes, _counts(source)) if train.class_weights else None
        if weights is not None:
            weights = torch.cat([weights, torch.ones(1)])  # of background
        self.more = {"class_loss": partial(region_loss, weights=weights, gamma=train.focal_gamma)}

    def __call__(self, model: nn.Module, batch: DetectBatch) -> Losses:
        """Return the losses. PyTorch's global generator draws the regions that count."""
        losses: dict[str, Tensor] = model(batch.images, batch.targets, **self.more)
        return {name: loss.float() for name, loss in losses.items() if "loss" in name}


def region_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    """Return the sum over regions of w_c (1 - p_c)^gamma CE, where c is a region's class; see `weighted_losses`.

    Args:
        logits: float32 (n, num_classes + 1).
        labels: int64 (n,), num_classes for background.
        weights: w of each class and of background, float32 (num_classes + 1,); None for 1.
        gamma: of the focal loss, 0 for none.
    """
    targets = F.one_hot(labels, logits.shape[1]).float()
    return weighted_losses(logits, targets, None if weights is None else weights.to(logits.device), gamma, 0.0).sum()


def _counts(source: DetectSource) -> Sequence[int]:
    """Return the number of objects of each class, in a part of the images where the source does not know."""
    if (known := source.objects_by_class()) is not None:
        return known
    labels = torch.cat([objects.labels for _, objects in sampled(source)])
    counts: list[int] = labels.bincount(minlength=len(source.classes)).tolist()
    return counts
