"""A block in plain PyTorch, folded, for CPUs and kernels without a compiled operator."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.models.backbones.convnext import Block

_SLICE_BYTES = 4 << 20  # of hidden values that PyTorch computes at a time, so that they stay in a cache


class SlicedBlock(nn.Module):
    """A block in plain PyTorch, folded; its MLP computes some rows of the map at a time, with GRN an image."""

    grn: Tensor | None

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.dwconv, self.eps = block.dwconv.to(dtype), block.norm.eps
        first, second, gamma = block.pwconv1, block.pwconv2, block.gamma
        grn = None if block.grn is None else block.grn.operand()
        self.register_buffer("grn", None if grn is None else grn.gamma.detach())
        self.grn_eps = 0.0 if grn is None else grn.eps
        with torch.no_grad():
            first.bias.add_(first.weight @ block.norm.bias)
            first.weight.mul_(block.norm.weight)
            if grn is not None:
                second.bias.add_(second.weight @ grn.beta)
            if gamma is not None:
                second.bias.mul_(gamma)
                second.weight.mul_(gamma.unsqueeze(1))
        self.first, self.second = first.to(dtype), second.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        width, weight = x.shape[1], self.first.weight
        y = self.dwconv(x.to(weight.dtype)).permute(0, 2, 3, 1)
        y = F.layer_norm(y, (width,), eps=self.eps)
        rows = y.reshape(-1, width)
        positions, step = y.shape[1] * y.shape[2], max(1, _SLICE_BYTES // (weight.shape[0] * weight.element_size()))
        parts = [self._mlp(part) for part in torch.split(rows, step if self.grn is None else positions)]
        branch = parts[0] if len(parts) == 1 else torch.cat(parts)
        return x + branch.view(y.shape).permute(0, 3, 1, 2)

    def _mlp(self, rows: Tensor) -> Tensor:
        """Return the MLP of rows (…, C), with GRN those of one image."""
        hidden = F.gelu(self.first(rows))
        if self.grn is not None:
            norms = torch.linalg.vector_norm(hidden, dim=0, dtype=torch.float32)
            hidden = hidden * (1 + self.grn * (norms / (norms.mean() + self.grn_eps))).to(hidden.dtype)
        projected: Tensor = self.second(hidden)
        return projected
