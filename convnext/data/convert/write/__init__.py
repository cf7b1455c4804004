"""COCO's objects in the formats of labelling tools, of Pascal VOC and of YOLO: one file per format, the inverse of the readers above."""
