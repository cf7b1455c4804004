"""Mask R-CNN (He et al., ICCV 2017) and Cascade Mask R-CNN (Cai and Vasconcelos, CVPR 2018) over a backbone with a pyramid.

Both are as in mmdetection 3 and the ConvNeXt paper's code.
"""

from convnext.models.detection.anchors import SCALE
from convnext.models.detection.box_heads import BoxHead, giou_loss, l1_loss
from convnext.models.detection.boxes import DeltaCoder
from convnext.models.detection.detector import Detector
from convnext.models.detection.layers import FeaturePyramid
from convnext.models.detection.mask_head import MaskHead
from convnext.models.detection.roi_head import RoIHead, Stage
from convnext.models.detection.rpn import ProposalLimits, RPNHead
from convnext.models.detection.targets import Matcher
from convnext.models.network import Backbone


def mask_rcnn(
    backbone: Backbone,
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
    """Return Mask R-CNN over a backbone.

    Args:
        backbone: see `Detector`; its head is dropped.
        num_classes: without background.
        output_norm: see `Detector`.
        channels: width of pyramid and heads.
        fc_channels: of the box head's two linear layers.
        masks: find masks, too; without them the network is Faster R-CNN.
        anchor_scale: an anchor's side in strides; lower it for objects that are small in the image.
        proposals: number per image; small images need fewer.
        regions: number of proposals per image that the region heads are trained on in a step.
    """
    strides = (*backbone.strides, 2 * backbone.strides[-1])
    rpn = RPNHead(
        channels,
        strides,
        smooth_l1_beta=0.0,
        whole_anchors_only=False,
        train_limits=ProposalLimits(2 * proposals, proposals),
        test_limits=ProposalLimits(proposals, proposals),
        anchor_scale=anchor_scale,
    )
    stage = Stage(Matcher(0.5, 0.5, low_quality=0.5), DeltaCoder((0.1, 0.1, 0.2, 0.2)), l1_loss)
    box_head = BoxHead(channels, num_classes, convs=0, fcs=2, fc_width=fc_channels)
    roi_head = RoIHead(backbone.strides, [stage], [box_head], [MaskHead(channels, num_classes)] if masks else [], regions=regions)
    return Detector(backbone, FeaturePyramid(backbone.channels, channels), rpn, roi_head, output_norm)


STAGES = (
    Stage(Matcher(0.5, 0.5), DeltaCoder((0.1, 0.1, 0.2, 0.2)), giou_loss, weight=1.0),
    Stage(Matcher(0.6, 0.6), DeltaCoder((0.05, 0.05, 0.1, 0.1)), giou_loss, weight=0.5),
    Stage(Matcher(0.7, 0.7), DeltaCoder((0.033, 0.033, 0.067, 0.067)), giou_loss, weight=0.25),
)


def cascade_mask_rcnn(
    backbone: Backbone,
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
    """Return Cascade Mask R-CNN, with four convolutions in each box head, over a backbone.

    Args:
        backbone: see `Detector`; its head is dropped.
        num_classes: without background.
        output_norm: see `Detector`.
        channels: width of pyramid and heads.
        fc_channels: of the box heads' linear layer.
        masks, anchor_scale, regions: see `mask_rcnn`.
        proposals: number per image in inference; twice as many in training.
    """
    strides = (*backbone.strides, 2 * backbone.strides[-1])
    rpn = RPNHead(
        channels,
        strides,
        smooth_l1_beta=1 / 9,
        whole_anchors_only=True,
        train_limits=ProposalLimits(2 * proposals, 2 * proposals),
        test_limits=ProposalLimits(proposals, proposals),
        anchor_scale=anchor_scale,
    )
    box_heads = [BoxHead(channels, num_classes, convs=4, fcs=1, fc_width=fc_channels) for _ in STAGES]
    mask_heads = [MaskHead(channels, num_classes) for _ in STAGES] if masks else []
    roi_head = RoIHead(backbone.strides, STAGES, box_heads, mask_heads, regions=regions)
    return Detector(backbone, FeaturePyramid(backbone.channels, channels), rpn, roi_head, output_norm)
