"""The images of a dataset that are nearest to an image, by the cosine of their embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage, shown
from convnext.data.images import AS_RGB, Reading
from convnext.data.sources.base import ClassifySource, read_by
from convnext.inference.answers import Answer
from convnext.inference.bulk import predict_all
from convnext.inference.inputs import Item
from convnext.inference.predictor import Predictor
from convnext.report.sheets import SheetRow, sheet
from convnext.tasks.base import Json, Prediction


@dataclass(frozen=True)
class Neighbour:
    """An image of a dataset, and how near it is."""

    index: int  # its position in the source
    image: str
    label: str  # its class there
    cosine: float  # of its embedding with that of the image in question; 1 is the same direction

    def to_json(self) -> Json:
        """Return plain values."""
        return {"image": self.image, "class": self.label, "cosine": self.cosine}


@dataclass(frozen=True, slots=True)
class _Member(Item):
    source: ClassifySource | None = None
    index: int = 0

    def read(self, how: Reading = AS_RGB) -> Image.Image | DeepImage:
        assert self.source is not None
        return self.source.read(self.index)


class _Nearest:
    """Keeps only the nearest, so that a dataset of any size fits in memory."""

    needs, done = frozenset({"features"}), None

    def __init__(self, queries: Tensor, count: int) -> None:
        self.queries, self.count = F.normalize(queries), count
        self.cosines, self.indices = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)

    def write(self, answers: Sequence[Answer]) -> None:
        found = [
            (one.item.index, torch.from_numpy(one.features))
            for one in answers
            if one.features is not None and isinstance(one.item, _Member)
        ]
        if not found:
            return
        indices = torch.tensor([index for index, _ in found]).expand(len(self.queries), -1)
        cosines = torch.cat([self.cosines, self.queries @ F.normalize(torch.stack([row for _, row in found])).T], 1)
        self.cosines, kept = cosines.topk(min(self.count, cosines.shape[1]))
        self.indices = torch.cat([self.indices, indices], 1).gather(1, kept)

    def finish(self) -> None:
        pass


def nearest_images(
    predictor: Predictor[Prediction],
    queries: Tensor,
    source: ClassifySource,
    count: int,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[list[Neighbour]], dict[str, str]]:
    """Return the nearest images of a dataset for each row of embeddings, the nearest first.

    Args:
        predictor: made the embeddings.
        queries: (N, C), from `Predictor.features`.
        source: from `open_source`.
        count: how many for each.
        progress: as for `predict_all`.

    Returns: N lists, and the reasons why images of the dataset were skipped, by their names.

    Raises UsageError if the network gives no embeddings.
    """
    read_by(source, predictor.reading)
    output = _Nearest(queries, count)
    items = [_Member(source.name(i), "", None, "", source, i) for i in range(len(source))]
    errors = predict_all(predictor, items, [output], progress=progress)
    found = zip(output.cosines.tolist(), output.indices.tolist(), strict=True)
    return [[_neighbour(source, *pair) for pair in zip(*row, strict=True)] for row in found], errors


def _neighbour(source: ClassifySource, cosine: float, index: int) -> Neighbour:
    return Neighbour(index, source.name(index), source.classes[source.label(index)], cosine)


def neighbour_sheet(image: Image.Image | DeepImage, neighbours: Sequence[Neighbour], source: ClassifySource) -> Image.Image:
    """Return a sheet of the image in question, then its neighbours, each with its class and cosine."""
    tiles = [(shown(source.read(one.index)), f"{one.label}  {one.cosine:.3f}") for one in neighbours]
    return sheet([SheetRow("the image, then the nearest, with their class and cosine", [(shown(image), ""), *tiles])])
