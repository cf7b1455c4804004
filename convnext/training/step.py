"""One optimizer step: gradients accumulated over as many micro-batches as it takes, on as many devices as there are."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convnext import distributed
from convnext.data.randomness import seed_everything, seed_numpy
from convnext.errors import ConvnextError
from convnext.evaluate import autocast
from convnext.models.backbones.dropping import split_of
from convnext.ops.memory import is_out_of_memory
from convnext.recipe import Recipe
from convnext.tasks.base import Batch, Criterion
from convnext.tasks.shared import total
from convnext.text import counted
from convnext.training.optim import set_learning_rate
from convnext.training.sizes import micro_batch_for, smallest_part
from convnext.training.state import State

# Streams: the second number of the position that a seed is made of, so that no two uses share one.
WEIGHTS, STEP, MIXING = 1, 2, 3

_NAMED = 8  # images that a message about a step names


class HostCopy:
    """Numbers copied from their device to the host. On CUDA the copy runs behind the device's work; `read` waits for it alone."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._copied = numbers, None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> list[float]:
        """Return the numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        return cast(list[float], self._numbers.tolist())


@dataclass
class StepRecord:
    """What a step did. The numbers are known after `read`."""

    step: int  # its number, from 0
    indices: list[int] = field(default_factory=list)  # the first images of this process, by position in the source
    count: int = 0  # images of this process
    corrupt: list[tuple[int, str]] = field(default_factory=list)  # images of this process that could not be read
    loss: float = math.nan  # mean over the batch of all processes
    losses: dict[str, float] = field(default_factory=dict)  # likewise, of each named part
    norm: float = math.nan  # of the gradient, before clipping and without the factor of fp16
    norm_is_checked: bool = True  # in fp16 the scaler itself skips a step of infinite gradients, and lowers the scale of the loss
    stop: bool = False  # whether a process was asked to stop
    any_corrupt: bool = False  # whether a process met an image that could not be read
    fault: str | None = None  # what was not finite: the loss or the gradient
    pending: HostCopy | None = None

    def read(self) -> None:
        """Wait for the numbers of a step that the device may still be working on."""
        if self.pending is not None:
            *numbers, norm = self.pending.read()
            self.pending = None
            self.note(numbers, norm)

    def note(self, numbers: list[float], norm: float) -> None:
        """Take the numbers in the order in which `TrainStep` exchanges them, and the norm of the gradient."""
        stop, corrupt, self.loss, *parts = numbers
        self.stop, self.any_corrupt, self.norm = stop > 0, corrupt > 0, norm
        self.losses = dict(zip(self.losses, parts, strict=True))
        self.fault = _fault_of_loss(self.loss) or (_fault_of_norm(norm) if self.norm_is_checked else None)


def _fault_of_loss(loss: float) -> str | None:
    return None if math.isfinite(loss) else f"the loss is {loss}"


def _fault_of_norm(norm: float) -> str | None:
    return None if math.isfinite(norm) else f"the norm of the gradient is {norm}"


class TrainStep:
    """Makes optimizer steps on a state.

    A micro-batch has at most `micro_batch` images: `train.device_batch_size`; on a GPU, where the recipe does not say, what
    fits; elsewhere the process's whole share of a batch. Gradients accumulate. Neither the micro-batches nor the number of
    devices changes what is random: stochastic depth is drawn for the whole batch, and each micro-batch takes its part.

    On a GPU a step does not wait for the device, unless `train.nonfinite=skip` has to know the loss before the weights move:
    `StepRecord.read` does, when the numbers are needed.
    """

    def __init__(self, state: State, criterion: Criterion[Batch], recipe: Recipe, batch_size: int, device: torch.device) -> None:
        self.state, self.criterion, self.recipe, self.device = state, criterion, recipe, device
        self.batch_size, self.share = batch_size, batch_size // distributed.world()
        on_cuda = device.type == "cuda"
        self.micro_batch = micro_batch_for(recipe, self.share, device)
        self.part = self.micro_batch  # images that go through the network at a time
        self.fitted = recipe.train.device_batch_size is not None or not on_cuda
        self.deferred = on_cuda and recipe.train.nonfinite == "stop"  # numbers are read later
        self.buffers = self._buffers_to_keep()
        self.network: nn.Module = state.model
        self.ddp: DistributedDataParallel | None = None  # also where `network` is the compiled form of it
        if distributed.world() > 1:
            self.network = self.ddp = DistributedDataParallel(state.model, device_ids=[device.index] if on_cuda else None)
        if recipe.train.compile:
            # Shape by shape: for varying sizes Inductor (2.14) can't always order the strides, and a run has few.
            self.network = cast(nn.Module, torch.compile(self.network, dynamic=False))

    def _buffers_to_keep(self) -> list[Tensor]:
        """Return the running statistics, which move before a step is known to be made: skipped, or cut short in its micro-batches."""
        if self.recipe.train.nonfinite != "skip" and self.micro_batch == self.share:
            return []
        buffers = list(self.state.model.buffers())
        return buffers if any(buffer.is_floating_point() for buffer in buffers) else []

    def run(self, batches: Iterable[Batch], rate: float, stop: Callable[[], bool] = lambda: False) -> StepRecord:
        """Make one step on this process's share of a batch.

        Args:
            batches: an iterator over micro-batches, from which the share is taken.
            rate: the learning rate.
            stop: whether this process is asked to stop; called after the last micro-batch. All processes learn of it.

        Where the loss or the gradient is not finite (`fault`) and the numbers are read at once, weights and buffers stay as they
        were. An error leaves the buffers as they were too. Raises ConvnextError, saying what to lower, when the device's memory
        does not suffice.
        """
        record = StepRecord(self.state.step, norm_is_checked=not self.state.scaler.is_enabled())
        with self._out_of_memory_explained(), self._buffers_restored(record):
            set_learning_rate(self.state.optimizer, rate)
            self.state.optimizer.zero_grad(set_to_none=True)
            losses = self._accumulate(batches, record)
            flags = losses.new_zeros(2)  # filled on the device: a copy from the host would wait for it
            for flag, raised in zip(flags, (stop(), record.corrupt), strict=True):
                if raised:
                    flag.fill_(1)
            numbers = distributed.mean(torch.cat([flags, losses]))
            if self.deferred:
                norm = self._clip()
                self._update()
                record.pending = HostCopy(torch.cat([numbers, norm.to(numbers).reshape(1)]))
            else:
                record.note(numbers.tolist(), float(self._clip()))
                if record.fault is None:
                    self._update()
        self.state.step += 1
        return record

    def _accumulate(self, batches: Iterable[Batch], record: StepRecord) -> Tensor:
        """Return the loss of this process and its parts, float64, with the gradients in place."""
        done, losses = 0, torch.zeros(())
        for batch in batches:
            if not self.fitted:
                self.part, self.fitted = self._what_fits(batch), True
            for first in range(0, len(batch), self.part):
                part = batch[first : first + self.part]
                numbers = self._backward(part, done, record)
                losses = numbers if done == 0 else losses + numbers
                done += len(part)
            record.indices += batch.indices[: _NAMED - len(record.indices)]
            record.count += len(batch)
            record.corrupt += batch.corrupt
            if done >= self.share:
                break
        return losses

    def _backward(self, batch: Batch, first: int, record: StepRecord) -> Tensor:
        """Add the gradients of samples that begin at position `first` of the share; return their part of the losses, float64."""
        part = batch.to(self.device)
        weight = len(part) / self.share
        is_last = first + len(part) >= self.share
        waits = self.ddp.no_sync() if self.ddp is not None and not is_last else nullcontext()
        with waits, self._seeded(distributed.rank() * self.share + first, len(part)):
            with autocast(self.device, self.recipe.train.precision):
                parts = self.criterion(self.network, part)
                loss = total(parts) * weight
            self.state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        record.losses = dict.fromkeys(parts if len(parts) > 1 else (), math.nan)
        numbers = [loss.detach(), *(parts[name].detach() * weight for name in record.losses)]
        return torch.stack(numbers).to(self._exchange()).double()

    def _clip(self) -> Tensor:
        """Unscale the gradients and bring their norm under `optim.clip`; return the norm that they had."""
        state, clip = self.state, self.recipe.optim.clip
        state.scaler.unscale_(state.optimizer)
        if clip is not None:
            return torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in state.model.parameters() if parameter.grad is not None])

    def _update(self) -> None:
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        if self.state.ema is not None:
            self.state.ema.update_parameters(self.state.model)

    @contextmanager
    def _buffers_restored(self, record: StepRecord) -> Iterator[None]:
        """Put the buffers back if the step failed or is skipped."""
        before, made = [buffer.clone() for buffer in self.buffers], False
        try:
            yield
            made = record.fault is None
        finally:
            if not made:
                for buffer, value in zip(self.buffers, before, strict=True):
                    buffer.copy_(value)

    def _what_fits(self, batch: Batch) -> int:
        """Return how many images at a time every device can take: a micro-batch, halved until its gradients fit."""
        model, part = self.state.model, min(self.micro_batch, len(batch))
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # BatchNorm's, which a trial would move
        copies = (0 if self.state.optimizer.state else 2) + (self.ddp is not None)  # the moments and the exchange come later
        room = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(copies)]
        smallest = smallest_part(model, self.recipe)
        while not self._fits(batch, part) and part > smallest:
            part = -(-part // (2 * smallest)) * smallest
        if smallest == 2:  # no image is left over alone
            chunks = {self.micro_batch, self.share % self.micro_batch or self.micro_batch}
            while part > 2 and any(chunk % part == 1 for chunk in chunks):
                part -= 1
        del room
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        return min(distributed.gather(part))

    def _fits(self, batch: Batch, part: int) -> bool:
        try:
            with self._seeded(distributed.rank() * self.share, part):
                with autocast(self.device, self.recipe.train.precision):
                    loss = total(self.criterion(self.state.model, batch[:part].to(self.device)))
                loss.backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.state.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return True

    @contextmanager
    def _seeded(self, first: int, count: int) -> Iterator[None]:
        """Seed the generators for samples that begin at position `first` of the whole batch, and split stochastic depth."""
        seed, step = self.recipe.seed, self.state.step
        seed_everything(seed, STEP, step)
        seed_numpy(seed, MIXING, step, first)
        if count == self.batch_size:
            yield
            return
        with split_of(self.batch_size, torch.arange(first, first + count, device=self.device)):
            yield

    def _exchange(self) -> torch.device:
        # MPS has no float64, and a number exchanged over Gloo is on the CPU anyway.
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    @contextmanager
    def _out_of_memory_explained(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = max(self.part // 2, 1)
            raise ConvnextError(
                f"{self.device} has too little memory for {counted(self.part, 'image')} at a time: add train.device_batch_size={smaller} "
                "(the result stays the same, gradients accumulate) or model.grad_checkpointing=true, or lower data.image_size"
            ) from error
