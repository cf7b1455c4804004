"""What a network's training images say of its predictions: sets of classes at a stated coverage, and images unlike all of them.

Sets are split conformal prediction (Vovk et al., 2005; Angelopoulos and Bates, arXiv:2107.07511): of images like those that the scores are
of, at least the stated fraction have their true class in their set. A calibration travels in the weights file, which may be a stranger's:
everything in it is bounded and checked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from convnext.errors import ConvnextError, UsageError

REFERENCE = "calibration.reference"  # the tensor's name in a weights file
MAX_VALUES = 1000  # scores, and distances
MAX_ROWS = 2000  # of the reference
KEPT = 0.95  # the fraction of images like those trained on that are not called unknown
_BLOCK = 4096  # embeddings compared with the reference at a time: 33 MB of products
_LENGTH_ERROR = 0.01  # of an embedding of length 1: float16 leaves less than 0.001

Score = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0, le=2)]


class DescribedCalibration(BaseModel):
    """The lists of a calibration as the description of a file holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    scores: Annotated[list[Score], Field(max_length=MAX_VALUES)]
    distances: Annotated[list[Distance], Field(max_length=MAX_VALUES)]
    neighbours: int = Field(ge=0, le=MAX_ROWS)

    @model_validator(mode="after")
    def _in_order(self) -> "DescribedCalibration":
        for name, values in (("scores", self.scores), ("distances", self.distances)):
            if values != sorted(values):
                raise ValueError(f"{name} must be sorted")
        if self.distances and not self.neighbours:
            raise ValueError("distances are means over at least 1 of the neighbours")
        return self


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Calibration:
    """What a classifier's training images say of its predictions."""

    scores: tuple[float, ...]  # sorted, at most 1000: of images that the head was not fitted on, 1 - probability of the true class
    distances: tuple[float, ...]  # sorted, at most 1000: of training images, see `mean_distances`; () if it finds no unknown images
    neighbours: int  # of a distance
    reference: Tensor | None  # float16 (R, C), R <= 2000, on the CPU: embeddings of training images, each of length 1

    def to_json(self) -> dict[str, object]:
        """Return the lists, as a description holds them."""
        return {"scores": list(self.scores), "distances": list(self.distances), "neighbours": self.neighbours}


def calibrate(scores: Sequence[float], embeddings: Tensor | None = None, neighbours: int = 5) -> Calibration:
    """Return the calibration of a classifier.

    Args:
        scores: one for each image that the head was not fitted on: 1 - probability of its true class. Of more than 1000 the quantiles
            are kept, each rounded up: a set is then never too small. () for a network whose outputs are not one class of several.
        embeddings: (N, C), of the training images, of any length; None if it shall find no unknown images. Of more than 2000 images as many
            are kept, evenly spaced, so order them by class.
        neighbours: of a distance; fewer if there are fewer other images.

    Two images have no neighbours to speak of: with fewer than three there is no reference.
    """
    kept = tuple(_quantiles(torch.tensor(sorted(scores), dtype=torch.float64).clamp(0, 1)))
    if embeddings is None or len(embeddings) < 3:
        return Calibration(kept, (), 0, None)
    count = min(len(embeddings), MAX_ROWS)
    rows = torch.linspace(0, len(embeddings) - 1, count, dtype=torch.float64).round().long()
    reference = F.normalize(embeddings[rows].float(), dim=1).half()
    neighbours = min(neighbours, count - 1)
    own = torch.full((len(embeddings),), -1)
    own[rows] = torch.arange(count)
    distances = mean_distances(embeddings, reference, neighbours, own)
    return Calibration(kept, tuple(_quantiles(distances.sort().values)), neighbours, reference)


def _quantiles(ordered: Tensor) -> list[float]:
    """Return sorted values, or 1000 quantiles of more: each the smallest value that i / 1000 of the values do not exceed."""
    count = len(ordered)
    if count > MAX_VALUES:
        ordered = ordered[(torch.arange(1, MAX_VALUES + 1) * count + MAX_VALUES - 1).div(MAX_VALUES, rounding_mode="floor") - 1]
    found: list[float] = ordered.tolist()
    return found


def threshold(scores: Sequence[float], coverage: float) -> float:
    """Return the largest score of a class in a set: the smallest that at least ceil((n + 1) * coverage) of the n scores do not exceed.

    It is 1, so that every class is in every set, where n is too small for the coverage: 0.95 needs 19 scores.

    Raises UsageError unless the coverage lies between 0 and 1.
    """
    if (reason := why_no_coverage(coverage)) is not None:
        raise UsageError(reason)
    needed = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 0.07 * 100 is 7.000000000000001
    return scores[needed - 1] if needed <= len(scores) else 1.0


def why_no_coverage(value: object) -> str | None:
    """Return why a value is no coverage of sets; None if it is one."""
    if isinstance(value, int | float) and 0 < value < 1:
        return None
    return f"coverage: {value!r} is not the fraction of images whose class shall be in its set, between 0 and 1, for instance 0.95"


def prediction_set(probabilities: Tensor, largest: float) -> list[int]:
    """Return the classes of an image's set, most probable first: those with 1 - probability <= `largest`, and always the top one.

    `probabilities` is float32 (classes,).
    """
    ordered = probabilities.double().sort(descending=True, stable=True)
    count = max(1, int((1 - ordered.values <= largest).sum()))
    found: list[int] = ordered.indices[:count].tolist()
    return found


def mean_distances(embeddings: Tensor, reference: Tensor, neighbours: int, own: Tensor | None = None) -> Tensor:
    """Return the mean cosine distance, 0 to 2, of each embedding (N, C) to its nearest `neighbours` in the reference: (N,) float64.

    `own` (N,) has each embedding's own row in the reference, which is not its neighbour; -1 where it has none.
    """
    rows, found = reference.float(), []
    for start in range(0, len(embeddings), _BLOCK):
        near = F.normalize(embeddings[start : start + _BLOCK].float(), dim=1) @ rows.T
        if own is not None:
            part = own[start : start + _BLOCK]
            near[part >= 0, part[part >= 0]] = -torch.inf
        found.append((1 - near.topk(neighbours, dim=1).values.double().mean(1)).clamp(0, 2))
    return torch.cat(found)


def novelty(calibration: Calibration, embeddings: Tensor) -> list[float]:
    """Return for each embedding (N, C) the fraction, 0 to 1, of the training images that are nearer to their neighbours than it is.

    Above `KEPT` an image is unknown. Raises ConvnextError if the embeddings have another width than the reference.
    """
    assert calibration.reference is not None
    if embeddings.shape[1] != (width := calibration.reference.shape[1]):
        raise ConvnextError(f"the calibration is of embeddings of {width} numbers, and this network's have {embeddings.shape[1]}")
    ours = torch.tensor(calibration.distances, dtype=torch.float64)
    below = torch.searchsorted(ours, mean_distances(embeddings, calibration.reference, calibration.neighbours))
    return [count / len(ours) for count in below.tolist()]


def take(state: Mapping[str, Tensor], about: Mapping[str, object], file: str) -> tuple[dict[str, Tensor], Calibration | None]:
    """Return the tensors of a described weights file without the reference, and the calibration; None if the file has none.

    Raises ConvnextError, naming the file, for a reference that its description does not fit.
    """
    rest = dict(state)
    reference, described = rest.pop(REFERENCE, None), about.get("calibration")
    if described is None:
        if reference is not None:
            raise ConvnextError(f"{file} was not loaded: it has the tensor {REFERENCE}, and its description has no calibration")
        return rest, None
    found = from_json(described, reference)
    problem = _problem(found)
    if problem is not None:
        raise ConvnextError(f"{file} was not loaded: its calibration is invalid: {problem}")
    return rest, found


def from_json(described: object, reference: Tensor | None = None) -> Calibration:
    """Return the calibration of a checked description; without its reference, as exported files have it, it finds no unknown images."""
    known = DescribedCalibration.model_validate(described)
    return Calibration(tuple(known.scores), tuple(known.distances), known.neighbours, reference)


def _problem(found: Calibration) -> str | None:
    reference = found.reference
    if reference is None:
        return f"it has distances and no tensor {REFERENCE}" if found.distances else None
    if reference.ndim != 2 or reference.dtype != torch.float16 or not 0 < reference.shape[0] <= MAX_ROWS:
        shape = f"{str(reference.dtype).removeprefix('torch.')} {tuple(reference.shape)}"
        return f"{REFERENCE} is {shape}, and not float16 of two dimensions with at most {MAX_ROWS} rows"
    if not found.distances:
        return f"it has the tensor {REFERENCE} and no distances"
    if found.neighbours > len(reference):
        return f"it has {found.neighbours} neighbours of {len(reference)} rows"
    if not bool((reference.float().norm(dim=1) < 1 + _LENGTH_ERROR).all()):  # NaN and infinity are not either; an embedding may be 0
        return f"a row of {REFERENCE} is longer than 1, or not finite"
    return None


def check_width(calibration: Calibration, model: nn.Module, file: str) -> None:
    """Raise ConvnextError, naming the file, if the reference has another width than what the network's head takes, where that is known."""
    head = dict(model.named_modules()).get(str(getattr(model, "head_name", "")))
    width, reference = getattr(head, "in_features", None), calibration.reference
    if reference is not None and width not in (None, reference.shape[1]):
        wrong = f"{REFERENCE} has {reference.shape[1]} columns, and the network's embeddings {width}"
        raise ConvnextError(f"{file} was not loaded: its calibration is invalid: {wrong}")
