"""The training loss of a network that predicts a number."""

import torch.nn.functional as F
from torch import nn

from convnext.recipe import Recipe
from convnext.tasks.base import Losses
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.multilabel.loss import TargetMixing


class RegressCriterion:
    """Smooth L1 loss or squared error in units of the standard deviation, after mixup or CutMix where the recipe has them.

    Args:
        recipe: of the run.
        unit: mean and standard deviation of the training images' numbers.
    """

    def __init__(self, recipe: Recipe, unit: tuple[float, float]) -> None:
        self.loss_of = F.mse_loss if recipe.train.value_loss == "mse" else F.smooth_l1_loss
        self.mean, self.std = unit
        self.mix = TargetMixing(recipe.augment.mixup, recipe.augment.cutmix)

    def __call__(self, model: nn.Module, batch: ClassifyBatch) -> Losses:
        """Return the mean `loss`. A mix of two images has the mix of their numbers."""
        images, targets = self.mix(batch.images, (batch.labels - self.mean) / self.std)
        return {"loss": self.loss_of(model(images).float(), targets)}
