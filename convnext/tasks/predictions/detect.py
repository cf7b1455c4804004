"""The objects in a picture: boxes, classes, scores and masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.report import drawing
from convnext.tasks.predictions import Prepared, prepared, require, same_size

BATCH_SIZE = 2  # pictures at a time, where nobody says: the masks found in one take up to a hundred times its pixels
COLUMNS = ("class", "score", "left", "top", "right", "bottom")
SHOWN_SCORE = 0.5  # from which on a detection is drawn and told on a terminal

RunLengths = dict[str, Any]  # COCO's: {"size": [height, width], "counts": text}


@dataclass(frozen=True, eq=False)
class Prediction:
    """At most 100 objects, the surest first, in the pixels of the picture; tensors are on the CPU."""

    boxes: Tensor  # float32 (n, 4): left, top, right, bottom
    labels: Tensor  # int64 (n,)
    scores: Tensor  # float32 (n,), from 0.05
    masks: Sequence[RunLengths]  # n
    classes: Sequence[str]

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """`{"objects": [{"class", "score", "box": [left, top, right, bottom], "mask": COCO's run lengths}, …]}`, all or the `top` best."""
        found = [
            {"class": self.classes[label], "score": score, "box": box, "mask": mask}
            for label, score, box, mask in zip(self.labels.tolist(), self._scores(), self._boxes(), self.masks, strict=True)
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

    def draw(self, picture: Image.Image) -> Image.Image:
        """The RGB picture with the objects of a score of at least 0.5; small pictures come back enlarged by a whole factor."""
        sure = self.scores >= SHOWN_SCORE
        found = {"boxes": self.boxes[sure], "labels": self.labels[sure], "scores": self.scores[sure]}
        if masks := [decode(mask) for mask, shown in zip(self.masks, sure.tolist(), strict=True) if shown]:
            found["masks"] = torch.stack(masks)
        return drawing.draw(picture, found, self.classes)

    # Rounded as in COCO's results: a hundredth of a pixel, and more digits of a score than it is worth.
    def _boxes(self) -> list[list[float]]:
        return [[round(edge, 2) for edge in box] for box in self.boxes.tolist()]

    def _scores(self) -> list[float]:
        return [round(score, 5) for score in self.scores.tolist()]


@torch.inference_mode()
def infer(
    model: Any, pictures: Sequence[Image.Image | Prepared], preprocessing: Any, classes: Sequence[str], device: torch.device
) -> list[Prediction]:
    """The objects in RGB pictures, of any sizes; `model` is in evaluation mode and on `device`."""
    ready = prepared(pictures, preprocessing)
    found: dict[int, Prediction] = {}
    for places in same_size(ready):
        images = [ready[place].image.to(device) for place in places]
        detections = model.predict(images, [ready[place].size for place in places])
        found |= {place: _prediction(one, classes) for place, one in zip(places, detections, strict=True)}
    return [found[place] for place in range(len(ready))]


@torch.no_grad()  # not in inference mode: embeddings may be trained on
def embed(model: Any, pictures: Sequence[Image.Image | Prepared], preprocessing: Any, device: torch.device) -> Tensor:
    """The mean of the backbone's last map of each RGB picture: (N, C) float32 on the CPU."""
    require(model, "maps")
    maps = [model.maps([one.image.to(device)])[-1] for one in prepared(pictures, preprocessing)]
    return torch.cat([one.mean((2, 3)) for one in maps]).float().cpu()


def class_names(count: int) -> list[str]:
    """The names of the classes of weights that do not say them: known for COCO's."""
    return list(coco_categories()) if count == len(coco_categories()) else [f"class {i}" for i in range(count)]


def coco_categories() -> dict[str, int]:
    """COCO's 80 categories with their ids, in the order of the labels, as torchvision tells them."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {name: i for i, name in enumerate(names) if name not in ("__background__", "N/A")}


def encode(mask: Tensor) -> RunLengths:
    """A mask (H, W), bool or of zeros and ones, as COCO's compressed run lengths."""
    from faster_coco_eval import mask as run_lengths

    found = run_lengths.encode(np.asfortranarray(mask.cpu().to(torch.uint8).numpy()))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def decode(mask: RunLengths) -> Tensor:
    """The inverse of `encode`: uint8 (H, W)."""
    from faster_coco_eval import mask as run_lengths

    return torch.from_numpy(run_lengths.decode({"size": mask["size"], "counts": mask["counts"].encode()}))


def _prediction(found: Mapping[str, Tensor], classes: Sequence[str]) -> Prediction:
    masks = found["masks"]
    runs = [encode(mask) for mask in masks.reshape(-1, *masks.shape[-2:])]
    return Prediction(found["boxes"].float().cpu(), found["labels"].cpu(), found["scores"].float().cpu(), runs, classes)
