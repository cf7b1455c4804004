"""Fast operators, each beside its plain PyTorch reference, chosen automatically (`choice.py`); CONVNEXT_OPS=off turns all off."""

from convnext.ops import flops as flops
from convnext.ops.block import Parameters, block
from convnext.ops.block import pays as block_pays
from convnext.ops.block import takes as takes_block
from convnext.ops.depthwise import depthwise_conv
from convnext.ops.dispatch import slow_on_cpu, status, using
from convnext.ops.memory import keep_memory
from convnext.ops.mlp import mlp
from convnext.ops.norm import layer_norm
from convnext.ops.patchify import patchify

__all__ = [
    "Parameters",
    "block",
    "block_pays",
    "depthwise_conv",
    "keep_memory",
    "layer_norm",
    "mlp",
    "patchify",
    "slow_on_cpu",
    "status",
    "takes_block",
    "using",
]
