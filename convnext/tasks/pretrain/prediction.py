"""What a masked autoencoder makes of an image: the pixels that it predicts for hidden patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import TypedDict

from convnext.data.transforms.preprocessing import Preprocessing
from convnext.models.pretraining.fcmae import MaskedAutoencoder, hidden_patches, images_of, patches
from convnext.report.notebook import Bar, Thumbnail
from convnext.tasks.base import Json
from convnext.tasks.classify.prediction import ClassifyPrediction, prepared_batch
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.pretrain.loss import masked_losses, normalised
from convnext.tasks.shared import require_finite

_GAP = 4  # pixels between drawn images
_GREY = 0.5  # of a hidden patch, from black to white


class ReconstructionAnswer(TypedDict):
    """A `Reconstruction` as plain values."""

    loss: float


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction(ClassifyPrediction):
    """The loss of an image, `probabilities[0]`, and what was seen and predicted of it."""

    seen: Tensor  # float32 (C, H, W) from 0 to 1: the prepared image, grey where it was hidden
    predicted: Tensor  # likewise, with the predicted pixels there

    def to_json(self, top: int | None = None) -> Json:
        """Return `{"loss": …}`."""
        return {"loss": float(self.probabilities[0])}

    def to_text(self, top: int | None = None) -> str:
        """Return the loss with four digits."""
        return f"loss {float(self.probabilities[0]):.4g}"

    def rows(self, top: int | None = None) -> list[Json]:
        """Return the one row of a table."""
        return [self.to_json()]

    def bars(self) -> list[Bar]:
        """Return none: a loss has no bounds."""
        return []

    def note(self) -> str:
        """Return the loss."""
        return self.to_text()

    def drawn_on(self, thumbnail: Thumbnail) -> Image.Image:
        """Return what was seen and, beside it, what was predicted."""
        return self.draw(thumbnail.open())

    def draw(self, image: Image.Image) -> Image.Image:
        """Return what was seen and, beside it, what was predicted; small images are enlarged to at least the image's smaller side."""
        height, width = self.seen.shape[-2:]
        factor = max(1, -(-min(image.size) // min(height, width)))
        sheet = Image.new("RGB", (2 * factor * width + _GAP, factor * height), "white")
        for number, values in enumerate((self.seen, self.predicted)):
            tile = to_image(values).resize((factor * width, factor * height), Image.Resampling.NEAREST)
            sheet.paste(tile, (number * (factor * width + _GAP), 0))
        return sheet


def to_image(values: Tensor) -> Image.Image:
    """Return pixels (C, H, W) from 0 to 1 as an RGB image: the first three channels, or the first if there are fewer."""
    shown = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    return Image.fromarray((shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


@torch.inference_mode()
def infer(model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> list[ClassifyPrediction]:
    """Return the reconstruction of each image, of the same patches of each; `model` is in evaluation mode. Raises NotFiniteError."""
    network, x = cast(MaskedAutoencoder, model), prepared_batch(images, preprocessing, device)
    hidden = hidden_patches(torch.zeros(len(x), dtype=torch.long, device=device), *network.grid(x), network.mask_ratio)
    predicted = network.reconstruct(x, hidden)
    seen, whole, _ = in_pixels(x, predicted, hidden, preprocessing)
    parts = zip(require_finite(masked_losses(x, predicted, hidden).cpu())[:, None], seen.cpu(), whole.cpu(), strict=True)
    return [Reconstruction(loss, [], before, after) for loss, before, after in parts]


def in_pixels(x: Tensor, predicted: Tensor, hidden: Tensor, how: Preprocessing) -> tuple[Tensor, Tensor, Tensor]:
    """Return what was seen of images, the images with predicted pixels where hidden, and the images; float32 (N, C, H, W) from 0 to 1.

    Args:
        x: images (N, C, H, W), prepared.
        predicted: patches (N, values, h, w), as `MaskedAutoencoder.reconstruct` returns them.
        hidden: (N, h, w), 1 where hidden and else 0.
        how: what prepared the images.
    """
    size, gone = x.shape[-2] // hidden.shape[-2], hidden.unsqueeze(1)
    _, mean, std = normalised(x, size)
    filled = images_of(patches(x.float(), size) * (1 - gone) + (predicted.float() * std + mean) * gone, size)
    scale, shift = (_of_channels(getattr(how, key), x) for key in ("std", "mean"))
    filled, original = filled * scale + shift, x.float() * scale + shift
    return images_of(patches(original, size) * (1 - gone) + _GREY * gone, size), filled, original


def sheet_of(parts: Sequence[Tensor]) -> Image.Image:
    """Return images (C, H, W) from 0 to 1 of one size beside each other, with white between them."""
    height, width = parts[0].shape[-2:]
    sheet = Image.new("RGB", (len(parts) * (width + _GAP) - _GAP, height), "white")
    for number, values in enumerate(parts):
        sheet.paste(to_image(values), (number * (width + _GAP), 0))
    return sheet


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return the encoder's pooled last map of whole images, (N, C) float32 on the CPU."""
    features = cast(MaskedAutoencoder, model).forward_features(prepared_batch(images, preprocessing, device))
    return require_finite(features.float().mean((2, 3)).cpu())


def _of_channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(-1, 1, 1)
