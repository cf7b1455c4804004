"""The training loss of networks whose targets are vectors: of a multi-label classifier, and of one that predicts a number."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from convnext.recipe import Recipe
from convnext.tasks.base import Function, Losses
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.own import check_logits
from convnext.tasks.own import called, own_loss, parts_of_loss, title

GAMMA, MARGIN = 4.0, 0.05  # of the asymmetric loss, for classes that the image lacks; as published


class TargetCriterion:
    """A loss of outputs and targets (N, C) float32, after mixup or CutMix where the recipe has them.

    Args:
        recipe: of the run. Its `train.loss` replaces the default.
        default: the task's loss, a mean over images and classes.
        prepared: from a batch's labels to targets, before images are mixed. A mix of two images has the mix of their targets.
        num_classes: of the network.

    Raises UsageError for a loss that is not known.
    """

    def __init__(self, recipe: Recipe, default: Function, prepared: Callable[[Tensor], Tensor], num_classes: int) -> None:
        own = own_loss(recipe)
        self.loss = default if own is None else own
        self.name = title(str(recipe.train.loss), self.loss)
        self.prepared, self.num_classes = prepared, num_classes
        self.mix = TargetMixing(recipe.augment.mixup, recipe.augment.cutmix)

    def __call__(self, model: nn.Module, batch: ClassifyBatch) -> Losses:
        """Return the parts of the loss by name. The draws of mixup and CutMix come from NumPy's global generator."""
        images, targets = self.mix(batch.images, self.prepared(batch.labels))
        outputs = check_logits(model(images), images, self.num_classes).float()
        return parts_of_loss(f"the loss {self.name}", called(f"the loss {self.name}", self.loss, outputs, targets))


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
