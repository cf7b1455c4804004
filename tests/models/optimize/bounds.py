"""What the tests of `convnext.optimize` share: the bounds of its errors, and outputs with and without fast operators."""

import pytest
import torch

from convnext import ops
from convnext.ops import build

int8 = pytest.mark.skipif(not build.has_int8(), reason="the operators here have no products of 8 bits")
tiles = pytest.mark.skipif(not build.has_tiles(), reason="this CPU has no AMX")
compiled = pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
SPLIT_ERROR, FLOAT32_ERROR = 2e-5, 2e-6  # of float32 products in tiles, each number the sum of two bf16, and of all other ones


def bound(precision, fast=True):
    """The largest error of an output, relative to the largest output."""
    if precision == "float32":
        return SPLIT_ERROR if fast and build.has_tiles() else FLOAT32_ERROR
    return {"bf16": 1e-2, "int8": 0.05}[precision]


def outputs(model, x, fast):
    with torch.inference_mode(), ops.using(fast):
        return model(x)
