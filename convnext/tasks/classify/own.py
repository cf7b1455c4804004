"""A user's own loss and metrics of a classifier."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from convnext.data.transforms.classify import batch_mixing
from convnext.errors import UsageError
from convnext.recipe import Recipe
from convnext.tasks.base import Function, Json, Losses, Metric, Metrics
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.own import called, parts_of_loss, title, values_of_metric


def check_logits(outputs: object, images: Tensor, num_classes: int | None) -> Tensor:
    """Return the outputs of a network, which are logits (N, num_classes). Raises UsageError if they are not, saying what they are."""
    wanted = (len(images), num_classes) if num_classes is not None else (len(images), "classes")
    if not isinstance(outputs, Tensor):
        raise UsageError(f"the network gives a {type(outputs).__name__} for images {tuple(images.shape)}, not logits of shape {wanted}")
    if outputs.ndim != 2 or len(outputs) != len(images) or num_classes not in (None, outputs.shape[1]):
        found = tuple(outputs.shape)
        raise UsageError(f"the network gives outputs of shape {found} for images {tuple(images.shape)}, not logits of shape {wanted}")
    return outputs


class OwnCriterion:
    """A user's loss of logits (N, classes) float32 and targets, after mixup or CutMix where the recipe has them.

    Targets are labels (N,) int64, or probabilities (N, classes) of mixed images, which have the recipe's label smoothing.

    Args:
        recipe: that names the loss.
        loss: the function. A module's buffers go to the device of the logits.
        num_classes: of the data.

    Raises UsageError for a module with parameters: the optimizer has those of the network alone.
    """

    def __init__(self, recipe: Recipe, loss: Function, num_classes: int) -> None:
        self.name, self.loss, self.num_classes = title(str(recipe.train.loss), loss), loss, num_classes
        self.mix = batch_mixing(recipe.augment.mixup, recipe.augment.cutmix, recipe.train.label_smoothing, num_classes)
        if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
            raise UsageError(f"the loss {self.name} has parameters, which nothing would train: make them part of the network")

    def __call__(self, model: nn.Module, batch: ClassifyBatch) -> Losses:
        """Return the parts of the loss by name: one, `loss`, or those that the function names."""
        images, targets = (batch.images, batch.labels) if self.mix is None else self.mix(batch.images, batch.labels)
        logits = check_logits(model(images), images, self.num_classes).float()
        if isinstance(self.loss, nn.Module):
            self.loss.to(logits.device)
        return parts_of_loss(f"the loss {self.name}", called(f"the loss {self.name}", self.loss, logits, targets))


class KeptOutputs(Metric[ClassifyBatch, Tensor]):
    """A classifier's metric that keeps all logits and labels for a user's own: 4 bytes for each class of each image.

    Args:
        metric: the task's.
    """

    def __init__(self, metric: Metric[ClassifyBatch, Tensor]) -> None:
        self.metric = metric
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []  # positions in the source, logits and labels

    def update(self, outputs: Sequence[Tensor], batch: ClassifyBatch) -> None:
        """Add the network's logits (outputs,) for each sample of a batch."""
        self.metric.update(outputs, batch)
        self.parts.append((torch.tensor(batch.indices), torch.stack(list(outputs)).detach().float().cpu(), batch.labels.cpu()))

    def merge(self, other: Self) -> None:
        """Add what another process measured on other samples."""
        self.metric.merge(other.metric)
        self.parts += other.parts

    def compute(self) -> Metrics:
        """Return the task's metrics."""
        return self.metric.compute()

    def measure(self, functions: Mapping[str, Function], known: Sequence[str]) -> Metrics:
        """Return what a user's functions give for the logits (N, classes) float32 and labels (N,), in the order of the source."""
        found: Metrics = {}
        if not self.parts:  # no image could be read
            return found
        indices, logits, labels = (torch.cat(part) for part in zip(*self.parts, strict=True))
        order = indices.argsort()
        for name, function in functions.items():
            value = called(f"the metric {name}", function, logits[order], labels[order])
            found |= values_of_metric(name, value, [*known, *found])
        return found

    def details(self) -> Json:
        """Return what the report draws of the task's metric."""
        return self.metric.details()
