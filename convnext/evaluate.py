"""The one evaluation loop, in training and out of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convnext import __version__, distributed, tasks
from convnext.data.loader import CorruptPictures, InOrder, Samples, make_loader
from convnext.errors import UsageError
from convnext.models import Loaded
from convnext.recipe import load_recipe
from convnext.report import page

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
    metric, corrupt = task.Metric(num_classes, loader.dataset.source), CorruptPictures(len(loader.dataset), max_corrupt)
    done = 0
    for batch in loader:
        corrupt.add(batch.corrupt)
        if len(batch):
            batch = batch.to(device)
            with autocast(device, precision):
                outputs = task.predict(model, batch, loader.dataset)
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


@dataclass
class Evaluated:
    """The evaluation of a network of `models.load`, with what it takes to tell of it."""

    result: Evaluation
    task: Any  # the task's module
    source: Any  # the pictures
    remarks: list[str]  # to be told to the user

    def to_json(self) -> dict[str, Any]:
        """All that is known of it, as plain values."""
        told = {"classes": self.source.classes, "remarks": self.remarks, "corrupt": self.result.corrupt}
        return self.result.metrics | self.result.details | told

    def headline(self) -> str:
        """What matters most, in a few words."""
        return str(self.task.headline(self.result.metrics))

    def to_text(self) -> str:
        """What there is to read on a terminal, the headline first."""
        return "\n".join([self.task.summary(self.result.metrics, self.result.details), *self.remarks])

    def to_page(self, title: str) -> str:
        """A report as HTML; see `report.page`."""
        cards = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in self.result.metrics.items()}
        sections = self.task.report_sections(self.result.details, self.source.classes, self.source)
        if told := self.remarks + [f"left out: {reason}" for reason in self.result.corrupt]:
            sections.insert(0, page.Section("Remarks", page.preformatted("\n".join(told))))
        lead = f"{self.headline()} · {len(self.source.classes)} classes · convnext {__version__}"
        return page.page(title, lead, cards, sections)


def evaluate_loaded(
    loaded: Loaded, data: str | None, batch_size: int, workers: int, max_corrupt: float, device: torch.device, progress: Any = None
) -> Evaluated:
    """Measure a network of `models.load` on the data that `data` names, or on its own run's validation data."""
    task = tasks.get(loaded.task)
    if data is not None:
        samples = task.evaluation_samples(task.open_labelled(data, loaded.classes, loaded.model.num_classes), loaded.preprocessing)
    elif loaded.run is not None:
        source = task.open_data(load_recipe(str(Path(loaded.run) / "recipe.yaml"))).val.source
        samples = task.evaluation_samples(source, loaded.preprocessing)
    else:
        raise UsageError("say with --data what to evaluate on: a folder with one folder of pictures a class, or digits:val")
    loader = evaluation_loader(samples, task, batch_size, workers, device)
    model, classes = loaded.model.to(device), loaded.model.num_classes
    result = evaluate(model, task, loader, classes, device, max_corrupt=max_corrupt, progress=progress)
    return Evaluated(result, task, samples.source, task.remarks_on(samples.source))
