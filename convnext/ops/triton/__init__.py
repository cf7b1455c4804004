"""Triton kernels, the GPU's counterparts of csrc/."""
