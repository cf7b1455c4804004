"""Networks from outside the package, with what the package needs of a network."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn

from convnext.models.cost import Cost, ImageSize, count_cost
from convnext.models.network import Network

_WITHIN = "network."  # before the names of parameters, which a file has without it
_STRIDES = (4, 8, 16, 32)


class OwnNetwork(Network):
    """A network from outside: `network` is used as it is, and its weights keep their names in files.

    What it lacks of `convnext.models.network` has a default here: parameters of one dimension are not decayed, layer-wise decay goes block
    by block in the order of the parameters, and the head is the last layer with one output per class. An output with `logits`, as
    transformers returns, stands for these. Everything else is asked of the network itself.

    Args:
        network: the network.
        num_classes: outputs of its head.
        name: for messages.
    """

    def __init__(self, network: nn.Module, num_classes: int, name: str) -> None:
        super().__init__()
        self.network, self.num_classes, self.own_name = network, num_classes, name
        if (channels := getattr(network, "channels", None)) is not None and not hasattr(network, "strides"):
            self.strides = _STRIDES[: len(channels)]
        self.register_load_state_dict_pre_hook(_to_within)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:  # an attribute of a foreign network
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_modules", {}).get("network")
            if network is None:
                raise
            return getattr(network, name)

    def forward(self, *inputs: object, **options: object) -> Any:
        outputs = self.network(*inputs, **options)
        found = None if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
        return outputs if found is None else found

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the network's own state: files hold its names."""
        return self.network.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state: there is one format."""
        return dict(state)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters of one dimension, and of those that the network's own `no_weight_decay` names."""
        own = getattr(self.network, "no_weight_decay", None)
        named = {_WITHIN + name for name in own()} if callable(own) else set()
        return named | {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def layer_group(self, name: str) -> int:
        """Return what the network's own `layer_group` gives, or else the position of the parameter's block."""
        inner = name.removeprefix(_WITHIN)
        own = getattr(self.network, "layer_group", None)
        return int(own(inner)) if callable(own) else self._blocks.index(_block_of(inner))

    @property
    def stages_of_parameters(self) -> Callable[[], dict[str, int]] | None:
        """The network's own function from its parameters' names to their stages, for these names; None if it has none."""
        own = getattr(self.network, "stages_of_parameters", None)
        return (lambda: {_WITHIN + name: stage for name, stage in own().items()}) if callable(own) else None

    def drop_head(self) -> None:
        """Remove the head: under a detector or segmenter it has no use. Without one, this does nothing."""
        own = getattr(self.network, "drop_head", None)
        if self.num_classes and callable(own):
            own()
        elif self.num_classes and self.head_name:
            self.network.set_submodule(self.head_name, nn.Identity())
        self.num_classes = 0

    @cached_property
    def _blocks(self) -> list[str]:
        return list(dict.fromkeys(_block_of(name.removeprefix(_WITHIN)) for name, _ in self.named_parameters()))

    @cached_property
    def head_name(self) -> str:
        """The layer whose parameters depend on the number of classes; "" where none is found."""
        if (own := getattr(self.network, "head_name", None)) is not None:
            return str(own)
        layers = [name for name, layer in self.network.named_modules() if _outputs(layer) == self.num_classes]
        return layers[-1] if layers else ""

    def is_of_classes(self, key: str) -> bool:
        """Return whether the shape of that parameter depends on the number of classes."""
        return bool(self.head_name) and key.removeprefix(_WITHIN).startswith(f"{self.head_name}.")

    def count_classes(self, native: Mapping[str, Tensor]) -> int:
        """Return the number of classes of a state; that of this network where no head is found."""
        key = f"{self.head_name}.weight"
        return native[key].shape[0] if key in native else self.num_classes


def _to_within(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + _WITHIN + key.removeprefix(prefix)] = state.pop(key)


def _block_of(name: str) -> str:
    """Return the part of a parameter's name that names its block: up to the first number, or else the first word."""
    words = name.split(".")
    number = next((i for i, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[: number + 1])


def _outputs(layer: nn.Module) -> int | None:
    weight = layer._parameters.get("weight")
    return weight.shape[0] if weight is not None and weight.ndim > 1 else None


def count_own_cost(model: Network, image_size: ImageSize) -> Cost:
    """Return the cost of a network from outside on its device: alone it lies on the CPU, because it may not run on the meta device."""
    channels = cast("int", model.spec.get("in_channels", 3))
    return count_cost(model, image_size, channels, device=next(model.parameters()).device)
