"""Prediction: one image, many images, and what they are written to."""
