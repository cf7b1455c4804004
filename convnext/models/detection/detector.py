"""A two-stage detector around any backbone with a pyramid."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from convnext.errors import UsageError
from convnext.models.backbones.norms import LayerNorm2d
from convnext.models.detection.box_heads import ClassLoss, cross_entropy
from convnext.models.detection.boxes import Size
from convnext.models.detection.layers import FeaturePyramid
from convnext.models.detection.postprocess import AS_PUBLISHED, SCORE, Masks, Selection
from convnext.models.detection.roi_head import RoIHead
from convnext.models.detection.rpn import ProposalLimits, Proposals, RPNHead
from convnext.models.detection.targets import prepare
from convnext.models.network import Backbone, Network

Target = Mapping[str, Tensor]


class Detector(Network):
    """Backbone, feature pyramid, proposals and region heads; called as torchvision's detectors are.

    Labels count from 0; background is not a class. Parameters are named as in the published weights.

    Args:
        backbone: a network with maps; its head is dropped.
        neck: the pyramid.
        rpn_head: makes proposals.
        roi_head: makes detections from the proposals.
        output_norm: put another LayerNorm on each of the backbone's maps, as the published detectors with ConvNeXt and Swin do.
    """

    def __init__(self, backbone: Backbone, neck: FeaturePyramid, rpn_head: RPNHead, roi_head: RoIHead, output_norm: bool) -> None:
        super().__init__()
        backbone.drop_head()
        self.backbone, self.neck, self.rpn_head, self.roi_head = backbone, neck, rpn_head, roi_head
        self.num_classes, self.output_norm = roi_head.num_classes, output_norm
        if output_norm:
            for i, channels in enumerate(backbone.channels):
                backbone.add_module(f"norm{i}", LayerNorm2d(channels, eps=1e-6))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None, class_loss: ClassLoss = cross_entropy
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the losses in training, see `losses`; else the detections, see `predict`.

        Args:
            images: images (3, H, W) float32, resized and normalised, of any sizes.
            targets: in training, a dict for each image: `boxes` (n, 4) float32, x1, y1, x2, y2 in pixels, `labels` (n,) int64 from 0,
                `masks` (n, H, W) uint8 or bool, if the network has a mask head, and, if there are crowds, `iscrowd` (n,) bool.
                Crowds are ignored.
            class_loss: in training, the loss of the classes of regions.
        """
        if not self.training:
            return self.predict(images)
        if targets is None:
            raise UsageError("a detector in training mode needs the targets of its images: call it with targets, or call eval() first")
        return self.losses(images, targets, class_loss)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target], class_loss: ClassLoss = cross_entropy) -> dict[str, Tensor]:
        """Return the named losses (scalars); those with 'loss' in their name are to be minimised together, `acc` is a percentage.

        The anchors and regions of a step are drawn from torch's global generator of the device.

        Raises ConvnextError for an invalid target, with the image's position in the batch.
        """
        sizes = _sizes(images)
        truth = prepare(targets, sizes, self._padded(sizes), self.num_classes, self.roi_head.has_masks)
        levels = self.pyramid(images)
        outputs = self.rpn_head(levels)
        losses = self.rpn_head.losses(levels, outputs, sizes, truth)
        proposals = self.rpn_head.propose(levels, outputs, sizes, self.rpn_head.train_limits)
        boxes = [proposal.boxes for proposal in proposals]
        return losses | self.roi_head.losses(levels[:-1], boxes, sizes, truth, class_loss)

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[Tensor],
        output_sizes: Sequence[Size] | None = None,
        threshold: float = SCORE,
        masks: Masks = "pasted",
        selection: Selection = AS_PUBLISHED,
    ) -> list[dict[str, Tensor]]:
        """Return the detections in each image, at most `selection.most`, best first.

        Args:
            images: images (3, H, W) float32, resized and normalised, of any sizes.
            output_sizes: (height, width) of each image before it was resized; boxes and masks are given in its pixels. By default those
                of `images`.
            threshold: detections have a higher score.
            masks: "pasted" gives the pixels of the whole image, up to a hundred times its size; "small" gives the mask head's output,
                for `postprocess.encode_masks`; "none" does not compute them.
            selection: which boxes above the threshold are detections.

        Returns: for each image a dict of `boxes` (n, 4) float32, x1, y1, x2, y2 in pixels, `labels` (n,) int64, `scores` (n,)
        and, with a mask head, `masks`: pasted (n, 1, H, W) bool, or small (n, 28, 28) float32, 0 to 1.
        """
        sizes, levels = _sizes(images), self.pyramid(images)
        boxes = [proposal.boxes for proposal in self.propose(levels, sizes)]
        return self.roi_head.detect(levels[:-1], boxes, sizes, output_sizes or sizes, threshold, masks, selection)

    def maps(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the backbone's maps (N, channels[i], H / stride, W / stride) of the images, padded to one size."""
        return self.normed_maps(self._batch(images))

    def normed_maps(self, batch: Tensor) -> list[Tensor]:
        """Return the backbone's maps of images (N, 3, H, W) that are already padded."""
        maps = self.backbone.features(batch)
        if self.output_norm:
            maps = [self.backbone.get_submodule(f"norm{i}")(x) for i, x in enumerate(maps)]
        return maps

    def pyramid(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the five levels (N, width, H / stride, W / stride) of the images."""
        return self.neck(self.maps(images))

    def propose(self, levels: Sequence[Tensor], sizes: Sequence[Size], limits: ProposalLimits | None = None) -> list[Proposals]:
        """Return the proposals in each image, from `pyramid`'s levels and the images' sizes; by default with the limits of inference."""
        return self.rpn_head.propose(levels, self.rpn_head(levels), sizes, limits or self.rpn_head.test_limits)

    def _batch(self, images: Sequence[Tensor]) -> Tensor:
        height, width = self._padded(_sizes(images))
        like = images[0]
        batch = like.new_zeros(len(images), len(like), height, width).contiguous(memory_format=torch.channels_last)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return batch

    def _padded(self, sizes: Sequence[Size]) -> Size:
        """Return the size of a batch: the largest height and width, rounded up to whole positions of the coarsest map."""
        multiple = self.backbone.strides[-1]
        height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
        return height, width

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters of one dimension, and of those that the backbone names."""
        names = {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}
        return names | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layer_group(self, name: str) -> int:
        """Return the backbone's group for its own parameters, and one more than its last for all others."""
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
