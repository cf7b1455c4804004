"""The isotropic ConvNeXt, for comparison with ViT. Source: Liu et al., *A ConvNet for the 2020s*, CVPR 2022, section 3.3."""

import torch
from torch import Tensor, nn

from convnext.models.backbones.convnext import Block, check_arguments
from convnext.models.backbones.dropping import drop_path_rates
from convnext.models.backbones.pooled import PooledClassifier


class ConvNeXtIsotropic(PooledClassifier):
    """ConvNeXt without downsampling after a 16 x 16 patchify stem: one width, one map of stride 16.

    It has no pyramid: `channels` and `strides` have one entry, and `features` returns one map. Arguments are as for ConvNeXt.
    """

    def __init__(
        self,
        depth: int = 18,
        width: int = 384,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        patch_size: int = 16,
        kernel_size: int = 7,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        head_init_scale: float = 1.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(kernel_size, drop_path)
        self.channels, self.strides, self.min_size = (width,), (patch_size,), patch_size
        self.grad_checkpointing = grad_checkpointing
        self.stem = nn.Conv2d(in_channels, width, patch_size, patch_size)
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(width, kernel_size, rate, layer_scale) for rate in rates)
        self._build_head(width, num_classes, head_init_scale)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the one map of images (N, in_channels, H, W), in a list: (N, width, H // 16, W // 16)."""
        self._check_size(x)
        x = self.stem(x).contiguous(memory_format=torch.channels_last)  # once, so that no block has to
        return [self._run(self.blocks, x)]

    def layer_group(self, name: str) -> int:
        """Return 0 for the stem, 1 and up for the blocks, and one more for the rest."""
        part, number, *_ = name.split(".")
        if part == "blocks":
            return 1 + int(number)
        return 0 if part == "stem" else len(self.blocks) + 1

    def stages_of_parameters(self) -> dict[str, int]:
        """Return the block of each parameter, counted from 1; 0 for the stem."""
        return {name: self.layer_group(name) for name, _ in self.named_parameters() if name.startswith(("stem.", "blocks."))}
