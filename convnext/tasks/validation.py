"""The loss of training on the validation images: without augmentation, on the same draws at each evaluation."""

from collections.abc import Callable

import torch
from torch import nn

from convnext import distributed
from convnext.data.loader import Loader, make_loader
from convnext.data.randomness import generators_kept, seed_everything
from convnext.data.sampling.order import InOrder
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.recipe import Recipe
from convnext.tasks.base import AnyTask, Batch, Criterion, Metrics, TaskData
from convnext.tasks.shared import total

_VALIDATION = 4  # stream: the second number of the position that a seed is made of; `training.step` has the others

LossesOf = Callable[[nn.Module], Metrics]


def losses_of(
    task: AnyTask, recipe: Recipe, data: TaskData, how: Preprocessing, criterion: Criterion[Batch], device: torch.device
) -> LossesOf:
    """Return the function from a network to its validation `loss` and, if it has several, the parts as `loss_…`; {} without `eval.loss`.

    Each is the mean over the images of all processes, in float32. The function leaves the network in the mode that it was in, and the
    random generators as they were.
    """
    if not recipe.eval.loss:
        return lambda model: {}
    samples = task.loss_samples(data.val.source, how)
    order = InOrder(len(samples), 1, distributed.rank(), distributed.world())  # images of one size need no padding
    loader = make_loader(samples, order, task.collate, recipe.data.workers, device.type == "cuda")
    return lambda model: _mean_losses(model, criterion, loader, recipe.seed, device)


@torch.inference_mode()
def _mean_losses(model: nn.Module, criterion: Criterion[Batch], loader: Loader[Batch, InOrder], seed: int, device: torch.device) -> Metrics:
    was_training = model.training
    model.eval()
    model.training = True  # of the network alone, not of its parts: a detector gives losses in training mode
    sums: Metrics = {}
    count = 0
    with generators_kept():
        for batch in loader:
            if not len(batch):  # the image can't be read, which the evaluation reports
                continue
            seed_everything(seed, _VALIDATION, batch.indices[0])
            parts = criterion(model, batch.to(device))
            named = {name if name.startswith("loss_") else f"loss_{name}": loss for name, loss in parts.items() if len(parts) > 1}
            for name, loss in {"loss": total(parts), **named}.items():
                sums[name] = sums.get(name, 0.0) + loss.item()
            count += 1
    model.train(was_training)
    found = distributed.gather((sums, count))
    images = sum(other for _, other in found)
    return {name: sum(one.get(name, 0.0) for one, _ in found) / images for name in {key: None for one, _ in found for key in one}}
