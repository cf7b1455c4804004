"""The optimizers that PyTorch lacks: LAMB, and Muon for matrices beside AdamW for the rest."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from convnext.models.network import Network
from convnext.models.registry import find


class ParameterGroup(TypedDict):
    """Parameters with hyperparameters of their own."""

    params: list[nn.Parameter]
    rule: str  # by which they are updated: adamw, sgd, lamb or muon. Moments of one rule mean nothing to another.
    weight_decay: float
    lr_scale: float  # factor on the learning rate


def hidden_matrices(model: Network) -> set[str]:
    """Return the names of the weights that Muon updates: those of linear layers and of convolutions without groups, heads excepted.

    A convolution's weight (O, C, h, w) counts as a matrix (O, C h w), as its author flattens it (Jordan et al., 2024,
    https://kellerjordan.github.io/posts/muon). Depthwise and other grouped filters, embeddings and what depends on the number of
    classes are left to AdamW.
    """
    head = find(str(model.spec["name"])).is_of_classes
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    names = [f"{name}.weight" for name, module in layers.items() if getattr(module, "groups", 1) == 1]
    return {name for name in names if not head(model, name)}


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for groups whose `rule` is "muon", `torch.optim.AdamW` for the others, as one optimizer.

    An update of Muon has the size of one of AdamW (`match_rms_adamw`; Liu et al., 2025, arXiv 2502.16982), so that both take
    the same learning rate and weight decay.

    Args:
        groups: of parameters; those of Muon have two dimensions or more, and lie in memory row by row.
        lr: the learning rate.
        momentum: of Muon, in Nesterov's form.
        betas: of AdamW.
        eps: of AdamW.
    """

    def __init__(self, groups: Iterable[ParameterGroup], lr: float, momentum: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self._muon = self._adamw = None
        if matrices := self._groups("muon"):
            flat = [{**group, "params": [_matrix(weight) for weight in _weights(group)]} for group in matrices]
            kind = Float32Muon if _is_bfloat16_slow(flat) else torch.optim.Muon
            self._muon = kind(flat, lr=lr, momentum=momentum, nesterov=True, adjust_lr_fn="match_rms_adamw")
            for group, whole in zip(self._muon.param_groups, matrices, strict=True):
                whole |= {key: value for key, value in group.items() if key != "params"}
        if others := self._groups("adamw"):
            self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        # Both take the groups and the state of this optimizer anew, because `load_state_dict` replaces them.
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = self._groups("adamw"), self.state
            self._adamw.step()
        if self._muon is not None:
            self._muon.state.clear()
            self._muon.param_groups = [self._flat(group) for group in self._groups("muon")]
            self._muon.step()  # type: ignore[no-untyped-call]

    def _groups(self, rule: str) -> list[dict[str, object]]:
        return [group for group in self.param_groups if group["rule"] == rule]

    def _flat(self, group: dict[str, object]) -> dict[str, object]:
        matrices = []
        for weight in _weights(group):
            if weight.grad is not None:
                matrix = _matrix(weight)
                matrix.grad = weight.grad.reshape(matrix.shape)
                cast(torch.optim.Optimizer, self._muon).state[matrix] = self.state[weight]
                matrices.append(matrix)
        return {**group, "params": matrices}


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` that orthogonalises in float32: in bfloat16 it takes 15 times as long on a CPU without AVX-512."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, by Nesterov's momentum and `match_rms_adamw`."""
        for group in self.param_groups:
            for weight in (one for one in group["params"] if one.grad is not None):
                state, decay = self.state[weight], group["momentum"]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - decay)
                update = _orthogonal(weight.grad.lerp(momentum, decay), group["ns_coefficients"], group["ns_steps"], group["eps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


def _orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return the matrix with singular values near 1, by Newton and Schulz's iteration as PyTorch's Muon takes it, in float32."""
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _is_bfloat16_slow(groups: Iterable[Mapping[str, object]]) -> bool:
    on_cpu = all(one.device.type == "cpu" for group in groups for one in cast(list[Tensor], group["params"]))
    return on_cpu and torch.backends.cpu.get_cpu_capability() != "AVX512"


def _weights(group: dict[str, object]) -> list[nn.Parameter]:
    return cast(list[nn.Parameter], group["params"])


def _matrix(weight: Tensor) -> Tensor:
    return weight.detach().view(len(weight), -1)


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., 2020, arXiv 1904.00962): Adam's update and the weight decay, scaled by the norm of the weights over its own.

    Parameters without weight decay keep Adam's update as it is, as in the authors' code (and timm's `Lamb`).

    Args:
        groups: of parameters, each with its weight_decay.
        lr: the learning rate.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(self, groups: Iterable[ParameterGroup], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._update(weight, group["betas"], group["eps"])
                    if group["weight_decay"]:
                        update.add_(weight, alpha=group["weight_decay"])
                        size, own = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
                        update.mul_(torch.where((size > 0) & (own > 0), size / own, 1.0))
                    weight.add_(update, alpha=-group["lr"])

    def _update(self, weight: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
        """Return Adam's update of a parameter, before the learning rate; advances its moments."""
        state, (beta1, beta2) = self.state[weight], betas
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        count = int(state["step"])  # on the CPU: nothing waits for the device
        first = state["exp_avg"].lerp_(weight.grad, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
        scale = (second.sqrt() / (1 - beta2**count) ** 0.5).add_(eps)
        return (first / (1 - beta1**count)).div_(scale)
