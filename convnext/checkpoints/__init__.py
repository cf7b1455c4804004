"""Weights that others wrote, and files of weights in general."""
