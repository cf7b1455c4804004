"""Prediction: `convnext.load(path)` gives model, class names and preprocessing in one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext import models
from convnext.data import imagenet
from convnext.data.pictures import ENDINGS, CorruptPictureError, read_picture
from convnext.distributed import pick_device
from convnext.errors import ConvnextError, UsageError

Picture = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """The probabilities (C,) of one picture's classes."""

    probabilities: Tensor
    classes: Sequence[str]

    def top(self, count: int = 1) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, the likeliest first."""
        best = self.probabilities.topk(min(count, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


class Predictor:
    """A network with its class names and preprocessing. Call it with pictures."""

    def __init__(self, loaded: models.Loaded, device: torch.device) -> None:
        self.task = loaded.task
        self.model = loaded.model.to(device)
        self.device, self.preprocessing = device, loaded.preprocessing
        self.classes = loaded.classes or _class_names(loaded.model.num_classes)
        self.transform = loaded.preprocessing.transform()

    @torch.inference_mode()
    def __call__(self, pictures: Picture | Sequence[Picture]) -> Any:
        """A `Prediction` for a picture, or a list of them for a list: files, their content, or PIL pictures.

        Raises CorruptPictureError for what can't be read.
        """
        if isinstance(pictures, Picture):
            return self([pictures])[0]
        batch = torch.stack([self.transform(_open(picture)) for picture in pictures])
        logits = self.model(batch.to(self.device, memory_format=torch.channels_last))
        return [Prediction(row, self.classes) for row in logits.float().softmax(1).cpu()]


def load(source: str | Path, weights: str | None = None, *, device: str | None = None) -> Predictor:
    """A predictor from a run folder, a weight file of any known format, `hf://owner/name`, or a model's name with `weights`.

    >>> convnext.load("runs/ants-and-bees")("photo.jpg").top(5)

    Raises UsageError or ConvnextError as `convnext.create_model` does.
    """
    return Predictor(models.load(source, weights), pick_device(device))


def find_pictures(sources: Sequence[str]) -> Iterator[Path]:
    """Files as they are named, folders with all pictures below them in sorted order. Raises UsageError for what is neither."""
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS)
            if not found:
                raise ConvnextError(f"folder {source} holds no pictures")
            yield from found
        elif source.is_file():
            yield source
        else:
            raise UsageError(f"no picture or folder {source}")


def predict_files(predictor: Predictor, paths: Sequence[Path], batch_size: int = 32) -> Iterator[tuple[Path, Prediction | str]]:
    """Each path with its prediction, or with the reason why it could not be read, in order."""
    for start in range(0, len(paths), batch_size):
        opened: dict[Path, Image.Image | str] = {}
        for path in paths[start : start + batch_size]:
            try:
                opened[path] = read_picture(path)
            except CorruptPictureError as error:
                opened[path] = str(error)
        good = [picture for picture in opened.values() if not isinstance(picture, str)]
        predictions = iter(predictor(good) if good else [])
        for path, picture in opened.items():
            yield path, picture if isinstance(picture, str) else next(predictions)


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    return read_picture(picture if isinstance(picture, bytes) else Path(picture))


def _class_names(count: int) -> list[str]:
    # Weights that others wrote do not name their classes; for ImageNet's two sets of classes the names are known.
    return imagenet.descriptions(count) if count in imagenet.SUBSETS else [f"class {i}" for i in range(count)]
