"""Predict images, one or many, and write the predictions to files."""
