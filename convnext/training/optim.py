"""The optimizer and its learning rate, as published."""

import math
from typing import Any

import torch

from convnext.recipe import Optim


def build_optimizer(model: Any, settings: Optim) -> torch.optim.AdamW:
    """AdamW with two groups: what is decayed, and what `model.no_weight_decay()` names (biases, norms, layer scales)."""
    exempt = model.no_weight_decay()
    decayed = [parameter for name, parameter in model.named_parameters() if name not in exempt]
    rest = [parameter for name, parameter in model.named_parameters() if name in exempt]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def learning_rate(step: int, warmup_steps: int, total_steps: int, peak: float, final: float) -> float:
    """The rate at a step (from 0): linear from 0 to `peak` over the warm-up, both ends included, then half a cosine to `final`.

    This is the published code's schedule to the last digit: its warm-up is `linspace(0, peak, warmup_steps)`.
    """
    if step < warmup_steps:
        return peak * step / max(warmup_steps - 1, 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group that rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
