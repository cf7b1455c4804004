"""The classes of an image with their probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.tasks.base import Json, OpenedImage
from convnext.tasks.shared import prepared, require_embeddings, require_finite

_IN_TEXT, _IN_JSON = 3, 5  # classes, by default
_MIN_WIDTH = 320  # pixels of a drawn image: smaller ones are enlarged, for names to fit under them


class EmbeddingNetwork(Protocol):
    """A classifier that gives what its head sees."""

    def forward_features(self, x: Tensor, /) -> Tensor: ...
    def forward_head(self, x: Tensor, /, *, pre_logits: bool) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ClassifyPrediction:
    """The classes of an image with their probabilities."""

    probabilities: Tensor  # float32 (C,), on the CPU
    classes: Sequence[str]

    def top(self, count: int = 1) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, the most probable first."""
        best = self.probabilities.topk(min(count, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def to_json(self, top: int | None = None) -> Json:
        """Return `{"top": [{"class", "probability"}, …]}` of the `top` most probable classes, five by default."""
        return {"top": self.rows(top)}

    def to_text(self, top: int | None = None) -> str:
        """Return the `top` most probable classes, three by default, on one line."""
        return "  ".join(f"{name} {probability:.1%}" for name, probability in self.top(top or _IN_TEXT))

    def rows(self, top: int | None = None) -> list[Json]:
        """Return a row of a table for each of the `top` most probable classes, five by default."""
        return [{"class": name, "probability": probability} for name, probability in self.top(top or _IN_JSON)]

    def lines(self) -> list[str]:
        """Return what is written under a drawn image."""
        return [f"{probability:6.1%}  {name}" for name, probability in self.top(_IN_TEXT)]

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the RGB image with its most probable classes written under it; a small image is enlarged by a whole factor."""
        factor = max(1, -(-_MIN_WIDTH // image.width))
        size = (image.width * factor, image.height * factor)
        height = max(13, size[0] // 36)
        font, line = ImageFont.load_default(height), round(1.5 * height)
        lines = self.lines()
        sheet = Image.new("RGB", (size[0], size[1] + line * len(lines) + line // 2), "white")
        sheet.paste(image.resize(size, Image.Resampling.NEAREST), (0, 0))
        pen = ImageDraw.Draw(sheet)
        for i, words in enumerate(lines):
            pen.text((line // 2, size[1] + line // 4 + i * line), words, "black", font)
        return sheet


@torch.inference_mode()
def infer(
    model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, classes: Sequence[str], device: torch.device
) -> list[ClassifyPrediction]:
    """Return the prediction for each image, of any sizes; `model` is in evaluation mode and on `device`. Raises NotFiniteError."""
    logits = logits_of(model, prepared_batch(images, preprocessing, device), preprocessing)
    return [ClassifyPrediction(row, classes) for row in require_finite(logits.float().softmax(1).cpu())]


def logits_of(model: nn.Module, images: Tensor, how: Preprocessing) -> Tensor:
    """Return the logits (N, outputs) for prepared images (N, 3, H, W).

    With `how.mirror` they are the logarithms, float32, of probabilities that are means over each image and its mirror image.
    """
    logits: Tensor = model(images)
    if not (isinstance(how, ClassifyPreprocessing) and how.mirror):
        return logits
    mirrored: Tensor = model(images.flip(-1).contiguous(memory_format=torch.channels_last))
    both = torch.stack([one.float().log_softmax(1) for one in (logits, mirrored)])
    return both.logsumexp(0) - math.log(2)


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return what the network's head sees: the pooled map, normalised where the network does that; (N, C) float32 on the CPU."""
    require_embeddings(model, "forward_head")
    network = cast(EmbeddingNetwork, model)
    features = network.forward_head(network.forward_features(prepared_batch(images, preprocessing, device)), pre_logits=True)
    return require_finite(features.float().cpu())


def prepared_batch(images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return images as the network takes them, (N, 3, H, W) float32 on the device."""
    x = torch.stack([one.image for one in prepared(images, preprocessing)])
    return x.to(device, memory_format=torch.channels_last)
