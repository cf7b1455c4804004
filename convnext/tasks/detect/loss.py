"""The training losses of a detector."""

from torch import Tensor, nn

from convnext.tasks.base import Losses
from convnext.tasks.detect.batch import DetectBatch


class DetectCriterion:
    """The detector's own losses, by the names that it gives them."""

    def __call__(self, model: nn.Module, batch: DetectBatch) -> Losses:
        """Return the losses. PyTorch's global generator draws the regions that count."""
        losses: dict[str, Tensor] = model(batch.images, batch.targets)
        return {name: loss.float() for name, loss in losses.items() if "loss" in name}
