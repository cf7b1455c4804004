"""The objects in an image: boxes, classes, scores and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, cast

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import TypedDict

from convnext.data.run_lengths import RunLengths, decode
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import TooLargeError
from convnext.models.detection.boxes import Size
from convnext.models.detection.postprocess import SCORE, Masks, encode_masks
from convnext.report import drawing, palette
from convnext.report.notebook import Bar, Thumbnail, scaled
from convnext.tasks.base import Json
from convnext.tasks.detect import tiles
from convnext.tasks.detect.options import DetectNetwork, DetectOptions, selection_of
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.shared import finite_outputs, prepared, require_embeddings, require_finite, same_size
from convnext.tasks.shown import ShownPrediction
from convnext.text import counted

COLUMNS = ("class", "score", "left", "top", "right", "bottom")
SHOWN_SCORE = 0.5  # from which on a detection is drawn and printed, unless the caller gives a threshold


class Detections(TypedDict):
    """The detections in one image, best first."""

    boxes: Tensor  # float (n, 4): left, top, right, bottom
    labels: Tensor  # int64 (n,)
    scores: Tensor  # float (n,)
    masks: NotRequired[list[RunLengths] | Tensor]  # n; as a tensor bool (n, H, W) or (n, 1, H, W)


ObjectRow = TypedDict("ObjectRow", {"class": str, "score": float, "box": list[float], "mask": NotRequired[RunLengths]})


class DetectAnswer(TypedDict):
    """A `DetectPrediction` as plain values: the objects, those of the highest score first."""

    objects: list[ObjectRow]


@dataclass(frozen=True, eq=False, repr=False)
class DetectPrediction(ShownPrediction):
    """The objects that were found, those of the highest score first, in the pixels of the image; tensors are on the CPU."""

    boxes: Tensor  # float32 (n, 4): left, top, right, bottom
    labels: Tensor  # int64 (n,)
    scores: Tensor  # float32 (n,), above the threshold, 0.05 by default
    masks: Sequence[RunLengths] | None  # n; None of a detector without masks
    classes: Sequence[str]
    shown: float = SHOWN_SCORE  # the score from which on an object is drawn and printed

    def to_json(self, top: int | None = None) -> Json:
        """Return `{"objects": [{"class", "score", "box": [left, top, right, bottom], "mask": RLE}, …]}`, all or the `top` best."""
        masks = [{} for _ in self.labels] if self.masks is None else [{"mask": mask} for mask in self.masks]
        found = [
            {"class": self.classes[label], "score": score, "box": box} | mask
            for label, score, box, mask in zip(self.labels.tolist(), self._scores(), self._boxes(), masks, strict=True)
        ]
        return {"objects": found[:top]}

    def to_text(self, top: int | None = None) -> str:
        """Return the objects of a score of at least `shown`, all or the `top` best, on one line."""
        sure = [
            f"{self.classes[label]} {score:.1%}"
            for label, score in zip(self.labels.tolist(), self.scores.tolist(), strict=True)
            if score >= self.shown
        ]
        return "  ".join(sure[:top]) or "nothing"

    def rows(self, top: int | None = None) -> list[Json]:
        """Return a row of a table for each object, all or the `top` best."""
        found = [
            dict(zip(COLUMNS, (self.classes[label], score, *box), strict=True))
            for label, score, box in zip(self.labels.tolist(), self._scores(), self._boxes(), strict=True)
        ]
        return found[:top]

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the RGB image with the objects of a score of at least `shown`; a small image is enlarged by a whole factor."""
        sure = self.scores >= self.shown
        found: Json = {"boxes": self.boxes[sure], "labels": self.labels[sure], "scores": self.scores[sure]}
        if self.masks is not None:
            found["masks"] = (decode(mask) for mask, shown in zip(self.masks, sure.tolist(), strict=True) if shown)
        return drawing.draw(image, found, self.classes)

    def bars(self) -> list[Bar]:
        """Return the objects of a score of at least `shown` with their scores, in their colours."""
        sure = [(label, score) for label, score in zip(self.labels.tolist(), self.scores.tolist(), strict=True) if score >= self.shown]
        return [Bar(self.classes[label], score, palette.CLASSES[label % len(palette.CLASSES)]) for label, score in sure]

    def note(self) -> str:
        """Return how many objects have a lower score."""
        unsure = int((self.scores < self.shown).sum())
        if unsure:
            return f"{counted(unsure, 'object')} of a score below {self.shown:g} not shown"
        return "" if len(self.scores) else "nothing"

    def drawn_on(self, thumbnail: Thumbnail) -> Image.Image:
        """Return the small copy of the image as `draw` draws the image."""
        small, sure, (x, y) = thumbnail.open(), self.scores >= self.shown, thumbnail.scale()
        found: Json = {"boxes": self.boxes[sure] * torch.tensor([x, y, x, y]), "labels": self.labels[sure], "scores": self.scores[sure]}
        if self.masks is not None:
            chosen = (decode(mask) for mask, shown in zip(self.masks, sure.tolist(), strict=True) if shown)
            found["masks"] = (torch.from_numpy(scaled(mask.numpy(), small.size)) for mask in chosen)
        return drawing.draw(small, found, self.classes)

    # Rounded to a hundredth of a pixel, and to more digits of a score than are meaningful, as in COCO's results.
    def _boxes(self) -> list[list[float]]:
        return [[round(edge, 2) for edge in box] for box in self.boxes.tolist()]

    def _scores(self) -> list[float]:
        return [round(score, 5) for score in self.scores.tolist()]


@torch.inference_mode()
def infer(
    model: nn.Module,
    images: Sequence[OpenedImage],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    options: DetectOptions,
) -> list[DetectPrediction]:
    """Return the objects in each image, of any sizes; `model` is in evaluation mode and on `device`.

    Masks are made one by one, each within its object's box, so that memory does not grow with their number. Their time grows with
    their pixels, which `max_pixels` bounds.

    Raises TooLargeError where the boxes hold more, NotFiniteError for an output that says nothing.
    """
    ready, selection = prepared(images, preprocessing), selection_of(preprocessing, options, classes)
    threshold, max_pixels = options.get("threshold", SCORE), options.get("max_pixels")
    masks: Masks = "small" if options.get("masks", True) else "none"
    detections: dict[int, dict[str, Tensor]] = {}
    for indices in same_size(ready):
        inputs, sizes = [ready[index].image.to(device) for index in indices], [ready[index].size for index in indices]
        with finite_outputs(model):
            detections |= zip(indices, tiles.detect(model, inputs, sizes, preprocessing, selection, threshold, masks), strict=True)
    found = [detections[index] for index in range(len(ready))]
    for one in found:  # before the first mask is made, which would be in vain
        if "masks" in one and max_pixels is not None:
            _refuse_large(one["boxes"], max_pixels)
    return [_prediction(one, image.size, classes, options) for one, image in zip(found, ready, strict=True)]


def _prediction(found: dict[str, Tensor], size: Size, classes: Sequence[str], options: DetectOptions) -> DetectPrediction:
    boxes, masks = found["boxes"], found.get("masks")
    runs = None if masks is None else encode_masks(masks, boxes, size, options.get("check", _nothing))
    shown = options.get("threshold", SHOWN_SCORE)  # who asks for objects of a score of 0.3 sees them, too
    return DetectPrediction(boxes.float().cpu(), found["labels"].cpu(), found["scores"].float().cpu(), runs, classes, shown)


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return the mean of the backbone's last map of each image: (N, C) float32 on the CPU."""
    require_embeddings(model, "maps")
    network, how = cast(DetectNetwork, model), tiles.untiled(preprocessing)
    maps = [network.maps([one.image.to(device)])[-1] for one in prepared(images, how)]
    return require_finite(torch.cat([one.mean((2, 3)) for one in maps]).float().cpu())


def coco_categories() -> dict[str, int]:
    """Return COCO's 80 categories with their ids, in the order of the labels, as torchvision lists them."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {name: i for i, name in enumerate(names) if name not in ("__background__", "N/A")}


def _nothing() -> None:
    pass


def _refuse_large(boxes: Tensor, limit: int) -> None:
    pixels = int((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).double().prod(1).sum())
    if pixels > limit:
        raise TooLargeError(
            f"the masks of {counted(len(boxes), 'object')} hold {pixels / 1e6:.0f} million pixels, more than {limit / 1e6:.0f} million: "
            "send a smaller image, ask for a higher score (threshold), or for no masks"
        )
