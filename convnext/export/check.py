"""Whether an exported file computes what the network does that it was made of."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from convnext.data.transforms.preprocessing import to_normalised
from convnext.errors import ConvnextError
from convnext.export.graphs import Form
from convnext.models.load import Loaded

TOLERANCE = {"float32": 1e-3, "fp16": 2e-2}  # of the largest difference, relative to the largest output
_SAME_BOX = 0.95  # IoU
_SAME_OBJECTS = 0.96  # the part of the best that both must have found; of two near boxes either may be kept
_SAME_MASK = 0.01  # the part of the pixels that may differ


def pixels(batch: int, height: int, width: int, seed: int) -> list[Tensor]:
    """Images uint8 (batch, 3, H, W): one of noise, one with structure at several scales as photographs have it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, 3, height, width, generator=generator)
    smooth = torch.zeros(batch, 3, height, width)
    for cells in (2, 5, 11):
        smooth += F.interpolate(torch.rand(batch, 3, cells, cells, generator=generator), (height, width), mode="bicubic") / 3
    return [(255 * found.clamp(0, 1)).round().to(torch.uint8) for found in (noise, smooth)]


def sizes(form: Form) -> list[tuple[int, int]]:
    """The sizes of images to compare at: where any are taken, also one that no stride divides."""
    height, width = form.size
    return [form.size, (height, width * 3 // 2 + 7)] if form.dynamic else [form.size]


@torch.no_grad()
def compare(loaded: Loaded, network: Any, form: Form) -> float:
    """The largest relative error of an opened file on images of two kinds, in batches of two sizes and at `sizes`.

    Raises ConvnextError if it is above `TOLERANCE` or not finite, or if a detector finds other objects.
    """
    worst, allowed = 0.0, TOLERANCE[form.precision]
    normalise: Any = to_normalised(loaded.preprocessing.mean, loaded.preprocessing.std)
    error_of = {"classify": _logits_error, "segment": _logits_error, "detect": _objects_error}[loaded.task]
    for number, (height, width) in enumerate(sizes(form)):
        for kind in pixels(2 - number, height, width, seed=number):
            normalised = torch.stack([normalise(image) for image in kind])
            error = error_of(loaded.model, network, normalised, kind.float() if form.pixels else normalised)
            if not error <= allowed:
                told = f"relative error {error:.1e} at {height} x {width}, above the {allowed:g} allowed for {form.precision}"
                raise ConvnextError(f"it computes something else than the network: {told}")
            worst = max(worst, error)
    return worst


def _logits_error(model: Any, network: Any, ours: Tensor, theirs: Tensor) -> float:
    wanted, found = model(ours), network(theirs)
    if not wanted.isfinite().all():
        raise ConvnextError("the network's own outputs are not finite")
    if wanted.shape != found.shape:
        return float("inf")
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).item()


def _objects_error(model: Any, network: Any, ours: Tensor, theirs: Tensor) -> float:
    """The largest difference in score of the best 50 objects; raises ConvnextError where boxes, classes or masks differ.

    Every score above 0 counts as a detection, so that there are a hundred to compare even where nothing is to be seen. The
    images are cut to a size that needs padding.
    """
    worst = 0.0
    for one, other in zip(ours[:, :, :-5, :-3], theirs[:, :, :-5, :-3], strict=True):
        (wanted,), (found,) = model.predict([one], threshold=0.0), network.predict([other], threshold=0.0)
        wanted = {key: value[:50] for key, value in wanted.items()}
        overlap = box_iou(wanted["boxes"], found["boxes"]) * (wanted["labels"][:, None] == found["labels"])
        best, which = overlap.max(1)
        same = best > _SAME_BOX
        differing = 0.0
        if "masks" in wanted:
            masks, others = wanted["masks"][same], found["masks"][which[same]]
            differing = int((masks ^ others).sum()) / max(int(masks.sum()), 1)
        if same.float().mean() < _SAME_OBJECTS or differing > _SAME_MASK:
            told = f"{int(same.sum())} of the best {len(same)} are the same, whose masks differ in {differing:.1%} of their pixels"
            raise ConvnextError(f"it finds other objects than the network: {told}")
        worst = max(worst, (wanted["scores"] - found["scores"][which])[same].abs().max().item())
    return worst
