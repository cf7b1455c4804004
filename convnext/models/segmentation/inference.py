"""Testing a segmenter: whole images, sliding windows, several scales with mirror images, of images of any size.

The same computation as mmsegmentation 1.2.2's (`slide_inference`, `postprocess_result`, `SegTTAModel`), ordered so that memory stays
bounded: the result is made strip by strip from the top, and only the rows of logits that a strip needs are ever enlarged. What is
kept between strips are the network's own outputs, a sixteenth of the size, of the windows that reach into the next strip.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import UsageError

_STRIP = 2**25  # numbers in a strip of logits: 128 MB
_BATCH = 4  # windows that go through the network at once

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Mode:
    """How an image is tested; by default whole, once, in its own size.

    Args:
        within: (long, short): the sides, in pixels, into which the image is resized before, its shape kept.
        scales: factors on `within`, or else on the image's size; the probabilities at all of them are averaged.
        mirror: average each with its mirror image, too.
        window: side of the square windows; None for the whole image at once.
        stride: from one window to the next; where windows overlap, their logits are averaged.
    """

    within: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if (self.window is None) != (self.stride is None):
            raise UsageError(f"a window needs a stride and a stride a window, not window {self.window} with stride {self.stride}")
        if self.window is not None and self.stride is not None and not 0 < self.stride <= self.window:
            raise UsageError(f"windows of {self.window} pixels, {self.stride} apart, do not cover the image: lower the stride")
        if not self.scales or min(self.scales) <= 0:
            raise UsageError(f"scales are one or more positive factors, not {self.scales}")


def mode_of(how: SegmentPreprocessing) -> Mode:
    """The test that a segmenter's preprocessing says."""
    return Mode(how.scale, how.scales, how.mirror, how.window, how.stride)


@torch.no_grad()
def predict(model: Any, image: Tensor, mode: Mode | None = None, progress: Progress | None = None) -> Tensor:
    """The class of every pixel of an image.

    With windows, what this takes beside the image and the result grows with the image's width only: for each scale and mirror
    image some window^2 / (8 x stride) numbers a class and column, 0.6 GB for one published test (windows of 512, 150 classes) of
    10,000 columns. Without windows the network's own maps grow with the image and take far more.

    Args:
        model: a UperNet in evaluation mode.
        image: (3, H, W), normalised, float32; on the model's device or the CPU, where it may stay however large it is.
        mode: how to test it.
        progress: called with (windows done, windows in all), every few windows.

    Returns: (H, W) on the CPU, uint8, or uint16 where there are more than 255 classes.

    Raises UsageError if the model is in training mode, or the image, as resized, too small for it.
    """
    mode = mode or Mode()
    if model.training:
        raise UsageError("the model is in training mode, in which it would predict something else: call model.eval() first")
    if image.ndim != 3:
        raise UsageError(f"predict takes one image (3, H, W) at a time, not a tensor of shape {tuple(image.shape)}")
    height, width = image.shape[-2:]
    mirrors = (False, True) if mode.mirror else (False,)
    done = 0

    def tell(windows: int) -> None:
        nonlocal done
        done += windows
        if progress is not None:
            progress(done, sum(len(view.tops) * len(view.lefts) for view in views))

    views = [_View(model, image, _size(mode, scale, height, width), flip, mode, tell) for scale in mode.scales for flip in mirrors]
    classes = torch.empty(height, width, dtype=torch.uint8 if model.num_classes <= 255 else torch.uint16)
    step = max(1, min(_STRIP // (model.num_classes * view.numbers_a_row(height, width)) for view in views))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        classes[top:bottom] = _scores(views, top, bottom).argmax(0).to("cpu", classes.dtype)
    return classes


def _scores(views: "list[_View]", top: int, bottom: int) -> Tensor:
    # One view's logits are ranked as they are; of several, the probabilities are summed.
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
    """An image at one size, perhaps mirrored, and the network's logits of its windows, row by row from the top as they are needed.

    Args:
        size: height and width to which the image is resized.
        tell: called with the number of windows that went through the network.
    """

    def __init__(self, model: Any, image: Tensor, size: tuple[int, int], flip: bool, mode: Mode, tell: Callable[[int], None]) -> None:
        self.model, self.image, self.size, self.flip, self.tell = model, image, size, flip, tell
        self.device = next(model.parameters()).device
        self.window = tuple(min(mode.window or side, side) for side in size)
        self.tops, self.lefts = (_starts(side, window, mode.stride or side) for side, window in zip(size, self.window, strict=True))
        self.rows: dict[int, list[Tensor]] = {}  # by a row's top, its windows' logits (classes, h, w), w of them a quarter of the window
        self.begun = 0  # rows of windows that went through the network

    def numbers_a_row(self, height: int, width: int) -> int:
        """How many logits of one class are held for each row of the result."""
        return max(self.size[1] * -(-self.size[0] // height), width)

    def logits(self, top: int, bottom: int) -> Tensor:
        """Logits (classes, bottom - top, W) of these rows of the result. Calls must go from top to bottom."""
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
            self.tell(len(windows))
        return logits

    def _windows_merged(self, first: int, last: int) -> Tensor:
        """Logits (classes, last - first + 1, width) of these rows of the view, averaged where windows overlap."""
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


def _starts(side: int, window: int, stride: int) -> list[int]:
    # The last window is moved back so that it ends with the image.
    count = -(-(side - window) // stride) + 1
    return [min(i * stride, side - window) for i in range(count)]


class _Rows:
    """Rows `top` to `bottom` of a map that was bilinearly resized from height `source` to height `target`.

    Computes no other rows than these. In float32 and by the formula of `F.interpolate` with align_corners=False, so that it
    finds the same weights.
    """

    def __init__(self, top: int, bottom: int, source: int, target: int, device: torch.device) -> None:
        self.same = source == target
        position = ((torch.arange(top, bottom, device=device) + 0.5) * (source / target) - 0.5).clamp(min=0)
        self.above = position.long().clamp(max=source - 1)
        self.below = self.above if self.same else (self.above + 1).clamp(max=source - 1)
        self.weight = (position - self.above)[:, None]
        self.first, self.last = int(self.above[0]), int(self.below[-1])  # source rows that are needed

    def resize(self, maps: Tensor, width: int) -> Tensor:
        """Source rows `first` to `last` (C, h, w) to the wanted rows (C, bottom - top, width)."""
        rows = maps
        if not self.same:
            rows = torch.lerp(maps[:, self.above - self.first], maps[:, self.below - self.first], self.weight)
        if rows.shape[2] == width:
            return rows
        return F.interpolate(rows[None], (rows.shape[1], width), mode="bilinear", align_corners=False)[0]
