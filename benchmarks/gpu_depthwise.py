"""Time depthwise convolution on an NVIDIA GPU: ours, cuDNN's, and a copy of the same bytes, in bfloat16.

    python benchmarks/gpu_depthwise.py [--kernel 7] [--batch 128] [--rounds 20]

The maps are those of ConvNeXt-T's four stages, NHWC. Each pass reads and writes as many bytes as `x.clone()`, so the ratio to the copy's
speed compares it with the limit of the memory. All take turns, round by round, each after a write of 256 MB, which clears the cache of
inputs. Milliseconds are medians over the rounds, by the GPU's clock. Compiling and tuning are not timed. Prints a Markdown table.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

STAGES = [(96, 56), (192, 28), (384, 14), (768, 7)]


def milliseconds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median time of each in milliseconds; they take turns."""
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 3):  # the first three warm up
        for name, work in works.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def passes(x: torch.Tensor, dy: torch.Tensor, kernel: int) -> dict[str, Callable[[], object]]:
    """Return the work to time, by name. Parameters are in bfloat16 too, as under autocast."""
    from convnext.ops.triton import depthwise

    channels, pad = x.shape[1], kernel // 2
    weight = torch.randn(channels, 1, kernel, kernel, device="cuda", dtype=x.dtype)
    bias = torch.randn(channels, device="cuda", dtype=x.dtype)

    def cudnn_backward(*wanted: bool) -> object:
        backward = torch.ops.aten.convolution_backward
        return backward(dy, x, weight, [channels], [1, 1], [pad, pad], [1, 1], False, [0, 0], channels, list(wanted))

    return {
        "copy": x.clone,
        "forward": lambda: depthwise.forward(x, weight, bias),
        "forward, cuDNN": lambda: F.conv2d(x, weight, bias, padding=pad, groups=channels),
        "input gradient": lambda: depthwise.input_gradient(dy, weight),
        "input gradient, cuDNN": lambda: cudnn_backward(True, False, False),
        "weight gradient": lambda: depthwise.weight_gradient(x, dy, kernel),
        "weight gradient, cuDNN": lambda: cudnn_backward(False, True, True),
    }


def main() -> None:
    """Print the hardware, the versions and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("kernel", 7), ("batch", 128), ("rounds", 20)):
        parser.add_argument(f"--{option}", type=int, default=default)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU here (torch.cuda.is_available() is false): nothing to measure")
    import triton

    torch.backends.cudnn.benchmark = True
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    print(f"{torch.cuda.get_device_name()}; {versions}; batch {options.batch}, {options.kernel} x {options.kernel}, bfloat16\n")
    print("| map | pass | ms | ms, cuDNN | times as fast | share of the copy's speed |\n|---|---|---:|---:|---:|---:|")
    for channels, side in STAGES:
        shape = options.batch, channels, side, side
        x, dy = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last) for _ in range(2))
        times = milliseconds(passes(x, dy, options.kernel), options.rounds)
        for name in ("forward", "input gradient", "weight gradient"):
            ours, theirs = times[name], times[f"{name}, cuDNN"]
            ratios = f"{theirs / ours:.2f} | {times['copy'] / ours:.2f}"
            print(f"| {channels} x {side} x {side} | {name} | {ours:.3f} | {theirs:.3f} | {ratios} |")
        print(f"| {channels} x {side} x {side} | copy | {times['copy']:.3f} | | | 1.00 |")


if __name__ == "__main__":
    main()
