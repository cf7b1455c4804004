"""Labelled images that go through a classifier together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext.data.loader import Sample
from convnext.tasks.shared import readable


@dataclass
class ClassifyBatch:
    """Images (N, 3, H, W) float32 and labels (N,) int64, or targets (N, C) float32, with their positions in the source."""

    images: Tensor
    labels: Tensor
    indices: list[int]
    corrupt: list[tuple[int, str]]  # positions that could not be read, with the reason

    @classmethod
    def collate(cls, samples: Sequence[Sample]) -> "ClassifyBatch":
        """Return the samples as a batch; those that could not be read are skipped and noted in it."""
        good, corrupt = readable(samples)
        images = torch.stack([sample.image for sample in good]) if good else torch.empty(0)
        if good and isinstance(good[0].label, Tensor):
            labels = torch.stack([sample.label for sample in good])
        else:
            labels = torch.tensor([sample.label for sample in good], dtype=torch.long)
        return cls(images, labels, [sample.index for sample in good], corrupt)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "ClassifyBatch":
        return ClassifyBatch(self.images[part], self.labels[part], self.indices[part], self.corrupt)

    def to(self, device: torch.device) -> "ClassifyBatch":
        """Return the batch on a device, images in channels-last."""
        images = self.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return ClassifyBatch(images, self.labels.to(device, non_blocking=True), self.indices, self.corrupt)

    def pin_memory(self) -> "ClassifyBatch":
        """Return the batch in page-locked memory."""
        return ClassifyBatch(self.images.pin_memory(), self.labels.pin_memory(), self.indices, self.corrupt)
