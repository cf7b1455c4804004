"""The names of tensors in weight files of detectors and segmenters, one module a kind of network."""
