"""Annotations of images, and the files that hold them: objects, COCO's JSON, mask files."""
