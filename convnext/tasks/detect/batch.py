"""Images with objects that go through a detector together, and the samples that they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, cast

import torch
from PIL import Image
from torch import Tensor

from convnext.data.annotations.objects import ImageObjects
from convnext.data.deep import DeepImage
from convnext.data.loader import CombinedSamples, Sample, Samples
from convnext.data.run_lengths import RunLengths
from convnext.tasks.shared import readable


class DetectTarget(TypedDict):
    """The annotated objects of an image; see `data.annotations.objects.ImageObjects`."""

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    area: Tensor
    image_id: int
    masks: NotRequired[Tensor | list[RunLengths]]  # pixels in training, run lengths in evaluation
    size: NotRequired[tuple[int, int]]  # in evaluation: height and width of the image as annotated, in whose pixels the objects are


@dataclass
class DetectBatch:
    """Images (3, H, W) float32 of any sizes with their objects, and their positions in the source.

    In training the objects are in the pixels of the prepared image, in evaluation in those of the image as annotated.
    """

    images: list[Tensor]
    targets: list[DetectTarget]
    indices: list[int]
    corrupt: list[tuple[int, str]]  # positions that could not be read, with the reason

    @classmethod
    def collate(cls, samples: Sequence[Sample]) -> "DetectBatch":
        """Return the samples as a batch; those that could not be read are skipped and noted in it."""
        good, corrupt = readable(samples)
        return cls([sample.image for sample in good], [sample.label for sample in good], [sample.index for sample in good], corrupt)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "DetectBatch":
        return DetectBatch(self.images[part], self.targets[part], self.indices[part], self.corrupt)

    def to(self, device: torch.device) -> "DetectBatch":
        """Return the batch on a device; run lengths have none."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        targets = [
            {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in self.targets
        ]
        return DetectBatch(images, cast(list[DetectTarget], targets), self.indices, self.corrupt)

    def pin_memory(self) -> "DetectBatch":
        """Return the batch in page-locked memory."""
        images = [image.pin_memory() for image in self.images]
        targets = [{key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in one.items()} for one in self.targets]
        return DetectBatch(images, cast(list[DetectTarget], targets), self.indices, self.corrupt)


class DetectTrainingSamples(CombinedSamples):
    """Images whose objects are transformed with them."""

    def prepare(self, image: Image.Image | DeepImage, index: int) -> tuple[Tensor, DetectTarget]:
        """Return the image (3, H, W) and its objects, where nothing is random."""
        prepared, objects = self.transform(image, self.source.encoded_target(index))
        return prepared, objects.to_dict()

    def prepare_for_training(
        self, image: Tensor | DeepImage, index: int, epoch: int, corrupt: list[tuple[int, str]]
    ) -> tuple[Tensor, DetectTarget]:
        """Return the image (3, H, W) and its objects."""
        prepared, objects = self.transform(image, self.source.encoded_target(index), self.others(epoch, corrupt))
        return prepared, objects.to_dict()

    def labelled(self, index: int) -> tuple[Tensor | DeepImage, ImageObjects]:
        """Return an image and its objects."""
        return self.source.pixels(index), self.source.encoded_target(index)


class DetectEvaluationSamples(Samples):
    """Resized images, with their objects as they are annotated."""

    def prepare(self, image: Image.Image | DeepImage, index: int) -> tuple[Tensor, DetectTarget]:
        """Return the image (3, H', W'), and its objects in the image (H, W) as it was, masks as run lengths."""
        return self.transform(image), self.source.encoded_target(index).to_encoded() | {"size": (image.height, image.width)}
