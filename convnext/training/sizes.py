"""Sizes that follow from the recipe, the data and the number of processes, and what can't be trained with them."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convnext import distributed
from convnext.data.sampling.order import EpochOrder
from convnext.errors import ConvnextError, UsageError
from convnext.models.network import Network
from convnext.recipe import Recipe
from convnext.recipe.checks import check_warmup
from convnext.tasks.base import TaskData
from convnext.text import counted

_MICRO_BATCH = 256  # images on a GPU at a time where the recipe does not say: more are no faster, and fill the host's memory


def batch_size_for(recipe: Recipe, count: int) -> int:
    """Return the batch size of a recipe, at most the dataset's `count`. Raises UsageError if processes can't share it evenly."""
    mixes = bool(recipe.augment.mixup or recipe.augment.cutmix)
    unit = distributed.world() * (2 if mixes else 1)
    if recipe.train.batch_size % unit:
        pairs = " of pairs, because mixup and CutMix pair images" if mixes else ""
        processes = counted(distributed.world(), "process")
        raise UsageError(f"train.batch_size={recipe.train.batch_size} can't be shared by {processes}{pairs}: give a multiple of {unit}")
    if mixes and (recipe.train.device_batch_size or 2) % 2:
        raise UsageError(f"train.device_batch_size={recipe.train.device_batch_size} must be even: mixup and CutMix pair images")
    size = min(recipe.train.batch_size, count)
    if size < unit:
        raise ConvnextError(f"{counted(count, 'image')} can't train {counted(distributed.world(), 'process')}{pairs_of(mixes)}: add images")
    return size - size % unit


def pairs_of(mixes: bool) -> str:
    """Return what a message adds where images are mixed."""
    return " with mixup or CutMix, which pair images" if mixes else ""


def micro_batch_for(recipe: Recipe, share: int, device: torch.device) -> int:
    """Return how many of a process's `share` of a batch are loaded, and at most computed, at a time."""
    # The CPU does not report that memory runs out, so there all goes through at once unless the recipe says otherwise.
    return min(recipe.train.device_batch_size or (_MICRO_BATCH if device.type == "cuda" else share), share)


def smallest_part(model: nn.Module, recipe: Recipe) -> int:
    """Return how many images must go through a network at a time in training: 2 for mixup, CutMix and BatchNorm."""
    return 2 if recipe.augment.mixup or recipe.augment.cutmix or _batch_norm(model) else 1


def check_length(recipe: Recipe, data: TaskData) -> list[str]:
    """Return what to report of the run's length. Raises UsageError if the warm-up is longer than the run."""
    count = len(data.train)
    per_epoch = EpochOrder(count, batch_size_for(recipe, count), recipe.seed, groups=data.groups).batches
    return check_warmup(recipe, per_epoch, recipe.train.steps() or recipe.train.epochs * per_epoch)


def check_batch_norm(model: Network, recipe: Recipe, count: int, device: torch.device) -> None:
    """Raise UsageError if a network with BatchNorm would train on one image at a time: it would have no statistics to learn from.

    Args:
        model: the network, with what is frozen.
        recipe: of the run.
        count: images to train on.
        device: where it trains.
    """
    share = batch_size_for(recipe, count) // distributed.world()
    part = micro_batch_for(recipe, share, device)
    if 1 not in (part, share % part) or (norm := _batch_norm(model)) is None:
        return
    name, each = recipe.model.name, f"a process has {counted(share, 'image')} of a batch"
    if share == 1:
        given = "fewer processes, or a larger train.batch_size"
    else:
        size = next(size for size in range(max(part, 2), share + 1) if share % size != 1)
        each += f", of which {counted(part, 'image')} at a time" + (" leave 1 over" if part > 1 else "")
        given = f"train.device_batch_size={size}"
    raise UsageError(f"{name} has BatchNorm ({norm}), which needs at least 2 images at a time, and {each}: give {given}")


def _batch_norm(model: nn.Module) -> str | None:
    """Return the name of the first BatchNorm that takes its statistics from the images that a process computes at a time."""
    for name, module in model.named_modules():
        # A detector's box heads normalise over regions, of which an image has many.
        if not isinstance(module, _BatchNorm) or ".bbox_head" in name or (isinstance(module, nn.SyncBatchNorm) and distributed.world() > 1):
            continue
        parameters = list(module.parameters())
        if not parameters or any(parameter.requires_grad for parameter in parameters):
            return name
    return None
