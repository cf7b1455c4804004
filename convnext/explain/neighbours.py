"""The images of a data set that a network takes to be most like an image: the nearest by the cosine of their embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage, shown
from convnext.data.sources.open import Source
from convnext.inference.bulk import predict_all
from convnext.inference.inputs import Item
from convnext.inference.outputs import Answer
from convnext.report.sheets import Row, sheet


@dataclass(frozen=True)
class Neighbour:
    """An image of a data set, and how near it is."""

    index: int  # its position in the source
    image: str
    label: str  # its class there
    cosine: float  # of its embedding with that of the image asked for; 1 is the same direction

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"image": self.image, "class": self.label, "cosine": self.cosine}


@dataclass(frozen=True, slots=True)
class _Member(Item):
    source: Any = None
    index: int = 0

    def read(self) -> Image.Image | DeepImage:
        return self.source.read(self.index)


class _Nearest:
    """Keeps the nearest alone, so that a data set of any size fits."""

    needs, done = frozenset({"features"}), None

    def __init__(self, wanted: Tensor, count: int) -> None:
        self.wanted, self.count = F.normalize(wanted), count
        self.cosines, self.indices = torch.empty(len(wanted), 0), torch.empty(len(wanted), 0, dtype=torch.long)

    def write(self, answers: Sequence[Answer]) -> None:
        found = [
            (one.item.index, torch.from_numpy(one.features))
            for one in answers
            if one.features is not None and isinstance(one.item, _Member)
        ]
        if not found:
            return
        indices = torch.tensor([index for index, _ in found]).expand(len(self.wanted), -1)
        cosines = torch.cat([self.cosines, self.wanted @ F.normalize(torch.stack([row for _, row in found])).T], 1)
        self.cosines, places = cosines.topk(min(self.count, cosines.shape[1]))
        self.indices = torch.cat([self.indices, indices], 1).gather(1, places)

    def finish(self) -> None:
        pass


def nearest_images(
    predictor: Any,
    wanted: Tensor,
    source: Source,
    count: int,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[list[Neighbour]], dict[str, str]]:
    """The nearest images of a data set for each row of embeddings, the nearest first.

    Args:
        predictor: that the embeddings are of.
        wanted: (N, C), of `Predictor.features`.
        source: of `open_source`.
        count: how many for each.
        progress: as for `predict_all`.

    Returns: N lists, and why images of the data set were left out, by their names.

    Raises UsageError if the network gives no embeddings.
    """
    output = _Nearest(wanted, count)
    items = [_Member(source.name(i), "", None, "", source, i) for i in range(len(source))]
    errors = predict_all(predictor, items, [output], progress=progress)
    found = zip(output.cosines.tolist(), output.indices.tolist(), strict=True)
    return [[_neighbour(source, *pair) for pair in zip(*row, strict=True)] for row in found], errors


def _neighbour(source: Source, cosine: float, index: int) -> Neighbour:
    return Neighbour(index, source.name(index), source.classes[source.label(index)], cosine)


def neighbour_sheet(image: Image.Image | DeepImage, neighbours: Sequence[Neighbour], source: Source) -> Image.Image:
    """The image asked for and then its neighbours, each with its class and cosine."""
    tiles = [(shown(source.read(one.index)), f"{one.label}  {one.cosine:.3f}") for one in neighbours]
    return sheet([Row("the image, then the nearest, with their class and cosine", [(shown(image), ""), *tiles])])
