"""The targets of the heads: which candidate box belongs to which object, and which candidates are trained in a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.errors import ConvnextError
from convnext.models.detection.boxes import Size, iou
from convnext.text import counted

BACKGROUND, NEITHER = -1, -2  # for candidates without an object's index


@dataclass(frozen=True)
class Truth:
    """The true objects of one image."""

    boxes: Tensor  # (n, 4) float32
    labels: Tensor  # (n,) int64
    masks: Tensor | None  # (n, H, W), as large as the padded batch; None for a network without a mask head


@dataclass(frozen=True)
class Matcher:
    """Matches candidates with objects by their IoU, as mmdetection's MaxIoUAssigner with the published settings does."""

    positive: float  # min IoU for a candidate to belong to the object that it overlaps most
    negative: float  # below this IoU with every object it is background; between the two it is not trained
    low_quality: float | None = None  # min IoU for an object's best candidates to belong to it, whatever else they overlap

    def __call__(self, candidates: Tensor, objects: Tensor) -> Tensor:
        """Return for each candidate box (n, 4) the index of its object among the boxes (m, 4), BACKGROUND or NEITHER: (n,) int64."""
        matched = torch.full((len(candidates),), BACKGROUND, device=candidates.device)
        if not len(candidates) or not len(objects):
            return matched
        overlaps = iou(objects, candidates)
        best, nearest = overlaps.max(0)
        matched[best >= self.negative] = NEITHER
        matched = torch.where(best >= self.positive, nearest, matched)
        if self.low_quality is None:
            return matched
        # All candidates that share an object's largest IoU. The last one of several objects that claim a candidate gets it.
        largest = overlaps.amax(1, keepdim=True)
        which, claimed = ((overlaps == largest) & (largest >= self.low_quality)).nonzero(as_tuple=True)
        claims = torch.full_like(matched, BACKGROUND).scatter_reduce_(0, claimed, which, "amax")
        return torch.where(claims >= 0, claims, matched)


@dataclass(frozen=True)
class Sampler:
    """Draws the candidates that are trained in a step, from torch's global generator of their device."""

    count: int
    positive_fraction: float  # max; negatives fill the rest

    def __call__(self, matched: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of positives and of negatives among the matched candidates (n,), each in ascending order."""
        positive = _draw((matched >= 0).nonzero().flatten(), int(self.count * self.positive_fraction))
        return positive, _draw((matched == BACKGROUND).nonzero().flatten(), self.count - len(positive))


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    chosen = torch.randperm(len(indices), device=indices.device)[:count]
    return indices[chosen].sort().values


def prepare(
    targets: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size], padded: Size, num_classes: int, with_masks: bool
) -> list[Truth]:
    """Return the checked targets of a batch, without crowds.

    A crowd is ignored altogether: the published settings (`ignore_iof_thr=-1`) train the boxes in it as background.

    Raises ConvnextError that names the image's position in the batch.
    """
    if len(targets) != len(sizes):
        raise ConvnextError(
            f"{counted(len(sizes), 'image')} have {counted(len(targets), 'target')}: give each image one, also an image without objects"
        )
    found = []
    for i, (target, size) in enumerate(zip(targets, sizes, strict=True)):
        keys = ("boxes", "labels", "masks") if with_masks else ("boxes", "labels")
        if problem := _problem(target, keys, size, num_classes):
            raise ConvnextError(f"target of image {i} of the batch: {problem}")
        kept = {key: target[key] for key in keys}
        if "iscrowd" in target:
            alone = ~target["iscrowd"].bool()
            kept = {key: value[alone] for key, value in kept.items()}
        masks = F.pad(kept["masks"], (0, padded[1] - size[1], 0, padded[0] - size[0])) if with_masks else None
        found.append(Truth(kept["boxes"].float(), kept["labels"], masks))
    return found


def _problem(target: Mapping[str, Tensor], keys: Sequence[str], size: Size, num_classes: int) -> str | None:
    """Return what is wrong with a target; None if it is valid."""
    if missing := set(keys) - target.keys():
        return f"{', '.join(sorted(missing))} missing"
    boxes, labels = target["boxes"], target["labels"]
    count = len(labels)
    shapes = {"boxes": (count, 4), "labels": (count,), "masks": (count, *size), "iscrowd": (count,)}
    for key in {*keys, "iscrowd"} & target.keys():
        if tuple(target[key].shape) != shapes[key]:
            return f"{key} are {tuple(target[key].shape)}, not {shapes[key]}, for {count} labels and an image of {size[0]} x {size[1]}"
    if floating := [f"{key} are {target[key].dtype}" for key in keys[1:] if target[key].is_floating_point()]:
        return f"{' and '.join(floating)}: masks must be uint8 or bool, labels int64"
    bad = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if bad.any():
        worst = int(bad.nonzero()[0])
        return f"box {worst} is {boxes[worst].tolist()}: boxes must be finite (x1, y1, x2, y2) with x1 < x2 and y1 < y2"
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        return f"labels run from {int(labels.min())} to {int(labels.max())}, the network has classes 0 to {num_classes - 1}"
    return None
