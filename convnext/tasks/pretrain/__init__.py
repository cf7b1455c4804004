"""Pre-training without labels: a network predicts what is hidden of images."""
