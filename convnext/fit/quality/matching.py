"""Whether two images have the same pixels but for encoding, scaling, cropping and brightness: a comparison at their full resolution.

The box of one image within the other is refined by Gauss-Newton steps (Lucas and Kanade, 1981, with a gain and an offset of brightness).
Then fine structure is compared, without the means of its surroundings: another photograph of the same scene agrees in the coarse alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LEAST_SIDE = 16  # pixels: smaller images hold too little to distinguish copies from similar images
_LARGEST_SIDE = 96  # pixels at which images are compared
_STEPS = 6
_DAMPING = 1e-3
_MOST_CROPPED = 0.5  # of a side
_UNLIKE = 0.85  # a correlation
_NEARLY_WHOLE = 0.95  # of the area: then the whole is tried too, because small tiles say no more
_BLACK, _WHITE = 4, 250  # grey levels
_SAME_FINE, _SAME_FINE_IF_SMALL, _SAME_BLOCK = 0.965, 0.93, 0.7  # see `Match.is_same`
_SMALL = 48  # pixels a side below which encoding changes more of what is there, and a block of a quarter of it has too few of them
_SIMILAR, _SIMILAR_FINE = 0.95, 0.6  # see `Match.is_similar`


@dataclass(frozen=True)
class Match:
    """How an inner image agrees with the part of an outer one that it resembles most."""

    box: tuple[float, float, float, float]  # width, height, left and top of the part, as fractions of the outer image
    coarse: float  # correlation of the grey levels
    fine: float  # correlation of the fine structure
    block: float  # the same in the block where it is lowest; 1 for images that are too small to have blocks
    side: int  # pixels at which both were compared
    gain: float  # contrast of the inner image divided by that of the part
    shift: float  # grey levels by which the inner image is brighter

    @property
    def is_same(self) -> bool:
        """Whether both were made from the same pixels."""
        return self.fine >= (_SAME_FINE if self.side >= _SMALL else _SAME_FINE_IF_SMALL) and self.block >= _SAME_BLOCK

    @property
    def is_similar(self) -> bool:
        """Whether both show the same scene from the same place, as images of a burst or a film do, or one was drawn on."""
        return not self.is_same and self.coarse >= _SIMILAR and self.fine >= _SIMILAR_FINE


def compare(outer: Image.Image, inner: Image.Image, box: Tensor) -> Match | None:
    """Return how two images agree; None if they do not even at a low resolution.

    Args:
        outer: the image of which the other may be a part.
        inner: the other, mirrored if it is to be.
        box: float32 (4,), where it lies by `place`.
    """
    width, height = float(box[0]), float(box[1])
    shorter = min(*inner.size, outer.width * width, outer.height * height)
    side = int(np.clip(0.9 * shorter, LEAST_SIDE, _LARGEST_SIDE))
    for one in sorted({max(LEAST_SIDE, side // 3), side}):
        whole = _smooth(_grey(outer, max(one, round(one / width)), max(one, round(one / height))))
        part = _smooth(_grey(inner, one, one))
        starts = [box] if width * height < _NEARLY_WHOLE else [box, torch.tensor([1.0, 1.0, 0.0, 0.0])]
        refined = [_refined(whole, part, start) for start in starts]
        coarse, box = max(refined, key=lambda pair: pair[0])
        if coarse < _UNLIKE:
            return None
    seen = _cut(whole, box, side)
    fine = float(_correlation(_details(seen), _details(part), _exposed(seen, part)))
    gain, shift = float(part.std() / seen.std().clamp_min(1e-3)), float(part.mean() - seen.mean())
    values = box.tolist()
    return Match((values[0], values[1], values[2], values[3]), coarse, fine, _worst_block(seen, part), side, gain, shift)


def _refined(outer: Tensor, inner: Tensor, box: Tensor) -> tuple[float, Tensor]:
    """Return how well an inner grey image (1, S, S) fits into an outer one (1, H, W), and the box (4,) near the given one."""
    side = inner.shape[-1]
    places = ((torch.arange(side) + 0.5) / side).expand(side, side)
    damping = torch.tensor([_DAMPING] * 4 + [0.0, 0.0])
    seen = _cut(outer, box, side)
    exposed = _exposed(seen, inner)
    best = _correlation(seen, inner, exposed)
    for _ in range(_STEPS):
        down, across = torch.gradient(seen[0] * side, dim=(0, 1))  # per fraction of the box
        slopes = [across / box[0] * places, down / box[1] * places.T, across / box[0], down / box[1]]  # by width, height, left and top
        columns = torch.stack([*slopes, seen[0], torch.ones_like(across)], -1)[exposed[0]]
        normal = columns.T @ columns
        found = torch.linalg.solve(normal + torch.diag(normal.diagonal() * damping + 1e-6), columns.T @ inner[exposed])
        moved = box + (found[:4] / found[4].clamp_min(0.1)).clamp(-2 / side, 2 / side)
        sides = moved[:2].clamp(_MOST_CROPPED, 1.0)
        moved = torch.cat([sides, torch.minimum(moved[2:].clamp_min(0), 1 - sides)])
        trial = _cut(outer, moved, side)
        score = _correlation(trial, inner, exposed)
        if score <= best:
            break
        best, box, seen = score, moved, trial
    return float(best), box


def _cut(outer: Tensor, box: Tensor, side: int) -> Tensor:
    """Return the part of a grey image (1, H, W) in a box as a square (1, side, side)."""
    centres = (torch.arange(side) + 0.5) / side
    x, y = (box[2] + box[0] * centres) * 2 - 1, (box[3] + box[1] * centres) * 2 - 1
    grid = torch.stack([x.expand(side, side), y[:, None].expand(side, side)], -1)[None]
    return F.grid_sample(outer[None], grid, mode="bicubic", align_corners=False, padding_mode="border")[0]


def _grey(image: Image.Image, width: int, height: int) -> Tensor:
    """Return an image as grey levels, float32 (1, height, width)."""
    found = image.convert("L").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return torch.from_numpy(np.asarray(found).astype(np.float32))[None]


def _smooth(grey: Tensor) -> Tensor:
    return _mean_around(grey, 1)  # without noise of encoding and resampling at the limit of the resolution


def _details(grey: Tensor) -> Tensor:
    return grey - _mean_around(grey, 4)


def _mean_around(grey: Tensor, reach: int) -> Tensor:
    return F.avg_pool2d(F.pad(grey[None], (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)[0]


def _exposed(one: Tensor, other: Tensor) -> Tensor:
    """Return where neither of two grey images is black or white, bool: brightness was cut there. Everywhere if that is in most places."""
    found = (torch.minimum(one, other) > _BLACK) & (torch.maximum(one, other) < _WHITE)
    return found if found.float().mean() > 0.5 else torch.ones_like(found)


def _correlation(one: Tensor, other: Tensor, where: Tensor) -> Tensor:
    one, other = one[where], other[where]
    one, other = one - one.mean(), other - other.mean()
    return (one * other).sum() / (one.square().sum() * other.square().sum()).sqrt().clamp_min(1e-3)


def _worst_block(seen: Tensor, part: Tensor) -> float:
    """Return the lowest correlation of fine structure among overlapping blocks of a quarter of a side, of those that have structure."""
    side = part.shape[-1]
    if side < _SMALL:
        return 1.0
    length = side // 4
    one, other = (_details(x)[0].unfold(0, length, length // 2).unfold(1, length, length // 2).reshape(-1, length**2) for x in (seen, part))
    one, other = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    first, second = one.square().mean(1), other.square().mean(1)
    stronger = torch.maximum(first, second)
    found = (one * other).mean(1) / (first * second).sqrt().clamp_min(1e-3)
    return float(found[stronger >= stronger.mean() / 4].min())
