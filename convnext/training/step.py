"""One optimizer step: a batch in as many parts as fit, on as many devices as there are."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from convnext import distributed
from convnext.data.randomness import seed_everything, seed_numpy
from convnext.errors import ConvnextError, UsageError
from convnext.evaluate import autocast
from convnext.ops.memory import is_out_of_memory
from convnext.recipe import Recipe
from convnext.training.optim import set_learning_rate
from convnext.training.state import State

# The second word of the places that seeds are made of, so that no two uses share a stream.
WEIGHTS, STEP, MIXING = 1, 2, 3


def batch_size_for(recipe: Recipe, count: int) -> int:
    """The batch of a recipe, or the whole set where that is smaller. Raises UsageError if it can't be shared out evenly."""
    mixes = bool(recipe.augment.mixup or recipe.augment.cutmix)
    unit = distributed.world() * (2 if mixes else 1)
    if recipe.train.batch_size % unit:
        pairs = " of pairs, because mixup and CutMix pair images" if mixes else ""
        raise UsageError(f"train.batch_size={recipe.train.batch_size} can't be shared by {distributed.world()} processes{pairs}")
    if mixes and (recipe.train.device_batch_size or 2) % 2:
        raise UsageError(f"train.device_batch_size={recipe.train.device_batch_size} must be even: mixup and CutMix pair images")
    size = min(recipe.train.batch_size, count)
    if size < unit:
        raise ConvnextError(f"{count} images are too few to train on with {distributed.world()} processes")
    return size - size % unit


class Stepper:
    """Makes steps on a state.

    A batch of more than `train.device_batch_size` images a device, by default of more than fit into it, goes through in parts
    whose gradients add up. Neither that nor the number of devices changes what is random: stochastic depth is drawn for the
    whole batch, and each takes its part.
    """

    def __init__(self, state: State, trainer: Any, recipe: Recipe, batch_size: int, device: torch.device) -> None:
        self.state, self.trainer, self.recipe, self.device = state, trainer, recipe, device
        self.batch_size, self.share = batch_size, batch_size // distributed.world()
        # On the CPU nothing tells that memory runs out, so there all goes through at once unless the recipe says otherwise.
        self.part = min(recipe.train.device_batch_size or self.share, self.share)
        self.fitted = recipe.train.device_batch_size is not None or device.type != "cuda"
        buffers = list(state.model.buffers()) if recipe.train.nonfinite == "skip" else []
        self.buffers = buffers if any(buffer.is_floating_point() for buffer in buffers) else []  # what a skipped step must not move
        self.droppers = [module for module in state.model.modules() if hasattr(module, "places")]
        self.network = state.model
        if distributed.world() > 1:
            self.network = DistributedDataParallel(state.model, device_ids=[device.index] if device.type == "cuda" else None)
        if recipe.train.compile:
            # Shape by shape: of sizes that may vary Inductor (2.14) can't always order the strides, and a run has few.
            self.network = torch.compile(self.network, dynamic=False)

    def step(self, batch: Any, rate: float, *flags: bool) -> tuple[float, list[bool], str | None]:
        """One step on this process's share of the batch.

        Returns the mean loss over the whole batch, for each flag whether any process raised it (one exchange for all), and what
        was not finite, if anything: the loss or the gradient. Then the weights stay as they were, with `train.nonfinite=skip` the
        buffers too. Raises ConvnextError, saying what to lower, when the device's memory does not suffice.
        """
        try:
            if not self.fitted:
                self.part, self.fitted = self._what_fits(batch), True
            set_learning_rate(self.state.optimizer, rate)
            self.state.optimizer.zero_grad(set_to_none=True)
            before = [buffer.clone() for buffer in self.buffers]
            loss = sum(self._backward(batch, first) for first in range(0, self.share, self.part))
            loss, *raised = distributed.mean(torch.tensor([loss, *flags], dtype=torch.float64, device=self._exchange())).tolist()
            fault = self._update(loss)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise ConvnextError(self._out_of_memory()) from error
            raise
        if fault:
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)
        self.state.step += 1
        return loss, [flag > 0 for flag in raised], fault

    def _update(self, loss: float) -> str | None:
        """Move the weights by the gradient, or say why not."""
        state, clip = self.state, self.recipe.optim.clip
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        state.scaler.unscale_(state.optimizer)
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
        else:
            gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        # In fp16 the scaler itself leaves such a step out, and lowers the scale of the loss.
        if not state.scaler.is_enabled() and not math.isfinite(norm):
            return f"the norm of the gradient is {float(norm)}"
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        return None

    def _what_fits(self, batch: Any) -> int:
        """How many images at a time every device can take: the share of a batch, halved until its gradients fit."""
        model, part = self.state.model, self.share
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # BatchNorm's, which a trial would move
        copies = (0 if self.state.optimizer.state else 2) + (distributed.world() > 1)  # the moments and the exchange come later
        room = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(copies)]
        pair = 2 if self.recipe.augment.mixup or self.recipe.augment.cutmix else 1
        while not self._fits(batch, part) and part > pair:
            part = -(-part // (2 * pair)) * pair
        del room
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        return min(distributed.gather(part))

    def _fits(self, batch: Any, part: int) -> bool:
        self._seed(distributed.rank() * self.share, part)
        try:
            with autocast(self.device, self.recipe.train.precision):
                loss = self.trainer.loss(self.state.model, batch[:part].to(self.device))
            loss.backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.state.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    def _backward(self, batch: Any, first: int) -> float:
        part = batch[first : first + self.part].to(self.device)
        is_last = first + self.part >= self.share
        waits = isinstance(self.network, DistributedDataParallel) and not is_last
        self._seed(distributed.rank() * self.share + first, len(part))
        with self.network.no_sync() if waits else nullcontext():
            with autocast(self.device, self.recipe.train.precision):
                loss = self.trainer.loss(self.network, part) * (len(part) / self.share)
            self.state.scaler.scale(loss).backward()
        return loss.item()

    def _seed(self, first: int, count: int) -> None:
        # `first` is the place of this part in the whole batch.
        seed, step = self.recipe.seed, self.state.step
        seed_everything(seed, STEP, step)
        seed_numpy(seed, MIXING, step, first)
        if count < self.batch_size:
            places = torch.arange(first, first + count, device=self.device)
            for module in self.droppers:
                module.whole, module.places = self.batch_size, places

    def _exchange(self) -> torch.device:
        # MPS has no float64, and a number exchanged over Gloo is on the CPU anyway.
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def _out_of_memory(self) -> str:
        smaller = max(self.part // 2, 1)
        return (
            f"{self.device} has too little memory for {self.part} images at a time: add train.device_batch_size={smaller} "
            "(the result stays the same, gradients accumulate) or model.grad_checkpointing=true, or lower data.image_size"
        )
