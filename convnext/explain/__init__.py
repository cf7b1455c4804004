"""Explain predictions: activation maps, feature maps, nearest training images."""
