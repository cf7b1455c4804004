"""Mask R-CNN and Cascade Mask R-CNN over any backbone with a pyramid: the same functions as mmdetection 3's."""

from convnext.models.detection.detector import Detector
from convnext.models.detection.rcnn import cascade_mask_rcnn, mask_rcnn

__all__ = ["Detector", "cascade_mask_rcnn", "mask_rcnn"]
