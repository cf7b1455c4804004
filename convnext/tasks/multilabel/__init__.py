"""Multi-label classification: any number of classes for each image."""
