"""Choose among published weights: the most accurate for a cost and a licence."""

from collections.abc import Sequence
from dataclasses import dataclass

from convnext.errors import UsageError
from convnext.models.entry import Entry
from convnext.models.weights.tags.table import PublishedWeights, of_network

_USUAL = 256  # pixels a side, at most, of the training and tests that the tables compare


@dataclass(frozen=True)
class Choice:
    """Weights at one of the sizes at which they were tested."""

    weights: PublishedWeights
    size: int  # pixels a side
    top1: float  # percent on ImageNet-1K
    gmacs: float  # billions of multiply-adds at that size


def best(networks: Sequence[str], under: float | None = None, free: bool = False) -> list[Choice]:
    """Return the choices that no other one beats in both accuracy and cost, the most accurate first.

    Args:
        networks: the names to choose among.
        under: the largest cost, in billions of multiply-adds.
        free: only weights whose licence permits any use.
    """
    found = [choice for network in networks for choice in _of(network) if not free or choice.weights.is_free]
    found = [choice for choice in found if under is None or choice.gmacs <= under]
    kept: list[Choice] = []
    for choice in sorted(found, key=lambda choice: (choice.gmacs, -choice.top1)):
        if not kept or choice.top1 > kept[-1].top1:
            kept.append(choice)
    return kept[::-1]


def best_of(network: str) -> PublishedWeights | None:
    """Return the freely licensed weights of a network that are the most accurate at a size near the tables'; None if none was measured.

    Weights of larger images would be trained on at a size that they don't know.
    """
    found = [choice for choice in _of(network) if choice.weights.is_free and choice.size == choice.weights.size <= _USUAL]
    return max(found, key=lambda choice: choice.top1).weights if found else None


def best_tag(entry: Entry) -> str:
    """Return the tag of `best_of` for a network, or for the backbone under a head.

    Raises UsageError for one whose weights the table does not have.
    """
    found = best_of((entry.backbone or entry).name)
    if found is None:
        tags = ", ".join(entry.weights) or "a file"
        raise UsageError(f"weights 'best': no accuracy of freely licensed weights of {entry.name} is known here: name them ({tags})")
    return found.tag


def _of(network: str) -> list[Choice]:
    return [Choice(row, size, top1, row.gmacs_at(size)) for row in of_network(network).values() for size, top1 in row.top1.items()]
