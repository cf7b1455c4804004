"""The objects in an image: boxes, classes, scores and masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.data.run_lengths import RunLengths, decode
from convnext.errors import TooLargeError
from convnext.models.detection.postprocess import SCORE, encode_masks
from convnext.report import drawing
from convnext.tasks.finite import finite_outputs, require_finite
from convnext.tasks.prediction import ClassIds, Prepared, prepared, require, same_size

BATCH_SIZE = 2  # images at a time, where nobody says: they go through the network at some 800 x 1333 pixels
COLUMNS = ("class", "score", "left", "top", "right", "bottom")
SHOWN_SCORE = 0.5  # from which on a detection is drawn and told on a terminal


@dataclass(frozen=True, eq=False)
class Prediction:
    """At most 100 objects, the surest first, in the pixels of the image; tensors are on the CPU."""

    boxes: Tensor  # float32 (n, 4): left, top, right, bottom
    labels: Tensor  # int64 (n,)
    scores: Tensor  # float32 (n,), from 0.05
    masks: Sequence[RunLengths] | None  # n; None of a detector without masks
    classes: Sequence[str]

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """`{"objects": [{"class", "score", "box": [left, top, right, bottom], "mask": COCO's run lengths}, …]}`, all or the `top` best."""
        masks = [{} for _ in self.labels] if self.masks is None else [{"mask": mask} for mask in self.masks]
        found = [
            {"class": self.classes[label], "score": score, "box": box} | mask
            for label, score, box, mask in zip(self.labels.tolist(), self._scores(), self._boxes(), masks, strict=True)
        ]
        return {"objects": found[:top]}

    def to_text(self, top: int | None = None) -> str:
        """The objects of a score of at least 0.5, all or the `top` best, on one line."""
        sure = [
            f"{self.classes[label]} {score:.1%}"
            for label, score in zip(self.labels.tolist(), self.scores.tolist(), strict=True)
            if score >= SHOWN_SCORE
        ]
        return "  ".join(sure[:top]) or "nothing"

    def rows(self, top: int | None = None) -> list[dict[str, Any]]:
        """A row of a table for each object, all or the `top` best."""
        found = [
            dict(zip(COLUMNS, (self.classes[label], score, *box), strict=True))
            for label, score, box in zip(self.labels.tolist(), self._scores(), self._boxes(), strict=True)
        ]
        return found[:top]

    def draw(self, image: Image.Image) -> Image.Image:
        """The RGB image with the objects of a score of at least 0.5; small images come back enlarged by a whole factor."""
        sure = self.scores >= SHOWN_SCORE
        found: dict[str, Any] = {"boxes": self.boxes[sure], "labels": self.labels[sure], "scores": self.scores[sure]}
        if self.masks is not None:
            found["masks"] = (decode(mask) for mask, shown in zip(self.masks, sure.tolist(), strict=True) if shown)
        return drawing.draw(image, found, self.classes)

    # Rounded as in COCO's results: a hundredth of a pixel, and more digits of a score than it is worth.
    def _boxes(self) -> list[list[float]]:
        return [[round(edge, 2) for edge in box] for box in self.boxes.tolist()]

    def _scores(self) -> list[float]:
        return [round(score, 5) for score in self.scores.tolist()]


@torch.inference_mode()
def infer(
    model: Any,
    images: Sequence[Image.Image | DeepImage | Prepared],
    preprocessing: Any,
    classes: Sequence[str],
    device: torch.device,
    *,
    class_ids: ClassIds | None = None,
    threshold: float = SCORE,
    masks: bool = True,
    most_pixels: int | None = None,
    check: Callable[[], object] = lambda: None,
) -> list[Prediction]:
    """The objects in opened images, of any sizes; `model` is in evaluation mode and on `device`.

    Masks are made one by one, each within its object's box, so that memory does not grow with their number. Their time does: with
    their pixels, which `most_pixels` bounds.

    Args:
        class_ids: the data's own numbers of the classes; objects bear names, so that they do not need them.
        threshold: the score that an object exceeds.
        masks: whether a detector that has masks gives them.
        most_pixels: that the boxes of an image's objects may hold together for their masks to be made.
        check: called before each mask is made; it may raise, to end the work.

    Raises TooLargeError where the boxes hold more, NotFiniteError for an output that says nothing.
    """
    ready = prepared(images, preprocessing)
    found: dict[int, Prediction] = {}
    for places in same_size(ready):
        inputs = [ready[place].image.to(device) for place in places]
        with finite_outputs(model):
            detections = model.predict(inputs, [ready[place].size for place in places], threshold, "small" if masks else "none")
        for place, one in zip(places, detections, strict=True):
            if "masks" in one and most_pixels is not None:
                _refuse_large(one["boxes"], most_pixels)
            found[place] = Prediction(
                one["boxes"].float().cpu(),
                one["labels"].cpu(),
                one["scores"].float().cpu(),
                encode_masks(one["masks"], one["boxes"], ready[place].size, check) if "masks" in one else None,
                classes,
            )
    return [found[place] for place in range(len(ready))]


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: Any, images: Sequence[Image.Image | DeepImage | Prepared], preprocessing: Any, device: torch.device) -> Tensor:
    """The mean of the backbone's last map of each RGB image: (N, C) float32 on the CPU."""
    require(model, "maps")
    maps = [model.maps([one.image.to(device)])[-1] for one in prepared(images, preprocessing)]
    return require_finite(torch.cat([one.mean((2, 3)) for one in maps]).float().cpu())


def class_names(count: int) -> list[str]:
    """The names of the classes of weights that do not say them: known for COCO's."""
    return list(coco_categories()) if count == len(coco_categories()) else [f"class {i}" for i in range(count)]


def class_ids(classes: Sequence[str] | None, count: int) -> ClassIds | None:
    """The numbers of the classes of weights that do not say them: known for COCO's, which `classes` or their number tell."""
    known = coco_categories()
    return list(known.values()) if list(classes or class_names(count)) == list(known) else None


def coco_categories() -> dict[str, int]:
    """COCO's 80 categories with their ids, in the order of the labels, as torchvision tells them."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {name: i for i, name in enumerate(names) if name not in ("__background__", "N/A")}


def _refuse_large(boxes: Tensor, most: int) -> None:
    pixels = int((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).double().prod(1).sum())
    if pixels > most:
        raise TooLargeError(
            f"the masks of {len(boxes)} objects hold {pixels / 1e6:.0f} million pixels, more than {most / 1e6:.0f} million: "
            "send a smaller image, ask for a higher score (threshold), or for no masks"
        )
