"""Fast operators, each beside its plain PyTorch reference. `dispatch.py` chooses between them; CONVNEXT_OPS=off turns all off."""

from convnext.ops import flops as flops
from convnext.ops.block import block
from convnext.ops.block import pays as block_pays
from convnext.ops.block import takes as takes_block
from convnext.ops.depthwise import depthwise_conv
from convnext.ops.dispatch import slow_on_cpu, status, using
from convnext.ops.memory import keep_memory
from convnext.ops.norm import layer_norm, response_norm
from convnext.ops.operands import Grn, Parameters
from convnext.ops.patchify import patchify

__all__ = [
    "Grn",
    "Parameters",
    "block",
    "block_pays",
    "depthwise_conv",
    "keep_memory",
    "layer_norm",
    "patchify",
    "response_norm",
    "slow_on_cpu",
    "status",
    "takes_block",
    "using",
]
