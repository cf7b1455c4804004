"""The CPU's fast operators: C++ in csrc/, compiled by the system's compiler on first use, and called on tensors.

Nothing here checks what it is given beyond what would crash: `depthwise.py`, `norm.py` and `mlp.py` choose between these and plain
PyTorch. Maps are (N, C, H, W) tensors that lie in memory as NHWC; results are too.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.errors import ConvnextError

SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
KERNELS = (3, 5, 7, 9, 11)


class _NoneHereError(Exception):
    """Why there are no compiled operators here."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled operators, or None where there are none: `reason()` says why. A compiler that fails is warned of, once."""
    return _load()[0]


def reason() -> str:
    """Where the operators lie, or why there are none."""
    return _load()[1]


def has_tiles() -> bool:
    """Whether this CPU multiplies bf16 matrices in tiles (AMX) and the system lets it."""
    found = library()
    return found is not None and bool(found.has_tiles())


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    try:
        file = _build()
        found = ctypes.CDLL(str(file))
        found.has_tiles()  # asks the system for them: without, their first use would end the process
        return found, str(file)
    except _NoneHereError as told:
        return None, str(told)
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(f"the fast CPU operators could not be built, plain PyTorch is used instead: {error}", stacklevel=2)
        return None, f"the build failed: {error}"


def _build() -> Path:
    """The library's file, compiled if this machine has none of these sources yet. Raises _NoneHereError, OSError, SubprocessError."""
    if sys.platform != "linux" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise _NoneHereError("they need Linux and a CPU with AVX-512")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise _NoneHereError("there is no C++ compiler: install g++ (apt install g++), or name one in CXX")
    cache = Path(os.environ.get("CONVNEXT_CACHE") or "~/.cache/convnext").expanduser() / "ops"
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{_fingerprint(compiler)}.so"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process builds, the others wait and find it
        if not file.exists():
            _compile(compiler, file)
    return file


def _fingerprint(compiler: str) -> str:
    """Of all that decides what the compiler makes."""
    about = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = [about, " ".join(_FLAGS).encode(), platform.machine().encode(), _cpu_flags()]
    parts += [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cpu_flags() -> bytes:
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith(b"flags")), b"")


def _compile(compiler: str, file: Path) -> None:
    print("compiling the fast CPU operators, once on this machine (some 10 seconds)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        objects = [Path(folder, f"{source.stem}.o") for source in sorted(SOURCES.glob("*.cpp"))]
        runs = [
            subprocess.Popen(
                [compiler, *_FLAGS, "-c", str(SOURCES / f"{made.stem}.cpp"), "-o", str(made)], stderr=subprocess.PIPE, text=True
            )
            for made in objects
        ]
        complaints = [run.communicate()[1] for run in runs]
        if any(run.returncode for run in runs):
            raise subprocess.SubprocessError(f"{compiler} says: {' '.join(complaints).strip()[:2000]}")
        done = Path(folder, "whole.so")
        subprocess.run([compiler, *_FLAGS, "-shared", *map(str, objects), "-o", str(done)], check=True, capture_output=True, timeout=600)
        os.replace(done, file)


def _call(name: str, *arguments: Any) -> None:
    """Tensors become their addresses, None a null pointer, and whole numbers 64 bits unless they came as ctypes."""
    found = library()
    assert found is not None
    if getattr(found, name)(*map(_argument, arguments)):
        raise ConvnextError(f"the compiled operator {name} ran out of memory: lower the batch size")


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, bool):
        return ctypes.c_int(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    if isinstance(value, torch.dtype):
        return ctypes.c_int(_DTYPES[value])
    return ctypes.c_void_p(None) if value is None else ctypes.c_int64(value)


def _nhwc(x: Tensor) -> Tensor:
    # Not by is_contiguous(channels_last), which maps of one pixel or one channel meet in any layout.
    return x.permute(0, 2, 3, 1).contiguous()


def _float32(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def depthwise_forward(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """X (N, C, H, W) float32 or bf16, convolved by weight (C, 1, K, K), plus bias (C,) or a map, in whose dtype the result then is."""
    x, taps = _nhwc(x), taps_of(weight)
    bias, add = _floats(bias), None if add is None else _nhwc(add)
    y = torch.empty_like(x if add is None else add)
    n, height, width, channels = x.shape
    _call("depthwise_forward", x, taps, bias, add, y, x.dtype, y.dtype, n, height, width, channels, weight.shape[-1])
    return y.permute(0, 3, 1, 2)


def depthwise_weight_gradient(x: Tensor, dy: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """The gradients of weight (C, 1, K, K) and bias (C,), float32; x and dy of one dtype, or x float32 and dy bf16."""
    x, dy = _nhwc(x), _nhwc(dy)
    n, height, width, channels = x.shape
    dweight, dbias = _float32(x, kernel, kernel, channels), _float32(x, channels)
    _call("depthwise_weight_gradient", x, dy, dweight, dbias, x.dtype, dy.dtype, n, height, width, channels, kernel)
    return dweight.permute(2, 0, 1).unsqueeze(1).contiguous(), dbias


def norm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last dimension: the result in x's dtype or `dtype`, and of each position the mean and 1 / deviation, float32."""
    x = x.contiguous()
    y, mean, scale = torch.empty_like(x, dtype=dtype), _float32(x, *x.shape[:-1]), _float32(x, *x.shape[:-1])
    _call("norm_forward", x, weight.float(), bias.float(), y, mean, scale, x.dtype, y.dtype, mean.numel(), x.shape[-1], eps)
    return y, mean, scale


def norm_backward(x: Tensor, dy: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, the last two float32."""
    x, dy = x.contiguous(), dy.contiguous()
    dx, dweight, dbias = torch.empty_like(x), _float32(x, x.shape[-1]), _float32(x, x.shape[-1])
    _call("norm_backward", x, dy, weight.float(), mean, scale, dx, dweight, dbias, x.dtype, dy.dtype, mean.numel(), x.shape[-1])
    return dx, dweight, dbias


def pack(weight: Tensor, rows: Tensor | None, columns: Tensor | None, tiles: bool) -> Tensor:
    """A matrix (n, k), times `rows` (n,) and `columns` (k,) where given, in the order that the products read, padded to 32s."""
    n, k = weight.shape
    packed = weight.new_empty(-(-n // 32) * -(-k // 32) * 1024, dtype=torch.bfloat16 if tiles else torch.float32)
    weight = weight.float()
    _call("mlp_pack", weight, *weight.stride(), _floats(rows), _floats(columns), packed, n, k, tiles)
    return packed


def _floats(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float().contiguous()


def _pad(bias: Tensor) -> Tensor:
    return F.pad(bias.float(), (0, -bias.numel() % 32))  # zeros for columns that only fill up


class Packed(NamedTuple):
    """The MLP's weights in the order in which the compiled operators read them: bf16 for tiles, else float32."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    hidden: int

    @property
    def tiles(self) -> bool:
        """Whether they are for tiles."""
        return self.first.dtype == torch.bfloat16


def packed(
    w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor | None, tiles: bool, norm: tuple[Tensor, Tensor] | None = None
) -> Packed:
    """The weights for the forward pass, with the norm's weight and bias before and the layer scale behind them folded in, exactly."""
    weight, bias = (None, None) if norm is None else norm
    first_bias = b1 if bias is None else torch.addmv(b1.float(), w1.float(), bias.float())
    second_bias = b2 if gamma is None else b2.float() * gamma
    return Packed(pack(w1, None, weight, tiles), _pad(first_bias), pack(w2, gamma, None, tiles), _pad(second_bias), len(w1))


def mlp_forward(y: Tensor, shortcut: Tensor, weights: Packed, keep: Tensor | None) -> Tensor:
    """Shortcut + keep γ (GELU(y W1ᵀ + b1) W2ᵀ + b2); y (N, …, C) bf16 with tiles, shortcut as y or float32, keep (N,)."""
    y, shortcut = y.contiguous(), shortcut.contiguous()
    out, rows = torch.empty_like(shortcut), y.numel() // y.shape[-1]
    sizes = (rows, rows // len(y), y.shape[-1], weights.hidden)
    _call("mlp_forward", y, shortcut, out, *weights[:4], _floats(keep), out.dtype, *sizes, weights.tiles)
    return out


class Norm(NamedTuple):
    """What the backward pass of the whole block needs of the norm: each position's mean and 1 / deviation, and its parameters."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor


class Gradients(NamedTuple):
    """Of the MLP before its scale: y has y's dtype, the others are float32; of the norm's parameters where it took part."""

    y: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


def mlp_backward(
    y: Tensor, dout: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, gamma: Tensor | None, keep: Tensor | None, norm: Norm | None = None
) -> Gradients:
    """The gradients. With `norm`, y is the map before the norm, and its gradient is that map's."""
    y, dout, channels, hidden, tiles = y.contiguous(), dout.contiguous(), y.shape[-1], len(w1), y.dtype == torch.bfloat16
    first, second, transposed = pack(w1, None, None, tiles), pack(w2.T, None, gamma, tiles), pack(w1.T, None, None, tiles)
    found = library()
    assert found is not None
    found.mlp_backward_sums.restype = ctypes.c_int64
    rows = y.numel() // channels
    size = found.mlp_backward_sums(*map(ctypes.c_int64, (rows, channels, hidden)), ctypes.c_int(tiles))
    dy, sums = torch.empty_like(y), _float32(y, size)
    of_norm = (None,) * 4 if norm is None else (norm.mean, norm.scale, norm.weight.float(), norm.bias.float())
    sizes = (rows, rows // len(y), channels, hidden)
    packed = (first, _pad(b1), second, transposed)
    _call("mlp_backward", y, *of_norm, dout, *packed, _floats(keep), dy, sums, dout.dtype, *sizes, tiles)
    width, columns = channels + -channels % 32, hidden + -hidden % 32
    parts = [width * columns, width * columns, columns, width, width, width]
    dw1, dw2, db1, *of_width = torch.split(sums[: sum(parts)], parts)
    dw1, dw2 = dw1.view(width, columns)[:channels, :hidden], dw2.view(width, columns)[:channels, :hidden]
    return Gradients(dy, dw1.T, db1[:hidden], dw2, *(sums[:channels] for sums in of_width))


def block_forward(
    x: Tensor, taps: Tensor, bias: Tensor | None, eps: float, weights: Packed, keep: Tensor | None, train: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """ConvNeXt's whole block, and with `train` what its backward pass needs: the convolution's result, means and 1 / deviations.

    x (N, C, H, W) is float32, or with tiles bf16; taps (K, K, C) and bias (C,) are float32.
    """
    x = _nhwc(x)
    n, height, width, channels = x.shape
    out, convolved, mean, scale = torch.empty_like(x), None, None, None
    if train:
        convolved = torch.empty_like(x, dtype=torch.bfloat16 if weights.tiles else torch.float32)
        mean, scale = _float32(x, n, height, width), _float32(x, n, height, width)
    sizes = (n, height, width, channels, weights.hidden, taps.shape[0])
    kept = (convolved, mean, scale)
    _call("block_forward", x, taps, bias, eps, *weights[:4], _floats(keep), *kept, out, x.dtype, *sizes, weights.tiles)
    return out.permute(0, 3, 1, 2), *kept


def taps_of(weight: Tensor) -> Tensor:
    """A depthwise convolution's weight (C, 1, K, K) as (K, K, C) float32."""
    return weight.float()[:, 0].permute(1, 2, 0).contiguous()


class Patchify(NamedTuple):
    """A convolution whose kernel is its stride, packed: with a norm before it or behind it."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None  # of the norm behind
    norm_bias: Tensor | None
    eps: float
    normed: bool  # whether each pixel is normalised before; the affine is in the weight
    patch: int
    outputs: int


def packed_patches(weight: Tensor, bias: Tensor, normed: bool, tiles: bool) -> tuple[Tensor, Tensor]:
    """A convolution's weight (O, C, p, p) and bias (O,) as `patchify_forward` reads them."""
    outputs, _, patch, _ = weight.shape
    # In memory lie together a pixel's channels, or a row of the patch; each such piece is filled up to a multiple of 16.
    pieces = weight.float().permute(0, 2, 3, 1).reshape(outputs, patch * patch if normed else patch, -1)
    columns = F.pad(pieces, (0, -pieces.shape[-1] % 16)).flatten(1)
    return pack(F.pad(columns, (0, -columns.shape[-1] % 32)), None, None, tiles), _pad(bias)


def patchify_forward(x: Tensor, held: Patchify) -> Tensor:
    """The convolution of x (N, C, H, W), float32 or bf16, as (N, O, H // p, W // p) float32."""
    x = _nhwc(x)
    n, height, width, channels = x.shape
    out = _float32(x, n, height // held.patch, width // held.patch, held.outputs)
    sizes = (n, height, width, channels, held.patch, held.outputs)
    behind, tiles = (held.norm_weight, held.norm_bias), held.weight.dtype == torch.bfloat16
    _call("patchify_forward", x, held.normed, held.eps, held.weight, held.bias, *behind, out, x.dtype, *sizes, tiles)
    return out.permute(0, 3, 1, 2)


class Quantized(NamedTuple):
    """The MLP's weights in 8 bits, packed, with the scale and bias of each output, and the hidden values' scale and zero point."""

    first: Tensor
    first_scale: Tensor
    first_bias: Tensor
    second: Tensor
    second_scale: Tensor
    second_bias: Tensor
    hidden_scale: float
    hidden_zero: float
    hidden: int


def quantized(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, hidden_scale: float, hidden_zero: int) -> Quantized:
    """Folded float32 weights (4 C, C), (4 C,), (C, 4 C), (C,) in 8 bits, symmetric, with a scale for each output."""
    (first, scale1, _), (second, scale2, sums) = _in_8_bits(w1, 64), _in_8_bits(w2, 32)
    # Hidden values are hidden_scale (q - hidden_zero): what the zero point adds to each output goes into its bias.
    scale2 = scale2 * hidden_scale
    bias2 = F.pad(b2, (0, len(scale2) - len(b2))) - scale2 * hidden_zero * sums
    bias1 = F.pad(b1, (0, len(scale1) - len(b1)))
    return Quantized(first, scale1, bias1, second, scale2, bias2.contiguous(), hidden_scale, float(hidden_zero), len(w1))


def _in_8_bits(weight: Tensor, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed weights, and of each output, filled up to a multiple, the scale and the sum of its whole numbers."""
    n, k = weight.shape
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    whole = (weight / scale.unsqueeze(1)).round().to(torch.int8).contiguous()
    columns = n + -n % multiple
    packed = whole.new_empty(columns * (k + -k % 64))
    _call("int8_pack", whole, packed, n, k, columns)
    filled = F.pad(scale, (0, columns - n)), F.pad(whole.sum(1, dtype=torch.int32).float(), (0, columns - n))
    return packed, *filled


def int8_block_forward(x: Tensor, taps: Tensor, bias: Tensor, eps: float, w: Quantized) -> Tensor:
    """ConvNeXt's whole block on x (N, C, H, W) float32 with products of 8 bits."""
    x = _nhwc(x)
    n, height, width, channels = x.shape
    out = torch.empty_like(x)
    _call("int8_block_forward", x, taps, bias, eps, *w[:8], out, n, height, width, channels, w.hidden, taps.shape[0])
    return out.permute(0, 3, 1, 2)
