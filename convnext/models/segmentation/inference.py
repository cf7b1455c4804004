"""Inference of a segmenter for images of any size: whole images, sliding windows, several scales with mirror images.

The computation is that of mmsegmentation 1.2.2 (`slide_inference`, `postprocess_result`, `SegTTAModel`) in an order that bounds the memory:
the result is computed strip by strip from the top, and only the rows of logits that a strip needs are enlarged. Between strips, only the
network's own outputs, a sixteenth of the size, are kept of the windows that reach into the next strip.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data.transforms.resizing import window_starts
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import UsageError

_STRIP = 2**25  # numbers in a strip of logits: 128 MB
_BATCH = 4  # windows that go through the network at once

Progress = Callable[[int, int], object]


class SegmentationNetwork(Protocol):
    """A network that `predict` takes: a UperNet, or an exported segmenter."""

    training: bool
    num_classes: int

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes, h, w) of images (N, 3, H, W)."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters."""


@dataclass(frozen=True)
class Mode:
    """How an image goes through the network; by default whole, once, in its own size.

    Args:
        within: (long, short): the max sides, in pixels, that the image is resized to, its aspect ratio kept.
        scales: factors on `within`, or else on the image's size; the probabilities at all scales are averaged.
        mirror: also average with the mirror image at each scale.
        window: side of the square windows in pixels; None for the whole image at once.
        stride: pixels from one window to the next; logits of overlapping windows are averaged.
    """

    within: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if (self.window is None) != (self.stride is None):
            raise UsageError(f"window {self.window} with stride {self.stride}: give both or neither")
        if self.window is not None and self.stride is not None and not 0 < self.stride <= self.window:
            raise UsageError(f"windows of {self.window} pixels, {self.stride} apart, do not cover the image: lower the stride")
        if not self.scales or min(self.scales) <= 0:
            raise UsageError(f"scales must be one or more positive factors, not {self.scales}")


def mode_of(how: SegmentPreprocessing) -> Mode:
    """Return the mode that a segmenter's preprocessing states."""
    return Mode(how.scale, how.scales, how.mirror, how.window, how.stride)


@torch.no_grad()
def predict(model: nn.Module, image: Tensor, mode: Mode | None = None, progress: Progress | None = None) -> Tensor:
    """Return the class of every pixel of an image.

    With windows, the memory beside the image and the result grows only with the image's width: about window^2 / (8 x stride) numbers per
    class and column for each scale and mirror image. That is 0.6 GB for a published test (windows of 512, 150 classes) of 10,000 columns.
    Without windows the network's own maps grow with the image and take far more.

    Args:
        model: a `SegmentationNetwork` in evaluation mode.
        image: (3, H, W), normalised, float32; on the model's device or on the CPU, whatever its size.
        mode: how it goes through the network.
        progress: called with (windows done, all windows) every few windows.

    Returns: (H, W) on the CPU, uint8, or uint16 for more than 255 classes.

    Raises UsageError if the model is in training mode, or the image, as resized, too small for it.
    """
    mode, network = mode or Mode(), cast("SegmentationNetwork", model)
    if network.training:
        raise UsageError("the model is in training mode, which changes its predictions: call model.eval() first")
    if image.ndim != 3:
        raise UsageError(f"predict takes one image (3, H, W) at a time, not a tensor of shape {tuple(image.shape)}")
    height, width = image.shape[-2:]
    mirrors = (False, True) if mode.mirror else (False,)
    done = 0

    def advance(windows: int) -> None:
        nonlocal done
        done += windows
        if progress is not None:
            progress(done, sum(len(view.tops) * len(view.lefts) for view in views))

    views = [_View(network, image, _size(mode, scale, height, width), flip, mode, advance) for scale in mode.scales for flip in mirrors]
    classes = torch.empty(height, width, dtype=torch.uint8 if network.num_classes <= 255 else torch.uint16)
    step = max(1, min(_STRIP // (network.num_classes * view.numbers_per_row(height, width)) for view in views))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        classes[top:bottom] = _scores(views, top, bottom).argmax(0).to("cpu", classes.dtype)
    return classes


def _scores(views: "list[_View]", top: int, bottom: int) -> Tensor:
    # The logits of one view are ranked as they are. The probabilities of several are summed.
    if len(views) == 1:
        return views[0].logits(top, bottom)
    scores = views[0].logits(top, bottom).softmax(0)
    for view in views[1:]:
        scores += view.logits(top, bottom).softmax(0)
    return scores


def _size(mode: Mode, scale: float, height: int, width: int) -> tuple[int, int]:
    # Rounded as mmcv rounds: down for the limits, to the nearest for the image.
    factor = scale
    if mode.within is not None:
        short, long = sorted(int(side * scale) for side in mode.within)
        factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


class _View:
    """An image at one size, perhaps mirrored, and the network's logits of its windows, computed row by row from the top when needed.

    Args:
        size: height and width to which the image is resized.
        advance: called with the number of windows that went through the network.
    """

    def __init__(
        self, model: SegmentationNetwork, image: Tensor, size: tuple[int, int], flip: bool, mode: Mode, advance: Callable[[int], None]
    ) -> None:
        self.model, self.image, self.size, self.flip, self.advance = model, image, size, flip, advance
        self.device = next(model.parameters()).device
        self.window = tuple(min(mode.window or side, side) for side in size)
        self.tops, self.lefts = (window_starts(side, window, mode.stride or side) for side, window in zip(size, self.window, strict=True))
        self.rows: dict[int, list[Tensor]] = {}  # by a row's top: the logits (classes, h, w) of each window, at a quarter of its size
        self.begun = 0  # rows of windows that went through the network

    def numbers_per_row(self, height: int, width: int) -> int:
        """Return how many logits of one class are in memory for each row of the result."""
        return max(self.size[1] * -(-self.size[0] // height), width)

    def logits(self, top: int, bottom: int) -> Tensor:
        """Return the logits (classes, bottom - top, W) of these rows of the result. Calls must go from top to bottom."""
        height, width = self.image.shape[-2:]
        rows = _Rows(top, bottom, self.size[0], height, self.device)
        self._advance(rows.first, rows.last)
        resized = rows.resize(self._windows_merged(rows.first, rows.last), width)
        return resized.flip(-1) if self.flip else resized

    def _advance(self, first: int, last: int) -> None:
        self.rows = {top: row for top, row in self.rows.items() if top + self.window[0] > first}
        while self.begun < len(self.tops) and self.tops[self.begun] <= last:
            top = self.tops[self.begun]
            self.rows[top] = self._run(top)
            self.begun += 1

    def _run(self, top: int) -> list[Tensor]:
        height, width = self.window
        rows = _Rows(top, top + height, self.image.shape[-2], self.size[0], self.image.device)
        band = rows.resize(self.image[:, rows.first : rows.last + 1], self.size[1])
        band = band.flip(-1) if self.flip else band
        logits: list[Tensor] = []
        for i in range(0, len(self.lefts), _BATCH):
            windows = torch.stack([band[:, :, left : left + width] for left in self.lefts[i : i + _BATCH]])
            logits += self.model.logits(windows.to(self.device)).float().unbind()
            self.advance(len(windows))
        return logits

    def _windows_merged(self, first: int, last: int) -> Tensor:
        """Return the logits (classes, last - first + 1, width) of these rows of the view, averaged where windows overlap."""
        height, width = self.window
        total = torch.zeros(self.model.num_classes, last - first + 1, self.size[1], device=self.device)
        count = torch.zeros(last - first + 1, self.size[1], device=self.device)
        for start, row in self.rows.items():
            above, below = max(first, start), min(last + 1, start + height)
            for left, logits in zip(self.lefts, row, strict=True):
                rows = _Rows(above - start, below - start, logits.shape[1], height, self.device)
                here = (slice(above - first, below - first), slice(left, left + width))
                total[:, *here] += rows.resize(logits[:, rows.first : rows.last + 1], width)
                count[here] += 1
        return total.div_(count)


class _Rows:
    """Rows `top` to `bottom` of a map that was bilinearly resized from height `source` to height `target`.

    Only these rows are computed, in float32 and with the formula of `F.interpolate` with align_corners=False, so that the weights are the
    same.
    """

    def __init__(self, top: int, bottom: int, source: int, target: int, device: torch.device) -> None:
        self.same = source == target
        position = ((torch.arange(top, bottom, device=device) + 0.5) * (source / target) - 0.5).clamp(min=0)
        self.above = position.long().clamp(max=source - 1)
        self.below = self.above if self.same else (self.above + 1).clamp(max=source - 1)
        self.weight = (position - self.above)[:, None]
        self.first, self.last = int(self.above[0]), int(self.below[-1])  # source rows that are needed

    def resize(self, maps: Tensor, width: int) -> Tensor:
        """Return rows `top` to `bottom` (C, bottom - top, width) from the source rows `first` to `last` (C, h, w)."""
        rows = maps
        if not self.same:
            rows = torch.lerp(maps[:, self.above - self.first], maps[:, self.below - self.first], self.weight)
        if rows.shape[2] == width:
            return rows
        return F.interpolate(rows[None], (rows.shape[1], width), mode="bilinear", align_corners=False)[0]
