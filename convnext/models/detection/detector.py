"""A two-stage detector around any backbone with a pyramid."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.convnext import LayerNorm2d
from convnext.models.detection.boxes import Size
from convnext.models.detection.postprocess import SCORE, Masks
from convnext.models.detection.pyramid import FeaturePyramid
from convnext.models.detection.roi_head import RoIHead
from convnext.models.detection.rpn import Limits, Proposals, RPNHead
from convnext.models.detection.targets import prepare

Target = Mapping[str, Tensor]


class Detector(nn.Module):
    """Backbone, feature pyramid, proposals and region heads; called as torchvision's detectors are.

    Labels count from 0: background is no class. Parameters are named as in the published weights.

    Args:
        backbone: a module with `features`, `channels`, `strides` and `drop_head`, which is called.
        neck: the pyramid.
        rpn_head: makes proposals.
        roi_head: makes detections of them.
        output_norm: whether another LayerNorm comes after each of the backbone's maps (ConvNeXt and Swin; not ResNet).
    """

    def __init__(self, backbone: Any, neck: FeaturePyramid, rpn_head: RPNHead, roi_head: RoIHead, output_norm: bool) -> None:
        super().__init__()
        backbone.drop_head()
        self.backbone, self.neck, self.rpn_head, self.roi_head = backbone, neck, rpn_head, roi_head
        self.num_classes, self.output_norm = roi_head.num_classes, output_norm
        if output_norm:
            for i, channels in enumerate(backbone.channels):
                backbone.add_module(f"norm{i}", LayerNorm2d(channels, eps=1e-6))

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """In training the losses, see `losses`; else the detections, see `predict`.

        Args:
            images: images (3, H, W) float32, resized and normalised, of any sizes.
            targets: of each image, in training, a dict of `boxes` (n, 4) float32, x1, y1, x2, y2 in pixels, `labels` (n,) int64
                from 0, `masks` (n, H, W) uint8 or bool, unless there is no mask head, and, if there are crowds, `iscrowd` (n,) bool.
                Crowds are left out.
        """
        if not self.training:
            return self.predict(images)
        if targets is None:
            raise UsageError("a detector in training mode needs the targets of its images: call it with them, or call eval() first")
        return self.losses(images, targets)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """What to minimise: the sum of the values (scalars) whose name has 'loss' in it; `acc` is a percentage.

        Its randomness (which anchors and regions count) comes from torch's global generator of the device.

        Raises ConvnextError for a target that makes no sense, with the image's position in the batch.
        """
        sizes = _sizes(images)
        objects = prepare(targets, sizes, self._padded(sizes), self.num_classes, self.roi_head.has_masks)
        levels = self.pyramid(images)
        outputs = self.rpn_head(levels)
        losses = self.rpn_head.losses(levels, outputs, sizes, objects)
        proposals = self.rpn_head.propose(levels, outputs, sizes, self.rpn_head.train_limits)
        boxes = [proposal.boxes for proposal in proposals]
        return losses | self.roi_head.losses(levels[:-1], boxes, sizes, objects)

    @torch.no_grad()
    def predict(
        self, images: Sequence[Tensor], output_sizes: Sequence[Size] | None = None, threshold: float = SCORE, masks: Masks = "pasted"
    ) -> list[dict[str, Tensor]]:
        """At most 100 detections in each image, best first.

        Args:
            images: images (3, H, W) float32, resized and normalised, of any sizes.
            output_sizes: (height, width) of each image before it was resized, in whose pixels boxes and masks are then given;
                by default those of `images`.
            threshold: the score that a detection exceeds.
            masks: "pasted" gives them as pixels of the whole image, up to a hundred times its size; "small" as the mask head draws
                them, for `postprocess.encode_masks`; "none" leaves them out, and does not compute them.

        Returns: of each image a dict of `boxes` (n, 4) float32, x1, y1, x2, y2 in pixels, `labels` (n,) int64, `scores` (n,)
        and, with a mask head, `masks`: pasted (n, 1, H, W) bool, or small (n, 28, 28) float32, 0 to 1.
        """
        sizes, levels = _sizes(images), self.pyramid(images)
        boxes = [proposal.boxes for proposal in self.propose(levels, sizes)]
        return self.roi_head.detect(levels[:-1], boxes, sizes, output_sizes or sizes, threshold, masks)

    def maps(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps (N, channels[i], H / stride, W / stride) of the images, which are padded to one size."""
        return self.normed_maps(self._batch(images))

    def normed_maps(self, batch: Tensor) -> list[Tensor]:
        """The backbone's maps of images (N, 3, H, W) that are padded already."""
        maps: list[Tensor] = self.backbone.features(batch)
        if self.output_norm:
            maps = [self.backbone.get_submodule(f"norm{i}")(x) for i, x in enumerate(maps)]
        return maps

    def pyramid(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The five levels (N, width, H / stride, W / stride) of the images."""
        return self.neck(self.maps(images))

    def propose(self, levels: Sequence[Tensor], sizes: Sequence[Size], limits: Limits | None = None) -> list[Proposals]:
        """Where there may be objects in each of the images of `pyramid`'s levels and of those sizes; as for tests by default."""
        return self.rpn_head.propose(levels, self.rpn_head(levels), sizes, limits or self.rpn_head.test_limits)

    def _batch(self, images: Sequence[Tensor]) -> Tensor:
        height, width = self._padded(_sizes(images))
        like = images[0]
        batch = like.new_zeros(len(images), len(like), height, width).contiguous(memory_format=torch.channels_last)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return batch

    def _padded(self, sizes: Sequence[Size]) -> Size:
        """The size of a batch: the largest height and width, rounded up to whole positions of the coarsest map."""
        multiple = self.backbone.strides[-1]
        height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
        return height, width

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed: all of one dimension, and those that the backbone names."""
        names = {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}
        return names | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layer_group(self, name: str) -> int:
        """The group to which layer-wise decay counts the parameter: the backbone's, and for all else one more than its last."""
        part, _, rest = name.partition(".")
        return self._groups.get(rest, self._last_group) if part == "backbone" else self._last_group

    @cached_property
    def _groups(self) -> dict[str, int]:
        names = [name for name, _ in self.backbone.named_parameters()]
        own = [name for name in names if not (self.output_norm and name.partition(".")[0] in _NORMS)]
        return {name: self.backbone.layer_group(name) for name in own}

    @property
    def _last_group(self) -> int:
        return max(self._groups.values()) + 1


_NORMS = {f"norm{i}" for i in range(4)}


def _sizes(images: Sequence[Tensor]) -> list[Size]:
    if not images:
        raise UsageError("a detector needs at least one image")
    return [(image.shape[1], image.shape[2]) for image in images]
