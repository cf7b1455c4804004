"""The class of every pixel of an image."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typing_extensions import TypedDict

from convnext.data.transforms.preprocessing import Preprocessing
from convnext.data.transforms.segment import SegmentPreprocessing, scaled_size
from convnext.models.segmentation import inference
from convnext.report import overlay
from convnext.report.notebook import Bar, Thumbnail, scaled
from convnext.report.palette import CLASSES, class_colour, mask_colours
from convnext.tasks.base import ClassIds, Json, MaskLook
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import finite_outputs, prepared, require_embeddings, require_finite, same_size
from convnext.tasks.shown import ShownPrediction

_IN_TEXT = 3  # classes, by default
_MAX_LOGITS = 2**25  # of images that go through the network at once: 128 MB


class SegmentNetwork(Protocol):
    """A segmenter, or an exported one; see `models.segmentation.upernet.UperNet`."""

    num_classes: int

    def features(self, x: Tensor, /) -> list[Tensor]: ...


ClassShare = TypedDict("ClassShare", {"class": str, "share": float})


class SegmentAnswer(TypedDict):
    """A `SegmentPrediction` as plain values."""

    size: list[int]  # height, width
    classes: list[ClassShare]  # of the pixels, the largest share first
    mask: str  # a PNG in base 64


@dataclass(frozen=True, eq=False, repr=False)
class SegmentPrediction(ShownPrediction):
    """The class of every pixel of an image."""

    mask: Tensor  # (H, W) on the CPU: uint8, or uint16 where there are more than 255 classes
    classes: Sequence[str]
    class_ids: ClassIds | None = None  # the value or colour of each class in the masks trained on

    def to_json(self, top: int | None = None) -> Json:
        """Return `{"size": [height, width], "classes": [{"class", "share"}, …], "mask": PNG in base 64}`.

        Shares are of the pixels, 0 to 1, the largest first; all are listed, or the `top` largest. The PNG is that of `png`.
        """
        return self.shares(top) | {"mask": base64.b64encode(self.png()).decode()}

    def shares(self, top: int | None = None) -> Json:
        """Return `to_json` without the mask."""
        return {"size": list(self.mask.shape), "classes": self.rows(top)}

    def to_text(self, top: int | None = None) -> str:
        """Return the `top` largest classes, three by default, with their share of the pixels, on one line."""
        return "  ".join(f"{name} {share:.1%}" for name, share in self._shares(top or _IN_TEXT))

    def rows(self, top: int | None = None) -> list[Json]:
        """Return a row of a table for each class that occurs, the largest first; all, or the `top` largest."""
        return [{"class": name, "share": share} for name, share in self._shares(top)]

    def _shares(self, top: int | None) -> list[tuple[str, float]]:
        counts = torch.bincount(self.mask.flatten().long(), minlength=len(self.classes))
        order = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())][:top]
        return [(self.classes[label], counts[label].item() / self.mask.numel()) for label in order.tolist()]

    def png(self, look: MaskLook = "values") -> bytes:
        """Return the mask as a PNG.

        Args:
            look: "values": in the coding of the masks trained on, their values, in 8 bits or if needed 16, or their colours; "palette":
                the same, with a palette that shows values of 8 bits in the classes' colours; "colours": red, green and blue, those of the
                masks trained on or else the classes'.

        Where the weights do not record this coding, the values are the indices of the classes, from 0.
        """
        ids = np.array(range(len(self.classes)) if self.class_ids is None else self.class_ids)
        if look == "colours":
            ids = np.array(mask_colours(len(self.classes), self.class_ids))
        table = ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)
        image = Image.fromarray(table[self.mask.numpy()])
        if look == "palette" and image.mode == "L":
            palette = np.zeros((256, 3), np.uint8)
            palette[table] = [class_colour(label) for label in range(len(table))]
            image.putpalette(palette.ravel().tolist())
        buffer = BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the RGB image with the classes' colours laid over it, and a legend under it."""
        return overlay.overlay(image, self.mask, self.classes)

    def bars(self) -> list[Bar]:
        """Return the classes that occur with their shares of the pixels, in their colours."""
        colours = {name: CLASSES[label % len(CLASSES)] for label, name in enumerate(self.classes)}
        return [Bar(name, share, colours[name]) for name, share in self._shares(None)]

    def note(self) -> str:
        """Return nothing: the bars say all."""
        return ""

    def drawn_on(self, thumbnail: Thumbnail) -> Image.Image:
        """Return the small copy of the image with the classes' colours and names on it."""
        small = thumbnail.open()
        return overlay.named(small, scaled(self.mask.numpy(), small.size), self.classes)


@torch.inference_mode()
def infer(
    model: nn.Module,
    images: Sequence[OpenedImage],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    class_ids: ClassIds | None = None,
) -> list[SegmentPrediction]:
    """Return the classes of all pixels of each image, of any sizes; `model` is in evaluation mode and on `device`.

    `preprocessing` says how: resized, in windows, or whole. Raises UsageError if an image is too small for the network,
    NotFiniteError for an output that says nothing.
    """
    ready = prepared(images, preprocessing)
    predictions: dict[int, SegmentPrediction] = {}
    mode = mode_of(preprocessing)
    for indices in same_size(ready):
        inputs = [ready[index].image.to(device) for index in indices]
        with finite_outputs(model):
            masks = _masks(model, inputs, mode)
        predictions |= {index: SegmentPrediction(mask, classes, class_ids) for index, mask in zip(indices, masks, strict=True)}
    return [predictions[index] for index in range(len(ready))]


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return the mean of the backbone's last map of each image, resized as for its prediction: (N, C) float32 on the CPU."""
    require_embeddings(model, "features")
    within, network, means = mode_of(preprocessing).within, cast(SegmentNetwork, model), []
    for one in prepared(images, preprocessing):
        image = one.image.to(device)[None]
        if within is not None:
            image = F.interpolate(image, scaled_size(*one.size, within), mode="bilinear", align_corners=False)
        means.append(network.features(image)[-1].mean((2, 3)))
    return require_finite(torch.cat(means).float().cpu())


def mode_of(preprocessing: Preprocessing) -> inference.Mode:
    """Return how a segmenter's preprocessing tests an image. Raises TypeError for the preprocessing of another task."""
    if not isinstance(preprocessing, SegmentPreprocessing):
        raise TypeError(f"a segmenter needs a SegmentPreprocessing, not a {type(preprocessing).__name__}")
    return inference.mode_of(preprocessing)


def _masks(model: nn.Module, images: list[Tensor], mode: inference.Mode) -> list[Tensor]:
    """Return the classes of images of one size: all at once where they are tested whole and are small."""
    classes, pixels = cast(SegmentNetwork, model).num_classes, sum(image[0].numel() for image in images)
    if mode == inference.Mode() and classes <= 255 and classes * pixels <= _MAX_LOGITS:
        logits = model(torch.stack(images).contiguous(memory_format=torch.channels_last))
        return list(logits.argmax(1).to("cpu", torch.uint8))
    return [inference.predict(model, image, mode) for image in images]
