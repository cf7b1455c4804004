"""What is measured of detections: average precision, confusion, precision and recall over the score threshold."""
