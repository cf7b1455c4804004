"""What the heads are trained towards: which candidate boxes stand for which object, and which of them count in a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.errors import ConvnextError
from convnext.models.detection.boxes import Size, iou

BACKGROUND, NEITHER = -1, -2  # in place of an object's index


@dataclass(frozen=True)
class Objects:
    """What is to be found in one image."""

    boxes: Tensor  # (n, 4) float32
    labels: Tensor  # (n,) int64
    masks: Tensor | None  # (n, H, W), as large as the padded batch; None where boxes alone are wanted


@dataclass(frozen=True)
class Matcher:
    """Matches candidates with objects by their IoU, as mmdetection's MaxIoUAssigner with the published settings does."""

    positive: float  # from this IoU on, a candidate stands for the object it overlaps most
    negative: float  # below this IoU with every object it is background; between the two it is not trained
    low_quality: float | None = None  # from this IoU on, an object's best candidates are its own whatever else they overlap

    def __call__(self, candidates: Tensor, objects: Tensor) -> Tensor:
        """For each candidate box (n, 4) the index of its object among the boxes (m, 4), BACKGROUND or NEITHER: (n,) int64."""
        matched = torch.full((len(candidates),), BACKGROUND, device=candidates.device)
        if not len(candidates) or not len(objects):
            return matched
        overlaps = iou(objects, candidates)
        best, nearest = overlaps.max(0)
        matched[best >= self.negative] = NEITHER
        matched = torch.where(best >= self.positive, nearest, matched)
        if self.low_quality is None:
            return matched
        # All candidates that share an object's largest IoU; where several objects claim a candidate, the last one has it.
        largest = overlaps.amax(1, keepdim=True)
        which, claimed = ((overlaps == largest) & (largest >= self.low_quality)).nonzero(as_tuple=True)
        claims = torch.full_like(matched, BACKGROUND).scatter_reduce_(0, claimed, which, "amax")
        return torch.where(claims >= 0, claims, matched)


@dataclass(frozen=True)
class Sampler:
    """Draws the candidates that count in a step, from torch's global generator of their device."""

    count: int
    positive_fraction: float  # at most; what positives there are not, negatives fill

    def __call__(self, matched: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of positives and of negatives among candidates matched (n,), each in ascending order."""
        positive = _draw((matched >= 0).nonzero().flatten(), int(self.count * self.positive_fraction))
        return positive, _draw((matched == BACKGROUND).nonzero().flatten(), self.count - len(positive))


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    chosen = torch.randperm(len(indices), device=indices.device)[:count]
    return indices[chosen].sort().values


def prepare(
    targets: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size], padded: Size, num_classes: int, with_masks: bool
) -> list[Objects]:
    """Check the targets of a batch and leave the crowds out.

    A crowd is no object, and nothing else either: the published settings (`ignore_iof_thr=-1`) train what lies in it as background.

    Raises ConvnextError that names the image's position in the batch.
    """
    if len(targets) != len(sizes):
        raise ConvnextError(f"{len(sizes)} images have {len(targets)} targets: give each image one, be it of no objects")
    objects = []
    for i, (target, size) in enumerate(zip(targets, sizes, strict=True)):
        keys = ("boxes", "labels", "masks") if with_masks else ("boxes", "labels")
        if problem := _problem(target, keys, size, num_classes):
            raise ConvnextError(f"target of image {i} of the batch: {problem}")
        counted = {key: target[key] for key in keys}
        if "iscrowd" in target:
            alone = ~target["iscrowd"].bool()
            counted = {key: value[alone] for key, value in counted.items()}
        masks = F.pad(counted["masks"], (0, padded[1] - size[1], 0, padded[0] - size[0])) if with_masks else None
        objects.append(Objects(counted["boxes"].float(), counted["labels"], masks))
    return objects


def _problem(target: Mapping[str, Tensor], keys: Sequence[str], size: Size, num_classes: int) -> str | None:
    """What is wrong with a target, None if nothing is."""
    if missing := set(keys) - target.keys():
        return f"no {', '.join(sorted(missing))} given"
    boxes, labels = target["boxes"], target["labels"]
    count = len(labels)
    wanted = {"boxes": (count, 4), "labels": (count,), "masks": (count, *size), "iscrowd": (count,)}
    for key in {*keys, "iscrowd"} & target.keys():
        if tuple(target[key].shape) != wanted[key]:
            return f"{key} are {tuple(target[key].shape)}, not {wanted[key]}, for {count} labels and an image of {size[0]} x {size[1]}"
    if floating := [f"{key} are {target[key].dtype}" for key in keys[1:] if target[key].is_floating_point()]:
        return f"{' and '.join(floating)}: masks are uint8 or bool, labels int64"
    bad = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if bad.any():
        worst = int(bad.nonzero()[0])
        return f"box {worst} is {boxes[worst].tolist()}: boxes are finite (x1, y1, x2, y2) with x1 < x2 and y1 < y2"
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        return f"labels run from {int(labels.min())} to {int(labels.max())}, the network has classes 0 to {num_classes - 1}"
    return None
