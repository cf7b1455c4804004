"""LayerNorm over the last dimension of (rows, C) on NVIDIA GPUs in Triton, forward and backward.

Both passes read and write each value once: a program holds whole rows in registers.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-call"
# ruff: noqa: N803  # constants of compilation are capitals, as everywhere in Triton

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.errors import UsageError

MAX_CHANNELS = 4096  # a row stays in the registers of one program
_VALUES = 2048  # that a program holds in registers at a time, if several rows fit
_PROGRAMS = 528  # of the backward pass, each with its own sums: four on each of an H100's 132 multiprocessors


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    rows: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (c < C)[None, :]
    offsets = row[:, None] * C + c[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 1) / C + eps)
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    y = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(scale_ptr + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "programs"])
def _backward(
    x_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    rows: tl.tensor,
    programs: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    c = tl.arange(0, BLOCK_C)
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((ROWS, BLOCK_C), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), programs):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (c < C)[None, :]
        offsets = row[:, None] * C + c[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)[:, None]
        scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0)[:, None]
        normal = tl.where(inside, (x - mean) * scale, 0.0)
        scaled = dy * weight
        along = tl.sum(scaled * normal, 1) / C
        dx = (scaled - (tl.sum(scaled, 1) / C)[:, None] - normal * along[:, None]) * scale
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dweight += dy * normal
        dbias += dy
    partial_ptrs = partial_ptr + tl.program_id(0) * 2 * C + c
    tl.store(partial_ptrs, tl.sum(dweight, 0), mask=c < C)
    tl.store(partial_ptrs + C, tl.sum(dbias, 0), mask=c < C)


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm of the rows of x, computed in float32, the variance from the centred values.

    Args:
        x: (rows, C), float32, bfloat16 or float16; C up to 4096.
        weight, bias: (C,), of any of these types.
        eps: added to the variance.

    Returns:
        y (rows, C) in the type of x, and in float32 the mean and 1 / sqrt(variance + eps), both (rows,).

    Raises:
        UsageError: for more channels and for other types.
    """
    tile = _tile(x)
    rows, x = x.shape[0], x.contiguous()
    y = torch.empty_like(x)
    mean, scale = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if x.numel():
        with torch.cuda.device_of(x):
            grid = (triton.cdiv(rows, tile["ROWS"]),)
            _forward[grid](x, weight.contiguous(), bias.contiguous(), y, mean, scale, rows, eps, **tile, enable_fp_fusion=True)
    return y, mean, scale


def backward(x: Tensor, dy: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (rows, C), in its type, and of weight and bias (C,), in float32.

    They have the same bits in every run: each program sums fixed rows, and these sums are added in a fixed order.
    """
    tile = _tile(x)
    rows, channels = x.shape
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    programs = min(_PROGRAMS, triton.cdiv(rows, tile["ROWS"]))
    partial = x.new_empty(programs, 2, channels, dtype=torch.float32)
    if x.numel():
        with torch.cuda.device_of(x):
            _backward[(programs,)](
                x, dy, weight.contiguous(), mean, scale, dx, partial, rows, programs, **tile, enable_fp_fusion=True
            )  # fmt: skip
    dweight, dbias = partial.sum(0)
    return dx, dweight, dbias


def _tile(x: Tensor) -> dict[str, int]:
    """Return the tile of a program, as arguments of the kernels: how many rows of how many values it takes at a time."""
    channels = x.shape[1]
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"this LayerNorm takes float32, bfloat16 or float16, not {x.dtype}")
    if channels > MAX_CHANNELS:
        raise UsageError(f"this LayerNorm takes up to {MAX_CHANNELS} channels, not {channels}")
    block = triton.next_power_of_2(channels)
    return {"C": channels, "ROWS": max(1, _VALUES // block), "BLOCK_C": block, "num_warps": 4 if block <= _VALUES else 8}
