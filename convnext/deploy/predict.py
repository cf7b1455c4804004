"""Prediction: `convnext.load(path)` gives model, class names and preprocessing in one."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext import models, tasks
from convnext.data.pictures import read_picture
from convnext.deploy.inputs import find_pictures as find_pictures
from convnext.distributed import pick_device

Picture = str | Path | bytes | Image.Image


class Predictor:
    """A network of any task with its class names and preprocessing. Call it with pictures."""

    def __init__(self, loaded: models.Loaded, device: torch.device) -> None:
        self.task, self.preprocessing, self.device = loaded.task, loaded.preprocessing, device
        self.model = loaded.model.to(device)
        self.classes: list[str] = loaded.classes or tasks.get(loaded.task).class_names(loaded.model.num_classes)

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Any:
        """The `Prediction` of the task for a picture, or a list of them for a list: files, their content, or PIL pictures.

        Raises CorruptPictureError for what can't be read.
        """
        if isinstance(pictures, Picture):
            return self([pictures])[0]
        opened = [_open(picture) for picture in pictures]
        return tasks.get(self.task).infer(self.model, opened, self.preprocessing, self.classes, self.device) if opened else []

    def optimize(self, precision: str = "bf16", calibration: Sequence[Picture] = ()) -> "Predictor":
        """The same predictor through `convnext.optimize`, for CPUs.

        Args:
            precision: "bf16", "float32" or "int8".
            calibration: for int8, pictures like those to come; some hundred do.

        Raises UsageError as `convnext.optimize` does.
        """
        from convnext.deploy.optimize import optimize

        def run(network: Any) -> None:
            infer = tasks.get(self.task).infer
            for picture in calibration:
                infer(network, [_open(picture)], self.preprocessing, self.classes, self.device)

        fast = copy.copy(self)
        fast.model = optimize(self.model, precision, calibration=run)
        return fast

    def features(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Embeddings (N, C) float32, on the CPU: what a classifier's head sees, or the mean of the last map under other heads.

        Raises CorruptPictureError for what can't be read, UsageError if the network gives none, as an exported one.
        """
        opened = [_open(picture) for picture in ([pictures] if isinstance(pictures, Picture) else pictures)]
        return tasks.get(self.task).embed(self.model, opened, self.preprocessing, self.device)


def load(source: str | Path, weights: str | None = None, *, device: str | None = None) -> Predictor:
    """A predictor from a run folder, a weight file of any known format, `hf://owner/name`, or a model's name with `weights`.

    >>> convnext.load("runs/ants-and-bees")("photo.jpg").top(5)

    Raises UsageError or ConvnextError as `convnext.create_model` does.
    """
    return Predictor(models.load(source, weights), pick_device(device))


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    return read_picture(picture if isinstance(picture, bytes) else Path(picture))
