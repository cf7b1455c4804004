"""The one evaluation loop, in training and out of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convnext import distributed, tasks
from convnext.data.loader import CorruptPictures, InOrder, Samples, make_loader
from convnext.errors import UsageError
from convnext.models import Loaded
from convnext.recipe import load_recipe

_PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Evaluation:
    """What came of it."""

    metrics: dict[str, float]
    details: dict[str, Any]  # what the task's report draws
    corrupt: list[str] = field(default_factory=list)  # pictures that could not be read, left out of the metrics


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The forward pass in that precision: "float32", "bf16" or "fp16"."""
    dtype = _PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def evaluation_loader(samples: Samples, task: Any, batch_size: int, workers: int, device: torch.device) -> Any:
    """Batches of this process's part of the samples, each sample once in all."""
    order = InOrder(len(samples), batch_size, distributed.rank(), distributed.world())
    return make_loader(samples, order, task.collate, workers, pin=device.type == "cuda")


@torch.inference_mode()
def evaluate(
    model: Any,
    task: Any,
    loader: Any,
    num_classes: int,
    device: torch.device,
    *,
    precision: str = "float32",
    max_corrupt: float = 0.01,
    progress: Any = None,
) -> Evaluation:
    """Run a model over a loader of `evaluation_loader` and measure it by its task's metric.

    Args:
        progress: called after each batch with the numbers of pictures done and in all.

    Leaves the model in the mode it was in. Raises ConvnextError if more than `max_corrupt` of the pictures can't be read.
    """
    was_training = model.training
    model.eval()
    metric, corrupt = task.Metric(num_classes), CorruptPictures(len(loader.dataset), max_corrupt)
    done = 0
    for batch in loader:
        corrupt.add(batch.corrupt)
        if len(batch):
            batch = batch.to(device)
            with autocast(device, precision):
                outputs = model(batch.images)
            metric.update(outputs, batch)
        done += len(batch) + len(batch.corrupt)
        if progress is not None:
            progress(done, len(loader.batch_sampler.indices))
    model.train(was_training)
    (metric, _), *others = parts = distributed.gather((metric, corrupt.reasons))
    for other, _ in others:
        metric.merge(other)
    for _, reasons in parts:
        corrupt.add(list(reasons.items()))
    return Evaluation(metric.compute(), metric.details(), list(corrupt.reasons.values()))


def evaluate_loaded(
    loaded: Loaded, data: str | None, batch_size: int, workers: int, max_corrupt: float, device: torch.device, progress: Any = None
) -> tuple[Evaluation, Any]:
    """Measure a network of `models.load` on the data that `data` names, or on its own run's validation data.

    Returns the evaluation and the task's module.
    """
    task = tasks.get(loaded.task)
    if data is not None:
        samples = task.evaluation_samples(task.open_labelled(data, loaded.classes, loaded.model.num_classes), loaded.preprocessing)
    elif loaded.run is not None:
        samples = task.open_data(load_recipe(str(Path(loaded.run) / "recipe.yaml"))).val
    else:
        raise UsageError("say with --data what to evaluate on: a folder with one folder of pictures a class, or digits:val")
    loader = evaluation_loader(samples, task, batch_size, workers, device)
    model, classes = loaded.model.to(device), loaded.model.num_classes
    return evaluate(model, task, loader, classes, device, max_corrupt=max_corrupt, progress=progress), task
