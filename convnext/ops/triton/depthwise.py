"""Depthwise convolution, stride 1, on NVIDIA GPUs in Triton: forward, input gradient, weight gradient.

Maps are (N, C, H, W) tensors that lie in memory as NHWC: a program's threads are laid out along the channels, so that every access is
coalesced and no thread needs another's data. With 49 multiply-adds for 4 bytes, arithmetic and memory limit these kernels about equally on
an H100. So they do little beside multiply-adds: a loaded value is converted to float32 once and used for K taps from registers, and
addresses advance by additions. They are compiled for GPUs in the tests, but have not been timed on one.

`_convolve` and `_weight_gradient` are long, since Triton keeps their sums in registers only within one function.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-call,assignment"
# ruff: noqa: N803  # constants of compilation are capitals, as everywhere in Triton
# Triton has no type annotations, and a tuple that grows in a kernel has a new type at each step.

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.errors import UsageError

# Tiles of a program of the forward pass. All have four values per thread, which takes less than 100 registers. The order of the sums, and
# so the result, does not depend on the tile.
_TILES = [
    triton.Config({"ROWS": rows, "BLOCK_W": columns, "BLOCK_C": channels}, num_warps=warps)
    for rows, columns, channels, warps in [(7, 8, 32, 2), (7, 8, 64, 4), (4, 8, 32, 2), (4, 8, 64, 4)]
]
# The weight gradient is not tuned by timing: its tile decides the order of its sums, which must be the same in every run.
_COLUMNS, _CHANNELS, _STRIP, _PROGRAMS = 8, 32, 64, 396  # 396: three programs, as many as fit the registers, on each of 132 multiprocessors


@triton.jit
def _mask(w: tl.tensor, width: tl.tensor, c_inside: tl.tensor, alive: tl.tensor) -> tl.tensor:
    """Return which of the columns w of a row are in the map; none if `alive` is false."""
    return ((w >= 0) & (w < tl.where(alive, width, 0)))[:, None] & c_inside[None, :]


@triton.autotune(configs=_TILES[:1] if triton.knobs.runtime.interpret else _TILES, key=["area", "C", "K"])
@triton.jit(do_not_specialize=["height", "width"])
def _convolve(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    area: tl.tensor,
    C: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROTATED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    pad: tl.constexpr = K // 2
    program = tl.program_id(0)
    c = (program % tl.cdiv(C, BLOCK_C)) * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // tl.cdiv(C, BLOCK_C)
    w = (program % tl.cdiv(width, BLOCK_W)) * BLOCK_W + tl.arange(0, BLOCK_W)
    program = program // tl.cdiv(width, BLOCK_W)
    top = (program % tl.cdiv(height, ROWS)) * ROWS
    first_row = (program // tl.cdiv(height, ROWS)).to(tl.int64) * height + top  # counted through all images
    c_inside = c < C
    offsets = w[:, None] * C + c[None, :]
    stride = (width * C).to(tl.int64)

    start = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias_ptr + c, mask=c_inside, other=0.0).to(tl.float32)[None, :]
    sums = ()
    for _ in tl.static_range(ROWS):
        sums += (start,)

    # One column of the kernel at a time, so that K weights are in registers; each input row serves up to K output rows.
    column_ptrs = x_ptr + (first_row - pad) * stride - pad * C + offsets
    for kx in range(K):
        weights = ()
        for ky in tl.static_range(K):
            tap = ky * K + kx
            if ROTATED:
                tap = K * K - 1 - tap
            weights += (tl.load(weight_ptr + tap * C + c, mask=c_inside, other=0.0)[None, :],)
        column = w + (kx - pad)
        line_ptrs = column_ptrs
        for i in tl.static_range(ROWS + K - 1):
            row = top + i - pad
            inside = _mask(column, width, c_inside, (row >= 0) & (row < height))
            line = tl.load(line_ptrs, mask=inside, other=0.0).to(tl.float32)
            new = ()
            for r in tl.static_range(ROWS):
                if i - r >= 0 and i - r < K:
                    new += (sums[r] + line * weights[i - r],)
                else:
                    new += (sums[r],)
            sums = new
            line_ptrs += stride
        column_ptrs += C

    y_ptrs = y_ptr + first_row * stride + offsets
    for r in tl.static_range(ROWS):
        tl.store(y_ptrs, sums[r].to(y_ptr.dtype.element_ty), mask=_mask(w, width, c_inside, top + r < height))
        y_ptrs += stride


@triton.jit
def _load_shifted(
    ptrs: tl.tensor,
    w: tl.tensor,
    width: tl.tensor,
    c_inside: tl.tensor,
    alive: tl.tensor,
    first: tl.tensor,
    C: tl.constexpr,
    SHIFTS: tl.constexpr,
) -> tl.tensor:
    """Return a row of x as the taps at columns first, first + 1, … read it."""
    shifted = ()
    for j in tl.static_range(SHIFTS):
        shifted += (tl.load(ptrs + j * C, mask=_mask(w + (first + j), width, c_inside, alive), other=0.0),)
    return shifted


@triton.jit(do_not_specialize=["images", "height", "width", "strip", "splits"])
def _weight_gradient(
    x_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    images: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    strip: tl.tensor,
    splits: tl.tensor,
    C: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    pad: tl.constexpr = K // 2
    program = tl.program_id(0)
    c = (program % tl.cdiv(C, BLOCK_C)) * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // tl.cdiv(C, BLOCK_C)
    first = (program % tl.cdiv(K, GROUP)) * GROUP
    program = program // tl.cdiv(K, GROUP)
    w = (program % tl.cdiv(width, BLOCK_W)) * BLOCK_W + tl.arange(0, BLOCK_W)
    c_inside = c < C
    offsets = w[:, None] * C + c[None, :]
    stride = (width * C).to(tl.int64)

    zero = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    bias = zero
    sums = ()
    for _ in tl.static_range(GROUP * K):
        sums += (zero,)

    # Down a strip of rows: the K rows of dy that an input row is multiplied by stay in registers, and each step reads one row of x and
    # one of dy. The next step's rows are loaded before this step's arithmetic, which hides their latency.
    strips = tl.cdiv(height, strip)
    for item in range(program // tl.cdiv(width, BLOCK_W), images * strips, splits):
        top = (item % strips) * strip
        bottom = tl.minimum(top + strip, height)
        start = tl.maximum(top - pad, 0)
        stop = tl.minimum(bottom + pad, height)
        first_row = (item // strips).to(tl.int64) * height + start
        dy_ptrs = dy_ptr + (first_row - pad) * stride + offsets
        x_ptrs = x_ptr + first_row * stride + (first - pad) * C + offsets
        above = ()
        for i in tl.static_range(K - 1):
            row = start - pad + i
            dy = tl.load(dy_ptrs, mask=_mask(w, width, c_inside, (row >= top) & (row < bottom)), other=0.0).to(tl.float32)
            bias += dy
            above = (dy,) + above  # noqa: RUF005  # Triton has no star expressions
            dy_ptrs += stride
        x_next = _load_shifted(x_ptrs, w, width, c_inside, start < stop, first - pad, C, GROUP)
        dy_next = tl.load(dy_ptrs, mask=_mask(w, width, c_inside, start + pad < bottom), other=0.0)
        for row in range(start, stop):
            x_ptrs += stride
            dy_ptrs += stride
            shifted, dy = x_next, dy_next.to(tl.float32)
            x_next = _load_shifted(x_ptrs, w, width, c_inside, row + 1 < stop, first - pad, C, GROUP)
            dy_next = tl.load(dy_ptrs, mask=_mask(w, width, c_inside, row + 1 + pad < bottom), other=0.0)
            bias += dy
            met = (dy,) + above  # noqa: RUF005
            new = ()
            for j in tl.static_range(GROUP):
                x = shifted[j].to(tl.float32)
                for ky in tl.static_range(K):
                    new += (sums[j * K + ky] + x * met[ky],)
            sums = new
            above = met[: K - 1]

    partial_ptrs = partial_ptr + program.to(tl.int64) * (K * K + 1) * C + c
    for j in tl.static_range(GROUP):
        for ky in tl.static_range(K):
            c_end = tl.where(first + j < K, C, 0)
            tl.store(partial_ptrs + (ky * K + first + j) * C, tl.sum(sums[j * K + ky], 0), mask=c < c_end)
    tl.store(partial_ptrs + K * K * C, tl.sum(bias, 0), mask=c < tl.where(first == 0, C, 0))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the depthwise convolution with stride 1 and padding K // 2; sums in float32.

    Args:
        x: (N, C, H, W), float32, bfloat16 or float16; copied first if it is not NHWC in memory.
        weight: (C, 1, K, K), K odd, of any of these types.
        bias: (C,) or None.

    Returns:
        (N, C, H, W) in the type of x, NHWC in memory.

    Raises:
        UsageError: for an even kernel and for other types.
    """
    return _launch(x, weight, bias, rotated=False)


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the input, given that of the output, dy (N, C, H, W): a convolution with the kernel rotated by 180 degrees."""
    return _launch(dy, weight, None, rotated=True)


def weight_gradient(x: Tensor, dy: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight (C, 1, K, K) and the bias (C,), float32, for x and dy (N, C, H, W).

    They have the same bits in every run: each program writes the sums of its part, and these are added in a fixed order.
    """
    _check(x, kernel)
    images, channels, height, width = x.shape
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy.to(x.dtype)))
    if x.numel() == 0:
        return x.new_zeros(channels, 1, kernel, kernel, dtype=torch.float32), x.new_zeros(channels, dtype=torch.float32)
    group = max(1, min(kernel, 49 // kernel))  # columns of the kernel that a program sums: as many as fit the registers
    columns = triton.cdiv(width, _COLUMNS)
    alike = columns * triton.cdiv(kernel, group) * triton.cdiv(channels, _CHANNELS)
    items = images * triton.cdiv(height, _STRIP)
    splits = triton.cdiv(items, triton.cdiv(items, max(1, _PROGRAMS // alike)))
    partial = x.new_empty(splits * columns, kernel * kernel + 1, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _weight_gradient[(splits * alike,)](
            x, dy, partial, images, height, width, _STRIP, splits,
            C=channels, K=kernel, GROUP=group, BLOCK_W=_COLUMNS, BLOCK_C=_CHANNELS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    total = partial.sum(0)
    return total[:-1].t().reshape(channels, 1, kernel, kernel), total[-1]


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, *, rotated: bool) -> Tensor:
    kernel = weight.shape[-1]
    _check(x, kernel)
    images, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel() == 0:
        return y
    taps = weight.new_empty(kernel * kernel, channels, dtype=torch.float32)  # neighbouring threads read neighbouring channels
    taps.copy_(weight.reshape(channels, kernel * kernel).t())

    def grid(tile: dict[str, int]) -> tuple[int]:
        blocks = triton.cdiv(width, tile["BLOCK_W"]) * triton.cdiv(channels, tile["BLOCK_C"])
        return (images * triton.cdiv(height, tile["ROWS"]) * blocks,)

    area = triton.next_power_of_2(height * width)  # key of the tuning: not every size of map is tuned anew
    with torch.cuda.device_of(x):
        _convolve[grid](
            x, taps, taps if bias is None else bias.contiguous(), y, height, width, area,
            C=channels, K=kernel, HAS_BIAS=bias is not None, ROTATED=rotated, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def _check(x: Tensor, kernel: int) -> None:
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"this depthwise convolution takes maps in float32, bfloat16 or float16, not {x.dtype}")
    if kernel % 2 == 0:
        raise UsageError(f"kernel_size must be odd for the map to keep its size, not {kernel}")
