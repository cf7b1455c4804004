"""Instance masks as COCO's run lengths, which take a thousandth of the memory of their pixels, decoded as late as possible.

Run lengths count a mask's pixels column by column: zeros, then ones, then zeros … Source: Lin et al., *Microsoft COCO: Common
Objects in Context* (2014), https://cocodataset.org/#format-data; the compressed text is that of pycocotools' `rleToString`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import TypedDict


class RunLengths(TypedDict):
    """A mask as compressed run lengths."""

    size: list[int]  # height, width
    counts: str


class RunCounts(TypedDict):
    """A mask as run lengths that are numbers."""

    size: list[int]  # height, width
    counts: list[int]


Segmentation = list[list[float]] | RunLengths | RunCounts | None  # of an annotation: polygons (x, y, x, y, …), or run lengths


def encode(mask: Tensor) -> RunLengths:
    """Return the run lengths of a mask (H, W), bool or of zeros and ones, on any device."""
    from faster_coco_eval import mask as library

    found = library.encode(np.asfortranarray(mask.detach().cpu().to(torch.uint8).numpy()))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def encode_all(masks: Tensor) -> list[RunLengths]:
    """Return the run lengths of each of some masks (n, H, W) or (n, 1, H, W)."""
    return [encode(mask.reshape(mask.shape[-2:])) for mask in masks]


def decode(runs: RunLengths) -> Tensor:
    """Return the mask of run lengths, uint8 (H, W); the inverse of `encode`."""
    from faster_coco_eval import mask as library

    return torch.from_numpy(library.decode({"size": runs["size"], "counts": runs["counts"].encode()}))


def from_columns(columns: np.ndarray, top: int, left: int, size: tuple[int, int]) -> RunLengths:
    """Return the run lengths of a mask that is zero outside of a window. The pixels outside are never created.

    Args:
        columns: the window, bool (w, 1 + h): each of its columns with a zero before it.
        top, left: its first row and column in the mask.
        size: height and width of the mask.
    """
    height, width = size
    edges = np.flatnonzero(np.diff(columns.ravel(), append=False))  # the last pixel before a run begins or ends, in order
    column, row = np.divmod(edges, columns.shape[1])
    edges = (column + left) * height + row + top
    # A run that ends with its column continues in the next column if that begins with ones.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    return from_counts(np.diff(edges, prepend=0, append=height * width).tolist(), size)


def from_counts(counts: Sequence[int], size: tuple[int, int]) -> RunLengths:
    """Return compressed run lengths from numbers, without a last one of 0."""
    counts = list(counts[:-1] if len(counts) > 1 and not counts[-1] else counts)
    return from_segmentation({"size": list(size), "counts": counts}, *size)


def from_segmentation(segmentation: Segmentation, height: int, width: int) -> RunLengths:
    """Return a segmentation as a COCO file has it, polygons or run lengths of either kind, as compressed run lengths.

    Raises ValueError or RuntimeError if it can't be decoded.
    """
    from faster_coco_eval import mask as library

    found = library.segmToRle(segmentation, width, height)
    counts = found["counts"] if isinstance(found["counts"], str) else found["counts"].decode()
    runs: RunLengths = {"size": [height, width], "counts": counts}
    if (total := int(lengths(runs).sum())) != height * width:
        raise ValueError(f"its runs cover {total} of {height * width} pixels")
    return runs


def lengths(runs: RunLengths) -> np.ndarray:
    """Return the runs as numbers, int64 (k,): of zeros, of ones, of zeros …

    Each number is written in digits of five bits, the lowest first, as characters from 48 on; the sixth bit says that another digit
    follows, the fifth of the last one is the sign. From the fourth number on it is the difference to the number two before.
    """
    digits = np.frombuffer(runs["counts"].encode(), dtype=np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    exponent = np.arange(last[-1] + 1) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits[: last[-1] + 1] & 31) << 5 * exponent, first)
    values -= ((digits[last] & 16) != 0) * (np.int64(1) << 5 * (last - first + 1))
    for parity in (1, 2):  # the first number is no difference
        values[parity::2] = values[parity::2].cumsum()
    return values


def sampled(runs: RunLengths, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the mask at those rows and columns, uint8 (rows, columns): `decode(runs)[rows][:, columns]` without decoding all of it.

    Args:
        runs: of the mask.
        rows, columns: int64, each rising or falling, possibly with repetitions.
    """
    height = runs["size"][0]
    found = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    starts, stops = _ones(runs)
    if (box := _box(starts, stops, height)) is None:
        return found
    # Only rows and columns within the mask's box need a value.
    inner_rows, inner_columns = _between(rows, box[1], box[3] - 1), _between(columns, box[0], box[2] - 1)
    wanted_rows, to_rows = np.unique(rows[inner_rows], return_inverse=True)
    wanted_columns, to_columns = np.unique(columns[inner_columns], return_inverse=True)
    count = len(wanted_rows) * len(wanted_columns)
    if not count:
        return found
    edges = np.stack([_first_from(position, height, wanted_rows, wanted_columns) for position in (starts, stops)], 1).ravel()
    runs_of_wanted = np.diff(edges, prepend=0, append=count)
    values = np.repeat((np.arange(len(runs_of_wanted)) % 2).astype(np.uint8), runs_of_wanted)
    small = values.reshape(len(wanted_columns), len(wanted_rows)).T
    found[inner_rows, inner_columns] = small[to_rows][:, to_columns]
    return found


def extent(runs: RunLengths) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a mask's pixels, the last two outside of it; None for a mask without a pixel."""
    return _box(*_ones(runs), runs["size"][0])


def _ones(runs: RunLengths) -> tuple[np.ndarray, np.ndarray]:
    """Return where the runs of ones begin and end, int64, counted column by column."""
    ends = lengths(runs).cumsum()
    stops = ends[1::2]
    starts = ends[0::2][: len(stops)]
    full = stops > starts
    return starts[full], stops[full]


def _box(starts: np.ndarray, stops: np.ndarray, height: int) -> tuple[int, int, int, int] | None:
    if not len(starts):
        return None
    left, right = starts[0] // height, (stops[-1] - 1) // height
    tops, bottoms = starts % height, (stops - 1) % height
    wraps = ((stops - 1) // height > starts // height).any()
    top, bottom = (0, height - 1) if wraps else (tops.min(), bottoms.max())
    return int(left), int(top), int(right) + 1, int(bottom) + 1


def _between(positions: np.ndarray, first: int, last: int) -> slice:
    """Return the slice of rising or falling `positions` that are from `first` to `last`."""
    inside = np.flatnonzero((positions >= first) & (positions <= last))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def _first_from(positions: np.ndarray, height: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the first of the wanted pixels, counted column by column, at or after each position of the mask."""
    column, row = np.divmod(positions, height)
    at = np.searchsorted(columns, column)
    is_wanted = columns[np.minimum(at, len(columns) - 1)] == column
    return at * len(rows) + np.where(is_wanted, np.searchsorted(rows, row), 0)


@dataclass(frozen=True, eq=False)
class EncodedMasks:
    """The masks of an image's objects as run lengths, and the rows and columns of each that remain.

    Flipping, cropping and resizing (to the nearest pixel) only choose among rows and columns. `to_tensor` alone creates pixels, one
    object after the other and at the final size; they equal those of whole masks that were flipped, cropped and resized.
    """

    runs: Sequence[RunLengths]  # n
    rows: np.ndarray  # int64 (H,): of the image as annotated
    columns: np.ndarray  # int64 (W,)

    @classmethod
    def whole(cls, runs: Sequence[RunLengths], height: int, width: int) -> "EncodedMasks":
        """Return the masks in their own size."""
        return cls(runs, np.arange(height), np.arange(width))

    def __len__(self) -> int:
        return len(self.runs)

    def take(self, which: Tensor) -> "EncodedMasks":
        """Return the masks where `which`, bool (n,), is true."""
        return replace(self, runs=[runs for runs, kept in zip(self.runs, which.tolist(), strict=True) if kept])

    def cropped(self, rows: slice, columns: slice) -> "EncodedMasks":
        """Return a window of all masks."""
        return replace(self, rows=self.rows[rows], columns=self.columns[columns])

    def flipped(self) -> "EncodedMasks":
        """Return the mirror images of the masks."""
        return replace(self, columns=self.columns[::-1])

    def upside_down(self) -> "EncodedMasks":
        """Return the masks with the top at the bottom."""
        return replace(self, rows=self.rows[::-1])

    def resized(self, size: tuple[int, int]) -> "EncodedMasks":
        """Return the masks at another size (height, width), as `F.interpolate` with mode "nearest" resizes them."""
        return replace(self, rows=_nearest(self.rows, size[0]), columns=_nearest(self.columns, size[1]))

    def to_tensor(self) -> Tensor:
        """Return the pixels, uint8 (n, H, W)."""
        masks = torch.zeros(len(self.runs), len(self.rows), len(self.columns), dtype=torch.uint8)
        for mask, runs in zip(masks.numpy(), self.runs, strict=True):
            mask[:] = sampled(runs, self.rows, self.columns)
        return masks


def _nearest(positions: np.ndarray, count: int) -> np.ndarray:
    # PyTorch itself chooses, so that the rounding is the same; float32 is exact for the sides of any image.
    order = F.interpolate(torch.arange(len(positions), dtype=torch.float32)[None, None], size=count, mode="nearest")
    return positions[order[0, 0].long().numpy()]
