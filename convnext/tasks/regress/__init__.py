"""Regression: one number for each image."""
