"""Segmenters: networks that give every pixel a class, over any backbone with a pyramid."""
