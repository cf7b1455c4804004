"""Everything that a run needs to go on as if it had never stopped."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convnext.recipe import Recipe
from convnext.training.optim import build_optimizer, parameter_names, restore_moments


@dataclass
class State:
    """A run at the end of a step."""

    model: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, in fp16; does nothing in other precisions
    ema: AveragedModel | None
    step: int = 0  # optimizer steps done, skipped ones included
    epoch: int = 0  # epochs completed
    seen: int = 0  # samples of the next epoch that were trained on
    count: int = 0  # samples to train on; 0 where the state is of a version that kept no place besides `step`
    data: dict[str, Any] = field(default_factory=dict)  # `contents` of what the run trains and is tested on
    evaluated: int = 0  # epochs after which the last evaluation was made
    best: float = -math.inf
    skipped: int = 0  # steps whose loss was not finite
    corrupt: dict[int, str] = field(default_factory=dict)
    logged: int = 0  # bytes of metrics.jsonl

    def to_save(self) -> dict[str, Any]:
        """As plain containers of tensors and numbers."""
        saved = {name: getattr(self, name) for name in _PLAIN}
        saved |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        saved["parameters"] = parameter_names(self.model, self.optimizer)
        return saved | {"ema": self.ema.state_dict() if self.ema is not None else None}

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `to_save`. What the recipe sets stays as it is: the optimizer's hyperparameters, EMA or none, the precision.

        An EMA that the saved state has not begins with its weights. Raises RuntimeError if the state is another network's.
        """
        self.model.load_state_dict(saved["model"])
        now = parameter_names(self.model, self.optimizer)
        restore_moments(self.optimizer, saved["optimizer"], saved.get("parameters", now), now)
        if saved["scaler"]:  # empty where it was off
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None and saved["ema"] is not None:
            self.ema.load_state_dict(saved["ema"])
        elif self.ema is not None:
            self.ema.module.load_state_dict(saved["model"])
        for name in _PLAIN:
            setattr(self, name, saved.get(name, getattr(self, name)))

    def is_finite(self) -> bool:
        """Whether every weight is a number: parameters and buffers (running statistics), and their EMA."""
        networks = [self.model] if self.ema is None else [self.model, self.ema.module]
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())

    @property
    def shipped(self) -> Any:
        """The network that is evaluated and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model


_PLAIN = ("step", "epoch", "seen", "count", "data", "evaluated", "best", "skipped", "corrupt", "logged")


def new_state(model: Any, recipe: Recipe, device: torch.device) -> State:
    """The state before the first step."""
    ema = None
    if recipe.train.ema:
        ema = AveragedModel(model, use_buffers=True)
        ema.multi_avg_fn = _averaging(recipe.train.ema, ema.n_averaged)
        ema.n_averaged.fill_(1)  # the published average starts from the initial weights, not from those after step one
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "fp16")
    return State(model, build_optimizer(model, recipe.optim), scaler, ema)


def ema_decay(updates: int, decay: float) -> float:
    """The decay of the EMA after so many updates: it warms up, or the initial weights would weigh most in a short run.

    As TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    return min(decay, (1 + updates) / (10 + updates))


def _averaging(decay: float, averaged: torch.Tensor) -> Callable[..., None]:
    # `averaged` is the model's own counter, on the CPU; the one that is passed would have to be fetched from the device.
    def update(means: list[torch.Tensor], values: list[torch.Tensor], _: torch.Tensor) -> None:
        if means[0].is_floating_point():
            now = ema_decay(int(averaged) - 1, decay)
            get_ema_multi_avg_fn(now)(means, values, averaged)  # type: ignore[no-untyped-call]
        else:  # counts, and indices such as Swin's: a mean would be rounded down, step by step
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)

    return update
