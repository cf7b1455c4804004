"""The training loss of a classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data.transforms.classify import batch_mixing
from convnext.recipe import Recipe
from convnext.tasks.base import Losses
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.own import check_logits

_UNSURE = 1e-6  # smallest 1 - p in the focal factor, whose slope at 0 is infinite for a gamma below 1


class ClassifyCriterion:
    """Cross-entropy with label smoothing, after mixup or CutMix where the recipe has them; see `weighted_loss` for weights.

    Args:
        recipe: of the run.
        num_classes: length of a target.
        weights: of the classes, float32 (num_classes,).
    """

    def __init__(self, recipe: Recipe, num_classes: int, weights: Tensor | None = None) -> None:
        self.label_smoothing, self.gamma, self.weights = recipe.train.label_smoothing, recipe.train.focal_gamma, weights
        self.num_classes, self.is_plain = num_classes, weights is None and not self.gamma
        smoothing = self.label_smoothing if self.is_plain else 0.0  # otherwise `weighted_loss` smooths, after the weights are known
        self.mix = batch_mixing(recipe.augment.mixup, recipe.augment.cutmix, smoothing, num_classes)

    def __call__(self, model: nn.Module, batch: ClassifyBatch) -> Losses:
        """Return the mean `loss`. The draws of mixup and CutMix come from NumPy's global generator."""
        if self.mix is None:
            logits = check_logits(model(batch.images), batch.images, self.num_classes).float()
            if self.is_plain:
                return {"loss": F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)}
            return self._weighted(logits, F.one_hot(batch.labels, logits.shape[1]).float())
        images, targets = self.mix(batch.images, batch.labels)
        logits = check_logits(model(images), images, self.num_classes).float()
        return {"loss": F.cross_entropy(logits, targets)} if self.is_plain else self._weighted(logits, targets)

    def _weighted(self, logits: Tensor, targets: Tensor) -> Losses:
        if self.weights is not None and self.weights.device != logits.device:
            self.weights = self.weights.to(logits.device)  # once: a copy waits for the device
        return {"loss": weighted_loss(logits, targets, self.weights, self.gamma, self.label_smoothing)}


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, gamma: float, label_smoothing: float) -> Tensor:
    """Return the mean over samples of `weighted_losses`, a scalar.

    The mean is over samples, not over weights, as `F.cross_entropy` takes it: thereby micro-batches and processes add up to the whole
    batch.
    """
    return weighted_losses(logits, targets, weights, gamma, label_smoothing).mean()


def weighted_losses(logits: Tensor, targets: Tensor, weights: Tensor | None, gamma: float, label_smoothing: float) -> Tensor:
    """Return for each sample the sum over c of q_c w_c (1 - p_c)^gamma CE_c: (N,).

    CE_c is the cross-entropy with the smoothed target of class c: 1 - e of it on c, and e spread evenly over all classes, as in
    `F.cross_entropy`. So an image of class c counts w_c times, its smoothing included, and in a mix of two images each counts by its
    part and its own weight.

    Args:
        logits: float32 (N, C).
        targets: q, the fractions of the classes in each image, float32 (N, C), not smoothed.
        weights: w of each class, float32 (C,); None for 1.
        gamma: of the focal loss, 0 for none. Source: Lin et al., *Focal Loss for Dense Object Detection* (2017), equation 4.
        label_smoothing: e.
    """
    log_probabilities = logits.log_softmax(1)
    losses = -(1 - label_smoothing) * log_probabilities - label_smoothing * log_probabilities.mean(1, keepdim=True)
    factors = targets if weights is None else targets * weights
    if gamma:
        factors = factors * (-torch.expm1(log_probabilities)).clamp_min(_UNSURE) ** gamma
    return (factors * losses).sum(1)
