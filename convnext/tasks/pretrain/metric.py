"""What an evaluation of a masked autoencoder measures: its loss on images that it was not trained on."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import TypedDict

import torch
from PIL import Image
from torch import Tensor

from convnext.data.sources.base import ClassifySource
from convnext.tasks.base import Json, Metric, Metrics
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.pretrain.prediction import sheet_of
from convnext.text import printable

KEPT_IMAGES = 24
SHOWN_IMAGES = 8  # whose reconstruction a report shows


class HardImage(TypedDict):
    """An image and its loss."""

    image: str  # its name
    index: int  # in the source
    loss: float


class ShownImage(TypedDict):
    """An image that a report shows."""

    image: str  # its name
    index: int  # in the source
    sheet: str  # what was seen, the reconstruction and the original beside each other: a PNG in base 64


class PretrainMetric(Metric[ClassifyBatch, Tensor]):
    """The losses of an evaluation, and the reconstructions of its first images, to be shown.

    Args:
        source: the images.
    """

    def __init__(self, source: ClassifySource) -> None:
        self.source: ClassifySource | None = source
        self.found: dict[int, float] = {}  # loss, by position in the source
        self.shown: dict[int, str] = {}  # likewise, see `ShownImage.sheet`

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"source": None}  # each process has its own

    def update(self, outputs: Sequence[Tensor], batch: ClassifyBatch) -> None:
        """Add the outputs of `PretrainTask.predict` for a batch."""
        losses = torch.stack([output[0] for output in outputs]).cpu().tolist()
        self.found |= dict(zip(batch.indices, losses, strict=True))
        for index, output in zip(batch.indices, outputs, strict=True):
            if len(output) > 1:
                self.shown[index] = _encoded(output[1:].cpu().view(3, *batch.images.shape[1:]))

    def merge(self, other: "PretrainMetric") -> None:
        """Add what another process measured on other samples."""
        self.found |= other.found
        self.shown |= other.shown

    def compute(self) -> Metrics:
        """Return `loss`, the mean over images, and `count`."""
        if not self.found:
            return {"count": 0}
        losses = torch.tensor([self.found[index] for index in sorted(self.found)], dtype=torch.float64)
        return {"loss": float(losses.mean()), "count": len(losses)}

    def details(self) -> Json:
        """Return the images with the largest losses, the largest first, and the reconstructions of the first images."""
        if self.source is None:
            return {"hardest": [], "shown": []}
        worst = sorted(self.found, key=lambda index: (-self.found[index], index))[:KEPT_IMAGES]
        rows: list[HardImage] = [
            {"image": printable(self.source.name(index)), "index": index, "loss": self.found[index]} for index in worst
        ]
        shown: list[ShownImage] = [
            {"image": printable(self.source.name(index)), "index": index, "sheet": self.shown[index]} for index in sorted(self.shown)
        ]
        return {"hardest": rows, "shown": shown}


def _encoded(parts: Tensor) -> str:
    buffer = BytesIO()
    sheet_of(list(parts)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    """Return the RGB image of a `ShownImage.sheet`."""
    with Image.open(BytesIO(base64.b64decode(text)), formats=("PNG",)) as image:
        return image.convert("RGB")
