"""The classes of an image with their probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from convnext.data import imagenet
from convnext.data.deep import DeepImage
from convnext.tasks.finite import require_finite
from convnext.tasks.prediction import ClassIds, Prepared, prepared, require

BATCH_SIZE = 32  # images at a time, where nobody says
COLUMNS = ("class", "probability")
_IN_TEXT, _IN_JSON = 3, 5  # classes, where nobody says
_SHORTEST = 320  # pixels of a drawn image's width: smaller ones are enlarged, for names to fit under them


@dataclass(frozen=True, eq=False)
class Prediction:
    """The probabilities (C,) of one image's classes, float32 on the CPU."""

    probabilities: Tensor
    classes: Sequence[str]

    def top(self, count: int = 1) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, the likeliest first."""
        best = self.probabilities.topk(min(count, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """`{"top": [{"class", "probability"}, …]}` of the `top` likeliest, five by default."""
        return {"top": self.rows(top)}

    def to_text(self, top: int | None = None) -> str:
        """The `top` likeliest classes, three by default, on one line."""
        return "  ".join(f"{name} {probability:.1%}" for name, probability in self.top(top or _IN_TEXT))

    def rows(self, top: int | None = None) -> list[dict[str, Any]]:
        """A row of a table for each of the `top` likeliest classes, five by default."""
        return [{"class": name, "probability": probability} for name, probability in self.top(top or _IN_JSON)]

    def draw(self, image: Image.Image) -> Image.Image:
        """The RGB image with its likeliest classes written under it; small images come back enlarged by a whole factor."""
        factor = max(1, -(-_SHORTEST // image.width))
        size = (image.width * factor, image.height * factor)
        height = max(13, size[0] // 36)
        font, line = ImageFont.load_default(height), round(1.5 * height)
        lines = [f"{probability:6.1%}  {name}" for name, probability in self.top(_IN_TEXT)]
        sheet = Image.new("RGB", (size[0], size[1] + line * len(lines) + line // 2), "white")
        sheet.paste(image.resize(size, Image.Resampling.NEAREST), (0, 0))
        pen = ImageDraw.Draw(sheet)
        for i, words in enumerate(lines):
            pen.text((line // 2, size[1] + line // 4 + i * line), words, "black", font)
        return sheet


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
    """The classes of opened images, of any sizes; `model` is in evaluation mode and on `device`. Raises NotFiniteError.

    Classes bear names, not `class_ids`.
    """
    logits = model(_batch(images, preprocessing, device))
    return [Prediction(row, classes) for row in require_finite(logits.float().softmax(1).cpu())]


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: Any, images: Sequence[Image.Image | DeepImage | Prepared], preprocessing: Any, device: torch.device) -> Tensor:
    """What the network's head sees of RGB images: pooled, and normalised where the network does; (N, C) float32 on the CPU."""
    require(model, "forward_head")
    features = model.forward_head(model.forward_features(_batch(images, preprocessing, device)), pre_logits=True)
    return require_finite(features.float().cpu())


def class_names(count: int) -> list[str]:
    """The names of the classes of weights that do not say them: known for ImageNet's sets of classes."""
    return imagenet.descriptions(count) if count in imagenet.SUBSETS else [f"class {i}" for i in range(count)]


def class_ids(classes: Sequence[str] | None, count: int) -> ClassIds | None:
    """The numbers of the classes of weights that do not say them: classes to put images in have none."""
    return None


def _batch(images: Sequence[Image.Image | DeepImage | Prepared], preprocessing: Any, device: torch.device) -> Tensor:
    x = torch.stack([one.image for one in prepared(images, preprocessing)])
    return x.to(device, memory_format=torch.channels_last)
