"""What follows the last map in this family's networks: pooling, norm and head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext.errors import UsageError
from convnext.models.backbones.norms import norm_of
from convnext.models.network import Backbone


class PooledClassifier(Backbone):
    """Base of this family's networks: initialisation, pooling, norm and head."""

    norm: nn.Module
    norm_pre: nn.Module | None  # in place of `norm`, a norm of the map before pooling
    pre_logits: nn.Linear | None  # the first layer of a head of two, GELU behind it
    head: nn.Linear | nn.Identity
    grad_checkpointing: bool
    min_size: int  # pixels: the smallest image side that leaves one position in the last map
    head_name = "head"

    def _build_head(
        self,
        width: int,
        num_classes: int,
        head_init_scale: float,
        norm_eps: float = 1e-6,
        norm_layer: str = "layernorm",
        norm_first: bool = False,
        hidden: int = 0,
    ) -> None:
        self.num_features, self.num_classes = hidden or width, num_classes
        self.norm_pre = norm_of(norm_layer, width, norm_eps, maps=True) if norm_first else None
        plain = norm_layer == "layernorm"
        last = nn.LayerNorm(width, eps=norm_eps) if plain else norm_of(norm_layer, width, norm_eps, maps=False)
        self.norm = nn.Identity() if norm_first else last
        self.pre_logits = nn.Linear(width, hidden) if hidden else None
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(_init_weights)
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)

    def _run(self, blocks: nn.Module, x: Tensor) -> Tensor:
        recompute = self.grad_checkpointing and self.training
        if isinstance(blocks, nn.Sequential) and not recompute:
            return blocks(x)  # as a whole, so that hooks on a stage see it
        for block in blocks.children():
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if height < self.min_size or width < self.min_size:
            raise UsageError(
                f"an image of {height} x {width} pixels is too small for this network: "
                f"resize it to at least {self.min_size} x {self.min_size}, or build the network with a smaller patch_size"
            )

    def features(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map of images (N, in_channels, H, W), before pooling and norm."""
        return self.features(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (N, num_classes) of the last map (N, C, h, w), or, if `pre_logits`, what the head reads.

        The head reads the normalised mean (N, C), in a head of two layers the hidden values (N, head_hidden_size).
        """
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        x = self.norm(x.mean((-2, -1)))
        if self.pre_logits is not None:
            x = F.gelu(self.pre_logits(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W). Raises UsageError if they are below `min_size`."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh head for `num_classes` classes on the network; 0 leaves the pooled features as output."""
        self.set_num_classes(num_classes)
        like = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(device=like.device, dtype=like.dtype).apply(_init_weights)

    def drop_head(self) -> None:
        """Remove what only `forward` needs, so that every parameter has a gradient under a detector or segmenter."""
        self.set_num_classes(0)
        del self.norm, self.norm_pre, self.pre_logits, self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory for about a third more time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters of one dimension: biases, norms, GRN and layer scales."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def layer_group(self, name: str) -> int:
        """Return the parameter's group for layer-wise learning rate decay, counted from 0 at the stem."""
        raise NotImplementedError


def _init_weights(module: nn.Module) -> None:
    # The published code's 0.02; the paper's text says 0.2, which no run of it used.
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
