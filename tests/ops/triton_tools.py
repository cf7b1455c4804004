"""Tools to test Triton kernels without a GPU: Triton's interpreter runs them, and its compiler compiles them for a GPU."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_under_the_interpreter")
outside = pytest.mark.skipif(INTERPRETED, reason="not under the interpreter")
gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no GPU")
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def run_under_interpreter(*files, select=""):
    """Run the interpreted tests of files in a process of their own: Triton reads the variable when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", select, *files]  # one -q of addopts keeps the summary
    result = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout, result.stdout


def assert_rounded(found, wanted, sums=2e-6):
    """Check that `found` is `wanted` (float64), rounded once to its type, but for errors of float32 sums: `sums` times the largest."""
    # The interpreter cuts float32 to bfloat16 where a GPU rounds.
    unit = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}[found.dtype]
    assert found.shape == wanted.shape
    if wanted.numel():
        excess = (found.double() - wanted).abs() - unit * wanted.abs()
        assert excess.max() <= sums * max(wanted.abs().max(), 1e-3), excess.max() / wanted.abs().max()


@contextmanager
def compiling(capability=90):
    """Compile each kernel that is launched, in each tile that would be tried, instead of running it. Yields a list of what they use."""
    used = []

    def compile_kernel(kernel, *arguments, grid, warmup, **named):
        assert all(isinstance(side, int) and side > 0 for side in (grid(named) if callable(grid) else grid))
        arguments = dict(zip(kernel.arg_names, arguments, strict=False)) | {k: v for k, v in named.items() if k in kernel.arg_names}
        assert list(arguments) == kernel.arg_names
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            value = arguments[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            else:
                tensor = isinstance(value, torch.Tensor)
                signature[parameter.name] = f"*{TYPES[value.dtype]}" if tensor else "fp32" if isinstance(value, float) else "i32"
                if tensor or (isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize):
                    attributes[(i,)] = [["tt.divisibility", 16]]
        options = {k: v for k, v in named.items() if k not in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        used.append({"kernel": kernel.__name__, "shared": done.metadata.shared} | constants | _resources(done.asm["cubin"]))

    def all_tiles(tuner, *arguments, **named):
        tuner.nargs = dict(zip(tuner.arg_names, arguments, strict=False))
        for tile in tuner.prune_configs(named):
            tuner.fn.run(*arguments, **named, **tile.all_kwargs())

    with patch.object(triton.runtime.JITFunction, "run", compile_kernel), patch.object(triton.runtime.Autotuner, "run", all_tiles):
        yield used


def _resources(cubin):
    """Return the registers and the bytes of stack (spilled registers) of a thread."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"convnext-{os.getpid()}.cubin"
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    path.unlink()
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return {"registers": int(registers), "stack": int(stack)}
