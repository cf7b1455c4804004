"""LeNet-5 and AlexNet, the two early convolutional networks: for the demonstration and as baselines.

They only classify: their intermediate maps have no strides of 4, 8, 16 or 32, so `channels` and `strides` are empty and `features` raises
UsageError.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.dropping import Dropper
from convnext.models.network import Backbone


class Dropout(Dropper):
    """Dropout (Srivastava et al., 2014) of single activations."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors(x, *x.shape[1:]) if self.training else x


class Classic(Backbone):
    """A plain sequence of layers, `body`, and a linear `head`."""

    head: nn.Linear | nn.Identity
    head_name = "head"

    def __init__(
        self,
        name: str,
        body: nn.Sequential,
        num_features: int,
        num_classes: int,
        head_init_scale: float,
        min_size: int,
        foreign: dict[str, str],
    ) -> None:
        super().__init__()
        self.name, self.body, self.num_features, self.min_size = name, body, num_features, min_size
        self.channels, self.strides = (), ()
        self.foreign = foreign  # another library's names of modules to ours
        self.reset_classifier(num_classes)
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W). Raises UsageError if they are below `min_size`."""
        height, width = x.shape[-2:]
        if min(height, width) < self.min_size:
            smallest = f"{self.min_size} x {self.min_size}"
            raise UsageError(f"an image of {height} x {width} pixels is too small for {self.name}: resize it to at least {smallest}")
        return self.head(self.body(x))

    def features(self, x: Tensor) -> list[Tensor]:
        """Raise UsageError: the network has no pyramid."""
        raise self._no_maps()

    def drop_head(self) -> None:
        """Raise UsageError: no detector or segmenter can use the network."""
        raise self._no_maps()

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh head for `num_classes` classes on the network; 0 leaves the features before it as output."""
        self.set_num_classes(num_classes)
        like = next(self.body.parameters())
        self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Return the names of the biases."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def layer_group(self, name: str) -> int:
        """Return the position of the parameter's layer among those that have weights."""
        return self._layers().index(name.rpartition(".")[0])

    def stages_of_parameters(self) -> dict[str, int]:
        """Return the position of each parameter's layer in the body."""
        return {name: self.layer_group(name) for name, _ in self.named_parameters() if name.startswith("body.")}

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state in the other library's names, or in ours, in ours."""
        parts = {key: key.rpartition(".") for key in state}
        return {f"{self.foreign.get(module, module)}{dot}{leaf}": state[key] for key, (module, dot, leaf) in parts.items()}

    def _no_maps(self) -> UsageError:
        return UsageError(f"{self.name} has no maps of strides 4, 8, 16, 32: no detector or segmenter can use it")

    def _layers(self) -> list[str]:
        return [name for name, module in self.named_modules() if next(module.parameters(recurse=False), None) is not None]


def lenet5(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, head_init_scale: float = 1.0, grad_checkpointing: bool = False
) -> Classic:
    """Return LeNet-5 (LeCun et al., 1998, section II.B) as it is taught: plain average pooling, full connections, a linear head.

    The layer of 120 is a convolution, as in the paper. Images above 32 x 32 give it several positions, whose mean is taken.
    """
    _check("lenet5", drop_path, grad_checkpointing)
    body = nn.Sequential(
        *[nn.Conv2d(in_channels, 6, 5), nn.Tanh(), nn.AvgPool2d(2)],
        *[nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)],
        *[nn.Conv2d(16, 120, 5), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        *[nn.Linear(120, 84), nn.Tanh()],
    )
    return Classic("lenet5", body, 84, num_classes, head_init_scale, 32, {})


def alexnet(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, head_init_scale: float = 1.0, grad_checkpointing: bool = False
) -> Classic:
    """Return AlexNet (Krizhevsky et al., 2012) in its one-tower form (Krizhevsky, 2014), as torchvision builds it."""
    from torchvision.models import AlexNet

    _check("alexnet", drop_path, grad_checkpointing)
    theirs = AlexNet()
    theirs.features[0] = nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2)
    layers = {f"features.{name}": layer for name, layer in theirs.features.named_children()}
    layers |= {"avgpool": theirs.avgpool, "flatten": nn.Flatten()}
    layers |= {f"classifier.{name}": layer for name, layer in theirs.classifier[:-1].named_children()}
    body = nn.Sequential(*[Dropout(layer.p) if isinstance(layer, nn.Dropout) else layer for layer in layers.values()])
    foreign = {name: f"body.{i}" for i, name in enumerate(layers)} | {"classifier.6": "head"}
    return Classic("alexnet", body, 4096, num_classes, head_init_scale, 63, foreign)


def _check(name: str, drop_path: float, grad_checkpointing: bool) -> None:
    if drop_path:
        raise UsageError(f"{name} has no residual branches to drop: set drop_path to 0, not {drop_path}")
    if grad_checkpointing:
        raise UsageError(f"{name} has no blocks to recompute: set grad_checkpointing to false")
