"""Mask R-CNN (He et al., ICCV 2017) with a feature pyramid, as in mmdetection 3 and the ConvNeXt paper's code."""

from typing import Any

from convnext.models.detection.anchors import SCALE
from convnext.models.detection.box_heads import BoxHead, l1_loss
from convnext.models.detection.boxes import DeltaCoder
from convnext.models.detection.detector import Detector
from convnext.models.detection.mask_head import MaskHead
from convnext.models.detection.pyramid import FeaturePyramid
from convnext.models.detection.roi_head import RoIHead, Stage
from convnext.models.detection.rpn import Limits, RPNHead
from convnext.models.detection.targets import Matcher


def mask_rcnn(
    backbone: Any,
    num_classes: int,
    output_norm: bool,
    *,
    channels: int = 256,
    fc_channels: int = 1024,
    masks: bool = True,
    anchor_scale: float = SCALE,
    proposals: int = 1000,
    regions: int = 512,
) -> Detector:
    """Build Mask R-CNN around a backbone.

    Args:
        backbone: see `Detector`; its head is dropped.
        num_classes: without background.
        output_norm: see `Detector`.
        channels: width of pyramid and heads.
        fc_channels: of the box head's two linear layers.
        masks: find masks too; without, it is Faster R-CNN.
        anchor_scale: an anchor's side in strides; less for objects that are small beside the image.
        proposals: in an image; small images need fewer.
        regions: of them, how many count in a step of training.
    """
    strides = (*backbone.strides, 2 * backbone.strides[-1])
    rpn = RPNHead(
        channels,
        strides,
        smooth_l1_beta=0.0,
        whole_anchors_only=False,
        train_limits=Limits(2 * proposals, proposals),
        test_limits=Limits(proposals, proposals),
        anchor_scale=anchor_scale,
    )
    stage = Stage(Matcher(0.5, 0.5, low_quality=0.5), DeltaCoder((0.1, 0.1, 0.2, 0.2)), l1_loss)
    box_head = BoxHead(channels, num_classes, convs=0, fcs=2, fc_width=fc_channels)
    roi_head = RoIHead(backbone.strides, [stage], [box_head], [MaskHead(channels, num_classes)] if masks else [], regions=regions)
    return Detector(backbone, FeaturePyramid(backbone.channels, channels), rpn, roi_head, output_norm)
