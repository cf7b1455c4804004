"""The optimizer and its learning rate, as published."""

import math
from collections.abc import Callable
from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.network import Network
from convnext.recipe import Optim
from convnext.training.optimizers import Lamb, MuonAdamW, ParameterGroup, hidden_matrices

_MOMENTUM = {"sgd": 0.9, "muon": 0.95}  # where the recipe does not say


class OptimizerState(TypedDict):
    """What `Optimizer.state_dict` gives."""

    state: dict[int, dict[str, Tensor]]  # moments, by the number of the parameter
    param_groups: list[dict[str, object]]


def build_optimizer(model: Network, settings: Optim) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over groups of parameters, each with its `rule`, `weight_decay` and `lr_scale`.

    The parameters that `model.no_weight_decay()` names (biases, norms, layer scales) are not decayed. With layer-wise decay d,
    the rate of the parameters of `model.layer_group` g is scaled by d^(last group - g) (Clark et al., 2020; Bao et al., 2022). The groups
    are of one block each with `layer_decay_by` block. Parameters that need no gradient are not in it.

    Raises UsageError for groups that the network does not have.
    """
    groups = _groups(model, settings)
    lr, betas, eps = settings.lr, settings.betas, settings.eps
    momentum = _MOMENTUM.get(settings.name, 0.0) if settings.momentum is None else settings.momentum
    if settings.name == "muon":
        return MuonAdamW(groups, lr, momentum, betas, eps)
    if settings.name == "lamb":
        return Lamb(groups, lr, betas, eps)
    plain = [dict(group) for group in groups]
    if settings.name == "sgd":
        return torch.optim.SGD(plain, lr=lr, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(plain, lr=lr, betas=betas, eps=eps, fused=True)


def _groups(model: Network, settings: Optim) -> list[ParameterGroup]:
    exempt = model.no_weight_decay()
    matrices = hidden_matrices(model) if settings.name == "muon" else set()
    others = "adamw" if settings.name == "muon" else settings.name
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    group_of = _layer_groups(model, settings)
    last = max(group_of(name) for name, _ in named)
    groups: dict[tuple[int, bool, str], ParameterGroup] = {}
    for name, parameter in named:
        layer = group_of(name) if settings.layer_decay < 1 else last
        decay = 0.0 if name in exempt else settings.weight_decay
        rule = "muon" if name in matrices else others
        group = ParameterGroup(params=[], rule=rule, weight_decay=decay, lr_scale=settings.layer_decay ** (last - layer))
        groups.setdefault((layer, name in exempt, rule), group)["params"].append(parameter)
    return list(groups.values())


def _layer_groups(model: Network, settings: Optim) -> Callable[[str], int]:
    if settings.layer_decay_by == "group":
        return model.layer_group
    if not isinstance(model, ConvNeXt):
        raise UsageError(
            f"optim.layer_decay_by=block: only a ConvNeXt that classifies has groups of one block, not {model.spec['name']}; "
            "use optim.layer_decay_by=group"
        )
    return model.block_group


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the parameters in the optimizer's order, by which it numbers its moments."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def restore_moments(optimizer: torch.optim.Optimizer, saved: OptimizerState, before: list[str], now: list[str]) -> None:
    """Load the moments of a saved optimizer, whose parameters had the names `before`, into one with the names `now`.

    Hyperparameters stay those of the optimizer, so a recipe that was changed on purpose holds, with other groups too. The moments
    of a parameter that is now updated by another rule begin at zero.
    """
    own = optimizer.state_dict()
    numbers = {name: number for number, name in enumerate(before)}
    old, new = _rules(saved["param_groups"]), _rules(own["param_groups"])
    moments = {}
    for number, name in enumerate(now):
        if (found := numbers.get(name)) in saved["state"] and found is not None and old[found] == new[number]:
            moments[number] = saved["state"][found]
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})


def _rules(groups: list[dict[str, object]]) -> list[object]:
    # Of each parameter by number. Checkpoints of versions that knew AdamW alone do not say it.
    return [group.get("rule", "adamw") for group in groups for _ in cast(list[int], group["params"])]


def learning_rate(step: int, warmup_steps: int, total_steps: int, peak: float, final: float) -> float:
    """Return the rate at a step (from 0): linear from 0 to `peak` over the warm-up, both ends included, then half a cosine to `final`.

    This is the published code's schedule to the last digit: its warm-up is `linspace(0, peak, warmup_steps)`.
    """
    if step < warmup_steps:
        return peak * step / max(warmup_steps - 1, 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


def scheduled_rate(step: int, settings: Optim, warmup_steps: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return the rate of a recipe at a step (from 0), before a group's own scale.

    "cosine" is `learning_rate`, as in classification. "step" (a tenth from each milestone on) and "linear" (to `min_lr`) are the
    published detectors' and segmenters': there the warm-up multiplies the schedule, from `warmup_start` of it upwards.
    """
    if settings.schedule == "cosine":
        return learning_rate(step, warmup_steps, total_steps, settings.lr, settings.min_lr)
    if settings.schedule == "step":
        passed = (step >= round(at * (total_steps if at < 1 else steps_per_epoch)) for at in settings.milestones)
        rate = settings.lr * 0.1 ** sum(passed)
    else:
        rate = settings.min_lr + (settings.lr - settings.min_lr) * (1 - step / total_steps)
    if step < warmup_steps:
        rate *= 1 - (1 - step / warmup_steps) * (1 - settings.warmup_start)
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group to `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
