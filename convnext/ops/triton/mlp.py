"""The block's two linear layers on NVIDIA GPUs in Triton, fused with the elementwise operations that follow them.

Rows are positions of an NHWC map. The tensor cores multiply tiles, with sums in float32. The elementwise operations are computed in
float32 from these sums, and their results rounded once.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-call"
# ruff: noqa: N803  # constants of compilation are capitals, as everywhere in Triton

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.errors import UsageError

_VALUES = 2048  # computed by a program of an elementwise kernel


def _tile(rows: int, columns: int, depth: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": depth, "GROUP": 8}, num_warps=warps, num_stages=stages)


_SMALL = _tile(64, 64, 32, 4, 3)
# At most 64 sums per thread: beside 128, the elementwise operations do not fit the registers.
_TILES = [_tile(128, 128, 64, 8, 3), _tile(128, 128, 32, 8, 4), _tile(64, 128, 64, 4, 4), _tile(128, 64, 64, 4, 3), _SMALL]


def _tiles_for(tiles: list[triton.Config], arguments: dict[str, object], *, PRECISION: str, **_: object) -> list[triton.Config]:
    """Return the tiles to try. Full float32 is not multiplied on the tensor cores, and its larger tiles do not fit the registers."""
    a = arguments["a_ptr"]
    assert isinstance(a, Tensor)
    return [_SMALL] if PRECISION == "ieee" and a.dtype == torch.float32 else tiles


_tuned = triton.autotune(
    configs=[_SMALL] if triton.knobs.runtime.interpret else _TILES,
    key=["size", "N", "K", "PRECISION"],
    prune_configs_by={"early_config_prune": _tiles_for},
)


@triton.jit
def _product(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    rows: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Return a program's first row, its columns, and its tile of a bᵀ for a (rows, K) and b (N, K).

    Consecutive programs take the tiles of GROUP rows of tiles column by column, so that they find both operands in the L2 cache.
    """
    row_tiles = tl.cdiv(rows, BLOCK_M)
    tiles: tl.constexpr = GROUP * ((N + BLOCK_N - 1) // BLOCK_N)
    first = tl.program_id(0) // tiles * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    top = (first + tl.program_id(0) % tiles % height) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % tiles // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + top.to(tl.int64) * K + m[:, None] * K + k[None, :]
    b_ptrs = b_ptr + n[None, :] * K + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a_inside = (m < rows - top)[:, None]
        b_inside = (n < N)[None, :]
        if K % BLOCK_K != 0:
            a_inside = a_inside & (start + k < K)[None, :]
            b_inside = b_inside & (start + k < K)[:, None]
        a = tl.load(a_ptrs, mask=a_inside, other=0.0)
        b = tl.load(b_ptrs, mask=b_inside, other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    return top, n, sums


@triton.jit
def _normal_cdf(z: tl.tensor) -> tl.tensor:
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@_tuned
@triton.jit(do_not_specialize=["rows"])
def _gelu_linear(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    z_ptr: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    top, n, z = _product(a_ptr, b_ptr, rows, N, K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP)
    z += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    m = tl.arange(0, BLOCK_M)
    start = top.to(tl.int64) * N
    offsets = m[:, None] * N + n[None, :]
    inside = (m < rows - top)[:, None] & (n < N)[None, :]
    if SAVE:
        tl.store(z_ptr + start + offsets, z.to(z_ptr.dtype.element_ty), mask=inside)
    tl.store(hidden_ptr + start + offsets, (z * _normal_cdf(z)).to(hidden_ptr.dtype.element_ty), mask=inside)


@_tuned
@triton.jit(do_not_specialize=["rows", "positions"])
def _linear_residual(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    gamma_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    shortcut_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    size: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    top, n, branch = _product(a_ptr, b_ptr, rows, N, K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP)
    m = tl.arange(0, BLOCK_M)
    branch += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if HAS_GAMMA:
        branch *= tl.load(gamma_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if HAS_KEEP:
        branch *= tl.load(keep_ptr + (top + m) // positions, mask=m < rows - top, other=0.0).to(tl.float32)[:, None]
    start = top.to(tl.int64) * N
    offsets = m[:, None] * N + n[None, :]
    inside = (m < rows - top)[:, None] & (n < N)[None, :]
    out = tl.load(shortcut_ptr + start + offsets, mask=inside, other=0.0).to(tl.float32) + branch
    tl.store(out_ptr + start + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward(
    dhidden_ptr: tl.tensor, z_ptr: tl.tensor, hidden_ptr: tl.tensor, dz_ptr: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr
) -> None:
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + i, mask=i < count, other=0.0).to(tl.float32)
    dhidden = tl.load(dhidden_ptr + i, mask=i < count, other=0.0).to(tl.float32)
    cdf = _normal_cdf(z)
    density = tl.exp(-0.5 * z * z) * 0.3989422804014327
    tl.store(hidden_ptr + i, (z * cdf).to(hidden_ptr.dtype.element_ty), mask=i < count)
    tl.store(dz_ptr + i, (dhidden * (cdf + z * density)).to(dz_ptr.dtype.element_ty), mask=i < count)


def gelu_linear(y: Tensor, w1: Tensor, b1: Tensor, save: bool) -> tuple[Tensor, Tensor | None]:
    """Return the first linear layer and its GELU (by the error function), GELU(y w1ᵀ + b1).

    Args:
        y: (rows, C), float32, bfloat16 or float16.
        w1: (H, C), used in the type of y.
        b1: (H,), of any of these types.
        save: also return the input of GELU, which its gradient needs.

    Returns:
        (rows, H) after and, if `save`, before GELU, in the type of y.

    Raises:
        UsageError: for other types.
    """
    rows, width = y.shape
    y, w1 = y.contiguous(), w1.to(y.dtype).contiguous()
    hidden = y.new_empty(rows, len(w1))
    z = torch.empty_like(hidden) if save else None
    if hidden.numel():
        with torch.cuda.device_of(y):
            _gelu_linear[_grid(rows, len(w1))](
                y, w1, b1.contiguous(), hidden, hidden if z is None else z, rows, triton.next_power_of_2(rows),
                N=len(w1), K=width, SAVE=save, PRECISION=_precision(y), enable_fp_fusion=True,
            )  # fmt: skip
    return hidden, z


def linear_residual(
    hidden: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, keep: Tensor | None, shortcut: Tensor, positions: int
) -> Tensor:
    """Return the second linear layer with layer scale, stochastic depth and shortcut: shortcut + keep gamma (hidden w2ᵀ + b2).

    Args:
        hidden: (rows, H), float32, bfloat16 or float16.
        w2: (C, H), used in the type of hidden.
        b2: (C,), of any of these types.
        gamma: (C,), likewise, or None for 1.
        keep: (rows / positions,), likewise, the factor of each sample, or None for 1.
        shortcut: (rows, C), likewise.
        positions: rows of a sample.

    Returns:
        (rows, C) in the type of shortcut.

    Raises:
        UsageError: for other types.
    """
    rows, depth = hidden.shape
    hidden, w2, shortcut = hidden.contiguous(), w2.to(hidden.dtype).contiguous(), shortcut.contiguous()
    out = torch.empty_like(shortcut)
    if out.numel():
        with torch.cuda.device_of(hidden):
            _linear_residual[_grid(rows, len(w2))](
                hidden, w2, b2.contiguous(), *(b2 if t is None else t.contiguous() for t in (gamma, keep)), shortcut, out,
                rows, positions, triton.next_power_of_2(rows), N=len(w2), K=depth,
                HAS_GAMMA=gamma is not None, HAS_KEEP=keep is not None, PRECISION=_precision(hidden), enable_fp_fusion=True,
            )  # fmt: skip
    return out


def gelu_backward(dhidden: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return GELU(z), computed again, and the gradient of z given that of GELU(z), both in the type of z; any shape."""
    dhidden, z = dhidden.contiguous(), z.contiguous()
    hidden, dz = torch.empty_like(z), torch.empty_like(z)
    if z.numel():
        with torch.cuda.device_of(z):
            _gelu_backward[(triton.cdiv(z.numel(), _VALUES),)](dhidden, z, hidden, dz, z.numel(), BLOCK=_VALUES, enable_fp_fusion=True)
    return hidden, dz


def _grid(rows: int, columns: int) -> Callable[[dict[str, int]], tuple[int]]:
    return lambda tile: (triton.cdiv(rows, tile["BLOCK_M"]) * triton.cdiv(columns, tile["BLOCK_N"]),)


def _precision(x: Tensor) -> str:
    """Return the precision of products of float32 ("tf32" or "ieee"); the other types have only one."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"this linear layer takes float32, bfloat16 or float16, not {x.dtype}")
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
