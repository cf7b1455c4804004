"""The class of every pixel of an image."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.transforms.segment import scaled_size
from convnext.models.segmentation import inference
from convnext.report import overlay
from convnext.tasks.finite import finite_outputs, require_finite
from convnext.tasks.prediction import ClassIds, Prepared, prepared, require, same_size

BATCH_SIZE = 4  # images at a time, where nobody says: they are prepared in their own size, and may be large
COLUMNS = ("class", "share")
_IN_TEXT = 3  # classes, where nobody says
_ADE20K = 150  # classes
_TOGETHER = 2**25  # logits of images that go through the network at once: 128 MB


@dataclass(frozen=True, eq=False)
class Prediction:
    """The class (H, W) of every pixel, uint8 on the CPU, or uint16 where there are more than 255 classes."""

    mask: Tensor
    classes: Sequence[str]
    class_ids: ClassIds | None = None  # the value or colour of each class in the masks trained on

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """`{"size": [height, width], "classes": {name: share of the pixels}, "mask": PNG of the data's values in base 64}`.

        The largest class is first; all are listed, or the `top` largest.
        """
        return self.shares(top) | {"mask": base64.b64encode(self.png()).decode()}

    def shares(self, top: int | None = None) -> dict[str, Any]:
        """The same without the mask."""
        return {"size": list(self.mask.shape), "classes": {row["class"]: row["share"] for row in self.rows(top)}}

    def to_text(self, top: int | None = None) -> str:
        """The `top` largest classes, three by default, with their share of the pixels, on one line."""
        return "  ".join(f"{row['class']} {row['share']:.1%}" for row in self.rows(top or _IN_TEXT))

    def rows(self, top: int | None = None) -> list[dict[str, Any]]:
        """A row of a table for each class that occurs, the largest first; all, or the `top` largest."""
        counts = torch.bincount(self.mask.flatten().long(), minlength=len(self.classes))
        order = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())][:top]
        return [{"class": self.classes[label], "share": counts[label].item() / self.mask.numel()} for label in order.tolist()]

    def png(self) -> bytes:
        """The mask as a lossless image in the coding of the masks trained on: their values, of 8 bits or if need be 16, or colours.

        Where the weights do not know it, the values are the classes' places, from 0.
        """
        ids = np.array(range(len(self.classes)) if self.class_ids is None else self.class_ids)
        table = ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)
        buffer = BytesIO()
        Image.fromarray(table[self.mask.numpy()]).save(buffer, "PNG")
        return buffer.getvalue()

    def draw(self, image: Image.Image) -> Image.Image:
        """The RGB image with the classes' colours laid over it, and a legend under it."""
        return overlay.overlay(image, self.mask, self.classes)


@torch.inference_mode()
def infer(
    model: Any,
    images: Sequence[Image.Image | DeepImage | Prepared],
    preprocessing: Any,
    classes: Sequence[str],
    device: torch.device,
    *,
    class_ids: ClassIds | None = None,
) -> list[Prediction]:
    """The classes of all pixels of RGB images, of any sizes, by the test that `preprocessing` says: resized, in windows, or whole.

    `model` is in evaluation mode and on `device`; `class_ids` are the data's own values or colours of the classes. Raises
    UsageError if an image is too small for it, NotFiniteError.
    """
    ready = prepared(images, preprocessing)
    found: dict[int, Prediction] = {}
    mode = inference.mode_of(preprocessing)
    for places in same_size(ready):
        inputs = [ready[place].image.to(device) for place in places]
        with finite_outputs(model):
            masks = _masks(model, inputs, mode)
        found |= {place: Prediction(mask, classes, class_ids) for place, mask in zip(places, masks, strict=True)}
    return [found[place] for place in range(len(ready))]


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: Any, images: Sequence[Image.Image | DeepImage | Prepared], preprocessing: Any, device: torch.device) -> Tensor:
    """The mean of the backbone's last map of each RGB image, resized as for its test: (N, C) float32 on the CPU."""
    require(model, "features")
    means = []
    for one in prepared(images, preprocessing):
        image = one.image.to(device)[None]
        if preprocessing.scale is not None:
            image = F.interpolate(image, scaled_size(*one.size, preprocessing.scale), mode="bilinear", align_corners=False)
        means.append(model.features(image)[-1].mean((2, 3)))
    return require_finite(torch.cat(means).float().cpu())


def class_names(count: int) -> list[str]:
    """The names of the classes of weights that do not say them: none are known."""
    return [f"class {i}" for i in range(count)]


def class_ids(classes: Sequence[str] | None, count: int) -> ClassIds | None:
    """The values of the classes of weights that do not say them: 150 classes without names are ADE20K's, whose masks hold 1 to 150.

    0 is "other" there, and no class of the network. mmsegmentation writes its results for ADE20K's server in the same way
    (`ADE20KDataset` with `reduce_zero_label`, `format_results`: "the index range of official requirement is from 0 to 150").
    """
    return list(range(1, _ADE20K + 1)) if classes is None and count == _ADE20K else None


def _masks(model: Any, images: list[Tensor], mode: inference.Mode) -> list[Tensor]:
    """The classes of images of one size, all at once where they are tested whole and small."""
    if mode == inference.Mode() and model.num_classes <= 255 and model.num_classes * sum(image[0].numel() for image in images) <= _TOGETHER:
        logits = model(torch.stack(images).contiguous(memory_format=torch.channels_last))
        return list(logits.argmax(1).to("cpu", torch.uint8))
    return [inference.predict(model, image, mode) for image in images]
