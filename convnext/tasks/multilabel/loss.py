"""The training loss of a multi-label classifier."""

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from convnext.recipe import Recipe
from convnext.tasks.base import Losses
from convnext.tasks.classify.batch import ClassifyBatch

GAMMA, MARGIN = 4.0, 0.05  # of the asymmetric loss, for classes that the image lacks; as published


class MultilabelCriterion:
    """Binary cross-entropy or the asymmetric loss of each class, after mixup or CutMix where the recipe has them.

    A smoothed target is y (1 - e) + e / 2, where e is `train.label_smoothing`. A mix of two images has the mix of their targets.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.smoothing = recipe.train.label_smoothing
        self.loss_of = asymmetric_loss if recipe.train.multilabel_loss == "asymmetric" else F.binary_cross_entropy_with_logits
        self.mix = TargetMixing(recipe.augment.mixup, recipe.augment.cutmix)

    def __call__(self, model: nn.Module, batch: ClassifyBatch) -> Losses:
        """Return the mean `loss` over images and classes. The draws of mixup and CutMix come from NumPy's global generator."""
        images, targets = self.mix(batch.images, batch.labels)
        targets = targets * (1 - self.smoothing) + self.smoothing / 2
        return {"loss": self.loss_of(model(images).float(), targets)}


class TargetMixing:
    """Mixup or CutMix of a whole batch whose targets are vectors. It draws from NumPy's global generator.

    Args:
        mixup: alpha of mixup, 0 for off.
        cutmix: alpha of CutMix, 0 for off.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        self.mix = Mixup(mixup, cutmix, label_smoothing=0.0) if mixup or cutmix else None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images (N, 3, H, W) and the mix of their targets (N, C), N even; both as they are if mixing is off."""
        if self.mix is None:
            return images, targets
        # Of the positions in the batch, timm makes the fractions of each image in each mix: (N, N).
        self.mix.num_classes = len(images)
        mixed, fractions = self.mix(images.clone(memory_format=torch.preserve_format), torch.arange(len(images), device=images.device))
        return mixed, fractions @ targets


def asymmetric_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over images and classes of -(y log p + (1 - y) q^4 log(1 - q)) where q = max(p - 0.05, 0), a scalar.

    Classes that the image lacks, and which the network already finds improbable, count little. Source: Ridnik et al., *Asymmetric
    Loss For Multi-Label Classification* (2021), equations 4 to 7 with the published gamma+ = 0, gamma- = 4, m = 0.05.

    Args:
        logits: float32 (N, C).
        targets: y, float32 (N, C), from 0 to 1.
    """
    shifted = (logits.sigmoid() - MARGIN).clamp_min(0)
    return -(targets * F.logsigmoid(logits) + (1 - targets) * shifted**GAMMA * torch.log1p(-shifted)).mean()
