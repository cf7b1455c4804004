"""Conversion of annotations in other formats to COCO's JSON, one file per format."""
