"""Prediction: `convnext.load(path)` gives model, class names and preprocessing in one."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext import models, tasks
from convnext.data.pictures import Picture, read_picture
from convnext.deploy.inputs import find_pictures as find_pictures
from convnext.distributed import pick_device
from convnext.tasks.predictions import ClassIds


class Predictor:
    """A network of any task with its class names and preprocessing. Call it with pictures."""

    def __init__(self, loaded: models.Loaded, device: torch.device) -> None:
        self.task, self.preprocessing, self.device = loaded.task, loaded.preprocessing, device
        self.source = loaded.source  # the address of the weights, by the hub's commit; None where it is not known
        self.model = loaded.model.to(device)
        task, count = tasks.get(loaded.task), loaded.model.num_classes
        self.classes: list[str] = loaded.classes or task.class_names(count)
        # The data's own number of each class: what results and masks bear.
        self.class_ids: ClassIds | None = loaded.class_ids or task.class_ids(loaded.classes, count)

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Any:
        """The `Prediction` of the task for an image, or a list of them for a list: whatever `read_picture` opens, to the same pixels.

        Those are files, their content, PIL images, and NumPy arrays (H, W, 3) in RGB, of which each is one image.

        Raises CorruptPictureError for what can't be read, UsageError for an object that can't be an image.
        """
        if isinstance(pictures, Picture | Tensor):
            return self([pictures])[0]
        opened = [read_picture(picture) for picture in pictures]
        return self.infer(opened) if opened else []

    def infer(self, pictures: Sequence[Any], **options: Any) -> list[Any]:
        """The `Prediction` of the task for each of opened images or `Prepared` ones; `options` are those of the task's `infer`."""
        task = tasks.get(self.task)
        found: list[Any] = task.infer(
            self.model, pictures, self.preprocessing, self.classes, self.device, class_ids=self.class_ids, **options
        )
        return found

    def optimize(self, precision: str = "auto", calibration: Sequence[Picture] = ()) -> "Predictor":
        """The same predictor through `convnext.optimize`, for CPUs.

        Args:
            precision: "auto", which takes the fastest on this CPU, "bf16", "float32" or "int8".
            calibration: for int8, pictures like those to come; some hundred do.

        Raises UsageError as `convnext.optimize` does.
        """
        from convnext.deploy.optimize import optimize

        def run(network: Any) -> None:
            infer = tasks.get(self.task).infer
            for picture in calibration:
                infer(network, [read_picture(picture)], self.preprocessing, self.classes, self.device)

        fast = copy.copy(self)
        fast.model = optimize(self.model, precision, calibration=run)
        return fast

    def features(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Embeddings (N, C) float32, on the CPU: what a classifier's head sees, or the mean of the last map under other heads.

        Raises CorruptPictureError for what can't be read, UsageError if the network gives none, as an exported one.
        """
        opened = [read_picture(picture) for picture in ([pictures] if isinstance(pictures, Picture | Tensor) else pictures)]
        return tasks.get(self.task).embed(self.model, opened, self.preprocessing, self.device)


def load(source: str | Path, weights: str | None = None, *, device: str | None = None) -> Predictor:
    """A predictor from a run folder, a weight file of any known format, `hf://owner/name`, or a model's name with `weights`.

    >>> convnext.load("runs/ants-and-bees")("photo.jpg").top(5)

    Raises UsageError or ConvnextError as `convnext.create_model` does.
    """
    return Predictor(models.load(source, weights), pick_device(device))
