"""What a network says of an image, one file a task: `infer` makes each a `Prediction`, `embed` the images' embeddings.

A `Prediction` is the same to all above this floor: `to_json()`, `to_text()` for a terminal, `rows()` under `COLUMNS` for a table,
and `draw(image)`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.errors import UsageError

ClassIds = Sequence[int | Sequence[int]]  # the data's own number of each class: COCO's category ids; values of masks, or R, G, B


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Prepared:
    """An image as its network takes it: prepared in another thread, say, while the network is busy."""

    image: Tensor  # float32 (3, H', W'), on the CPU
    size: tuple[int, int]  # height and width of the image as it was


def prepare(image: Image | DeepImage, transform: Callable[[Image | DeepImage], Tensor]) -> Prepared:
    """An opened image through the `transform()` of a preprocessing."""
    return Prepared(transform(image), (image.height, image.width))


def prepared(images: Sequence[Image | DeepImage | Prepared], preprocessing: Any) -> list[Prepared]:
    """The images, all prepared."""
    transform = preprocessing.transform()
    return [one if isinstance(one, Prepared) else prepare(one, transform) for one in images]


def same_size(images: Sequence[Prepared]) -> Iterator[list[int]]:
    """The positions of images of one size as prepared, size by size.

    Run together, they need no padding: what is found in one does not depend on the others.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(tuple(image.image.shape), []).append(place)
    yield from groups.values()


def require(model: Any, method: str) -> None:
    """Raise UsageError if the network lacks what makes its embeddings: exported ones do, and LeNet-5 and AlexNet."""
    if not hasattr(model, method):
        raise UsageError("this network gives predictions but no embeddings: take the weights that it was exported from, or another one")
