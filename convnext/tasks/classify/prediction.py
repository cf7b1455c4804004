"""The classes of an image with their probabilities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NotRequired, cast

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import TypedDict

from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.models.calibration import KEPT
from convnext.report.fonts import font_for
from convnext.report.notebook import Bar
from convnext.tasks.base import Json
from convnext.tasks.classify.known import EmbeddingNetwork, KnownOptions, network_for, novelties, sets
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import prepared, require_embeddings, require_finite
from convnext.tasks.shown import ShownPrediction

_IN_TEXT, _IN_JSON, _IN_TEXT_OF_SET = 3, 5, 10  # classes, by default
_MIN_WIDTH = 320  # pixels of a drawn image: smaller ones are enlarged, for names to fit under them


ClassProbability = TypedDict("ClassProbability", {"class": str, "probability": float})


class NoveltyAnswer(TypedDict):
    """What a calibrated network says of an image where it is asked whether the image is unknown."""

    novelty: NotRequired[float]  # 0 to 1
    unknown: NotRequired[bool]


class ClassifyAnswer(NoveltyAnswer):
    """A `ClassifyPrediction` as plain values; lists have the most probable first."""

    top: list[ClassProbability]
    coverage: NotRequired[float]  # with `set`, where a coverage was asked for
    set: NotRequired[list[ClassProbability]]


@dataclass(frozen=True, eq=False, repr=False)
class ClassifyPrediction(ShownPrediction):
    """The classes of an image with their probabilities, and what a calibrated network knows of them where it was asked."""

    probabilities: Tensor  # float32 (C,), on the CPU
    classes: Sequence[str]
    _: KW_ONLY
    coverage: float | None = None  # the fraction of images, 0 to 1, whose class is in the set
    members: Sequence[int] | None = None  # the classes of the set, most probable first
    novelty: float | None = None  # the fraction of training images, 0 to 1, that are nearer to other ones than this image is

    def top(self, count: int = 1) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities, the most probable first."""
        best = self.probabilities.topk(min(count, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @property
    def is_unknown(self) -> bool | None:
        """Whether the image is unlike the training images, of which 95 % are not; None where nobody asked."""
        return None if self.novelty is None else self.novelty > KEPT

    def prediction_set(self) -> list[tuple[str, float]]:
        """Return the classes of the set with their probabilities, the most probable first; [] where nobody asked for one."""
        return [(self.classes[i], float(self.probabilities[i])) for i in self.members or ()]

    def to_json(self, top: int | None = None) -> Json:
        """Return `{"top": [{"class", "probability"}, …]}` of the `top` most probable classes, five by default.

        With a set also `coverage` and `set`, like `top`; with a novelty also `novelty` and `unknown`.
        """
        found: Json = {"top": class_rows(self.top(top or _IN_JSON))}
        if self.members is not None:
            found |= {"coverage": self.coverage, "set": class_rows(self.prediction_set())}
        return found | self.novelty_json()

    def to_text(self, top: int | None = None) -> str:
        """Return the `top` most probable classes, three by default, or of the set ten, on one line."""
        if self.members is None:
            return words(self.top(top or _IN_TEXT)) + self.novelty_text()
        count = top or _IN_TEXT_OF_SET
        return f"{self._set_title()}: {'  '.join([words(self.prediction_set()[:count]), *self._rest(count)])}{self.novelty_text()}"

    def rows(self, top: int | None = None) -> list[Json]:
        """Return a row of a table for each of the `top` most probable classes, by default for five, or for each of the set."""
        if self.members is None:
            return [row | self.novelty_json() for row in class_rows(self.top(top or _IN_JSON))]
        listed = class_rows(self.top(top or len(self.members)))
        return [row | {"in_set": i < len(self.members)} | self.novelty_json() for i, row in enumerate(listed)]

    def lines(self) -> list[str]:
        """Return what is written under a drawn image."""
        shown = self.top(_IN_TEXT) if self.members is None else self.prediction_set()[:_IN_TEXT]
        listed = [f"{probability:6.1%}  {name}" for name, probability in shown]
        if self.members is not None:
            listed = [f"{self._set_title()}:", *listed, *self._rest(_IN_TEXT)]
        return listed + ([self.novelty_text().strip()] if self.novelty is not None else [])

    def bars(self) -> list[Bar]:
        """Return the most probable classes, five or those of the set."""
        return [Bar(name, probability) for name, probability in (self.prediction_set() or self.top(_IN_JSON))]

    def note(self) -> str:
        """Return what is known of a set and of a novelty; "" where nobody asked."""
        return (f"the {self._set_title()}" if self.members is not None else "") + self.novelty_text()

    def novelty_json(self) -> Json:
        """Return `{"novelty", "unknown"}`, or {} where nobody asked."""
        return {} if self.novelty is None else {"novelty": self.novelty, "unknown": self.is_unknown}

    def novelty_text(self) -> str:
        """Return the end of a line; "" where nobody asked."""
        if self.novelty is None:
            return ""
        return f"  novelty {self.novelty:.2f}" + (": unlike the training images" if self.is_unknown else "")

    def _set_title(self) -> str:
        return f"{100 * (self.coverage or 0):.4g}% set"

    def _rest(self, shown: int) -> list[str]:
        more = len(self.members or ()) - shown
        return [f"and {more} more"] if more > 0 else []

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the RGB image with its most probable classes written under it; a small image is enlarged by a whole factor."""
        from PIL import ImageDraw

        factor = max(1, -(-_MIN_WIDTH // image.width))
        size = (image.width * factor, image.height * factor)
        height = max(13, size[0] // 36)
        lines, line = self.lines(), round(1.5 * height)
        font = font_for(height, lines)
        sheet = Image.new("RGB", (size[0], size[1] + line * len(lines) + line // 2), "white")
        sheet.paste(image.resize(size, Image.Resampling.NEAREST), (0, 0))
        pen = ImageDraw.Draw(sheet)
        for i, text in enumerate(lines):
            pen.text((line // 2, size[1] + line // 4 + i * line), text, "black", font)
        return sheet


def class_rows(found: Sequence[tuple[str, float]]) -> list[Json]:
    """Return classes with their probabilities as plain values."""
    return [{"class": name, "probability": probability} for name, probability in found]


def words(found: Sequence[tuple[str, float]]) -> str:
    """Return classes with their probabilities on one line."""
    return "  ".join(f"{name} {probability:.1%}" for name, probability in found)


@torch.inference_mode()
def infer(
    model: nn.Module,
    images: Sequence[OpenedImage],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    options: KnownOptions,
) -> list[ClassifyPrediction]:
    """Return the prediction for each image, of any sizes; `model` is in evaluation mode and on `device`. Raises NotFiniteError."""
    network = network_for(model, options)
    logits = logits_of(network, prepared_batch(images, preprocessing, device), preprocessing)
    rows, coverage = require_finite(logits.float().softmax(1).cpu()), options.get("coverage")
    known = zip(rows, sets(rows, options), novelties(network, len(rows), options), strict=True)
    return [ClassifyPrediction(row, classes, coverage=coverage, members=members, novelty=novelty) for row, members, novelty in known]


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor, how: Preprocessing) -> Tensor:
    """Return the logits (N, outputs) for prepared images (N, 3, H, W).

    With `how.mirror` they are the logarithms, float32, of probabilities that are means over each image and its mirror image.
    """
    logits = model(images)
    if not (isinstance(how, ClassifyPreprocessing) and how.mirror):
        return logits
    mirrored = model(images.flip(-1).contiguous(memory_format=torch.channels_last))
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
