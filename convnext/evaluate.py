"""The one evaluation loop, in training and out of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convnext import __version__, distributed, tasks
from convnext.data.loader import CorruptImages, InOrder, Samples, batches, make_loader
from convnext.errors import ConvnextError, UsageError
from convnext.models.load import Loaded
from convnext.ops.memory import is_out_of_memory
from convnext.recipe import load_recipe
from convnext.report import page

_PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Evaluation:
    """What came of it."""

    metrics: dict[str, float]
    details: dict[str, Any]  # what the task's report draws
    corrupt: list[str] = field(default_factory=list)  # images that could not be read, left out of the metrics
    results: list[dict[str, Any]] | None = None  # all that a detector found, as COCO's results, where they were asked for

    def to_json(self) -> dict[str, Any]:
        """Metrics, details and unreadable images as plain values."""
        return without_nan(disjoint(self.metrics, self.details, {"corrupt": self.corrupt}))


def disjoint(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings as one. Raises ValueError if a key is in two of them, where one value would replace the other unseen."""
    found: dict[str, Any] = {}
    for part in parts:
        if twice := sorted(found.keys() & part.keys()):
            raise ValueError(f"{twice[0]!r} is given twice")
        found |= part
    return found


def without_nan(value: Any) -> Any:
    """Plain values with None in place of numbers that JSON does not have, which are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(one) for key, one in value.items()}
    return [without_nan(one) for one in value] if isinstance(value, list | tuple) else value


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
    with_results: bool = False,
) -> Evaluation:
    """Run a model over a loader of `evaluation_loader` and measure it by its task's metric.

    Args:
        with_results: give all that was found too, as COCO's results; of detectors.
        progress: called after each batch with the numbers of images done and in all.

    A batch that needs more memory than the device has is taken in halves, and so are those after it. Leaves the model in the mode
    it was in. Raises ConvnextError if more than `max_corrupt` of the images can't be read, or memory does not suffice for one.
    """
    was_training = model.training
    model.eval()
    metric, corrupt = task.Metric(num_classes, loader.dataset.source), CorruptImages(len(loader.dataset), max_corrupt)

    def measure() -> None:
        done, most = 0, loader.batch_sampler.batch_size
        for batch in batches(loader):
            corrupt.add(batch.corrupt)
            most = _measure(model, task, batch, most, metric, loader.dataset, precision, device)
            done += len(batch) + len(batch.corrupt)
            if progress is not None:
                progress(done, len(loader.batch_sampler.indices))

    distributed.on_all(measure)  # one process may meet too many corrupt images, or be asked to stop
    model.train(was_training)
    (metric, _), *others = parts = distributed.gather((metric, corrupt.reasons))
    for other, _ in others:
        metric.merge(other)
    for _, reasons in parts:
        corrupt.add(list(reasons.items()))
    results = metric.results() if with_results and distributed.is_main() else None
    return Evaluation(metric.compute(), metric.details(), list(corrupt.reasons.values()), results)


def _measure(model: Any, task: Any, batch: Any, most: int, metric: Any, samples: Samples, precision: str, device: torch.device) -> int:
    """Add a batch to a metric, at most so many samples at a time. Returns how many at a time there was memory for."""
    first = 0
    while first < len(batch):
        try:
            part = batch[first : first + most].to(device)
            with autocast(device, precision):
                outputs = task.predict(model, part, samples)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if most == 1:
                raise ConvnextError(f"{device} has too little memory for one image: use smaller ones, or another --device") from error
            most = -(-min(most, len(batch) - first) // 2)
        else:
            metric.update(outputs, part)
            first += most
            continue
        if device.type == "cuda":  # only here, out of reach of the error, whose traceback keeps tensors alive
            torch.cuda.empty_cache()
    return most


@dataclass
class Evaluated:
    """The evaluation of a network of `models.load`, with what it takes to tell of it."""

    result: Evaluation
    task: Any  # the task's module
    source: Any  # the images
    remarks: list[str]  # to be told to the user

    def data(self) -> str:
        """How much of which classes it was measured on, in one line."""
        return str(self.task.counts(self.source))

    def to_json(self) -> dict[str, Any]:
        """All that is known of it, as plain values."""
        # A detector's details have a row for each class, with its name.
        named = {} if "classes" in self.result.details else {"classes": self.source.classes}
        return disjoint(self.result.to_json(), named, {"remarks": self.remarks})

    def headline(self) -> str:
        """What matters most, in a few words."""
        return str(self.task.headline(self.result.metrics))

    def to_text(self) -> str:
        """What there is to read on a terminal, the headline first."""
        return "\n".join([self.task.summary(self.result.metrics, self.result.details, self.source.classes), *self.remarks])

    def to_page(self, title: str) -> str:
        """A report as HTML; see `report.page`."""
        cards = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in self.result.metrics.items()}
        sections = self.task.report_sections(self.result.details, self.source.classes, self.source)
        if told := self.remarks + [f"left out: {reason}" for reason in self.result.corrupt]:
            sections.insert(0, page.Section("Remarks", page.preformatted("\n".join(told))))
        lead = f"{self.headline()} · {len(self.source.classes)} classes · convnext {__version__}"
        return page.page(title, lead, cards, sections)


def evaluate_loaded(
    loaded: Loaded,
    data: str | None,
    batch_size: int | None,
    workers: int,
    max_corrupt: float,
    device: torch.device,
    progress: Any = None,
    with_results: bool = False,
) -> Evaluated:
    """Measure a network of `models.load` on the data that `data` names, or on its own run's validation data.

    `batch_size` is by default as suits the task, `with_results` as for `evaluate`.
    """
    task = tasks.get(loaded.task)

    def opened() -> Samples:
        if data is not None:
            return task.evaluation_samples(task.open_labelled(data, loaded.classes, loaded.model.num_classes), loaded.preprocessing)
        if loaded.run is None:
            raise UsageError("say with --data what to evaluate on: a folder with one folder of images a class, or digits:val")
        source = task.open_data(load_recipe(str(Path(loaded.run) / "recipe.yaml"))).val.source
        if loaded.classes and list(source.classes) != list(loaded.classes):
            raise ConvnextError(
                f"the classes of the validation data of {loaded.run} changed since the run: {', '.join(source.classes[:10])} now, "
                f"{', '.join(loaded.classes[:10])} then; restore them, or say with --data what to evaluate on"
            )
        return task.evaluation_samples(source, loaded.preprocessing)

    samples = distributed.on_all(opened)
    distributed.check_agreement(len(samples), "numbers of images")
    loader = evaluation_loader(samples, task, batch_size or task.BATCH_SIZE, workers, device)
    model, classes = loaded.model.to(device), loaded.model.num_classes
    result = evaluate(model, task, loader, classes, device, max_corrupt=max_corrupt, progress=progress, with_results=with_results)
    return Evaluated(result, task, samples.source, task.remarks_on(samples.source))
