"""Everything that a run needs to go on as if it had never stopped."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convnext.recipe import Recipe
from convnext.training.optim import build_optimizer


@dataclass
class State:
    """A run at the end of a step."""

    model: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, in fp16; does nothing in other precisions
    ema: AveragedModel | None
    step: int = 0  # optimizer steps done, skipped ones included
    evaluated: int = 0  # epochs after which the last evaluation was made
    best: float = -math.inf
    skipped: int = 0  # steps whose loss was not finite
    corrupt: dict[int, str] = field(default_factory=dict)
    logged: int = 0  # bytes of metrics.jsonl

    def to_save(self) -> dict[str, Any]:
        """As plain containers of tensors and numbers."""
        saved = {name: getattr(self, name) for name in _PLAIN}
        saved |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return saved | {"ema": self.ema.state_dict() if self.ema is not None else None}

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `to_save`."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        for name in _PLAIN:
            setattr(self, name, saved[name])

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    @property
    def shipped(self) -> Any:
        """The network that is evaluated and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model


_PLAIN = ("step", "evaluated", "best", "skipped", "corrupt", "logged")


def new_state(model: Any, recipe: Recipe, device: torch.device) -> State:
    """The state before the first step."""
    ema = None
    if recipe.train.ema:
        ema = AveragedModel(model, multi_avg_fn=_averaging(recipe.train.ema), use_buffers=True)
        ema.n_averaged.fill_(1)  # the published average starts from the initial weights, not from those after step one
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "fp16")
    return State(model, build_optimizer(model, recipe.optim), scaler, ema)


def _averaging(decay: float) -> Callable[..., None]:
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(means: list[torch.Tensor], values: list[torch.Tensor], count: int) -> None:
        if means[0].is_floating_point():
            average(means, values, count)
        else:  # counts, and indices such as Swin's: a mean would be rounded down, step by step
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)

    return update
