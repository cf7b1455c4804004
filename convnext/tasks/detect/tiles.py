"""Detection in whole images, or in overlapping tiles for objects that are too small in the whole.

An object that a tile's border cuts is found twice: whole in the neighbour, if it is not larger than the overlap, and in part. A box that
ends at an inner border is therefore ranked behind all others, and dropped if one of them covers most of it. The whole image is taken too,
as by SAHI, for objects larger than the overlap. Akyon et al., *Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection*
(2022), merge by intersection over the smaller box for all; that drops objects that lie within others of their class.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.data.transforms.resizing import window_starts
from convnext.models.detection.boxes import Size
from convnext.models.detection.postprocess import AS_PUBLISHED, SCORE, Masks, Selection
from convnext.tasks.detect.options import DetectNetwork

MIN_TILE, MAX_TILE = 64, 16384  # pixels a side
MAX_OVERLAP = 0.75  # of a side
_TOGETHER = 4  # tiles that go through the network at once
_BORDER = 0.01  # of a tile's side: a box that ends so near to an inner border may be cut there
_COVERED = 0.5  # of the area of a cut box, from which on it counts as a part of the object that covers it
_CHUNK = 256  # cut boxes that are compared at once

Window = tuple[slice, slice]  # rows and columns of an image


def detect(
    model: nn.Module,
    images: Sequence[Tensor],
    sizes: Sequence[Size],
    how: Preprocessing,
    selection: Selection,
    threshold: float = SCORE,
    masks: Masks = "small",
) -> list[dict[str, Tensor]]:
    """Return what `Detector.predict` returns for images that `how` prepared and whose heights and widths were `sizes`.

    With tiles, an image has up to `selection.most` objects of the whole and as many of each tile. Memory grows with them and the pixels
    of the image alone, because tiles are resized and go through the network a few at a time.
    """
    network = cast(DetectNetwork, model)
    if isinstance(how, DetectPreprocessing) and how.tile is not None:
        return [_tiled(network, image, how, how.tile, selection, threshold, masks) for image in images]
    return _predict(network, images, sizes, selection, threshold, masks)


def untiled(how: Preprocessing) -> Preprocessing:
    """Return the preprocessing of whole images."""
    return replace(how, tile=None) if isinstance(how, DetectPreprocessing) else how


def _predict(
    network: DetectNetwork, images: Sequence[Tensor], sizes: Sequence[Size], selection: Selection, threshold: float, masks: Masks
) -> list[dict[str, Tensor]]:
    # A network from outside may have no such argument.
    more = {} if selection == AS_PUBLISHED else {"selection": selection}
    return network.predict(images, sizes, threshold, masks, **more)


def _tiled(
    network: DetectNetwork,
    pixels: Tensor,
    how: DetectPreprocessing,
    side: int,
    selection: Selection,
    threshold: float,
    masks: Masks,
) -> dict[str, Tensor]:
    """Return the objects of an image (C, H, W), 0 to 255, on any device."""
    device, size = pixels.device, (pixels.shape[1], pixels.shape[2])
    pixels, prepare = pixels.cpu(), replace(how, tile=None).transform()  # PyTorch resizes 8 bits on CPUs only

    def run(windows: Sequence[Window]) -> list[dict[str, Tensor]]:
        images = [prepare(pixels[:, rows, columns]).to(device) for rows, columns in windows]
        shapes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows]
        return _predict(network, images, shapes, selection, threshold, masks)

    (whole,) = run([(slice(0, size[0]), slice(0, size[1]))])
    windows = _windows(size, side, how.overlap)
    if len(windows) == 1:
        return whole
    found, cut = [whole], [torch.zeros_like(whole["labels"], dtype=torch.bool)]
    for first in range(0, len(windows), _TOGETHER):
        some = windows[first : first + _TOGETHER]
        for window, one in zip(some, run(some), strict=True):
            cut.append(_is_cut(one["boxes"], window, size, _BORDER * side))
            rows, columns = window
            found.append(one | {"boxes": one["boxes"] + one["boxes"].new_tensor([columns.start, rows.start] * 2)})
    return _merged({key: torch.cat([one[key] for one in found]) for key in whole}, torch.cat(cut), selection)


def _windows(size: Size, side: int, overlap: float) -> list[Window]:
    """Return the tiles of an image of that size, row by row, all of one size."""
    stride = max(1, round(side * (1 - overlap)))
    height, width = (min(side, whole) for whole in size)
    tops, lefts = window_starts(size[0], height, stride), window_starts(size[1], width, stride)
    return [(slice(top, top + height), slice(left, left + width)) for top in tops for left in lefts]


def _is_cut(boxes: Tensor, window: Window, size: Size, margin: float) -> Tensor:
    """Return which boxes (n, 4) of a tile end at a border of it that is no border of the image: bool (n,)."""
    rows, columns = window
    left, top, right, bottom = boxes.unbind(1)
    is_cut = torch.zeros_like(left, dtype=torch.bool)
    if columns.start > 0:
        is_cut |= left <= margin
    if rows.start > 0:
        is_cut |= top <= margin
    if columns.stop < size[1]:
        is_cut |= right >= columns.stop - columns.start - margin
    if rows.stop < size[0]:
        is_cut |= bottom >= rows.stop - rows.start - margin
    return is_cut


def _merged(found: dict[str, Tensor], is_cut: Tensor, selection: Selection) -> dict[str, Tensor]:
    """Return the objects that non-maximum suppression keeps of those of all tiles, best first; uncut ones drop cut ones."""
    boxes, scores = found["boxes"], found["scores"]
    groups = torch.zeros_like(found["labels"]) if selection.class_agnostic else found["labels"]
    kept = batched_nms(boxes, scores + (~is_cut).to(scores), groups, selection.nms)
    # Also by those that another drops: of two boxes of an object, the likelier may be the less exact one.
    whole, parts = (~is_cut).nonzero().flatten(), kept[is_cut[kept]]
    parts = torch.cat([parts[:0], *(chunk[~_covered(boxes, groups, chunk, whole)] for chunk in parts.split(_CHUNK))])
    kept = torch.cat([kept[~is_cut[kept]], parts])
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return {key: values[kept] for key, values in found.items()}


def _covered(boxes: Tensor, groups: Tensor, parts: Tensor, whole: Tensor) -> Tensor:
    """Return for boxes with the indices `parts` (n,) whether one of those at `whole` (m,), of the same group, covers most of them."""
    part, other = boxes[parts][:, None], boxes[whole][None]
    sides = (torch.minimum(part[..., 2:], other[..., 2:]) - torch.maximum(part[..., :2], other[..., :2])).clamp(min=0)
    area = (part[..., 2:] - part[..., :2]).prod(-1)
    is_covered = (sides.prod(-1) > _COVERED * area) & (groups[parts][:, None] == groups[whole][None])
    return is_covered.any(1)
