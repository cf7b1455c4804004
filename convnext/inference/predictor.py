"""Prediction: `convnext.load(path)` gives model, class names and preprocessing in one."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, cast, overload

import torch
from PIL.Image import Image
from torch import Tensor, nn

from convnext import tasks
from convnext.data.deep import DeepImage
from convnext.data.images import ImageLike, Reading, read_image
from convnext.distributed import pick_device
from convnext.errors import UsageError
from convnext.export.load import load as load_network
from convnext.models.cost import ImageSize
from convnext.models.load import Loaded, at_size
from convnext.models.weights.published import gives_embeddings
from convnext.tasks.base import ClassIds, PredictionT
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shown import with_thumbnails


class Predictor(Generic[PredictionT]):
    """A network of any task with its class names and preprocessing. Call it with images.

    Attributes:
        task: the name of its task.
        model: the network, in evaluation mode on `device`.
        classes: the names of its classes.
        class_ids: the data's own number of each class, which results and masks hold; None where unknown.
        preprocessing: how it takes its images.
        reading: how its images are opened: their channels, and the largest.
        source: the address that its weights came from, by the hub's commit; None where unknown.
        calibration: what its training images say of its predictions; None where the weights have none.
        options: of its task, for all its predictions; see `with_options`.
    """

    def __init__(self, loaded: Loaded, device: torch.device, max_pixels: int | None = None) -> None:
        self.reading = Reading(loaded.preprocessing.channels, max_pixels)
        self.task, self.preprocessing, self.device, self.source = loaded.task, loaded.preprocessing, device, loaded.source
        self.model: nn.Module = loaded.model.to(device)
        self.calibration, self.options = loaded.calibration, dict[str, object]()
        task, count = tasks.get(loaded.task), loaded.model.num_classes
        self._outputs = 0 if loaded.classes is None and gives_embeddings(loaded.source, count) else count
        self.classes: list[str] = loaded.classes or task.class_names(count)
        self.class_ids: ClassIds | None = loaded.class_ids or task.class_ids(loaded.classes, count)

    @overload
    def __call__(self, images: ImageLike, **options: object) -> PredictionT: ...  # type: ignore[overload-overlap]  # a str is also a sequence of str
    @overload
    def __call__(self, images: Sequence[ImageLike], **options: object) -> list[PredictionT]: ...
    def __call__(self, images: ImageLike | Sequence[ImageLike], **options: object) -> PredictionT | list[PredictionT]:
        """Return the `Prediction` for an image, or a list of them for a list of images.

        An image is whatever `read_image` opens, always to the same pixels: a file, its content, a PIL image, or a NumPy array
        (H, W, 3) in RGB, or with the channels that the network takes. `options` are as for `with_options`.

        Raises CorruptImageError for an image that can't be read, UsageError for an object that is no image.
        """
        asked = self.with_options(**options)
        if isinstance(images, ImageLike | Tensor):
            opened = [self.open(images)]
            return with_thumbnails(asked.infer(opened), opened)[0]
        opened = [self.open(image) for image in images]
        return with_thumbnails(asked.infer(opened), opened) if opened else []

    def with_options(self, **options: object) -> "Predictor[PredictionT]":
        """Return the same predictor with options of its task for all its predictions, see `Task.options`.

        >>> predictor.with_options(coverage=0.95, unknown=True)("photo.jpg").prediction_set()

        Raises UsageError for an option that the network has no answer to, for instance a coverage of one that is not calibrated.
        """
        task = tasks.get(self.task)
        for name, value in options.items():
            if (reason := task.why_not(name, value, self.model, self.calibration, self.classes)) is not None:
                raise UsageError(reason)
        asked = copy.copy(self)
        asked.options = self.options | options
        return asked

    def tiled(self, tile: int, overlap: float | None = None) -> "Predictor[PredictionT]":
        """Return the same predictor for small objects: it also looks at overlapping tiles of each image. Of detectors.

        Args:
            tile: pixels a side.
            overlap: the fraction of a side that neighbouring tiles share; by default 0.2.

        Raises UsageError for a network of another task, or numbers of no use.
        """
        fine = copy.copy(self)
        fine.preprocessing = tasks.get(self.task).tiled(self.preprocessing, tile, overlap)
        return fine

    def open(self, image: ImageLike) -> Image | DeepImage:
        """Return the image opened with the channels that the network takes. Raises as `read_image` does."""
        return read_image(image, how=self.reading)

    def infer(self, images: Sequence[OpenedImage], **options: object) -> list[PredictionT]:
        """Return the `Prediction` for each opened or prepared image; `options` are the task's own, see `Task.options`.

        Raises UsageError if the network has no head.
        """
        self.require_head()
        task = tasks.get(self.task)
        given = self.options | ({"calibration": self.calibration} if "calibration" in task.options else {}) | options
        found = task.infer(self.model, images, self.preprocessing, self.classes, self.device, class_ids=self.class_ids, **given)
        return cast(list[PredictionT], found)

    def require_head(self) -> None:
        """Raise UsageError if the network has no head, and so nothing to predict."""
        if self._outputs == 0 and tasks.get(self.task).needs_head:
            raise UsageError(
                "these weights have no head for classes, so they predict none: write their embeddings, on the command line with "
                "--features FILE, in Python with predictor.features(images), or fine-tune them with `convnext train finetune "
                "model.weights=…`"
            )

    def embed(self, images: Sequence[OpenedImage]) -> Tensor:
        """Return embeddings (N, C) float32, on the CPU, of opened or prepared images. Raises UsageError if the network has none."""
        return tasks.get(self.task).embed(self.model, images, self.preprocessing, self.device)

    def features(self, images: ImageLike | Sequence[ImageLike]) -> Tensor:
        """Return embeddings (N, C) float32, on the CPU: what a classifier's head sees, or the mean of the last map under other heads.

        Raises CorruptImageError for an image that can't be read, UsageError if the network has none, for instance an exported one.
        """
        return self.embed([self.open(image) for image in ([images] if isinstance(images, ImageLike | Tensor) else images)])

    def optimize(self, precision: str = "auto", calibration: Sequence[ImageLike] = (), backend: str = "auto") -> "Predictor[PredictionT]":
        """Return the same predictor with its network through `convnext.optimize`, for CPUs.

        Args:
            precision: "auto", which takes the fastest on this CPU, "bf16", "float32" or "int8".
            backend: "auto", which takes our operators, or an engine, "openvino" or "inductor".
            calibration: for int8, some hundred images like those to come.

        Raises UsageError as `convnext.optimize` does.
        """
        from convnext.models.optimize.optimize import optimize

        def run(network: nn.Module) -> None:
            infer = tasks.get(self.task).infer
            for image in calibration:
                infer(network, [self.open(image)], self.preprocessing, self.classes, self.device)

        fast = copy.copy(self)
        fast.model = optimize(self.model, precision, backend=backend, calibration=run)
        return fast


def load(
    source: str | Path,
    weights: str | None = None,
    *,
    device: str | None = None,
    max_pixels: int | None = None,
    size: ImageSize | None = None,
    network: nn.Module | None = None,
) -> Predictor[Any]:
    """Return a predictor from a run folder, a weight file of any known format, `hf://owner/name`, or a model's name with `weights`.

    >>> convnext.load("runs/ants-and-bees")("photo.jpg").top(5)

    Images of more than `max_pixels` are refused; by default Pillow's limit, some 89 million. With `size`, pixels a side or (height, width),
    a classifier takes images of another size than its weights' own.

    (The file decides what the predictions are, so their type is Any.)

    `network` is filled with the weights of a run whose network was given to `convnext.train` as `model=`.

    Raises UsageError or ConvnextError as `convnext.create_model` does.
    """
    loaded, where = load_network(source, weights, network), pick_device(device)
    if size is not None:
        loaded = at_size(loaded, size, str(weights or source), where)
    return Predictor(loaded, where, max_pixels)
