"""Datasets, one file each: what opens them and reads their images and labels."""
