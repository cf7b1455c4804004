"""Where one image lies within another, by normalised cross-correlation of small grey images.

Every image is squeezed into a square tile. An image that was cropped from another one, and scaled, is then a rectangle of the other's tile,
whose sides have the ratio of the two aspect ratios. All sides that such a rectangle may have are tried, at all offsets by FFT.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

TILE = 32  # pixels a side
_LEAST_AREA = 0.55  # of the outer image: what is left of a cropped one
_CHUNK = 256  # pairs at a time
_FLAT = 1e-3  # variance in squared grey levels below which an image has no structure to compare


def tile(image: Image.Image) -> np.ndarray:
    """Return an image squeezed into a grey square: uint8 (TILE, TILE)."""
    return np.asarray(image.convert("L").resize((TILE, TILE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def place(outer: Tensor, inner: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Return how well each inner image fits into its outer one, at most 1, and where.

    Args:
        outer: tiles, float32 (P, S, S).
        inner: tiles, float32 (P, S, S), each of the whole of an image that may be a part of the outer one.
        ratios: float32 (P,), the aspect ratio (width by height) of each inner image divided by that of the outer one.

    Returns: the correlation, float32 (P,), and the box, float32 (P, 4): width, height, left and top as fractions of the outer image.
    """
    starts = range(0, len(outer), _CHUNK)
    parts = [_place(*(one[start : start + _CHUNK] for one in (outer, inner, ratios))) for start in starts]
    if not parts:
        return torch.empty(0), torch.empty(0, 4)
    return torch.cat([scores for scores, _ in parts]), torch.cat([boxes for _, boxes in parts])


def _place(outer: Tensor, inner: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    count, side, _ = outer.shape
    widths, heights = _sides(ratios, side)
    template, mask = _templates(inner, widths, heights)
    pixels = mask.sum((-1, -2), keepdim=True)
    template = (template - (template * mask).sum((-1, -2), keepdim=True) / pixels) * mask
    centred = outer - outer.mean((-1, -2), keepdim=True)
    spectrum, squares = torch.fft.rfft2(centred)[:, None], torch.fft.rfft2(centred.square())[:, None]
    window = torch.fft.rfft2(mask).conj()

    def correlated(one: Tensor, other: Tensor) -> Tensor:
        return torch.fft.irfft2(one * other, s=(side, side))

    energy = correlated(squares, window) - correlated(spectrum, window).square() / pixels
    energy = energy.clamp_min(_FLAT * side * side) * template.square().sum((-1, -2), keepdim=True).clamp_min(_FLAT * side * side)
    found = correlated(spectrum, torch.fft.rfft2(template).conj()) / energy.sqrt()
    places = torch.arange(side)
    inside = (places <= (side - heights)[..., None])[..., None] & (places <= (side - widths)[..., None])[..., None, :]
    scores, at = torch.where(inside, found, -1.0).reshape(count, -1).max(1)  # beyond the border the correlation wraps around
    chosen, top, left = at // side**2, at % side**2 // side, at % side
    rows = torch.arange(count)
    return scores, torch.stack([widths[rows, chosen], heights[rows, chosen], left, top], 1) / side


def _sides(ratios: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return widths and heights in whole pixels, float32 (P, H), of the parts of a tile that an inner image may be.

    The last is the whole tile, whatever the aspect ratio: an image may be squeezed as a whole.
    """
    step = 1 - 1 / side
    sizes = torch.arange(math.ceil(math.log(_LEAST_AREA**0.5) / math.log(step)) + 1)
    widths = torch.minimum(torch.ones_like(ratios), ratios)[:, None] * step**sizes
    heights = widths / ratios[:, None]
    small = widths * heights < _LEAST_AREA
    whole = torch.ones(len(ratios), 1)
    widths, heights = (torch.cat([one.masked_fill(small, 1.0), whole], 1) for one in (widths, heights))
    return (widths * side).round(), (heights * side).round()


def _templates(inner: Tensor, widths: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    """Return each tile scaled to each size, in the corner of a tile, and a mask that is 1 there: float32 (P, H, S, S)."""
    count, side, _ = inner.shape
    sizes = widths.shape[1]
    centres = torch.arange(side) + 0.5
    x, y = centres / widths[..., None] * 2 - 1, centres / heights[..., None] * 2 - 1
    shape = (count, sizes, side, side)
    grid = torch.stack([x[:, :, None, :].expand(shape), y[:, :, :, None].expand(shape)], -1).reshape(count, sizes * side, side, 2)
    found = F.grid_sample(inner[:, None], grid, align_corners=False, padding_mode="border").reshape(shape)
    mask = (centres < widths[..., None])[:, :, None, :] & (centres < heights[..., None])[:, :, :, None]
    return found, mask.float()
