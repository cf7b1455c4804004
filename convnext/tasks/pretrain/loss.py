"""The loss of a masked autoencoder: the squared error of hidden patches, each normalised by its own mean and standard deviation.

Source: `forward_loss` of https://github.com/facebookresearch/ConvNeXt-V2/blob/main/models/fcmae.py, with `norm_pix_loss` as published.
"""

from torch import Tensor, nn

from convnext.models.pretraining.fcmae import patches
from convnext.tasks.base import Losses
from convnext.tasks.classify.batch import ClassifyBatch

_EPS = 1e-6  # added to the variance of a patch


class MaskedCriterion:
    """The mean loss of a batch. Its labels are the seeds by which patches are hidden."""

    def __call__(self, model: nn.Module, batch: ClassifyBatch) -> Losses:
        """Return the loss."""
        return {"loss": losses_of(model, batch.images, batch.labels).mean()}


def losses_of(model: nn.Module, images: Tensor, seeds: Tensor) -> Tensor:
    """Return the loss of each image, float32 (N,): the mean over its hidden patches.

    Args:
        model: a `MaskedAutoencoder`, or a wrapper of one.
        images: (N, C, H, W), prepared.
        seeds: int64 (N,), which decide what is hidden.
    """
    return masked_losses(images, *model(images, seeds))


def masked_losses(images: Tensor, predicted: Tensor, hidden: Tensor) -> Tensor:
    """Return the loss of each image, float32 (N,), of predicted patches (N, values, h, w); `hidden` (N, h, w) is 1 where hidden."""
    target, _, _ = normalised(images, images.shape[-2] // predicted.shape[-2])
    errors = ((predicted.float() - target) ** 2).mean(1)
    return (errors * hidden).sum((1, 2)) / hidden.sum((1, 2))


def normalised(images: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the patches (N, values, h, w) of images in units of each patch's standard deviation, and the means and these deviations."""
    target = patches(images.float(), size)
    mean, std = target.mean(1, keepdim=True), (target.var(1, keepdim=True) + _EPS).sqrt()
    return (target - mean) / std, mean, std
