"""The training losses of a segmenter."""

from torch import Tensor, nn

from convnext.models.segmentation import upernet
from convnext.tasks.base import Losses
from convnext.tasks.segment.batch import SegmentBatch


class SegmentCriterion:
    """Cross-entropy of the decode head and of the auxiliary head."""

    def __call__(self, model: nn.Module, batch: SegmentBatch) -> Losses:
        """Return the mean losses `decode` and `auxiliary`, the latter with its weight."""
        assert isinstance(batch.images, Tensor)  # crops have one size
        assert isinstance(batch.masks, Tensor)
        return upernet.losses(model, batch.images, batch.masks)
