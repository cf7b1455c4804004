"""Prediction: `convnext.load(path)` gives model, class names and preprocessing in one."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext import tasks
from convnext.data.images import ImageLike, read_image
from convnext.distributed import pick_device
from convnext.export.load import load as load_network
from convnext.inference.inputs import find_images as find_images
from convnext.models.load import Loaded
from convnext.tasks.prediction import ClassIds


class Predictor:
    """A network of any task with its class names and preprocessing. Call it with images."""

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self.task, self.preprocessing, self.device = loaded.task, loaded.preprocessing, device
        self.source = loaded.source  # the address of the weights, by the hub's commit; None where it is not known
        self.model = loaded.model.to(device)
        task, count = tasks.get(loaded.task), loaded.model.num_classes
        self.classes: list[str] = loaded.classes or task.class_names(count)
        # The data's own number of each class: what results and masks bear.
        self.class_ids: ClassIds | None = loaded.class_ids or task.class_ids(loaded.classes, count)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Any:
        """The `Prediction` of the task for an image, or a list of them for a list: whatever `read_image` opens, to the same pixels.

        Those are files, their content, PIL images, and NumPy arrays (H, W, 3) in RGB, of which each is one image.

        Raises CorruptImageError for what can't be read, UsageError for an object that can't be an image.
        """
        if isinstance(images, ImageLike | Tensor):
            return self([images])[0]
        opened = [read_image(image) for image in images]
        return self.infer(opened) if opened else []

    def infer(self, images: Sequence[Any], **options: Any) -> list[Any]:
        """The `Prediction` of the task for each of opened images or `Prepared` ones; `options` are those of the task's `infer`."""
        task = tasks.get(self.task)
        found: list[Any] = task.infer(
            self.model, images, self.preprocessing, self.classes, self.device, class_ids=self.class_ids, **options
        )
        return found

    def optimize(self, precision: str = "auto", calibration: Sequence[ImageLike] = ()) -> "Predictor":
        """The same predictor through `convnext.optimize`, for CPUs.

        Args:
            precision: "auto", which takes the fastest on this CPU, "bf16", "float32" or "int8".
            calibration: for int8, images like those to come; some hundred do.

        Raises UsageError as `convnext.optimize` does.
        """
        from convnext.models.optimize.optimize import optimize

        def run(network: Any) -> None:
            infer = tasks.get(self.task).infer
            for image in calibration:
                infer(network, [read_image(image)], self.preprocessing, self.classes, self.device)

        fast = copy.copy(self)
        fast.model = optimize(self.model, precision, calibration=run)
        return fast

    def features(self, images: ImageLike | Sequence[ImageLike]) -> Tensor:
        """Embeddings (N, C) float32, on the CPU: what a classifier's head sees, or the mean of the last map under other heads.

        Raises CorruptImageError for what can't be read, UsageError if the network gives none, as an exported one.
        """
        opened = [read_image(image) for image in ([images] if isinstance(images, ImageLike | Tensor) else images)]
        return tasks.get(self.task).embed(self.model, opened, self.preprocessing, self.device)


def load(source: str | Path, weights: str | None = None, *, device: str | None = None) -> Predictor:
    """A predictor from a run folder, a weight file of any known format, `hf://owner/name`, or a model's name with `weights`.

    >>> convnext.load("runs/ants-and-bees")("photo.jpg").top(5)

    Raises UsageError or ConvnextError as `convnext.create_model` does.
    """
    return Predictor(load_network(source, weights), pick_device(device))
