"""What the loop itself costs: `convnext train` beside a bare loop over the same model and the same batches.

    python benchmarks/loop.py [--model convnext_atto] [--size 64] [--batch 32] [--steps 12] [--rounds 7]

Both in one process, rounds interleaved, ratio of medians. The bare loop is what one would write by hand: forward, loss, backward,
AdamW step, and `loss.item()`; the batches lie in memory, so that reading them counts for neither.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.distributed import pick_device
from convnext.models.load import create_model
from convnext.recipe import load_recipe
from convnext.tasks.classify import task
from convnext.training.loop import Run
from convnext.training.progress import Display
from convnext.training.run_folder import RunFolder
from convnext.training.state import new_state


class Ready(torch.utils.data.Dataset[Any]):
    """Samples that are there already."""

    def __init__(self, count: int, size: int) -> None:
        from convnext.data.loader import Sample
        from convnext.data.sources.open import open_source

        self.source = open_source("digits:train")
        self.samples = [Sample(torch.randn(3, size, size), i % 10, i, []) for i in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.samples[key[1]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("model", "convnext_atto"), ("size", 64), ("batch", 32), ("steps", 12), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    device = pick_device()
    ready = Ready(options.batch * options.steps, options.size)
    epochs = 10_000
    overrides = {"data.workers": 0, "train.epochs": epochs, "train.warmup_epochs": 0, "train.batch_size": options.batch}
    recipe = load_recipe("digits", overrides | {"train.log_every": 1, "train.eval_every": epochs})
    data = task.Data(ready, task.evaluation_samples(ready.source, ClassifyPreprocessing(32)), [str(i) for i in range(10)], [])
    times: dict[str, list[float]] = {"bare": [], "convnext": []}

    with tempfile.TemporaryDirectory() as folder:
        state = new_state(create_model(options.model, num_classes=10).to(device), recipe, device)
        place = RunFolder(Path(folder) / "run")
        place.begin(recipe, device, overwrite=False)
        display = Display(Console(stderr=True, quiet=True))
        run = Run(state, task, data, recipe, place, device, display)
        run._save = lambda: None  # type: ignore[method-assign]  # a state is saved every epoch, not every step: not the loop's cost
        run.display.begin(run.total, 0)
        model = create_model(options.model, num_classes=10).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = [task.collate(ready.samples[i * options.batch : (i + 1) * options.batch]) for i in range(options.steps)]
        for number in range(options.rounds + 1):
            times["bare"].append(_timed(lambda: bare(model, optimizer, batches, device), device))
            times["convnext"].append(_timed(lambda number=number: run._epoch(number, 0), device))

    medians = {name: statistics.median(found[1:]) / options.steps for name, found in times.items()}
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor() or platform.machine()}"
    print(f"{options.model}, {options.size} pixels, batch {options.batch}, float32, {hardware}, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:9} {1000 * median:8.2f} ms a step")
    ratios = [c / b for b, c in zip(times["bare"][1:], times["convnext"][1:], strict=True)]
    print(f"ratio, median of {options.rounds} interleaved rounds: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def bare(model: Any, optimizer: Any, batches: list[Any], device: torch.device) -> None:
    """The loop that one would write by hand."""
    model.train()
    for batch in batches:
        images = batch.images.to(device, memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), batch.labels.to(device), label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        loss.item()


def _timed(work: Any, device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
