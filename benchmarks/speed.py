"""The speed table: ConvNeXt by convnext beside its peers, each with the same weights, inference and training, on this machine.

    python benchmarks/speed.py [--rows cpu,swin,gpu] [--rounds 9] [--json FILE]

Every contestant lives in a process of its own, with its own memory policy, compiler and threads, and answers only when asked: they take
turns, A B C A B C …, so that drift of the machine meets all alike. A turn is as many batches as half a second holds. Given are medians,
and the median of each round's ratio with the least and the most beside it. Outputs are compared with timm's in float32 before.

On a virtual machine, whatever else its host does can take half of a core for seconds, and not by the same share from all. So a fixed
product of matrices is timed before and after each turn: a round is quiet if none of its products took more than 1.25 times the fastest
ever seen. `--rounds` are quiet ones; after six times as many, quiet or not, a row is over. The ratio over all rounds is printed too.
The bars ("wanted") of rows on a CPU are for one with AMX: where it has none, they are printed with "(AMX)" behind them.
Rows that need a GPU are printed as not measured where there is none; on one, ours are the Triton operators under torch.compile, and
memory is the peak that PyTorch's allocator saw.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SECONDS = 0.5  # of a turn
Batch = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """Ours and its peers: names of contestants, `library/model/precision/batch` with /train where that is meant."""

    title: str
    ours: str
    peers: tuple[str, ...]
    wanted: float
    kind: str = "cpu"


_TB, _SWIN = ("tiny", "base"), {"tiny": 1.47, "small": 1.49, "base": 1.46}  # of Swin: the ratios published for an A100
ROWS = (
    Row("CPU inference, T, batch 16, bf16, beside timm eager", "convnext/tiny/bf16/16", ("timm/tiny/bf16/16",), 2.5),
    Row(
        "CPU inference, T, batch 16, bf16, beside compilers",
        "convnext/tiny/bf16/16",
        ("timm-frozen/tiny/bf16/16", "openvino/tiny/bf16/16", "onnxruntime/tiny/float32/16"),
        1.4,
    ),
    Row("CPU inference, T, batch 1, bf16", "convnext/tiny/bf16/1", ("timm/tiny/bf16/1",), 1.6),
    Row("CPU inference, T, batch 16, float32", "convnext/tiny/float32/16", ("timm/tiny/float32/16",), 1.5),
    Row("CPU inference, T, batch 16, int8 beside our bf16", "convnext/tiny/int8/16", ("convnext/tiny/bf16/16",), 1.3),
    Row("CPU training step, T, batch 16, bf16 autocast", "convnext/tiny/bf16/16/train", ("timm/tiny/bf16/16/train",), 2.5),
    *(
        Row(f"ConvNeXt : Swin, {size}, CPU, batch 16, bf16", f"convnext/{size}/bf16/16", (f"timm-swin/{size}/bf16/16",), wanted, "swin")
        for size, wanted in _SWIN.items()
    ),
    Row("ConvNeXt : Swin, tiny, CPU, batch 16, float32", "convnext/tiny/float32/16", ("timm-swin/tiny/float32/16",), 1.47, "swin"),
    *(
        Row(f"GPU inference, {size}, batch 256, bf16", f"convnext/{size}/bf16/256", (f"timm-compiled/{size}/bf16/256",), 1.5, "gpu")
        for size in _TB
    ),
    *(
        Row(
            f"GPU training step, {size}, batch 128, bf16",
            f"convnext/{size}/bf16/128/train",
            (f"timm-compiled/{size}/bf16/128/train",),
            1.5,
            "gpu",
        )
        for size in _TB
    ),
    *(
        Row(f"ConvNeXt : Swin, {size}, GPU, batch 256, bf16", f"convnext/{size}/bf16/256", (f"timm-swin/{size}/bf16/256",), wanted, "gpu")
        for size, wanted in _SWIN.items()
    ),
)
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def random_images(batch: int) -> Tensor:
    """Images of noise, the same for all, channels-last."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def network(library: str, size: str) -> Any:
    """The float32 network; ours and timm's ConvNeXt hold the same weights, under which each part matters to the outputs."""
    from convnext.paper.contestants import build, build_peer

    if library == "timm-swin":
        import timm

        torch.manual_seed(0)
        return timm.create_model(f"swin_{size}_patch4_window7_224").eval()
    ours = build(f"convnext_{size}").eval()
    return ours if library == "convnext" else build_peer(f"convnext_{size}", ours, "timm").eval()


def inference(library: str, size: str, precision: str, batch: int, device: str) -> tuple[Batch, float | None]:
    """What takes one batch through the contestant, and its outputs' error relative to timm's in float32."""
    model, x = network(library, size), random_images(batch)
    wanted = None
    if library != "timm-swin":
        with torch.inference_mode():
            wanted = network("timm", size)(x[:16])
    run = torch.inference_mode()(RUNTIMES[library](model.to(device), precision, x.to(device)))
    found = torch.as_tensor(run()).float().cpu()[:16]
    return waited_for(run, device), None if wanted is None else ((found - wanted).abs().max() / wanted.abs().max()).item()


def waited_for(run: Batch, device: str) -> Batch:
    """The same, until the device is done."""
    return run if device == "cpu" else lambda: (run(), torch.cuda.synchronize())


def by_convnext(model: Any, precision: str, x: Tensor) -> Batch:
    """`convnext.optimize`, as a user calls it; on a GPU the network with our operators, compiled."""
    import convnext

    if x.is_cuda:
        return by_timm_compiled(model, precision, x)
    fast = convnext.optimize(model, precision, calibration=lambda network: network(x[:4]))
    return lambda: fast(x)


def by_timm(model: Any, precision: str, x: Tensor) -> Batch:
    """The network as it is, cast and channels-last."""
    model, x = model.to(DTYPES[precision], memory_format=torch.channels_last), x.to(DTYPES[precision])
    return lambda: model(x)


def by_timm_compiled(model: Any, precision: str, x: Tensor) -> Batch:
    """torch.compile with all its tuning."""
    model, x = model.to(DTYPES[precision], memory_format=torch.channels_last), x.to(DTYPES[precision])
    compiled = torch.compile(model, mode="max-autotune")
    return lambda: compiled(x)


def by_timm_frozen(model: Any, precision: str, x: Tensor) -> Batch:
    """torch.compile with its weights frozen."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    model, x = model.to(DTYPES[precision], memory_format=torch.channels_last), x.to(DTYPES[precision])
    compiled = torch.compile(model)
    return lambda: compiled(x)


def by_openvino(model: Any, precision: str, x: Tensor) -> Batch:
    """OpenVINO with one stream, so that all threads work on the batch."""
    import openvino

    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "float32": "f32"}[precision]}
    compiled = openvino.compile_model(openvino.convert_model(model, example_input=x, input=tuple(x.shape)), "CPU", hints)
    array = x.contiguous().numpy()
    return lambda: compiled(array)[0]


def by_onnxruntime(model: Any, precision: str, x: Tensor) -> Batch:
    """ONNX Runtime's CPU provider, which has float32 only for most operators."""
    import io

    import onnxruntime

    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    array, name = x.contiguous().numpy(), session.get_inputs()[0].name
    return lambda: session.run(None, {name: array})[0]


RUNTIMES: dict[str, Callable[[Any, str, Tensor], Batch]] = {
    "convnext": by_convnext,
    "timm": by_timm,
    "timm-swin": by_timm,
    "timm-compiled": by_timm_compiled,
    "timm-frozen": by_timm_frozen,
    "openvino": by_openvino,
    "onnxruntime": by_onnxruntime,
}


def training(library: str, size: str, precision: str, batch: int, device: str) -> tuple[Batch, float | None]:
    """Forward, backward and a step of AdamW; the error is that of the loss at the first step."""
    model, x = network(library, size).train().to(device, memory_format=torch.channels_last), random_images(batch)
    if library == "convnext":
        from convnext import ops

        ops.keep_memory()  # as `convnext train` does
    labels = torch.arange(batch) % 1000
    with torch.no_grad():
        wanted = F.cross_entropy(network("timm", size)(x), labels).item()
    optimizer, x, labels = optimizer_of(library, model), x.to(device), labels.to(device)
    forward = model if device == "cpu" else torch.compile(model, mode="max-autotune")

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, DTYPES[precision]):
            loss = F.cross_entropy(forward(x).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return waited_for(step, device), abs(step() - wanted) / abs(wanted)


def optimizer_of(library: str, model: Any) -> torch.optim.Optimizer:
    """AdamW as each library's own training makes it."""
    if library == "convnext":
        from convnext.recipe import Optim
        from convnext.training.optim import build_optimizer

        return build_optimizer(model, Optim(lr=1e-6))
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(model, opt="adamw", lr=1e-6, weight_decay=0.05)


def answer(contestant: str, device: str) -> None:
    """A contestant's process: says its error, then for each line on standard input how many images a second it took."""
    library, size, precision, batch, *train = contestant.split("/")
    run, error = (training if train else inference)(library, size, precision, int(batch), device)
    for _ in range(2):
        run()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run()
    batches = max(1, round(SECONDS / (time.perf_counter() - started)))
    print(json.dumps({"error": error, "memory": None if device == "cpu" else torch.cuda.max_memory_allocated()}), flush=True)
    for _ in sys.stdin:
        run()  # not timed: wakes threads and fills caches, which the others emptied
        started = time.perf_counter()
        for _ in range(batches):
            run()
        print(json.dumps(batches * int(batch) / (time.perf_counter() - started)), flush=True)


class Contestant:
    """A process that takes its turn when asked."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.speeds = name, []
        command, settings = [sys.executable, __file__, "--answer", name, "--device", device], dict(os.environ)
        if device != "cpu":
            settings["CONVNEXT_OPS"] = "triton"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=settings, text=True, **pipes)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name}: {self.process.stderr.read().strip().splitlines()[-1]}")
        told = json.loads(line)
        self.error, self.memory = told["error"], told["memory"]

    def turn(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.speeds.append(json.loads(self.process.stdout.readline()))

    def result(self, calm: list[bool]) -> dict[str, Any]:
        """What it took part with; the median of the quiet rounds, where there are any."""
        chosen = [speed for speed, good in zip(self.speeds, calm, strict=True) if good] or self.speeds
        return {"median": statistics.median(chosen), "all": self.speeds, "error": self.error, "memory": self.memory}

    def leave(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Probe:
    """Tells whether the machine is at its full speed."""

    def __init__(self) -> None:
        self.matrix, self.fastest = torch.randn(1024, 1024).bfloat16(), float("inf")

    def __call__(self) -> float:
        started = time.perf_counter()
        for _ in range(8):
            self.matrix @ self.matrix
        took = time.perf_counter() - started
        self.fastest = min(self.fastest, took)
        return took


def measure(row: Row, rounds: int, probe: Probe) -> dict[str, Any]:
    """All contestants of a row, in turns."""
    entered, remarks, slowest = [], [], []
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
            one.leave()
    calm = quiet(slowest, probe)
    speeds = {one.name: one.result(calm) for one in entered}
    found = asdict(row) | {"speeds": speeds, "remarks": remarks, "rounds": len(calm), "quiet": sum(calm)}
    peers = [name for name in row.peers if name in speeds]
    if row.ours not in speeds or not peers:
        return found
    fastest = max(peers, key=lambda name: speeds[name]["median"])
    ratios = [a / b for a, b in zip(speeds[row.ours]["all"], speeds[fastest]["all"], strict=True)]
    chosen = [ratio for ratio, good in zip(ratios, calm, strict=True) if good] or ratios
    ratio = {"median": statistics.median(chosen), "least": min(chosen), "most": max(chosen), "of_all": statistics.median(ratios)}
    return found | {"fastest_peer": fastest, "ratio": ratio}


def quiet(slowest: list[float], probe: Probe) -> list[bool]:
    """Of each round, by the slowest of its probes."""
    return [took <= 1.25 * probe.fastest for took in slowest]


def show(found: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    ratio = found.get("ratio")
    what, rounds = "not measured", "0"
    if ratio is not None:
        what = f"**{ratio['median']:.2f}** ({ratio['least']:.2f} to {ratio['most']:.2f}; {ratio['of_all']:.2f})"
        rounds = f"{found['quiet']} of {found['rounds']}"
    speeds = "; ".join(f"{name} {one['median']:.1f}{_details(one)}" for name, one in found["speeds"].items())
    remarks = "".join(f"; {remark}" for remark in found["remarks"])
    return f"| {found['title']} | {what} | {bar(found)} | {rounds} | {speeds}{remarks} |"


def bar(found: dict[str, Any]) -> str:
    """What the row is to reach, and whether that is for other CPUs than this."""
    from convnext.ops import dispatch

    return f"{found['wanted']}{'' if found['kind'] == 'gpu' or dispatch.has_amx() else ' (AMX)'}"


def _details(one: dict[str, Any]) -> str:
    error = "" if one["error"] is None else f" (error {one['error']:.0e})"
    return error if one["memory"] is None else f"{error} ({one['memory'] / 2**30:.1f} GiB)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="cpu,swin,gpu")
    parser.add_argument("--only", default="", help="rows whose title holds this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json")
    for hidden in ("--answer", "--device"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        return answer(arguments.answer, arguments.device)
    from convnext.ops import dispatch
    from convnext.training.run_folder import environment

    has_gpu, probe = torch.cuda.is_available(), Probe()
    place, results = environment(torch.device("cuda" if has_gpu else "cpu")), []
    features = f"{torch.backends.cpu.get_cpu_capability()}, {'with' if dispatch.has_amx() else 'without'} AMX"
    print(f"{place['hardware']['cpu']} ({features})")
    print(f"{place['hardware']['threads']} threads, GPU {place['hardware']['gpu']}, {place['versions']}\n")
    print("| work | ratio to the fastest peer (least to most; of all rounds) | wanted | quiet rounds | images a second |")
    print("| --- | --- | --- | --- | --- |")
    for row in ROWS:
        if row.kind not in arguments.rows.split(",") or arguments.only not in row.title:
            continue
        missing = row.kind == "gpu" and not has_gpu
        results.append(asdict(row) | {"speeds": {}, "remarks": ["needs a GPU"]} if missing else measure(row, arguments.rounds, probe))
        print(show(results[-1]), flush=True)
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump({"environment": place, "rows": results}, file, indent=1)
    if "gpu" in arguments.rows and not arguments.only:
        print("\nGPU depthwise convolution beside a copy of the same bytes:", "" if has_gpu else "not measured, needs a GPU\n", flush=True)
        if has_gpu:
            subprocess.run([sys.executable, str(Path(__file__).with_name("gpu_depthwise.py"))], check=True)
    return None


if __name__ == "__main__":
    main()
