"""What a task is: all that differs between classification, detection and segmentation. Nothing outside `tasks/` asks which task it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, Self, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from convnext.data.deep import DeepImage
from convnext.data.images import AS_RGB, Reading
from convnext.data.loader import Sample, Samples
from convnext.data.sampling.draws import Draw
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.models.calibration import Calibration
from convnext.recipe import Recipe
from convnext.tasks.prepared import OpenedImage

if TYPE_CHECKING:
    from convnext.report import page
    from convnext.tasks.exported import TaskExport

Function = Callable[..., object]  # a user's
ClassIds = Sequence[int | Sequence[int]]  # the data's own number of each class: COCO's category ids; values of masks, or R, G, B
Losses = Mapping[str, Tensor]  # named parts (scalars, float32), each logged; `total` adds them up for training
Metrics = dict[str, float]
Json = dict[str, object]  # plain values
DEMO_PREDICT = "predict {run} {run}/example.png --draw drawn"  # what to type after a demo
MaskLook = Literal["values", "palette", "colours"]  # of a mask's PNG; see `SegmentPrediction.png`


class Batch(Protocol):
    """Samples that go through a network together. Tensors are on one device."""

    indices: list[int]  # positions in the source
    corrupt: list[tuple[int, str]]  # positions that could not be read, with the reason

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice) -> Self: ...
    def to(self, device: torch.device) -> Self: ...
    def pin_memory(self) -> Self: ...  # in page-locked memory, from which copies to a GPU are asynchronous


class Prediction(Protocol):
    """What a network finds in one image."""

    def to_json(self, top: int | None = None) -> Json: ...
    def to_text(self, top: int | None = None) -> str: ...  # for a terminal
    def rows(self, top: int | None = None) -> list[Json]: ...  # of a table, under the task's `columns`
    def draw(self, image: Image.Image) -> Image.Image: ...


class Source(Protocol):
    """A dataset of any task, by position."""

    classes: list[str]
    skipped: list[str]  # files that are not used
    remarks: list[str]  # what else to report to the user

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image | DeepImage: ...
    def name(self, index: int) -> str: ...


BatchT = TypeVar("BatchT", bound=Batch)
GivenT = TypeVar("GivenT", bound=Batch, contravariant=True)
OutputT = TypeVar("OutputT")  # of one sample, as the metric takes it: logits, objects or a mask
PredictionT = TypeVar("PredictionT", bound=Prediction, covariant=True)
SourceT = TypeVar("SourceT", bound=Source)
GivenSourceT = TypeVar("GivenSourceT", contravariant=True)


class Criterion(Protocol[GivenT]):
    """What gives the loss of a batch in training. Its randomness comes from the global generators, which the step seeds."""

    def __call__(self, model: nn.Module, batch: GivenT) -> Losses: ...


class Metric(ABC, Generic[BatchT, OutputT]):
    """What an evaluation measures, batch by batch, in each process; the parts are merged."""

    @abstractmethod
    def update(self, outputs: Sequence[OutputT], batch: BatchT) -> None:
        """Add what `Task.predict` gave for a batch."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another process measured on other samples."""

    @abstractmethod
    def compute(self) -> Metrics:
        """Return the metrics by name, the headline and `count` among them."""

    @abstractmethod
    def details(self) -> Json:
        """Return everything that the report draws, as plain values."""

    def measure(self, functions: Mapping[str, Function], known: Sequence[str]) -> Metrics:
        """Return a user's own metrics by name; `known` are names that are taken. Only a metric of `Task.keeping_outputs` has them."""
        raise NotImplementedError

    def results(self) -> list[Json]:
        """Return all that was predicted as COCO's results. Raises UsageError for a task without such results."""
        raise UsageError("only detectors give results in COCO's format")


class Reporter(Protocol[GivenSourceT]):
    """What words and draws the evaluations of a task: its module `report`."""

    def summary_line(self, metrics: Metrics) -> str: ...
    def summary(self, metrics: Metrics, details: Json, classes: Sequence[str]) -> str: ...
    def sections(self, details: Json, classes: Sequence[str], source: GivenSourceT) -> "list[page.PageSection]": ...
    def draw_demo(self, folder: Path) -> list[str]: ...


@dataclass
class TaskData:
    """What a run trains on and is evaluated on."""

    train: Samples
    val: Samples
    classes: list[str]
    remarks: list[str]  # to report to the user
    groups: Sequence[int] | None = None  # of the training samples, where a batch shall hold one group only
    class_ids: ClassIds | None = None  # the data's own number of each class, to travel with the weights
    class_counts: Sequence[int] | None = None  # training images of each class, where each image has one class
    how: Preprocessing | None = None  # of the trained network's images, where that depends on the data
    draw: Draw | None = None  # which training samples an epoch consists of, where not of each once
    recipe: Recipe | None = None  # with the numbers that were measured on the images; None if none were


class Task(ABC, Generic[BatchT, OutputT, PredictionT, SourceT]):
    """A task: its data, its loss, its metric, and what it says of an image. One instance each, without state."""

    name: ClassVar[str]
    headline: ClassVar[str]  # the metric by which the best weights are chosen unless `eval.best_by` names another
    best_metrics: ClassVar[tuple[str, ...]]  # those that `eval.best_by` may name
    answer: ClassVar[type] = dict  # what `Prediction.to_json` returns: a TypedDict, from which the service describes its answers
    batch_size: ClassVar[int]  # images at a time in evaluation and prediction, where nobody says
    columns: ClassVar[tuple[str, ...]]  # of a table of predictions
    formats: ClassVar[tuple[str, ...]] = ()  # in which predictions can be written beside JSON lines and tables: "coco", "masks"
    options: ClassVar[tuple[str, ...]] = ()  # keyword arguments of `infer` that other tasks do not have
    needs_head: ClassVar[bool] = True  # whether a network without a head has nothing to answer
    own: ClassVar[tuple[str, ...]] = ()  # keys of a recipe that name a user's code, which the task honours
    reorders_head: ClassVar[bool] = True  # whether a head that is kept can be put in another order of classes
    hub_pipeline: ClassVar[str]  # the hub's name of the task
    demo_recipe: ClassVar[str | None] = None  # of `convnext demo --task NAME`, and what to type after it in the folder {run}
    demo_next: ClassVar[tuple[str, ...]] = tuple(f"convnext {use}" for use in ("eval {run}", DEMO_PREDICT, "serve {run}"))

    @abstractmethod
    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation samples of a recipe. Raises ConvnextError for data that can't be learned from."""

    @abstractmethod
    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> SourceT:
        """Open labelled images to evaluate a network on; `classes` are its names where known. Raises ConvnextError if they don't fit."""

    def named(self, where: str, recipe: Recipe) -> str:
        """Return the name of data to evaluate on with what the run's recipe says of data of its kind, as the columns of a table."""
        return where

    @abstractmethod
    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with the data that `where` names, one problem per line; reads all of it, as `how` says."""

    @abstractmethod
    def counts(self, source: SourceT) -> str:
        """Return in one line how many images of which classes a source holds."""

    @abstractmethod
    def remarks_on(self, source: SourceT) -> list[str]:
        """Return what to report to the user about a source, for instance skipped files."""

    @abstractmethod
    def overview(self, where: str) -> list[str]:
        """Return what the data that `where` names are, one statement per line."""

    @abstractmethod
    def preprocessing(self, recipe: Recipe) -> Preprocessing:
        """Return how the trained network will take its images."""

    @abstractmethod
    def evaluation_samples(self, source: SourceT, how: Preprocessing) -> Samples:
        """Return samples prepared as the network takes them, nothing random."""

    def loss_samples(self, source: SourceT, how: Preprocessing) -> Samples:
        """Return samples for the loss on validation images: nothing random, labels as in training. UsageError for a task without."""
        raise UsageError(f"eval.loss: the task {self.name!r} has no such loss: leave it out")

    @abstractmethod
    def collate(self, samples: list[Sample]) -> BatchT:
        """Return the samples as a batch; those that could not be read are skipped and noted in it."""

    def multi_scale(self, how: Preprocessing) -> Preprocessing:
        """Return the preprocessing of a test at several scales. Raises UsageError for a task without one."""
        raise UsageError(f"--multi-scale is a test of segmenters, and this network's task is {self.name}")

    def mirrored(self, how: Preprocessing) -> Preprocessing:
        """Return the preprocessing of a test with mirror images. Raises UsageError for a task without one."""
        raise UsageError(f"--tta flip: the objects found in an image and in its mirror image can't be averaged (task {self.name})")

    def tiled(self, how: Preprocessing, tile: int, overlap: float | None) -> Preprocessing:
        """Return the preprocessing that also cuts images into tiles. Raises UsageError for a task without one, or numbers of no use."""
        raise UsageError(f"--tile is for detectors, and this network's task is {self.name}")

    # Training and evaluation

    @abstractmethod
    def criterion(self, recipe: Recipe, data: TaskData) -> Criterion[BatchT]:
        """Return what gives the loss in training on the data that `open` returned."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: BatchT, how: Preprocessing) -> Sequence[OutputT]:
        """Return the outputs for each sample of a batch, as `Metric.update` takes them; `how` is what the samples were prepared by."""

    @abstractmethod
    def metric(self, num_classes: int, source: SourceT) -> Metric[BatchT, OutputT]:
        """Return an empty metric for a network of so many classes, evaluated on a source."""

    def keeping_outputs(self, metric: Metric[BatchT, OutputT]) -> Metric[BatchT, OutputT]:
        """Return a metric that also keeps all outputs, for a user's own metrics. Raises UsageError for a task that takes none."""
        raise UsageError(f"the task {self.name!r} takes no metrics from outside: leave out eval.metrics")

    # Report

    @abstractmethod
    def reporter(self) -> Reporter[SourceT]:
        """Return what words and draws evaluations; imported when it is needed, because it loads Matplotlib."""

    def summary_line(self, metrics: Metrics) -> str:
        """Return an evaluation in a few words."""
        return self.reporter().summary_line(metrics)

    def summary(self, metrics: Metrics, details: Json, classes: Sequence[str]) -> str:
        """Return an evaluation as lines of text, `summary_line` first."""
        return self.reporter().summary(metrics, details, classes)

    def report(self, details: Json, classes: Sequence[str], source: SourceT) -> "list[page.PageSection]":
        """Return what a report shows of an evaluation."""
        return self.reporter().sections(details, classes, source)

    def draw_demo(self, folder: Path) -> list[str]:
        """Write predictions.png into a run folder of the embedded data, and return what to print of it, one line each."""
        return self.reporter().draw_demo(folder)

    # Use

    @abstractmethod
    def infer(
        self,
        model: nn.Module,
        images: Sequence[OpenedImage],
        preprocessing: Preprocessing,
        classes: Sequence[str],
        device: torch.device,
        /,
        *,
        class_ids: ClassIds | None = None,
        **options: object,
    ) -> list[PredictionT]:
        """Return the prediction for each opened or prepared image. `options` are the task's own; UsageError for one that it has not."""

    def why_not(
        self, option: str, value: object, model: nn.Module, calibration: Calibration | None, classes: Sequence[str] = ()
    ) -> str | None:
        """Return why a network of those classes can't answer an option of `infer` with that value, None for any; None if it can."""
        return None if option in self.options else f"{option}: the task {self.name!r} has no such option"

    def columns_with(self, options: Mapping[str, object]) -> tuple[str, ...]:
        """Return the columns of a table of predictions that were made with these options of `infer`."""
        return self.columns

    @abstractmethod
    def embed(self, model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
        """Return embeddings (N, C) float32 on the CPU. Raises UsageError if the network has none."""

    def class_names(self, count: int) -> list[str]:
        """Return the names to show for the classes of weights that do not name them."""
        return [f"class {i}" for i in range(count)]

    def possible_class_names(self, count: int) -> list[list[str]]:
        """Return the lists of names that the classes of weights that do not name them are known to have, if any."""
        return []

    def class_ids(self, classes: Sequence[str] | None, count: int) -> ClassIds | None:
        """Return the data's own numbers of the classes of weights that do not say them; None where none are known."""
        return None

    # Export

    @abstractmethod
    def export(self) -> "TaskExport":
        """Return how networks of the task are exported, and opened again."""


AnyTask: TypeAlias = Task[Batch, object, Prediction, Source]  # a task of which only the contract is known
