"""Annotations of other formats to COCO's."""
