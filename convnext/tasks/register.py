"""What a program adds by a name of its own, beside networks: data, transforms, losses, metrics, callbacks, tasks. Imports no PyTorch."""

from collections.abc import Callable
from typing import TypeVar

from convnext.extend import CALLBACKS, LOSSES, METRICS, SOURCES, TASKS, TRANSFORMS, caller

Thing = TypeVar("Thing")


def register_source(prefix: str) -> Callable[[Thing], Thing]:
    """Add a source of data: the decorated function opens `data.train=PREFIX:WHERE`.

    It is called as `open(where, classes)`, with the text after the colon, and the class names of a network or None. It returns a
    map-style dataset of (image, label) pairs or of dicts with image and label, or an object with the methods of a protocol of
    `convnext.data.sources.base`, as detectors and segmenters need.

    Raises UsageError for a prefix that is taken.
    """
    return SOURCES.decorator(prefix, caller())


def register_transform(name: str) -> Callable[[Thing], Thing]:
    """Add an augmentation for `augment.extra`: a function from an image, a uint8 tensor (3, H, W), to one of the same size.

    It runs behind the recipe's own augmentation and before normalisation. Its draws come from the global generators of Python, NumPy
    and PyTorch, which are seeded for each image. Raises UsageError for a name that is taken.
    """
    return TRANSFORMS.decorator(name, caller())


def register_loss(name: str) -> Callable[[Thing], Thing]:
    """Add a loss for `train.loss`: a function of logits (N, classes) float32 and targets, which replaces the task's own loss.

    Targets are labels (N,) int64, or with mixup and CutMix probabilities (N, classes). It returns a scalar, or a dict of named scalars,
    whose sum is trained on. Raises UsageError for a name that is taken.
    """
    return LOSSES.decorator(name, caller())


def register_metric(name: str) -> Callable[[Thing], Thing]:
    """Add a metric for `eval.metrics`: a function of all logits (N, classes) float32 and labels (N,) int64 of an evaluation, on the CPU.

    It returns a number, or a dict of named numbers. Raises UsageError for a name that is taken.
    """
    return METRICS.decorator(name, caller())


def register_callback(name: str) -> Callable[[Thing], Thing]:
    """Add a callback for `train.callbacks`, by the decorated subclass of `convnext.Callback`, which is called without arguments.

    Raises UsageError for a name that is taken.
    """
    return CALLBACKS.decorator(name, caller())


def register_task(name: str) -> Callable[[Thing], Thing]:
    """Add a task, by the decorated subclass of `convnext.tasks.base.Task`. Raises UsageError for a name that is taken."""
    return TASKS.decorator(name, caller())
