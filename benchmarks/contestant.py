"""Run one contestant of the speed table (speed.py) in a process of its own: it computes batches on request.

    python benchmarks/contestant.py library/model/precision/batch[/train] cpu|cuda

Prints a line of JSON with its error and memory, then for each line on standard input the images per second of a turn, and per second of CPU
time.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SECONDS = 0.5  # of a turn
Batch = Callable[[], object]  # computes a batch and returns its outputs
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def random_images(batch: int) -> Tensor:
    """Return images of noise, the same for all, channels-last."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def network(library: str, size: str) -> nn.Module:
    """Return the float32 network; ours and timm's ConvNeXt have the same weights, with which each part matters to the outputs."""
    from convnext.paper.contestants import build, build_peer

    if library == "timm-swin":
        import timm

        torch.manual_seed(0)
        return timm.create_model(f"swin_{size}_patch4_window7_224").eval()
    ours = build(f"convnext_{size}").eval()
    return ours if library.startswith("convnext") else build_peer(f"convnext_{size}", ours, "timm").eval()


def inference(library: str, size: str, precision: str, batch: int, device: str) -> tuple[Batch, float | None]:
    """Return a function that passes one batch through the contestant, and its outputs' error relative to timm's in float32."""
    model, x = network(library, size), random_images(batch)
    wanted = None
    if library != "timm-swin":
        with torch.inference_mode():
            wanted = network("timm", size)(x[:16])
    run = torch.inference_mode()(RUNTIMES[library](model.to(device), precision, x.to(device)))
    found = torch.as_tensor(run()).float().cpu()[:16]
    return waited_for(run, device), None if wanted is None else ((found - wanted).abs().max() / wanted.abs().max()).item()


def waited_for(run: Batch, device: str) -> Batch:
    """Return the same function, which then waits for the device."""
    return run if device == "cpu" else lambda: (run(), torch.cuda.synchronize())


def by_convnext(model: nn.Module, precision: str, x: Tensor) -> Batch:
    """Run `convnext.optimize`, as a user calls it; on a GPU the network with our operators, compiled."""
    import convnext

    if x.is_cuda:
        return by_timm_compiled(model, precision, x)
    fast = convnext.optimize(model, precision, calibration=lambda network: network(x[:4]))
    return lambda: fast(x)


def by_timm(model: nn.Module, precision: str, x: Tensor) -> Batch:
    """Run the unchanged network, cast and channels-last."""
    model, x = model.to(DTYPES[precision], memory_format=torch.channels_last), x.to(DTYPES[precision])
    return lambda: model(x)


def by_timm_compiled(model: nn.Module, precision: str, x: Tensor) -> Batch:
    """Run torch.compile with all its tuning."""
    model, x = model.to(DTYPES[precision], memory_format=torch.channels_last), x.to(DTYPES[precision])
    compiled = torch.compile(model, mode="max-autotune")
    return lambda: compiled(x)


def by_timm_frozen(model: nn.Module, precision: str, x: Tensor) -> Batch:
    """Run torch.compile with frozen weights."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    model, x = model.to(DTYPES[precision], memory_format=torch.channels_last), x.to(DTYPES[precision])
    compiled = torch.compile(model)
    return lambda: compiled(x)


def by_openvino(model: nn.Module, precision: str, x: Tensor) -> Batch:
    """Run OpenVINO with one stream, so that all threads work on the batch; int8 as NNCF quantizes it by default, on the same images."""
    import openvino

    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    converted = openvino.convert_model(model, example_input=x, input=tuple(x.shape))
    if precision == "int8":
        import nncf

        converted = nncf.quantize(converted, nncf.Dataset([x.contiguous().numpy()]))
    compiled = openvino.compile_model(converted, "CPU", hints)
    array = x.contiguous().numpy()
    return lambda: compiled(array)[0]


def by_onnxruntime(model: nn.Module, precision: str, x: Tensor) -> Batch:
    """Run ONNX Runtime's CPU provider, which has most operators in float32 only."""
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


RUNTIMES: dict[str, Callable[[nn.Module, str, Tensor], Batch]] = {
    "convnext": by_convnext,
    "convnext-as-it-is": by_timm,
    "timm": by_timm,
    "timm-swin": by_timm,
    "timm-compiled": by_timm_compiled,
    "timm-frozen": by_timm_frozen,
    "openvino": by_openvino,
    "onnxruntime": by_onnxruntime,
}


def training(library: str, size: str, precision: str, batch: int, device: str) -> tuple[Batch, float | None]:
    """Return a function that does forward, backward and a step of AdamW, and the relative error of the first step's loss."""
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


def optimizer_of(library: str, model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW as each library's own training makes it."""
    if library == "convnext":
        from convnext.recipe import Optim
        from convnext.training.optim import build_optimizer

        return build_optimizer(model, Optim(lr=1e-6))
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(model, opt="adamw", lr=1e-6, weight_decay=0.05)


def serve_turns(contestant: str, device: str) -> None:
    """Run a contestant's process: print its error, then for each line on standard input the images per second of a turn."""
    library, size, precision, batch, *train = contestant.split("/")
    with redirect_stdout(sys.stderr):  # NNCF prints its progress
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
        run()  # not timed: wakes threads and fills the caches
        started, used = time.perf_counter(), time.process_time()
        for _ in range(batches):
            run()
        took = time.perf_counter() - started, time.process_time() - used
        print(json.dumps([batches * int(batch) / seconds for seconds in took]), flush=True)


if __name__ == "__main__":
    serve_turns(*sys.argv[1:])
