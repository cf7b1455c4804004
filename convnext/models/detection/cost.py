"""Count what a detector costs, as the field's tables do."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from convnext.data.transforms.preprocessing import ImageSize, sides
from convnext.models.cost import Cost
from convnext.models.detection.box_heads import REGION as BOX_REGION
from convnext.models.detection.detector import Detector
from convnext.models.detection.mask_head import REGION as MASK_REGION

PROPOSALS, DETECTIONS = 1000, 100  # through each box head, through each mask head


@dataclass(frozen=True)
class DetectorCost:
    """What one image costs: parameters, and multiply-adds of convolutions and matrix products, which the tables print as FLOPs."""

    parameters: int
    backbone: int
    pyramid: int
    proposals: int
    boxes: int
    masks: int

    @property
    def macs(self) -> int:
        """The sum of the multiply-adds of all parts."""
        return self.backbone + self.pyramid + self.proposals + self.boxes + self.masks


def cost_of_detector(model: Detector, image_size: ImageSize) -> Cost:
    """Return the cost of a detector on the meta device, all parts together."""
    height, width = sides(image_size)
    found = count_detector(model, height, width)
    return Cost(found.parameters, found.macs, image_size)


@torch.no_grad()
def count_detector(model: Detector, height: int = 800, width: int = 1280) -> DetectorCost:
    """Return the cost of each part of a detector on the meta device. The published tables count 1280 x 800 pixels.

    RoIAlign and the selection of boxes have no multiply-adds in this count.
    """
    model.eval()
    regions = torch.empty(PROPOSALS, model.neck.width, BOX_REGION, BOX_REGION, device="meta")
    mask_regions = torch.empty(DETECTIONS, model.neck.width, MASK_REGION, MASK_REGION, device="meta")
    labels = torch.empty(DETECTIONS, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as backbone:
        maps = model.maps([torch.empty(3, height, width, device="meta")])
    with FlopCounterMode(display=False) as pyramid:
        levels = model.neck(maps)
    with FlopCounterMode(display=False) as proposals:
        model.rpn_head(levels)
    with FlopCounterMode(display=False) as boxes:
        for head in model.roi_head.box_heads:
            head(regions)
    with FlopCounterMode(display=False) as masks:
        for head in model.roi_head.mask_heads:
            head(mask_regions, labels)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = (counter.get_total_flops() // 2 for counter in (backbone, pyramid, proposals, boxes, masks))
    return DetectorCost(parameters, *parts)
