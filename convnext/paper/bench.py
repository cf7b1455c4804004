"""`convnext bench`: how fast networks are, side by side on one machine.

All contestants run in one process and take turns, A B A B …, one turn per round. A machine's speed drifts by more than networks
differ (clocks, heat, other work), and turns expose all of them to the same drift. A turn is as many batches as its share of the time
allows, timed as a whole, with a wait for the device before and after. Two batches before the first round warm up caches, kernel
choices and compilers. The result is the median over the rounds, which one disturbed round does not move, with the smallest and the
largest beside it. A ratio is taken within each round before its median, so that drift cancels out. The batch lies on the device
already: reading and preparing images is not counted. In bf16 and fp16, inference runs a network of that dtype, and training runs
autocast over float32 weights. Training is forward, backward and a step of AdamW.

Weights are random, but such that every part of the network matters, and the same in our network and in a peer. Outputs are compared
before anything is timed, because the speeds of two different functions can't be compared.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ImageSize, sides
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.paper.contestants import Contestant, enter
from convnext.training.folder.environment import Environment, environment

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAME = 1e-4  # relative to the largest output: above this two networks are not the same function
_MIN_ROUNDS = 3  # however slow the network: fewer have no spread

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Setting:
    """How networks are timed."""

    image_size: ImageSize = 224
    dtype: str = "float32"  # tf32: float32 whose products are rounded, on CUDA devices; plain float32 rounds nothing there
    channels_last: bool = True
    compile: bool = False
    rounds: int = 7  # fewer, down to 3, where the batches of the slowest network take longer than `seconds`
    seconds: float = 3.0  # for each contestant, all its rounds together


@dataclass(frozen=True)
class Spread:
    """Of a number over the rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class BenchResult:
    """The speed of a contestant with one batch size, in inference or training."""

    name: str
    library: str
    mode: str  # inference or training
    batch_size: int
    rounds: int  # as many as were run
    batches: int  # in each of them
    images_per_second: Spread
    ratio: Spread | None  # its speed divided by that of `ratio_to`
    ratio_to: str | None
    relative_error: float | None
    peak_memory: int | None  # bytes of the device, weights included; None on devices without a counter


@dataclass(frozen=True)
class BenchReport:
    """All that was measured, and on what."""

    environment: Environment
    setting: Setting
    results: list[BenchResult]
    remarks: list[str]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def bench(
    names: Sequence[str],
    setting: Setting,
    device: torch.device,
    *,
    batch_sizes: Sequence[int] = (1,),
    train: bool = False,
    against: str | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Return the speeds of classifiers of `convnext.list_models()`, or of exported files.

    Args:
        train: time training too.
        against: "timm", "torchvision" or "transformers": time each network also as that library builds it, and take ratios to it.
            By default ratios are to the first name.
        progress: called with the numbers of turns done and planned.

    Raises UsageError for an unknown name, library or dtype, ConvnextError where the device has too little memory.
    """
    check(setting, device)
    contestants = enter(names, against, setting.image_size)
    plain = setting.dtype == "float32" and not (train or setting.compile)
    if not plain and (exported := [one.name for one in contestants if one.is_exported]):
        raise UsageError(f"{exported[0]} is an exported file: it can't be trained or compiled, and computes in its own precision")
    where = environment(device)
    if against is not None:
        where["versions"][against] = version(against)
    remarks = differences(contestants)
    if device.type != "cuda":
        remarks.append(f"peak memory is measured on CUDA devices only: no counter of {device} separates one network from another")
    modes = [(mode, size) for mode in ("inference", "training")[: 1 + train] for size in batch_sizes]
    results = [one for mode, size in modes for one in measure(contestants, setting, device, size, mode, progress)]
    return BenchReport(where, setting, results, remarks)


def differences(contestants: Sequence[Contestant]) -> list[str]:
    """Return a remark for each peer that holds the same weights and yet gives other outputs."""
    differ = "are different functions: their outputs differ by"
    return [
        f"{one.name} here and in {contestants[one.beside].library} {differ} {one.relative_error:.1e}"
        for one in contestants
        if one.beside is not None and one.relative_error is not None and not one.relative_error < SAME  # NaN is a difference too
    ]


def check(setting: Setting, device: torch.device) -> None:
    """Raise UsageError if the setting makes no sense on that device."""
    if setting.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {setting.dtype!r}{nearest(setting.dtype, DTYPES)}")
    if setting.dtype == "tf32" and device.type != "cuda":
        raise UsageError(f"tf32 exists on CUDA devices only, and this is {device}: use float32 or bf16")


def measure(
    contestants: Sequence[Contestant],
    setting: Setting,
    device: torch.device,
    batch_size: int,
    mode: str = "inference",
    progress: Progress | None = None,
) -> list[BenchResult]:
    """Return the speed of each contestant, timed in turns; `mode` is "inference" or "training".

    Raises ConvnextError where the device has too little memory.
    """
    report = progress or (lambda done, total: None)
    count = len(contestants)
    # The compiler keeps few versions of one piece of code, then stops compiling; each contestant is a version.
    with _float32_products(setting.dtype == "tf32"), torch._dynamo.config.patch(recompile_limit=8 + count):
        try:
            _open_libraries(device)
            ready = []
            for number, one in enumerate(contestants, start=1):
                ready.append(_Ready(one.model, setting, device, batch_size, mode))
                report(number, count * (1 + setting.rounds))
            slowest = max(one.seconds for one in ready)
            rounds = min(setting.rounds, max(_MIN_ROUNDS, int(setting.seconds / slowest)))
            for turn in range(1, rounds + 1):
                for number, runner in enumerate(ready, start=1):
                    runner.turn(setting.seconds / rounds)
                    report(turn * count + number, count * (1 + rounds))
        except torch.OutOfMemoryError as error:
            raise ConvnextError(
                f"{device} has too little memory for {', '.join(one.name for one in contestants)} and {batch_size} images: "
                "lower --batch-size, or time fewer networks at once"
            ) from error
    return [_result(index, contestants, ready, batch_size, mode) for index in range(count)]


def _result(index: int, contestants: Sequence[Contestant], ready: Sequence["_Ready"], batch_size: int, mode: str) -> BenchResult:
    one, runner = contestants[index], ready[index]
    ratio, ratio_to = None, None
    if one.beside is not None:
        other = contestants[one.beside]
        ratio = _spread([a / b for a, b in zip(runner.speeds, ready[one.beside].speeds, strict=True)])
        ratio_to = other.name if other.library == one.library else other.library
    return BenchResult(
        name=one.name,
        library=one.library,
        mode=mode,
        batch_size=batch_size,
        rounds=len(runner.speeds),
        batches=runner.batches,
        images_per_second=_spread(runner.speeds),
        ratio=ratio,
        ratio_to=ratio_to,
        relative_error=one.relative_error,
        peak_memory=runner.peak_memory,
    )


class _Ready:
    """A contestant on its device, warmed up; `turn` adds to its speeds."""

    def __init__(self, model: nn.Module, setting: Setting, device: torch.device, batch_size: int, mode: str) -> None:
        self.device, self.batch_size, self.batches = device, batch_size, 1
        self.speeds: list[float] = []  # images per second, one per round
        self.peak_memory: int | None = None
        counts = device.type == "cuda"
        before = torch.cuda.memory_allocated(device) if counts else 0
        self.run = _batch(model, setting, device, batch_size, mode)
        self._time(1)
        if counts:
            torch.cuda.reset_peak_memory_stats(device)
        self.seconds = self._time(1)
        if counts:
            self.peak_memory = torch.cuda.max_memory_allocated(device) - before

    def turn(self, seconds: float) -> None:
        self.batches = max(1, int(seconds / self.seconds))
        self.speeds.append(self.batches * self.batch_size / self._time(self.batches))

    def _time(self, batches: int) -> float:
        _wait_for(self.device)
        started = time.perf_counter()
        for _ in range(batches):
            self.run()
        _wait_for(self.device)
        return time.perf_counter() - started


def _batch(model: nn.Module, setting: Setting, device: torch.device, batch_size: int, mode: str) -> Callable[[], object]:
    """Return a function that takes one batch through a copy of the network on the device."""
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    dtype, trains = DTYPES[setting.dtype], mode == "training"
    network = copy.deepcopy(model).to(device, torch.float32 if trains else dtype).to(memory_format=layout).train(trains)
    channels = getattr(model, "spec", {}).get("in_channels", 3)  # an exported file may have others
    images = torch.randn(batch_size, channels, *sides(setting.image_size), device=device).contiguous(memory_format=layout)
    call: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False) if setting.compile else network
    if not trains:
        images = images.to(dtype)

        @torch.inference_mode()
        def infer() -> object:
            return call(images)

        return infer
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = call(images)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _open_libraries(device: torch.device) -> None:
    # The matrix library allocates its workspace once for each direction; it must not count as memory of the first contestant.
    x = torch.ones(8, 8, device=device, requires_grad=True)
    (x @ x).sum().backward()  # type: ignore[no-untyped-call]


@contextmanager
def _float32_products(tf32: bool) -> Iterator[None]:
    # PyTorch's own default is mixed: convolutions are rounded, matrix products are not.
    # These are the newer switches: once a program has used one of them, PyTorch refuses to read the older ones.
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
