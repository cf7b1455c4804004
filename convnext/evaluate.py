"""The one evaluation loop, in training and outside of it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import nn

from convnext import __version__, distributed, tasks
from convnext.data.images import Reading
from convnext.data.loader import CorruptImages, Samples, make_loader
from convnext.data.sampling.order import InOrder
from convnext.data.sources.base import read_by
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.models.load import Loaded
from convnext.ops.memory import is_out_of_memory, keep_memory
from convnext.report import metrics, notebook, page
from convnext.tasks.base import AnyTask, BatchT, Function, Json, Metric, Metrics, OutputT, PredictionT, Source, SourceT, Task
from convnext.tasks.labelled import LIMIT_KEY, labelled_source
from convnext.tasks.own import metrics_of_run

_PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Progress = Callable[[int, int], object]  # called with the numbers of images done and in all


@dataclass
class Evaluation:
    """What was measured."""

    metrics: Metrics
    details: Json  # what the task's report draws
    corrupt: list[str] = field(default_factory=list)  # why images could not be read, which the metrics skip
    results: list[Json] | None = None  # all detections as COCO's results, where they were asked for

    def to_json(self) -> Json:
        """Return metrics, details and unreadable images as plain values."""
        return without_nan(disjoint(self.metrics, self.details, {"corrupt": self.corrupt}))


def disjoint(*parts: Mapping[str, object]) -> Json:
    """Return mappings merged into one. Raises ValueError if a key is in two of them: one value would silently replace the other."""
    merged: Json = {}
    for part in parts:
        if twice := sorted(merged.keys() & part.keys()):
            raise ValueError(f"{twice[0]!r} is given twice")
        merged |= part
    return merged


def without_nan(values: Mapping[str, object]) -> Json:
    """Return plain values with None in place of every number that JSON lacks: NaN and the infinities."""
    return {key: _finite(value) for key, value in values.items()}


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass in that precision: "float32", "bf16" or "fp16"."""
    return torch.autocast(device.type, dtype=_PRECISIONS[precision], enabled=precision != "float32")


class EvaluationLoader(Generic[BatchT]):
    """Batches of this process's part of the samples: each sample once in all processes together.

    Args:
        samples: of `Task.evaluation_samples`.
        task: whose they are.
        batch_size: images in a batch.
        workers: processes that decode images.
        device: that the batches go to.
    """

    def __init__(
        self, samples: Samples, task: Task[BatchT, OutputT, PredictionT, SourceT], batch_size: int, workers: int, device: torch.device
    ) -> None:
        self.samples = samples
        self.max_images = batch_size  # that go through the network at a time: fewer once memory did not suffice
        self._order = InOrder(len(samples), batch_size, distributed.rank(), distributed.world())
        self._loader = make_loader(samples, self._order, task.collate, workers, pin=device.type == "cuda")

    @property
    def count(self) -> int:
        """The number of images of this process."""
        return len(self._order.indices)

    def __iter__(self) -> Iterator[BatchT]:
        return iter(self._loader)


def evaluation_loader(
    samples: Samples, task: Task[BatchT, OutputT, PredictionT, SourceT], batch_size: int, workers: int, device: torch.device
) -> EvaluationLoader[BatchT]:
    """Return batches of this process's part of the samples."""
    return EvaluationLoader(samples, task, batch_size, workers, device)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    task: Task[BatchT, OutputT, PredictionT, SourceT],
    loader: EvaluationLoader[BatchT],
    how: Preprocessing,
    num_classes: int,
    device: torch.device,
    *,
    precision: str = "float32",
    max_corrupt: float = 0.01,
    limit_key: str = "data.max_corrupt",
    progress: Progress | None = None,
    with_results: bool = False,
    own: Mapping[str, Function] | None = None,
) -> Evaluation:
    """Return what the task's metric measures of a model on the samples of a loader.

    Args:
        model: on `device`. It is left in the mode that it was in.
        task: of the model.
        loader: of `evaluation_loader`. Where a batch needs more memory than the device has, this batch and those after it go through
            the network in halves.
        how: what the samples were prepared by.
        num_classes: outputs of the model.
        device: that the batches go to.
        precision: of the forward pass.
        max_corrupt: the fraction of the images that may be unreadable.
        limit_key: by which the user says it, for the message.
        progress: called after each batch.
        with_results: also return all detections as COCO's results.
        own: a user's own metrics, by name.

    Raises ConvnextError if more images can't be read, or if memory does not suffice for one image.
    """
    samples, was_training = loader.samples, model.training
    model.eval()
    metric, corrupt = task.metric(num_classes, samples.source), CorruptImages(len(samples), max_corrupt, limit_key)
    if own:
        metric = task.keeping_outputs(metric)

    def measure() -> None:
        done = 0
        for batch in loader:
            corrupt.add(batch.corrupt)
            loader.max_images = _measure(model, task, batch, loader.max_images, metric, how, precision, device)
            done += len(batch) + len(batch.corrupt)
            if progress is not None:
                progress(done, loader.count)

    distributed.on_all(measure)  # one process may meet too many corrupt images, or be asked to stop
    model.train(was_training)
    (metric, _), *others = parts = distributed.gather((metric, corrupt.reasons))
    for other, _ in others:
        metric.merge(other)
    for _, reasons in parts:
        corrupt.add(list(reasons.items()))
    results = metric.results() if with_results and distributed.is_main() else None
    measured = metric.compute()
    if own:
        measured |= metric.measure(own, list(measured))
    return Evaluation(measured, metric.details(), list(corrupt.reasons.values()), results)


def _measure(
    model: nn.Module,
    task: Task[BatchT, OutputT, PredictionT, SourceT],
    batch: BatchT,
    max_images: int,
    metric: Metric[BatchT, OutputT],
    how: Preprocessing,
    precision: str,
    device: torch.device,
) -> int:
    """Add a batch to a metric, at most `max_images` samples at a time. Returns for how many at a time there was memory."""
    first = 0
    while first < len(batch):
        try:
            part = batch[first : first + max_images].to(device)
            with autocast(device, precision):
                outputs = task.predict(model, part, how)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if max_images == 1:
                raise ConvnextError(f"{device} has too little memory for one image: use smaller ones, or another --device") from error
            max_images = -(-min(max_images, len(batch) - first) // 2)
        else:
            metric.update(outputs, part)
            first += max_images
            continue
        if device.type == "cuda":  # only here, outside of the handler, whose traceback keeps tensors alive
            torch.cuda.empty_cache()
    return max_images


@dataclass
class Evaluated:
    """The evaluation of a network of `models.load`, with what a report of it needs."""

    result: Evaluation
    task: AnyTask
    source: Source  # the images
    remarks: list[str]  # to report to the user

    def data(self) -> str:
        """Return in one line how many images of which classes it was measured on."""
        return self.task.counts(self.source)

    def to_json(self) -> Json:
        """Return everything that was measured, as plain values."""
        # A detector's details have a row for each class, with its name.
        named = {} if "classes" in self.result.details else {"classes": self.source.classes}
        return disjoint(self.result.to_json(), named, {"remarks": self.remarks})

    def summary_line(self) -> str:
        """Return the most important metrics in a few words."""
        return self.task.summary_line(self.result.metrics)

    def to_text(self) -> str:
        """Return the evaluation as lines of text for a terminal, `summary_line` first."""
        return "\n".join([self.task.summary(self.result.metrics, self.result.details, self.source.classes), *self.remarks])

    def _repr_html_(self) -> str:
        return notebook.result(self.summary_line(), self.data(), metrics.cards(self.result.metrics), lines=self.remarks)

    def to_page(self, title: str) -> str:
        """Return a report as HTML; see `report.page`."""
        sections = self.task.report(self.result.details, self.source.classes, self.source)
        if remarks := self.remarks + [f"skipped: {reason}" for reason in self.result.corrupt]:
            sections.insert(0, page.PageSection("Remarks", page.preformatted("\n".join(remarks))))
        lead = f"{self.summary_line()} · {len(self.source.classes)} classes · convnext {__version__}"
        return page.page(title, lead, metrics.cards(self.result.metrics), sections)


def evaluate_loaded(
    loaded: Loaded,
    data: str | None,
    batch_size: int | None,
    workers: int,
    max_corrupt: float | None,
    device: torch.device,
    progress: Progress | None = None,
    with_results: bool = False,
    own: Mapping[str, Function] | None = None,
    max_pixels: int | None = None,
) -> Evaluated:
    """Return the evaluation of a network of `models.load` on the data that `data` names, or on its own run's validation data.

    `batch_size` is by default that of the task, `max_pixels` of an image some 89 million, and `own` holds the metrics of the network's
    run that are known here. `max_corrupt` also limits the invalid objects; see `labelled_source`. For the other arguments see `evaluate`.
    """
    task = tasks.get(loaded.task)
    if loaded.model.num_classes == 0 and task.needs_head:
        raise UsageError("these weights have no head, so they predict no classes to evaluate: fine-tune them first (recipe finetune)")
    own, unknown = (own, []) if own is not None else metrics_of_run(loaded.run)
    source, limit = distributed.on_all(lambda: labelled_source(loaded, task, data, max_corrupt))
    if data is not None or max_pixels is not None:
        read_by(source, Reading(loaded.preprocessing.channels, max_pixels))
    distributed.check_agreement(len(source), "numbers of images")
    loader = evaluation_loader(task.evaluation_samples(source, loaded.preprocessing), task, batch_size or task.batch_size, workers, device)
    if device.type == "cpu":
        keep_memory()  # each layer of each batch allocates and frees its tensors
    model, num_classes, how = loaded.model.to(device), loaded.model.num_classes, loaded.preprocessing
    result = evaluate(
        model, task, loader, how, num_classes, device,
        max_corrupt=limit, limit_key=LIMIT_KEY, progress=progress, with_results=with_results, own=own,
    )  # fmt: skip
    return Evaluated(result, task, source, [*task.remarks_on(source), *unknown])
