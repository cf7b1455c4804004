"""Everything that a run needs to continue as if it had never stopped."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convnext.data.contents import DataContents
from convnext.models.network import Network
from convnext.recipe import Recipe
from convnext.training.optim import OptimizerState, build_optimizer, parameter_names, restore_moments

Saved = dict[str, object]  # plain containers of tensors and numbers, as a checkpoint holds them


@dataclass
class State:
    """A run at the end of a step."""

    model: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, in fp16; does nothing in other precisions
    ema: AveragedModel | None
    step: int = 0  # optimizer steps done, skipped ones included
    epoch: int = 0  # epochs completed
    seen: int = 0  # samples of the next epoch that were trained on
    count: int = 0  # samples to train on; 0 in a state of a version that kept no position but `step`
    data: DataContents | None = None  # `contents` of what the run trains on and is evaluated on
    evaluated: int = 0  # epochs after which the last evaluation was made
    best: float = -math.inf
    skipped: int = 0  # steps whose loss was not finite
    corrupt: dict[int, str] = field(default_factory=dict)
    logged: int = 0  # bytes of metrics.jsonl
    seconds: float = 0.0  # that the run took up to its last checkpoint
    callbacks: dict[str, object] = field(default_factory=dict)  # their states, by name

    def to_save(self) -> Saved:
        """Return the state as plain containers of tensors and numbers."""
        saved: Saved = {name: getattr(self, name) for name in _PLAIN}
        saved |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        saved["parameters"] = parameter_names(self.model, self.optimizer)
        return saved | {"ema": self.ema.state_dict() if self.ema is not None else None}

    def restore(self, saved: Saved) -> None:
        """Take the values of `to_save`. What the recipe sets stays: the optimizer's hyperparameters, EMA or none, the precision.

        An EMA that the saved state lacks begins with its weights. Raises RuntimeError if the state is another network's.
        """
        weights = cast(dict[str, Tensor], saved["model"])
        self.model.load_state_dict(weights)
        now = parameter_names(self.model, self.optimizer)
        before = cast(list[str], saved.get("parameters", now))
        restore_moments(self.optimizer, cast(OptimizerState, saved["optimizer"]), before, now)
        if saved["scaler"]:  # empty where it was off
            self.scaler.load_state_dict(cast(dict[str, object], saved["scaler"]))
        if self.ema is not None and saved["ema"] is not None:
            self.ema.load_state_dict(cast(dict[str, Tensor], saved["ema"]))
        elif self.ema is not None:
            self.ema.module.load_state_dict(weights)
        for name in _PLAIN:
            setattr(self, name, saved.get(name, getattr(self, name)))

    def locate(self, count: int, per_epoch: int, batch_size: int) -> None:
        """Turn the position, which is kept in samples, into one between batches: of `count` samples, `per_epoch` batches an epoch."""
        if not self.count:  # at the beginning, or saved by a version that kept steps alone
            self.epoch, batches = divmod(self.step, per_epoch)
            self.seen = batches * batch_size
        elif self.count != count:
            self.seen = self.seen * count // self.count
        self.count = count
        self.seen -= self.seen % batch_size
        if self.seen // batch_size >= per_epoch:
            self.epoch, self.seen = self.epoch + 1, 0

    def is_finite(self) -> bool:
        """Return whether every weight is finite: parameters and buffers (running statistics), and their EMA."""
        networks = [self.model] if self.ema is None else [self.model, self.ema_or_model]
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())

    @property
    def ema_or_model(self) -> Network:
        """Return the network that is evaluated and saved: the one with the EMA weights, if the run has an EMA."""
        return self.model if self.ema is None else cast(Network, self.ema.module)


_PLAIN = ("step", "epoch", "seen", "count", "data", "evaluated", "best", "skipped", "corrupt", "logged", "seconds", "callbacks")


def new_state(model: Network, recipe: Recipe, device: torch.device) -> State:
    """Return the state before the first step."""
    ema = None
    if recipe.train.ema:
        ema = AveragedModel(model, use_buffers=True)
        ema.multi_avg_fn = _averaging(recipe.train.ema, ema.n_averaged)
        ema.n_averaged.fill_(1)  # the published average starts from the initial weights, not from those after step one
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "fp16")
    return State(model, build_optimizer(model, recipe.optim), scaler, ema)


def ema_decay(updates: int, decay: float) -> float:
    """Return the decay of the EMA after so many updates. It warms up, or the initial weights would dominate a short run.

    The rule is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    return min(decay, (1 + updates) / (10 + updates))


def _averaging(decay: float, averaged: Tensor) -> Callable[..., None]:
    # `averaged` is the model's own counter, on the CPU; reading the one that is passed would wait for the device.
    def update(means: list[Tensor], values: list[Tensor], _: Tensor) -> None:
        if means[0].is_floating_point():
            now = ema_decay(int(averaged) - 1, decay)
            get_ema_multi_avg_fn(now)(means, values, averaged)  # type: ignore[no-untyped-call]
        else:  # counts, and indices such as Swin's: a mean would be rounded down, step by step
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)

    return update
