"""What a calibrated network knows of its predictions: the set of classes at a stated coverage, and whether an image is unknown to it."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict, cast

from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.calibration import Calibration, novelty, prediction_set, threshold, why_no_coverage
from convnext.tasks.shared import require_finite, why_no_embeddings

COVERAGE, UNKNOWN = "coverage", "unknown"  # the options of `infer`


class KnownOptions(TypedDict, total=False):
    """Options of `infer`."""

    coverage: float | None  # the fraction of images, 0 to 1, whose class shall be in its set; None for no sets
    unknown: bool  # whether to compare images with those trained on
    calibration: Calibration | None  # of the network


class EmbeddingNetwork(Protocol):
    """A classifier that gives what its head sees."""

    def forward_features(self, x: Tensor, /) -> Tensor: ...
    def forward_head(self, x: Tensor, /, *, pre_logits: bool = False) -> Tensor: ...


class KeepsEmbeddings:
    """A classifier that keeps what its head sees of the first images that go through it: one pass gives logits and embeddings."""

    def __init__(self, model: nn.Module) -> None:
        if (reason := why_no_embeddings(model, "forward_head")) is not None:
            raise UsageError(reason)
        self.network = cast(EmbeddingNetwork, model)
        self.embeddings: Tensor | None = None  # (N, C), on the network's device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of prepared images."""
        last = self.network.forward_features(images)
        if self.embeddings is None:  # a mirror image, which is the second, is not the image
            self.embeddings = self.network.forward_head(last, pre_logits=True)
        return self.network.forward_head(last)


def network_for(model: nn.Module, options: KnownOptions) -> nn.Module | KeepsEmbeddings:
    """Return what gives the logits of images: the network itself, or one that keeps the embeddings that `novelties` needs."""
    return KeepsEmbeddings(model) if options.get("unknown") else model


def sets(probabilities: Tensor, options: KnownOptions) -> Sequence[list[int] | None]:
    """Return the set of each image's classes, most probable first, from probabilities (N, classes); None where nobody asked for sets.

    Raises UsageError for a network that is not calibrated.
    """
    coverage = options.get("coverage")
    if coverage is None:
        return [None] * len(probabilities)
    largest = threshold(_required(options, COVERAGE).scores, coverage)
    return [prediction_set(row, largest) for row in probabilities]


def novelties(network: nn.Module | KeepsEmbeddings, count: int, options: KnownOptions) -> Sequence[float | None]:
    """Return the novelty of each of `count` images that went through what `network_for` returned; None where nobody asked for it.

    Raises UsageError for a network that is not calibrated.
    """
    if not isinstance(network, KeepsEmbeddings):
        return [None] * count
    assert network.embeddings is not None
    return novelty(_required(options, UNKNOWN), require_finite(network.embeddings.float().cpu()))


def _required(options: KnownOptions, name: str) -> Calibration:
    calibration = options.get("calibration")
    if calibration is None or _lacks(name, calibration):
        raise UsageError(_no_calibration(name))
    return calibration


def why_not(name: str, value: object, calibration: Calibration | None, model: nn.Module) -> str | None:
    """Return why a network with that calibration has no answer to an option with that value, None for any; None if it has one."""
    if name == UNKNOWN and (reason := why_no_embeddings(model, "forward_head")) is not None:
        return f"unknown: {reason}"
    if name in (COVERAGE, UNKNOWN) and (calibration is None or _lacks(name, calibration)):
        return _no_calibration(name)
    return why_no_coverage(value) if name == COVERAGE and value is not None else None


def _lacks(name: str, calibration: Calibration) -> bool:
    return not calibration.scores if name == COVERAGE else calibration.reference is None


def _no_calibration(name: str) -> str:
    of = "scores for prediction sets" if name == COVERAGE else "embeddings to compare images with"
    return f"{name}: these weights have no calibration with {of}: `convnext fit SOURCE --output RUN` makes weights that have one"


def columns(options: Mapping[str, object]) -> tuple[str, ...]:
    """Return the columns of a table that the options add."""
    of_sets = ("in_set",) if options.get(COVERAGE) is not None else ()
    return of_sets + (("novelty", "unknown") if options.get(UNKNOWN) else ())
