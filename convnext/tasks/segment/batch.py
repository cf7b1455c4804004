"""Images with masks that go through a segmenter together, and the samples that they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.loader import CombinedSamples, Sample, Samples
from convnext.data.sources.masks import mask_of
from convnext.tasks.shared import readable


@dataclass
class SegmentBatch:
    """Images and masks with their positions in the source: tensors (N, 3, H, W) and (N, H, W), or lists where sizes differ."""

    images: Tensor | list[Tensor]  # float32
    masks: Tensor | list[Tensor]  # uint8, 255 for what is ignored
    indices: list[int]
    corrupt: list[tuple[int, str]]  # positions that could not be read, with the reason

    @classmethod
    def collate(cls, samples: Sequence[Sample]) -> "SegmentBatch":
        """Return the samples as a batch; those that could not be read are skipped and noted in it."""
        good, corrupt = readable(samples)
        images, masks = [sample.image for sample in good], [sample.label for sample in good]
        indices = [sample.index for sample in good]
        if len({image.shape for image in images}) == 1:
            return cls(torch.stack(images), torch.stack(masks), indices, corrupt)
        return cls(images, masks, indices, corrupt)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "SegmentBatch":
        return SegmentBatch(self.images[part], self.masks[part], self.indices[part], self.corrupt)

    def to(self, device: torch.device) -> "SegmentBatch":
        """Return the batch on a device, images in channels-last. Lists stay where they are: their images are moved one by one."""
        if isinstance(self.images, list) or isinstance(self.masks, list):
            return self
        images = self.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return SegmentBatch(images, self.masks.to(device, non_blocking=True), self.indices, self.corrupt)

    def pin_memory(self) -> "SegmentBatch":
        """Return the batch in page-locked memory."""
        return SegmentBatch(_pinned(self.images), _pinned(self.masks), self.indices, self.corrupt)


def _pinned(tensors: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return tensors.pin_memory() if isinstance(tensors, Tensor) else [tensor.pin_memory() for tensor in tensors]


class SegmentTrainingSamples(CombinedSamples):
    """Images whose mask is transformed with them."""

    def prepare(self, image: Image.Image | DeepImage, index: int) -> tuple[Tensor, Tensor]:
        """Return the image (3, H, W) and the mask (H, W), where nothing is random."""
        prepared: tuple[Tensor, Tensor] = self.transform(image, mask_of(self.source, index, image))
        return prepared

    def prepare_for_training(
        self, image: Tensor | DeepImage, index: int, epoch: int, corrupt: list[tuple[int, str]]
    ) -> tuple[Tensor, Tensor]:
        """Return the image (3, crop, crop) and the mask (crop, crop)."""
        return self.transform(image, mask_of(self.source, index, image), self.others(epoch, corrupt))

    def labelled(self, index: int) -> tuple[Tensor | DeepImage, Tensor]:
        """Return an image and its mask (H, W)."""
        image = self.source.pixels(index)
        return image, mask_of(self.source, index, image)


class SegmentEvaluationSamples(Samples):
    """Images in their own size, and masks as they are annotated."""

    def prepare(self, image: Image.Image | DeepImage, index: int) -> tuple[Tensor, Tensor]:
        """Return the image (3, H, W) and the mask (H, W)."""
        return self.transform(image), mask_of(self.source, index, image)
