"""What the loop itself costs: `convnext train` beside a bare loop over the same model and the same batches.

    python benchmarks/loop.py [--model convnext_atto] [--size 64] [--batch 32] [--steps 12] [--rounds 7]

Both in one process, rounds interleaved, ratio of medians. The bare loop is written by hand: forward, loss, backward, AdamW step, and
`loss.item()`. The batches lie in memory, so reading them counts for neither.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from convnext.data.loader import Key, Sample, Samples
from convnext.data.sources.base import ClassifySource
from convnext.data.sources.open import open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.distributed import pick_device
from convnext.models.load import create_model
from convnext.recipe import load_recipe
from convnext.tasks import get
from convnext.tasks.base import Source, TaskData
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.training.folder.run_folder import RunFolder
from convnext.training.loop import Trainer
from convnext.training.progress.display import Display
from convnext.training.state import new_state


class ReadySamples(Samples[ClassifySource, int]):
    """Samples in memory."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(open_source("digits:train"), lambda image: image, seed=0)
        self.samples = [Sample(torch.randn(3, size, size), i % 10, i, []) for i in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Sample[int]:
        return self.samples[key[1]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("model", "convnext_atto"), ("size", 64), ("batch", 32), ("steps", 12), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    device, task = pick_device(), get("classify")
    ready = ReadySamples(options.batch * options.steps, options.size)
    epochs = 10_000
    overrides = {"data.workers": 0, "train.epochs": epochs, "train.warmup_epochs": 0, "train.batch_size": options.batch}
    recipe = load_recipe("digits", overrides | {"train.log_every": 1, "train.eval_every": epochs})
    val = task.evaluation_samples(cast(Source, ready.source), ClassifyPreprocessing(32))
    data = TaskData(ready, val, [str(i) for i in range(10)], [])
    times: dict[str, list[float]] = {"bare": [], "convnext": []}

    with tempfile.TemporaryDirectory() as folder:
        state = new_state(create_model(options.model, num_classes=10).to(device), recipe, device)
        run_folder = RunFolder(Path(folder) / "run")
        run_folder.begin(recipe, device)
        trainer = Trainer(state, task, data, recipe, run_folder, device, Display(Console(stderr=True, quiet=True)))
        trainer._save = lambda: None  # type: ignore[method-assign]  # a checkpoint is written every epoch, not every step
        trainer.display.begin(trainer.total, 0)
        model = create_model(options.model, num_classes=10).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = [ClassifyBatch.collate(ready.samples[i * options.batch : (i + 1) * options.batch]) for i in range(options.steps)]
        for number in range(options.rounds + 1):
            times["bare"].append(_timed(lambda: bare(model, optimizer, batches, device), device))
            times["convnext"].append(_timed(partial(trainer._epoch, number, 0), device))

    medians = {name: statistics.median(found[1:]) / options.steps for name, found in times.items()}
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor() or platform.machine()}"
    print(f"{options.model}, {options.size} pixels, batch {options.batch}, float32, {hardware}, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:9} {1000 * median:8.2f} ms a step")
    ratios = [c / b for b, c in zip(times["bare"][1:], times["convnext"][1:], strict=True)]
    print(f"ratio, median of {options.rounds} interleaved rounds: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[ClassifyBatch], device: torch.device) -> None:
    """Train as in a loop written by hand."""
    model.train()
    for batch in batches:
        images = batch.images.to(device, memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), batch.labels.to(device), label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()


def _timed(work: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
