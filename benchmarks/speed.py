"""Print the speed table: ConvNeXt by convnext and by its peers with the same weights, in inference and training, on this machine.

    python benchmarks/speed.py [--rows cpu,swin,gpu] [--rounds 9] [--json FILE]

Every contestant runs in a process of its own, with its own memory policy, compiler and threads. They take turns, A B C A B C …, so that
drift of the machine affects all alike. A turn takes as many batches as half a second holds. The table has medians, and the median, the
minimum and the maximum of each round's ratio. Outputs are first compared with timm's in float32.

The host of a virtual machine can take half of a core for seconds, and not the same share from every contestant. So a fixed product of
matrices is timed before and after each turn: a round is quiet if none of its products took more than 1.25 times the fastest so far.
`--rounds` counts quiet rounds; a row ends after six times as many rounds, quiet or not. The ratio over all rounds is printed too, and that
of images per second of CPU time. Each row has goals by kind of CPU: with AMX, AVX-512, AVX2. A row without a goal for this kind is not
measured.
Rows that need a GPU are printed as not measured where there is none. On a GPU, ours are the Triton operators under torch.compile, and
memory is the peak of PyTorch's allocator.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import torch

# Kinds of CPUs: the first in which operators multiply bf16 in tiles, have AVX-512, have AVX2. Environment variables emulate the last:
# ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
AMX, AVX512, AVX2 = "amx", "avx512", "avx2"


@dataclass(frozen=True)
class Row:
    """Ours and its peers: names of contestants, `library/model/precision/batch`, then /train for a training step."""

    title: str
    ours: str
    peers: tuple[str, ...]
    wanted: dict[str, float]  # by kind of CPU; a row is not measured on others
    kind: str = "cpu"


_TB, _SWIN = ("tiny", "base"), {"tiny": 1.47, "small": 1.49, "base": 1.46}  # Swin: the ratios published for an A100
_FLOAT32_PEERS = ("timm", "timm-frozen", "openvino", "onnxruntime")


def _peers(names: Sequence[str], rest: str) -> tuple[str, ...]:
    return tuple(f"{name}/{rest}" for name in names)


ROWS = (
    *(
        Row(
            f"CPU inference, T, batch {batch}, float32",
            f"convnext/tiny/float32/{batch}",
            _peers(_FLOAT32_PEERS, f"tiny/float32/{batch}"),
            wanted,
        )
        for batch, wanted in ((16, {AMX: 1.5, AVX512: 1.2, AVX2: 1.15}), (1, {AMX: 1.15, AVX512: 1.15, AVX2: 1.15}))
    ),
    *(
        Row(
            f"CPU inference, T, batch {batch}, float32, the network as it is",
            f"convnext-as-it-is/tiny/float32/{batch}",
            (f"timm/tiny/float32/{batch}",),
            {AMX: 1.0, AVX512: 1.0, AVX2: 1.0},
        )
        for batch in (16, 8, 1)
    ),
    *(
        Row(
            f"CPU inference, T, batch {batch}, int8",
            f"convnext/tiny/int8/{batch}",
            (f"openvino/tiny/int8/{batch}",),
            {AMX: 1.4, AVX512: 1.4},
        )
        for batch in (16, 1)
    ),
    Row(
        "CPU training step, T, batch 16, float32",
        "convnext/tiny/float32/16/train",
        ("timm/tiny/float32/16/train",),
        {AVX512: 1.25, AVX2: 1.0},
    ),
    Row("CPU inference, T, batch 16, bf16, beside timm eager", "convnext/tiny/bf16/16", ("timm/tiny/bf16/16",), {AMX: 2.5}),
    Row(
        "CPU inference, T, batch 16, bf16, beside compilers",
        "convnext/tiny/bf16/16",
        ("timm-frozen/tiny/bf16/16", "openvino/tiny/bf16/16", "onnxruntime/tiny/float32/16"),
        {AMX: 1.4},
    ),
    Row("CPU inference, T, batch 1, bf16", "convnext/tiny/bf16/1", ("timm/tiny/bf16/1",), {AMX: 1.6}),
    Row("CPU inference, T, batch 16, int8 beside our bf16", "convnext/tiny/int8/16", ("convnext/tiny/bf16/16",), {AMX: 1.3}),
    Row("CPU training step, T, batch 16, bf16 autocast", "convnext/tiny/bf16/16/train", ("timm/tiny/bf16/16/train",), {AMX: 2.5}),
    *(
        Row(
            f"ConvNeXt : Swin, {size}, CPU, batch 16, bf16",
            f"convnext/{size}/bf16/16",
            (f"timm-swin/{size}/bf16/16",),
            {AMX: wanted},
            "swin",
        )
        for size, wanted in _SWIN.items()
    ),
    Row(
        "ConvNeXt : Swin, tiny, CPU, batch 16, float32",
        "convnext/tiny/float32/16",
        ("timm-swin/tiny/float32/16",),
        {AMX: 1.47, AVX512: 1.47, AVX2: 1.47},
        "swin",
    ),
    *(
        Row(
            f"GPU inference, {size}, batch 256, bf16", f"convnext/{size}/bf16/256", (f"timm-compiled/{size}/bf16/256",), {"gpu": 1.5}, "gpu"
        )
        for size in _TB
    ),
    *(
        Row(
            f"GPU training step, {size}, batch 128, bf16",
            f"convnext/{size}/bf16/128/train",
            (f"timm-compiled/{size}/bf16/128/train",),
            {"gpu": 1.5},
            "gpu",
        )
        for size in _TB
    ),
    *(
        Row(
            f"ConvNeXt : Swin, {size}, GPU, batch 256, bf16",
            f"convnext/{size}/bf16/256",
            (f"timm-swin/{size}/bf16/256",),
            {"gpu": wanted},
            "gpu",
        )
        for size, wanted in _SWIN.items()
    ),
)


def cpu_kind() -> str:
    """Return the kind of this CPU, as far as PyTorch uses it."""
    from convnext.ops import dispatch

    return AMX if dispatch.has_amx() else AVX512 if torch.backends.cpu.get_cpu_capability() == "AVX512" else AVX2


class Contestant:
    """The process of a contestant, which takes a turn on request."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.speeds: list[float] = []  # images per second of each turn
        self.per_cpu: list[float] = []  # images per second of CPU time
        command, settings = [sys.executable, str(Path(__file__).with_name("contestant.py")), name, device], dict(os.environ)
        if device != "cpu":
            settings["CONVNEXT_OPS"] = "triton"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=settings, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name}: {self.process.stderr.read().strip().splitlines()[-1]}")
        reported = json.loads(line)
        self.error, self.memory = reported["error"], reported["memory"]

    def turn(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        speed, per_cpu = json.loads(self.process.stdout.readline())
        self.speeds.append(speed)
        self.per_cpu.append(per_cpu)

    def result(self, calm: list[bool]) -> "Result":
        """Return its speeds and their median over the quiet rounds, or over all if none is quiet."""
        chosen = [speed for speed, good in zip(self.speeds, calm, strict=True) if good] or self.speeds
        per_cpu = [speed for speed, good in zip(self.per_cpu, calm, strict=True) if good] or self.per_cpu
        medians = {"median": statistics.median(chosen), "per_cpu_second": statistics.median(per_cpu)}
        return {**medians, "all": self.speeds, "error": self.error, "memory": self.memory}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Result(TypedDict):
    """What a contestant achieved."""

    median: float  # images per second
    per_cpu_second: float
    all: list[float]
    error: float | None
    memory: int | None  # bytes


class Ratio(TypedDict):
    """Our speed divided by the fastest peer's, over the quiet rounds; of_all: the median over all rounds; of_cpu_seconds: per CPU time."""

    median: float
    min: float
    max: float
    of_all: float
    of_cpu_seconds: float


@dataclass
class Measured:
    """A row and its results."""

    row: Row
    speeds: dict[str, Result]
    remarks: list[str]
    rounds: int = 0
    quiet: int = 0
    fastest_peer: str | None = None
    ratio: Ratio | None = None


class Probe:
    """A fixed piece of work whose time shows whether the machine is at full speed."""

    def __init__(self) -> None:
        self.matrix, self.fastest = torch.randn(1024, 1024), float("inf")

    def __call__(self) -> float:
        started = time.perf_counter()
        for _ in range(8):
            self.matrix @ self.matrix
        took = time.perf_counter() - started
        self.fastest = min(self.fastest, took)
        return took


def measure(row: Row, rounds: int, probe: Probe) -> Measured:
    """Return the results of all contestants of a row, measured in turns."""
    entered: list[Contestant] = []
    remarks: list[str] = []
    slowest: list[float] = []  # of the probes of each round, seconds
    for name in (row.ours, *row.peers):
        try:
            entered.append(Contestant(name, "cuda" if row.kind == "gpu" else "cpu"))
        except RuntimeError as error:
            remarks.append(str(error))
    try:
        while len(slowest) < 6 * rounds and sum(quiet(slowest, probe)) < rounds:
            took = [probe()]
            for one in entered:
                one.turn()
                took.append(probe())
            slowest.append(max(took))
    finally:
        for one in entered:
            one.close()
    calm = quiet(slowest, probe)
    speeds = {one.name: one.result(calm) for one in entered}
    found = Measured(row, speeds, remarks, len(calm), sum(calm))
    peers = [name for name in row.peers if name in speeds]
    if row.ours not in speeds or not peers:
        return found
    fastest = max(peers, key=lambda name: speeds[name]["median"])
    ratios = [a / b for a, b in zip(speeds[row.ours]["all"], speeds[fastest]["all"], strict=True)]
    chosen = [ratio for ratio, good in zip(ratios, calm, strict=True) if good] or ratios
    found.fastest_peer = fastest
    cpu = speeds[row.ours]["per_cpu_second"] / speeds[fastest]["per_cpu_second"]
    bounds = {"median": statistics.median(chosen), "min": min(chosen), "max": max(chosen)}
    found.ratio = {**bounds, "of_all": statistics.median(ratios), "of_cpu_seconds": cpu}
    return found


def quiet(slowest: list[float], probe: Probe) -> list[bool]:
    """Return for each round whether it was quiet, by the slowest of its probes."""
    return [took <= 1.25 * probe.fastest for took in slowest]


def to_markdown(found: Measured) -> str:
    """Return a row of the Markdown table."""
    ratio, what, rounds = found.ratio, "not measured | ", "0"
    if ratio is not None:
        what = (
            f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f}; {ratio['of_all']:.2f}) | {ratio['of_cpu_seconds']:.2f}"
        )
        rounds = f"{found.quiet} of {found.rounds}"
    speeds = "; ".join(f"{name} {one['median']:.1f} ({one['per_cpu_second']:.1f}){_details(one)}" for name, one in found.speeds.items())
    remarks = "".join(f"; {remark}" for remark in found.remarks)
    return f"| {found.row.title} | {what} | {goal(found.row)} | {rounds} | {speeds}{remarks} |"


def goal(row: Row) -> float | None:
    """Return the ratio that the row should reach on this machine."""
    return row.wanted.get("gpu" if row.kind == "gpu" else cpu_kind())


def _details(one: Result) -> str:
    error = "" if one["error"] is None else f" (error {one['error']:.0e})"
    return error if one["memory"] is None else f"{error} ({one['memory'] / 2**30:.1f} GiB)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="cpu,swin,gpu")
    parser.add_argument("--only", default="", help="measure only rows whose title contains this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    from convnext.ops import build
    from convnext.training.folder.environment import environment

    has_gpu, probe = torch.cuda.is_available(), Probe()
    machine = environment(torch.device("cuda" if has_gpu else "cpu"))
    results: list[Measured] = []
    words = build.cpu_words() or {}
    features = ", ".join(name for name in build.FEATURES if words and build.has_feature(name, words))
    print(f"{machine['hardware']['cpu']}: {features or 'features unknown'}")
    print(f"PyTorch's operators: {torch.backends.cpu.get_cpu_capability()}; ours: {build.reason()}; goals of a CPU with {cpu_kind()}")
    print(f"load before: {os.getloadavg()[0]:.1f} processes")
    print(f"{machine['hardware']['threads']} threads, GPU {machine['hardware']['gpu']}, {machine['versions']}\n")
    print(
        "| work | ratio to the fastest peer (min to max; of all rounds) | by CPU time | goal | quiet rounds "
        "| images per second (and CPU second) |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for row in ROWS:
        if row.kind not in arguments.rows.split(",") or arguments.only not in row.title or goal(row) is None:
            continue
        missing = row.kind == "gpu" and not has_gpu
        results.append(Measured(row, {}, ["needs a GPU"]) if missing else measure(row, arguments.rounds, probe))
        print(to_markdown(results[-1]), flush=True)
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump({"environment": machine, "rows": [asdict(found.row) | asdict(found) for found in results]}, file, indent=1)
    if "gpu" in arguments.rows and not arguments.only:
        print("\nGPU depthwise convolution beside a copy of the same bytes:", "" if has_gpu else "not measured, needs a GPU\n", flush=True)
        if has_gpu:
            subprocess.run([sys.executable, str(Path(__file__).with_name("gpu_depthwise.py"))], check=True)


if __name__ == "__main__":
    main()
