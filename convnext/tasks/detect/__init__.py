"""Detection and instance segmentation: boxes, classes and masks of the objects in an image."""
