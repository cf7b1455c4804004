"""RoIAlign over a pyramid (He et al., Mask R-CNN, ICCV 2017): a map of one size for every box.

It is adaptive: a cell of the map averages as many samples per side as the box has positions there (sampling ratio 0 in mmdetection and
torchvision). It is aligned: pixel centres lie at half integers.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Return the boxes (n, 4) of all images as (all, 5), with the image's index before each box."""
    return torch.cat([torch.cat([torch.full_like(box[:, :1], i), box], 1) for i, box in enumerate(boxes)])


def level_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Return the level to pool each of the boxes (n, 4) from: the first up to a side of 112 (at stride 4), then one more per doubling."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    finest = 14 * strides[0]
    return (side / finest + 1e-6).log2().floor().clamp(0, len(strides) - 1).long()


def pool(levels: Sequence[Tensor], strides: Sequence[int], rois: Tensor, size: int) -> Tensor:
    """Return the levels (N, C, H[i], W[i]) at the RoIs (n, 5) of `to_rois`: (n, C, size, size), all float32."""
    rois = rois.nan_to_num()  # a diverged network must fail by its loss, not here
    which = level_of(rois[:, 1:], strides)
    chosen = [(which == i).nonzero().flatten() for i in range(len(levels))]
    # Levels without a RoI take part, too: DistributedDataParallel needs a gradient of all parameters.
    parts = [
        _ByProducts.apply(level, stride, rois[numbers], size)
        if level.device.type == "cpu"
        else roi_align(level, rois[numbers], size, 1 / stride, sampling_ratio=0, aligned=True)
        for level, stride, numbers in zip(levels, strides, chosen, strict=True)
    ]
    return torch.cat(parts)[torch.cat(chosen).argsort()]


class _Saved(Protocol):
    """The context between forward and backward."""

    shape: torch.Size
    spans: list[list[int]]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _ByProducts(torch.autograd.Function):
    """torchvision's roi_align by matrix products: several times faster on a CPU, above all in the backward pass.

    A bilinear sample is a weighted sum along y of weighted sums along x, and so is a mean of such samples over a grid. So a box's map is
    the product of a small matrix, the box's piece of the level, and another small matrix.
    """

    @staticmethod
    def forward(ctx: _Saved, level: Tensor, stride: int, rois: Tensor, size: int) -> Tensor:
        channels, height, width = level.shape[1:]
        boxes = rois[:, 1:] * (1 / stride) - 0.5
        left, right, across = _weights(boxes[:, 0], boxes[:, 2], size, width)
        top, bottom, down = _weights(boxes[:, 1], boxes[:, 3], size, height)
        spans = torch.stack([rois[:, 0].long(), left, right, top, bottom], 1).tolist()
        ctx.shape, ctx.spans = level.shape, spans
        ctx.save_for_backward(across, down)
        rows, out = _rows(level), level.new_empty(len(rois), size, size, channels)
        with torch.autocast("cpu", enabled=False):
            for k, (image, x1, x2, y1, y2) in enumerate(spans):
                piece = rows[image, y1:y2, x1 * channels : x2 * channels]
                lines = torch.mm(down[k, :, : y2 - y1], piece).view(size, x2 - x1, channels)
                torch.bmm(across[k, None, :, : x2 - x1].expand(size, -1, -1), lines, out=out[k])
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Saved, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        across, down = ctx.saved_tensors
        out = gradients[0].permute(0, 2, 3, 1).contiguous()
        count, channels, height, width = ctx.shape
        rows, size = out.new_zeros(count, height, width * channels), out.shape[1]
        for k, (image, x1, x2, y1, y2) in enumerate(ctx.spans):
            lines = torch.bmm(across[k, None, :, : x2 - x1].transpose(1, 2).expand(size, -1, -1), out[k])
            rows[image, y1:y2, x1 * channels : x2 * channels].addmm_(down[k, :, : y2 - y1].T, lines.view(size, -1))
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2), None, None, None


def _rows(level: Tensor) -> Tensor:
    """Return a level (N, C, H, W) as (N, H, W C)."""
    return level.permute(0, 2, 3, 1).reshape(len(level), level.shape[2], -1)


def _weights(start: Tensor, end: Tensor, cells: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of an axis' positions in the cells of boxes from `start` to `end` (n,).

    Returns: the first position with a weight (n,), the one behind the last (n,), and the weights (n, cells, max reach) from the first
    position on. Samples up to 1 outside of the axis are at its border, others have no weight.
    """
    cell = ((end - start) / cells)[:, None, None]
    samples = cell.ceil()
    count = samples.clamp(min=1)  # a box without length has no sample, and all its weights are 0
    sample = torch.arange(int(count.max()) if len(count) else 1)
    at = start[:, None, None] + torch.arange(cells)[:, None] * cell + (sample + 0.5) * cell / count
    weight = ((sample < samples) & (at >= -1) & (at <= length)) / count
    at = at.clamp(0, length - 1)
    low = at.floor()
    first, last = low[:, 0, 0].long(), low.masked_fill(sample >= count, 0).amax((1, 2)).long()
    behind = (last + 2).clamp(max=length)
    reach = int((behind - first).max()) if len(first) else 1
    nearer = (low.long() - first[:, None, None]).clamp(max=reach - 1)
    weights = torch.zeros(len(first), cells, reach)
    weights.scatter_add_(2, nearer, weight * (1 - (at - low)))
    weights.scatter_add_(2, (nearer + 1).clamp(max=reach - 1), weight * (at - low))
    return first, behind, weights
