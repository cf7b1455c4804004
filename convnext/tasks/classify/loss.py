"""The training loss of a classifier."""

import torch.nn.functional as F
from torch import nn

from convnext.data.transforms.classify import batch_mixing
from convnext.recipe import Recipe
from convnext.tasks.base import Losses
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.own import check_logits


class ClassifyCriterion:
    """Cross-entropy with label smoothing, after mixup or CutMix where the recipe has them."""

    def __init__(self, recipe: Recipe, num_classes: int) -> None:
        self.label_smoothing, self.num_classes = recipe.train.label_smoothing, num_classes
        self.mix = batch_mixing(recipe.augment.mixup, recipe.augment.cutmix, self.label_smoothing, num_classes)

    def __call__(self, model: nn.Module, batch: ClassifyBatch) -> Losses:
        """Return the mean `loss`. The draws of mixup and CutMix come from NumPy's global generator."""
        if self.mix is None:
            logits = check_logits(model(batch.images), batch.images, self.num_classes)
            return {"loss": F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)}
        images, targets = self.mix(batch.images, batch.labels)
        return {"loss": F.cross_entropy(check_logits(model(images), images, self.num_classes).float(), targets)}
